"""Readers of the evaluation sets.

A data set finds its files when it is built and decodes a sample when it is asked for it. What is wrong with the whole
set is raised by the constructor, what is wrong with one sample by ``__getitem__``: a run can report that sample and
go on with the next. A damaged list entry (a line of associate.txt or of DIW_test.csv) counts as such a sample.
Data sets can be pickled and read from several threads or processes.

Two protocols: ``"paper"`` reads the data as their authors define them; ``"modelzoo"`` repeats the reading faults of
the 2021 MindSpore suite, so that figures can be compared with those it published:

* pictures of TUM, ETH3D and DIW in the channel order BGR,
* TUM depth read as 8 bit, i.e. only its upper byte, and still divided by 5000,
* Sintel scored only where the occlusion mask is 255, which is where the right view sees nothing,
* DIW's ``>`` taken as "point 1 is nearer",
* predictions resized without half-pixel centres (``half_pixel``).

Ground truth belongs to the pixels as stored: EXIF orientation is ignored, and nothing is resized here.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Optional, Union

import numpy as np

from src.common.errors import DataError, UsageError
from src.common.names import PROTOCOLS
from src.util import PathLike, read_image, size_and_time

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG")  # sets are passed on in other formats, too


class DatasetMissing(DataError):
    """A data set is not where it was looked for.

    Attributes:
        setting: The setting that says where that is; empty: that of the data set.
    """

    setting: ClassVar[str] = ""


@dataclass(frozen=True, eq=False)
class DenseSample:
    """A picture with a ground-truth depth map.

    Attributes:
        name: Name of the sample in its data set.
        image: (H, W, 3), RGB (BGR where the protocol says so): uint8, or float32 on the scale 0..1.
        depth: float32 or float64 (H, W), metres; meaningful where ``valid``.
        valid: bool (H, W): there is a reading, and it is nearer than the cap of the data set.
    """

    name: str
    image: np.ndarray
    depth: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True, eq=False)
class OrdinalSample:
    """A picture with ordered pairs of points.

    Attributes:
        name: Name of the sample in its data set.
        image: uint8 (H, W, 3), RGB (BGR where the protocol says so).
        points: int64 (N, 4): y1, x1, y2, x2, counted from 0.
        relation: int64 (N,): +1 if point 1 is farther, -1 if it is nearer.
    """

    name: str
    image: np.ndarray
    points: np.ndarray
    relation: np.ndarray


class Entry(NamedTuple):
    """A sample that was found while the files were listed.

    Attributes:
        name: Name of the sample in its data set.
        files: What it is read from, the picture first.
        fault: Why it cannot be read, if that is known already: one line.
        annotation: Where the line with its ground truth is, and that line (DIW).
    """

    name: str
    files: tuple[Path, ...] = ()
    fault: str = ""
    annotation: tuple[str, str] = ("", "")


def find_picture(path: Path) -> Path:
    """Returns the picture of a sample: ``path``, or the one beside it of the same name and another usual suffix.

    ``path`` itself if there is none: reading it says so.
    """
    if os.path.isfile(path) or not path.name:
        return path
    others = (path.with_suffix(suffix) for suffix in PICTURE_SUFFIXES)
    return next((other for other in others if os.path.isfile(other)), path)


def list_entries(folder: Path, image: str, truth: str, *others: str) -> list[Entry]:
    """Lists the files of ``truth`` in order, each with the picture (and other files) that belong to it.

    Hidden files, which archivers and killed runs leave behind, do not count.

    Args:
        folder: Folder of the data set.
        image: Path of a picture in it, with two ``{}``: a scene or drive, and a name. ``find_picture`` looks for it.
        truth: Path of its ground truth, in the same way.
        *others: Paths of further files, in the same way.
    """
    pattern = re.compile(truth.format("([^/]+)", "([^./][^/]*)"))
    entries = []
    for path in sorted(folder.glob(truth.format("*", "*"))):
        match = pattern.fullmatch(path.relative_to(folder).as_posix())
        if match:
            picture, *files = (folder / file.format(*match.groups()) for file in (image, truth, *others))
            entries.append(Entry("/".join(match.groups()), (find_picture(picture), *files)))
    return entries


class EvalDataset:
    """A list of samples and how they are scored.

    Args:
        path: The folder of the data set.
        protocol: ``"paper"`` or ``"modelzoo"``.

    Attributes:
        name: Canonical name, the key of the result file.
        metric: ``BAD_SHARE``, ``ABS_REL`` or ``WHDR``, see ``src/evaluation/metric.py``.
        benchmark_images: How many images the paper scored.
        version: Which version of the set was found, where there are several; else empty.
        cap_m: Largest depth in metres that is scored and that a prediction may take; None for ordinal data.
        resize_method: How the picture is fitted to the network size: ``"lower_bound"`` (the shorter side is at
            least that long) or ``"upper_bound"`` (the longer side is at most that long).
        layout: The files expected under ``path``.

    Raises:
        DatasetMissing: The files are not there.
        DataError: The set as a whole cannot be read.
        UsageError: Unknown protocol.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    benchmark_images: int
    version: str = ""
    cap_m: ClassVar[Optional[float]]
    resize_method: ClassVar[str] = "upper_bound"
    layout: ClassVar[str]
    _bgr_in_modelzoo: ClassVar[bool] = False

    def __init__(self, path: Union[PathLike, Sequence[PathLike]], protocol: str = "paper"):
        if protocol not in PROTOCOLS:
            raise UsageError(f"evaluation protocol: expected {' or '.join(PROTOCOLS)}, found {protocol!r}")
        self.protocol = protocol
        self._path = path
        self._entries = self._list(path)
        if not self._entries:
            raise self._missing(path)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Union[DenseSample, OrdinalSample]:
        """Decodes one sample.

        Raises:
            DataError: The sample is damaged or incomplete.
            IndexError: There is no such sample.
        """
        entry = self._entries[index]
        if entry.fault:
            raise DataError(entry.fault)
        return self._read(entry)

    def listing_faults(self) -> dict[int, str]:
        """Finds, without decoding anything, the samples that cannot be read.

        Returns:
            Number of the sample -> what is wrong: a damaged list entry, or a file that is gone.
        """
        faults = {}
        for index, entry in enumerate(self._entries):
            gone = [file for file in entry.files if not os.path.isfile(file)]
            if entry.fault:
                faults[index] = entry.fault
            elif gone:
                faults[index] = f"{gone[0]}: expected a file for sample {entry.name}, found none"
        return faults

    def pictures(self) -> Iterator[tuple[str, str]]:
        """Yields the name of every sample and the path of its picture in the data set; "" where that is not known."""
        for entry in self._entries:
            yield entry.name, os.path.relpath(entry.files[0], self._path) if entry.files else ""

    def fingerprint(self) -> str:
        """Returns a digest of the list of samples, and of size and time of change of the files that they are read from.

        It tells other data from the same, in whatever folder; nothing is decoded.
        """
        digest = hashlib.sha256()
        for entry in self._entries:
            files = [(file.name, size_and_time(file)) for file in entry.files]
            digest.update(ascii((entry.name, files, bool(entry.fault), entry.annotation[1])).encode())
        return digest.hexdigest()

    @property
    def half_pixel(self) -> bool:
        """Whether predictions are resized with half-pixel centres (see ``src/utils/transforms.py``)."""
        return self.protocol == "paper"

    def _list(self, path: Any) -> list[Entry]:
        """Finds the samples of the set."""
        raise NotImplementedError

    def _read(self, entry: Entry) -> Union[DenseSample, OrdinalSample]:
        """Decodes an entry that has no fault."""
        raise NotImplementedError

    def _missing(self, path: PathLike) -> DatasetMissing:
        return DatasetMissing(f"{path}: expected {self.name} as {self.layout}, found no such files")

    def _image(self, path: Path) -> np.ndarray:
        image = read_image(path, exif_rotation=False)
        if self._bgr_in_modelzoo and self.protocol == "modelzoo":
            image = np.ascontiguousarray(image[..., ::-1])
        return image

    def _dense(self, entry: Entry, image: np.ndarray, depth: np.ndarray) -> DenseSample:
        check_size(entry.files[1], depth, image)
        return DenseSample(entry.name, image, depth, (depth > 0) & (depth < self.cap_m))


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Makes one line of whatever h5py raises for a damaged file, any of a dozen kinds, and keeps NumPy quiet."""
    try:
        with np.errstate(all="ignore"):
            yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: expected {expected}, found other or damaged data") from error


def check_size(path: Path, truth: np.ndarray, image: np.ndarray) -> None:
    """Raises DataError unless the ground truth (or mask) in file ``path`` has the height and width of its picture."""
    if truth.shape != image.shape[:2]:
        expected, found = (" x ".join(map(str, shape)) for shape in (image.shape[:2], truth.shape))
        raise DataError(f"{path}: expected {expected} pixels as in the picture, found {found}")
