"""NYU Depth v2."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from src.common.errors import DataError, UsageError
from src.evaluation.datasets.base import Broken, DatasetMissing, DenseSample, EvalDataset, Pair
from src.util import PathLike


class _Frame(NamedTuple):
    """A row of the arrays of NYU."""

    name: str
    row: int


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
                entries.append(Broken(name, f"{splits}: expected testNdxs from 1 to {count}, found {index}"))
            elif index in listed:
                entries.append(Broken(name, f"{splits}: expected each of testNdxs once, found {index} again"))
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
        pair = Pair(entry.name, self._path, self._path)
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
