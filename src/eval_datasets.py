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
* predictions that take near for far turned round by the fit (``turn_round``), as that suite's plain least squares did.

Ground truth belongs to the pixels as stored: EXIF orientation is ignored, and nothing is resized here.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Optional, Union

import numpy as np

from src.errors import DataError, UsageError
from src.util import (
    PathLike,
    read_dpt,
    read_eth3d_depth,
    read_gray,
    read_image,
    read_kitti_depth,
    read_tum_depth,
)

PROTOCOLS = ("paper", "modelzoo")


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


class _Broken(NamedTuple):
    """An entry whose fault was found while the files were listed."""

    name: str
    fault: str


class _Pair(NamedTuple):
    """A picture and its ground truth."""

    name: str
    image: Path
    truth: Path


class _Frame(NamedTuple):
    """A row of the arrays of NYU."""

    name: str
    row: int


class _Annotation(NamedTuple):
    """A picture of DIW and the line of the table that belongs to it."""

    name: str
    image: Path
    where: str
    text: str


def _files(folder: Path, pattern: str) -> list[Path]:
    """Sorted matches without the hidden files that archivers and killed runs leave behind."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def _text_lines(path: Path) -> list[str]:
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
        metric: ``"delta1"``, ``"absrel"`` (see ``src.metric.score_dense``) or ``"whdr"`` (``score_ordinal``).
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
        if isinstance(entry, _Broken):
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
            if isinstance(entry, _Broken):
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
            files = [] if isinstance(entry, _Broken) else self._files_of(entry)
            digest.update(ascii((entry, [_size_and_time(file) for file in files])).encode())
        return digest.hexdigest()

    @property
    def half_pixel(self) -> bool:
        """Whether predictions are resized with half-pixel centres (see ``src.metric.resize_prediction``)."""
        return self.protocol == "paper"

    @property
    def turn_round(self) -> bool:
        """Whether the fit may turn a prediction round (see ``src.metric.score_dense``)."""
        return self.protocol == "modelzoo"

    def _list(self, path: Any) -> list:
        """Lists the entries; each has a ``name`` and is either ``_Broken`` or what ``_read`` takes."""
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

    def _dense(self, pair: _Pair, image: np.ndarray, depth: np.ndarray) -> DenseSample:
        _check_size(pair.truth, depth, pair.image, image)
        return DenseSample(pair.name, image, depth, (depth > 0) & (depth < self.cap_m))


def _check_size(truth_path: Path, truth: np.ndarray, image_path: Path, image: np.ndarray) -> None:
    if truth.shape != image.shape[:2]:
        expected, found = (f"{height} x {width}" for height, width in (image.shape[:2], truth.shape))
        raise DataError(f"{truth_path}: expected {expected} pixels as in {image_path}, found {found}")


class Kitti(EvalDataset):
    """KITTI raw drives with lidar depth. Pictures without ground truth are no samples."""

    name = "Kitti"
    metric = "delta1"
    cap_m = 80.0
    resize_method = "lower_bound"
    layout = "DRIVE/image/NAME.png and DRIVE/depth/NAME.png"

    def _list(self, path: PathLike) -> list[_Pair]:
        pairs = []
        for truth in _files(Path(path), "*/depth/*.png"):
            drive = truth.parents[1]
            pairs.append(_Pair(f"{drive.name}/{truth.stem}", drive / "image" / truth.name, truth))
        return pairs

    def _read(self, entry: _Pair) -> DenseSample:
        return self._dense(entry, self._image(entry.image), read_kitti_depth(entry.truth))


class Sintel(EvalDataset):
    """MPI Sintel, final pass, left view. The occlusion masks are read under ``modelzoo`` only."""

    name = "Sintel"
    metric = "absrel"
    cap_m = 72.0
    layout = "depth/SCENE/FRAME.dpt and final_left/SCENE/FRAME.png"

    def _list(self, path: PathLike) -> list[_Pair]:
        self._root = Path(path)
        pairs = []
        for truth in _files(self._root, "depth/*/*.dpt"):
            name = f"{truth.parent.name}/{truth.stem}"
            pairs.append(_Pair(name, self._root / "final_left" / f"{name}.png", truth))
        if pairs and self.protocol == "modelzoo" and not os.path.isdir(self._root / "occlusions"):
            raise DatasetMissing(
                f"{self._root}: expected occlusions/SCENE/FRAME.png for the modelzoo protocol, found none"
            )
        return pairs

    def _occlusion_path(self, entry: _Pair) -> Path:
        return self._root / "occlusions" / f"{entry.name}.png"

    def _files_of(self, entry: _Pair) -> list[Path]:
        masks = [self._occlusion_path(entry)] if self.protocol == "modelzoo" else []
        return super()._files_of(entry) + masks

    def _read(self, entry: _Pair) -> DenseSample:
        sample = self._dense(entry, self._image(entry.image), read_dpt(entry.truth))
        if self.protocol == "paper":
            return sample
        path = self._occlusion_path(entry)
        occlusion = read_gray(path)
        _check_size(path, occlusion, entry.image, sample.image)
        return DenseSample(sample.name, sample.image, sample.depth, sample.valid & (occlusion == 255))


class Tum(EvalDataset):
    """TUM RGB-D, sequence freiburg2_desk_with_person, paired by associate.txt.

    A line of associate.txt is ``rgb/TIME.png depth/TIME.png`` or ``TIME rgb/TIME.png TIME depth/TIME.png``.
    """

    name = "TUM"
    metric = "delta1"
    cap_m = 10.0
    sequence = "rgbd_dataset_freiburg2_desk_with_person"
    layout = f"{sequence}/associate.txt with rgb/ and depth/ beside it"
    _bgr_in_modelzoo = True

    def _list(self, path: PathLike) -> list[Union[_Pair, _Broken]]:
        root = Path(path)
        if os.path.isdir(root / self.sequence):
            root = root / self.sequence
        associations = root / "associate.txt"
        if not os.path.isfile(associations):
            raise self._missing(path)
        entries = []
        for number, line in enumerate(_text_lines(associations), start=1):
            fields = line.split()
            if not fields or fields[0].startswith("#"):
                continue
            if len(fields) not in (2, 4):
                fault = f"{associations}: line {number}: expected 2 or 4 columns, found {len(fields)}"
                entries.append(_Broken(f"line {number}", fault))
                continue
            image, truth = (self._unpacked(root / field) for field in (fields if len(fields) == 2 else fields[1::2]))
            entries.append(_Pair(image.stem, image, truth))
        if not entries:
            raise DataError(f"{associations}: expected pairs of files, found none")
        return entries

    def _read(self, entry: _Pair) -> DenseSample:
        depth = read_tum_depth(entry.truth)
        if self.protocol == "modelzoo":
            depth = np.rint(depth * 5000) // 256 / 5000  # stored numbers, upper byte, "metres"
        return self._dense(entry, self._image(entry.image), depth)

    @staticmethod
    def _unpacked(path: Path) -> Path:
        """The file itself, or its place where an archive was unpacked into the folder it makes (rgb/rgb/*.png)."""
        nested = path.parent / path.parent.name / path.name
        return nested if os.path.isfile(nested) and not os.path.isfile(path) else path


class Nyu(EvalDataset):
    """NYU Depth v2, labelled set (MATLAB 7.3 = HDF5, arrays transposed), the 654 test pictures of splits.mat.

    Args:
        path: ``nyu.mat`` and ``splits.mat``, or the folder that holds them.
        protocol: ``"paper"`` or ``"modelzoo"``.
    """

    name = "NYU"
    metric = "delta1"
    cap_m = 10.0
    layout = "nyu.mat and splits.mat"

    def _list(self, path: Union[PathLike, Sequence[PathLike]]) -> list:
        if isinstance(path, (str, Path)):
            path = (Path(path) / "nyu.mat", Path(path) / "splits.mat")
        if len(path) != 2:
            raise UsageError(f"{self.name}: expected two paths, nyu.mat and splits.mat, found {len(path)}")
        self._path, splits = map(Path, path)
        for file in (self._path, splits):
            if not os.path.isfile(file):
                raise DatasetMissing(f"{file}: expected {self.name} as {self.layout}, found no such file")
        self._process: Optional[int] = None
        self._file: Any = None
        count = self._count()
        entries = []
        listed = set()
        for index in _test_indices(splits):
            name = f"{index:04d}"
            if not 1 <= index <= count:
                entries.append(_Broken(name, f"{splits}: expected testNdxs from 1 to {count}, found {index}"))
            elif index in listed:
                entries.append(_Broken(name, f"{splits}: expected each of testNdxs once, found {index} again"))
            else:
                entries.append(_Frame(name, index - 1))
            listed.add(index)
        return entries

    def _files_of(self, entry: _Frame) -> list[Path]:
        return [self._path]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None, "_process": None}  # HDF5 handles belong to one process

    def _open(self) -> Any:
        import h5py  # only this data set needs it

        return h5py.File(self._path, "r")

    def _count(self) -> int:
        """Checks the two arrays and returns how many pictures they hold."""
        try:
            with self._open() as file:
                keys = sorted(file)
                found = {key: file[key] for key in ("images", "rawDepths") if key in file}
                arrays = {key: (item.dtype, item.shape) for key, item in found.items() if hasattr(item, "shape")}
        except Exception as error:  # damage shows in h5py as any of half a dozen kinds
            raise DataError(
                f"{self._path}: expected a MATLAB 7.3 (HDF5) file, found another or a damaged one"
            ) from error
        for key in ("images", "rawDepths"):
            if key not in arrays:
                raise DataError(f"{self._path}: expected the array {key}, found {', '.join(keys) or 'none'}")
        (image_type, images), (depth_type, depths) = arrays["images"], arrays["rawDepths"]
        shapes_fit = len(images) == 4 and images[1] == 3 and depths == (images[0], *images[2:])
        if not (shapes_fit and image_type == np.uint8 and np.issubdtype(depth_type, np.floating)):
            raise DataError(
                f"{self._path}: expected uint8 images (N, 3, W, H) and floating-point rawDepths (N, W, H), "
                f"found {image_type} {images} and {depth_type} {depths}"
            )
        return images[0]

    def _read(self, entry: _Frame) -> DenseSample:
        try:
            if self._process != os.getpid():
                self._file, self._process = self._open(), os.getpid()
            file = self._file
            image, depth = file["images"][entry.row], file["rawDepths"][entry.row]
        except Exception as error:  # see _count
            raise DataError(f"{self._path}: picture {entry.name} cannot be read: damaged file") from error
        pair = _Pair(entry.name, self._path, self._path)
        image = np.ascontiguousarray(image.transpose(2, 1, 0))
        return self._dense(pair, image, np.ascontiguousarray(depth.T, np.float32))


def _test_indices(path: Path) -> list[int]:
    """Reads ``testNdxs`` (counted from 1) of a MATLAB file, old format or HDF5."""
    import h5py  # only NYU needs these two
    import scipy.io

    try:
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                content = {key: file[key][()] for key in file if key == "testNdxs"}
        else:
            content = scipy.io.loadmat(path, appendmat=False, variable_names=["testNdxs"])
    except Exception as error:  # the MATLAB parser fails in a dozen ways on other files
        raise DataError(f"{path}: expected a MATLAB file, found another or a damaged one") from error
    indices = np.asarray(content.get("testNdxs", ()))
    if not indices.size or indices.dtype.kind not in "uif":
        raise DataError(f"{path}: expected the array testNdxs with the test pictures, found none")
    numbers = indices.ravel().tolist()
    odd = [number for number in numbers if not float(number).is_integer()]  # NaN and infinity are none
    if odd:
        raise DataError(f"{path}: expected whole numbers in testNdxs, found {odd[0]}")
    return list(map(int, numbers))


class Eth3d(EvalDataset):
    """ETH3D high-resolution multi-view training set, distorted DSLR pictures with their rendered depth."""

    name = "ETH3D"
    metric = "absrel"
    cap_m = 72.0
    layout = "SCENE/images/dslr_images/NAME.JPG and SCENE/ground_truth_depth/dslr_images/NAME.JPG"
    _bgr_in_modelzoo = True

    def _list(self, path: PathLike) -> list[_Pair]:
        pairs = []
        for truth in _files(Path(path), "*/ground_truth_depth/dslr_images/*.JPG"):
            scene = truth.parents[2]
            image = scene / "images" / "dslr_images" / truth.name
            pairs.append(_Pair(f"{scene.name}/{truth.stem}", image, truth))
        return pairs

    def _read(self, entry: _Pair) -> DenseSample:
        image = self._image(entry.image)
        return self._dense(entry, image, read_eth3d_depth(entry.truth, *image.shape[:2]))


class Diw(EvalDataset):
    """Depth in the Wild, test set: one pair of points per picture.

    DIW_test.csv alternates between a line with the path of a picture and a line
    ``y1,x1,y2,x2,relation,width,height``, counted from 1. The relation ``>`` says that the depth of point 1 is larger.
    """

    name = "DIW"
    metric = "whdr"
    cap_m = None
    layout = "DIW_Annotations/DIW_test.csv and the pictures that it names"
    _bgr_in_modelzoo = True

    def _list(self, path: PathLike) -> list:
        folder = Path(path) / "DIW_Annotations"
        # the second: an archive was extracted into a folder that was made for it
        tables = [folder / "DIW_test.csv", folder / folder.name / "DIW_test.csv"]
        table = next(filter(os.path.isfile, tables), None)
        if table is None:
            raise self._missing(path)
        entries = []
        picture = ""  # named by the last line with a path, not annotated yet
        for number, line in enumerate(map(str.strip, _text_lines(table)), start=1):
            where = f"{table}: line {number}"
            if "/" in line:
                if picture:
                    entries.append(_Broken(picture, f"{where}: expected the annotation of {picture}, found {line!r}"))
                picture = line
            elif line and picture:
                entries.append(_Annotation(picture, Path(path) / picture, where, line))
                picture = ""
            elif line:
                entries.append(_Broken(f"line {number}", f"{where}: expected the path of a picture, found {line!r}"))
        if picture:
            entries.append(_Broken(picture, f"{table}: expected the annotation of {picture}, found the end"))
        if not entries:
            raise DataError(f"{table}: expected pictures and annotations, found none")
        return entries

    def _read(self, entry: _Annotation) -> OrdinalSample:
        fields = [field.strip() for field in entry.text.split(",")]
        try:
            *point, width, height = (int(field) for field in fields[:4] + fields[5:])
            relation = {">": 1, "<": -1}[fields[4]]
            (y1, x1, y2, x2) = point
        except (ValueError, KeyError, IndexError):
            raise DataError(f"{entry.where}: expected y1,x1,y2,x2,< or >,width,height, found {entry.text!r}") from None
        image = self._image(entry.image)
        if image.shape[:2] != (height, width):
            found = f"{image.shape[0]} x {image.shape[1]}"
            raise DataError(f"{entry.image}: expected {height} x {width} pixels ({entry.where}), found {found}")
        if not (min(point) >= 1 and max(y1, y2) <= height and max(x1, x2) <= width):
            raise DataError(f"{entry.where}: expected points within {height} x {width}, found {entry.text!r}")
        if self.protocol == "modelzoo":
            relation = -relation
        points = np.array([point], np.int64) - 1
        return OrdinalSample(entry.name, image, points, np.array([relation], np.int64))


DATASETS = {dataset.name: dataset for dataset in (Kitti, Sintel, Tum, Nyu, Eth3d, Diw)}


def canonical_name(name: str) -> str:
    """Returns the name of a data set as ``DATASETS`` spells it, from any letter case.

    Raises:
        UsageError: There is no such data set.
    """
    for known in DATASETS:
        if known.lower() == name.lower():
            return known
    raise UsageError(f"data set: expected one of {', '.join(DATASETS)}, found {name!r}")


def open_dataset(name: str, path: Union[PathLike, Sequence[PathLike]], protocol: str = "paper") -> EvalDataset:
    """Opens an evaluation set by its name in any letter case; see ``EvalDataset`` for arguments and errors."""
    return DATASETS[canonical_name(name)](path, protocol)
