"""NYU Depth v2."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Union

import numpy as np

from src.common.errors import DataError, UsageError
from src.evaluation.datasets.base import DatasetMissing, DenseSample, Entry, EvalDataset, reading
from src.evaluation.metric import BAD_SHARE
from src.util import PathLike

_PRINT_TEST_INDICES = """
import json, sys, scipy.io
indices = scipy.io.loadmat(sys.argv[1], appendmat=False, variable_names=["testNdxs"])["testNdxs"]
assert indices.size
print(json.dumps(indices.astype(float).ravel().tolist()))
"""
_TIMEOUT_S = 60  # a sound file takes less than one


class Nyu(EvalDataset):
    """NYU Depth v2, labelled set (MATLAB 7.3 = HDF5, arrays transposed), the 654 test pictures of splits.mat.

    Args:
        path: ``nyu.mat`` and ``splits.mat``, or the folder that holds them.
        protocol: ``"paper"`` or ``"modelzoo"``.
    """

    name = "NYU"
    metric = BAD_SHARE
    benchmark_images = 654
    cap_m = 10.0
    layout = "nyu.mat and splits.mat"

    def pictures(self) -> Iterator[tuple[str, str]]:
        """Yields the names alone: all pictures are in one file."""
        return ((entry.name, "") for entry in self._entries)

    def _list(self, path: Union[PathLike, Sequence[PathLike]]) -> list[Entry]:
        if isinstance(path, (str, Path)):
            path = (Path(path) / "nyu.mat", Path(path) / "splits.mat")
        if len(path) != 2:
            raise UsageError(f"{self.name}: expected two paths, nyu.mat and splits.mat, found {len(path)}")
        for file in path:
            if not os.path.isfile(file):
                raise DatasetMissing(f"{file}: expected {self.name} as {self.layout}, found no such file")
        pictures, splits = map(Path, path)
        count = _count(pictures)
        unlisted = set(range(1, count + 1))
        entries = []
        for index in _test_indices(splits):
            fault = f"{splits}: expected testNdxs from 1 to {count}, each once, found {index:g}"
            entries.append(Entry(f"{index:04g}", (pictures, pictures), "" if index in unlisted else fault))
            unlisted.discard(index)
        return entries

    def _read(self, entry: Entry) -> DenseSample:
        import h5py  # only this data set needs it

        path, row = entry.files[0], int(entry.name) - 1
        # The file is not kept open: an HDF5 handle belongs to one process.
        with reading(path, f"picture {entry.name}"), h5py.File(path, "r") as file:
            image, depth = file["images"][row].transpose(2, 1, 0), file["rawDepths"][row].T
        return self._dense(entry, np.ascontiguousarray(image), np.ascontiguousarray(depth))


def _count(path: Path) -> int:
    """Checks the two arrays and returns how many pictures they hold."""
    import h5py

    with reading(path, "a MATLAB 7.3 (HDF5) file"), h5py.File(path, "r") as file:
        found = {key: (file[key].dtype, file[key].shape) for key in ("images", "rawDepths") if key in file}
    for key in ("images", "rawDepths"):
        if key not in found:
            raise DataError(f"{path}: expected the array {key}, found {', '.join(found) or 'none'}")
    count, *size = found["rawDepths"][1] or (0,)
    if found != {"images": (np.uint8, (count, 3, *size)), "rawDepths": (np.float32, (count, *size))}:
        arrays = " and ".join(f"{key} {kind} {shape}" for key, (kind, shape) in found.items())
        expected = "images uint8 (N, 3, W, H) and rawDepths float32 (N, W, H)"
        raise DataError(f"{path}: expected {expected}, found {arrays}")
    return count


def _test_indices(path: Path) -> list[float]:
    """Reads ``testNdxs`` (counted from 1) of a MATLAB file, in a process of its own: scipy crashes at some damage."""
    command = [sys.executable, "-c", _PRINT_TEST_INDICES, path]
    with reading(path, "a MATLAB file (before 7.3) with the array testNdxs"):
        printed = subprocess.run(command, capture_output=True, check=True, timeout=_TIMEOUT_S).stdout
        return json.loads(printed)
