"""Predictions that some program has left on disk: finding and reading them.

They are looked for in RESULT_PATH/SET, SET in any letter case, or in RESULT_PATH where there is no such folder. A file
is one of these:

* ``NAME.npy``: numbers (H, W), or with more axes of length 1;
* ``NAME.pfm``: a portable float map, as ``midas_run.py`` writes it;
* ``NAME_HxW.bin``: H rows of W float32 numbers, little-endian, as the C++ runner writes it.

NAME is one of these, in this order:

1. the name of the sample, as column ``image`` of the details has it: ``DRIVE/0000000005``, ``SCENE/FRAME``;
2. the path of its picture in the data set without suffix, as programs name results that mirror a folder of pictures:
   ``DRIVE/image/0000000005``, ``final_left/SCENE/FRAME``;
3. the name in a folder without sub-folders: ``SCENE_FRAME``.

A NAME that fits two samples is that of neither.
"""

import hashlib
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from src.common.errors import DataError, UsageError
from src.common.names import DATA_SETS, PREDICTIONS
from src.evaluation.datasets.base import DatasetMissing, EvalDataset
from src.evaluation.evaluator import Sample
from src.util import read_float32, read_truth, size_and_time

SUFFIXES = (".npy", ".pfm", ".bin")
_INVERSE_DEPTH, _DEPTH = PREDICTIONS
_SIZED = re.compile(r"(.+)_(\d{1,9})x(\d{1,9})")
_LOOKED_FOR = "NAME.npy, NAME.pfm or NAME_HxW.bin"


class PredictionsMissing(DatasetMissing):
    """There is no prediction of a data set where they were looked for."""

    setting = "result_path"


class Predictions:
    """The predictions of a data set.

    Args:
        result_path: The folder of the predictions, of one or of several sets.
        dataset: The data set.
        kind: ``"inverse_depth"``: larger is nearer, any scale and shift; ``"depth"``: distance > 0 in any unit.

    Attributes:
        folder: Where they are looked for.
        files: Path of each file that looks like a prediction, in that folder.
        strays: Those of them that belong to no sample.

    Raises:
        PredictionsMissing: There is none.
        UsageError: There are two of one sample.
    """

    def __init__(self, result_path: Path, dataset: EvalDataset, kind: str = _INVERSE_DEPTH):
        self._dataset, self._kind = dataset, kind
        self.folder = _folder_of(result_path, dataset.name)
        self._names = _names_of_files(dataset)
        self._names_of: dict[str, list[str]] = {}
        for name, sample in self._names.items():
            self._names_of.setdefault(sample, []).append(name)
        self._found: dict[str, Path] = {}
        self.files: list[Path] = []
        self.strays: list[Path] = []
        others: Counter[str] = Counter()
        doubles: dict[str, tuple[Path, Path]] = {}
        for path in _walk(self.folder, [] if self.folder != result_path else [name.lower() for name in DATA_SETS]):
            if path.suffix.lower() not in SUFFIXES:
                others[path.suffix.lower() or "without suffix"] += 1
                continue
            self.files.append(path)
            sample = self._names.get(_name_of(path, self.folder))
            if not sample:
                self.strays.append(path)
            elif sample in self._found:
                doubles.setdefault(sample, (self._found[sample], path))
            else:
                self._found[sample] = path
        if doubles:
            sample, (first, second) = next(iter(doubles.items()))
            more = f" (and so for {len(doubles) - 1} others)" if len(doubles) > 1 else ""
            raise UsageError(
                f"result_path: expected one prediction for each sample, found {first} and {second} for "
                f"{dataset.name} {sample}{more}"
            )
        if not self._found:
            raise self._missing(others)

    def __len__(self) -> int:
        return len(self._found)

    def read(self, sample: Sample) -> np.ndarray:
        """Reads the prediction of a sample.

        Depth becomes 1 / depth here, at the size in which it was predicted: resizing to the size of the ground truth
        then interpolates inverse depth, as it does with every other prediction. In it planes are linear in the
        picture, so that this is exact on them, and infinite depth is the number 0.

        Returns:
            float32 inverse depth (h, w), of any size; larger is nearer.

        Raises:
            DataError: There is none, or it is truncated, of another shape, or without a number at some pixel.
        """
        path = self._found.get(sample.name)
        if path is None:
            expected = " or ".join(self._names_of.get(sample.name, []))
            raise DataError(
                f"{self._dataset.name} {sample.name}: expected its prediction as {_LOOKED_FOR} in {self.folder}, "
                f"NAME {expected}, found none"
            )
        values = _read_map(path)
        height, width = sample.image.shape[:2]
        # The name of a .bin file says its shape.
        if values.shape == (width, height) and width != height and path.suffix.lower() != ".bin":
            raise DataError(
                f"{path}: expected rows and columns of a picture of {height} x {width} pixels, found {width} x "
                f"{height}: transposed"
            )
        return _inverse(path, values) if self._kind == _DEPTH else _finite(path, values)

    def fingerprint(self) -> str:
        """Returns a digest of the names, sizes and times of change of the predictions."""
        digest = hashlib.sha256()
        for sample, path in sorted(self._found.items()):
            digest.update(ascii((sample, path.name, size_and_time(path))).encode())
        return digest.hexdigest()

    def _missing(self, others: Counter) -> PredictionsMissing:
        names = next(names for sample, names in self._names_of.items() if sample)  # those of the first sample
        found = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(3)) or "no files"
        if self.strays:
            found = f"{len(self.strays)} files of other names, such as {self.strays[0].relative_to(self.folder)}"
        return PredictionsMissing(
            f"{self.folder}: expected predictions of {self._dataset.name} as {_LOOKED_FOR}, NAME for instance "
            f"{' or '.join(names)}, found {found}"
        )


