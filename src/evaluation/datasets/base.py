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
* predictions resized without half-pixel centres (``half_pixel``),
* inverted predictions accepted by the fit (``accept_inverted``), as by that suite's plain least squares.

Ground truth belongs to the pixels as stored: EXIF orientation is ignored, and nothing is resized here.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Optional, Union

import numpy as np

from src.common.errors import DataError, UsageError
from src.common.names import PROTOCOLS
from src.util import PathLike, read_image


class DatasetMissing(DataError):
    """A data set is not where it was looked for."""


@dataclass(frozen=True, eq=False)
class DenseSample:
    """A picture with a ground-truth depth map.

    Attributes:
        name: Name of the sample in its data set.
        image: uint8 (H, W, 3), RGB (BGR where the protocol says so).
        depth: float32 (H, W), metres; meaningful where ``valid``.
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


class Broken(NamedTuple):
    """An entry whose fault was found while the files were listed."""

    name: str
    fault: str


class Pair(NamedTuple):
    """A picture and its ground truth."""

    name: str
    image: Path
    truth: Path


def list_files(folder: Path, pattern: str) -> list[Path]:
    """Returns sorted matches without the hidden files that archivers and killed runs leave behind."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def text_lines(path: Path) -> list[str]:
    """Reads a list of samples line by line; DataError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _size_and_time(path: Path) -> Optional[tuple[int, int]]:
    """Bytes and nanoseconds of the last change, None where there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL byte in the name
        return None
    return status.st_size, status.st_mtime_ns


class EvalDataset:
    """A list of samples and how they are scored.

    Args:
        path: The folder of the data set.
        protocol: ``"paper"`` or ``"modelzoo"``.

    Attributes:
        name: Canonical name, the key of the result file.
        metric: ``"delta1"``, ``"absrel"`` or ``"whdr"``, see ``src/evaluation/metric.py``.
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
    cap_m: ClassVar[Optional[float]]
    resize_method: ClassVar[str] = "upper_bound"
    layout: ClassVar[str]
    _bgr_in_modelzoo: ClassVar[bool] = False

    def __init__(self, path: Union[PathLike, Sequence[PathLike]], protocol: str = "paper"):
        if protocol not in PROTOCOLS:
            raise UsageError(f"evaluation protocol: expected {' or '.join(PROTOCOLS)}, found {protocol!r}")
        self.protocol = protocol
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
        if isinstance(entry, Broken):
            raise DataError(entry.fault)
        return self._read(entry)

    def sample_name(self, index: int) -> str:
        """Name of a sample, without decoding it."""
        return self._entries[index].name

    def listing_faults(self) -> dict[int, str]:
        """Finds, without decoding anything, the samples that cannot be read.

        Returns:
            Number of the sample -> what is wrong: a damaged list entry, or a file that is gone.
        """
        faults = {}
        for index, entry in enumerate(self._entries):
            if isinstance(entry, Broken):
                faults[index] = entry.fault
                continue
            gone = [file for file in self._files_of(entry) if not os.path.isfile(file)]
            if gone:
                faults[index] = f"{gone[0]}: expected a file for sample {entry.name}, found none"
        return faults

    def fingerprint(self) -> str:
        """Returns a digest of the list of samples, and of size and time of change of the files that they are read from.

        It tells other data from the same; nothing is decoded.
        """
        digest = hashlib.sha256()
        for entry in self._entries:
            files = [] if isinstance(entry, Broken) else self._files_of(entry)
            digest.update(ascii((entry, [_size_and_time(file) for file in files])).encode())
        return digest.hexdigest()

    @property
    def half_pixel(self) -> bool:
        """Whether predictions are resized with half-pixel centres (see ``src/utils/transforms.py``)."""
        return self.protocol == "paper"

    @property
    def accept_inverted(self) -> bool:
        """Whether the fit may have a negative scale (see ``score_dense`` in ``src/evaluation/metric.py``)."""
        return self.protocol == "modelzoo"

    def _list(self, path: Any) -> list:
        """Lists the entries; each has a ``name`` and is either ``Broken`` or what ``_read`` takes."""
        raise NotImplementedError

    def _read(self, entry: Any) -> Union[DenseSample, OrdinalSample]:
        raise NotImplementedError

    def _files_of(self, entry: Any) -> list[Path]:
        """The files that ``_read`` reads."""
        return [field for field in entry if isinstance(field, Path)]

    def _missing(self, path: PathLike) -> DatasetMissing:
        found = "no such files" if os.path.isdir(path) else "no such folder"
        return DatasetMissing(f"{path}: expected {self.name} as {self.layout}, found {found}")

    def _image(self, path: Path) -> np.ndarray:
        image = read_image(path, exif_rotation=False)
        if self._bgr_in_modelzoo and self.protocol == "modelzoo":
            image = np.ascontiguousarray(image[..., ::-1])
        return image

    def _dense(self, pair: Pair, image: np.ndarray, depth: np.ndarray) -> DenseSample:
        check_size(pair.truth, depth, pair.image, image)
        return DenseSample(pair.name, image, depth, (depth > 0) & (depth < self.cap_m))


def check_size(truth_path: Path, truth: np.ndarray, image_path: Path, image: np.ndarray) -> None:
    """Raises DataError unless ground truth (or a mask) and image have the same height and width."""
    if truth.shape != image.shape[:2]:
        expected, found = (f"{height} x {width}" for height, width in (image.shape[:2], truth.shape))
        raise DataError(f"{truth_path}: expected {expected} pixels as in {image_path}, found {found}")