def strays_of(predictions: Iterable[Predictions]) -> list[str]:
    """Says, a line for each folder, how many predictions there belong to no sample of any data set."""
    by_folder: dict[Path, list[Predictions]] = {}
    for item in predictions:
        by_folder.setdefault(item.folder, []).append(item)
    lines = []
    for folder, items in by_folder.items():
        others = [set(item.strays) for item in items[1:]]
        strays = [path for path in items[0].strays if all(path in other for other in others)]
        if strays:
            lines.append(
                f"{folder}: {len(strays)} of {len(items[0].files)} predictions belong to no sample and are not scored, "
                f"such as {strays[0].relative_to(folder)}"
            )
    return lines


def _folder_of(result_path: Path, name: str) -> Path:
    """Finds the folder of a data set, in any letter case, or takes that of all."""
    try:
        folders = [entry for entry in sorted(os.listdir(result_path)) if os.path.isdir(result_path / entry)]
    except OSError as error:
        raise PredictionsMissing(
            f"{result_path}: expected a folder with predictions of {name}, found {error.strerror}"
        ) from error
    if name in folders:
        return result_path / name
    return next((result_path / folder for folder in folders if folder.lower() == name.lower()), result_path)


def _walk(folder: Path, left_out: Iterable[str]) -> Iterator[Path]:
    """Yields the files in a folder and its sub-folders, but for hidden ones, in order.

    Args:
        folder: Where to begin. Links to folders are followed, each folder is entered once.
        left_out: Names, in lower case, of folders in it that are not entered: those of other data sets.
    """
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        names = sorted(name for name in folders if not name.startswith("."))
        if place == str(folder):
            names = [name for name in names if name.lower() not in left_out]
        folders[:] = names
        yield from (Path(place, file) for file in sorted(files) if not file.startswith("."))


def _names_of_files(dataset: EvalDataset) -> dict[str, str]:
    """Maps what a file may be called to the name of its sample; "" where that might be one of several."""
    samples = list(dataset.pictures())
    names: dict[str, str] = {}
    for form in (
        lambda name, picture: name,
        lambda name, picture: posixpath.splitext(picture)[0],
        lambda name, picture: _plain(name).replace("/", "_"),
    ):
        fitting: dict[str, set[str]] = {}
        for name, picture in samples:
            if called := form(name, picture):
                fitting.setdefault(_plain(called), set()).add(name)
        for key, owners in fitting.items():
            names.setdefault(key, owners.pop() if len(owners) == 1 else "")
    return names


def _plain(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")


def _name_of(path: Path, folder: Path) -> str:
    """Returns what the name of a prediction has before its suffix and size, with its folders."""
    name = path.relative_to(folder).with_suffix("").as_posix()
    sized = _SIZED.fullmatch(name) if path.suffix.lower() == ".bin" else None
    return sized[1] if sized else name


def _read_map(path: Path) -> np.ndarray:
    if path.suffix.lower() != ".bin":
        return read_truth(path)
    sized = _SIZED.fullmatch(path.stem)
    if sized is None:
        raise DataError(f"{path}: expected the size in the name, NAME_HEIGHTxWIDTH.bin, found none")
    return read_float32(path, int(sized[2]), int(sized[3]))


def _inverse(path: Path, depth: np.ndarray) -> np.ndarray:
    bad = depth.size - np.count_nonzero(depth > 0)  # NaN is not above 0
    if bad:
        raise DataError(
            f"{path}: expected depth above 0 at every pixel, infinity where there is no end, found {bad} of "
            f"{depth.size} pixels that are 0, below 0 or NaN; fill them, because every pixel of the ground truth counts"
        )
    with np.errstate(over="ignore"):
        return _finite(path, np.divide(1.0, depth, dtype=np.float64).astype(np.float32))


def _finite(path: Path, inverse_depth: np.ndarray) -> np.ndarray:
    bad = inverse_depth.size - np.count_nonzero(np.isfinite(inverse_depth))
    if bad:
        raise DataError(
            f"{path}: expected finite inverse depth at every pixel, found {bad} of {inverse_depth.size} pixels that "
            "are NaN or infinite"
        )
    return inverse_depth.astype(np.float32, copy=False)
