"""TUM RGB-D."""

import math
import os
from pathlib import Path

import numpy as np

from src.common.errors import DataError
from src.evaluation.datasets.base import DatasetMissing, DenseSample, Entry, EvalDataset, find_picture, reading
from src.evaluation.metric import BAD_SHARE
from src.util import PathLike, is_number, read_fields, read_tum_depth

SEQUENCE = "rgbd_dataset_freiburg2_desk_with_person"
FRAMES = "the frames with people (.h5)"

_IMAGE, _DEPTH = "gt/img_1", "gt/gt_depth"  # of a .h5 frame
_LEAST_DEPTH_M = 1e-8  # of a reading in a .h5 frame
_MOST_PIXELS = 1 << 24  # of a .h5 frame
_OVERSHOOT = 0.1  # these pictures have been resized in floating point


class Tum(EvalDataset):
    """TUM RGB-D: the sequence that the 2021 suite scored, or the frames with people that the paper scored.

    * Sequence freiburg2_desk_with_person, paired by associate.txt. A line names a colour and a depth picture, the one
      in a folder ``depth``; time stamps and further columns do not count.
    * A folder of .h5 frames, at any level (``tum_hdf5.tgz`` of google/mannequinchallenge, 1,815 frames of five
      sequences): ``/gt/img_1`` is RGB on the scale 0..1, ``/gt/gt_depth`` metres, above 1e-8 where there is a reading.

    The sequence counts where both are found; ``version`` says which it is.
    """

    name = "TUM"
    metric = BAD_SHARE
    benchmark_images = 1815
    cap_m = 10.0
    layout = f"{SEQUENCE}/associate.txt with rgb/ and depth/ beside it, or as *.h5 frames"
    _bgr_in_modelzoo = True

    def _list(self, path: PathLike) -> list[Entry]:
        root = Path(path)
        if os.path.isdir(root / SEQUENCE):
            root = root / SEQUENCE
        associations = root / "associate.txt"
        if os.path.isfile(associations):
            entries = _list_sequence(root, associations)
            self.version, self.benchmark_images = SEQUENCE, len(entries)
            return entries
        frames = [frame for frame in sorted(root.rglob("*.h5")) if not frame.name.startswith(".")]
        if frames and self.protocol == "modelzoo":
            raise DatasetMissing(
                f"{path}: expected {SEQUENCE}/associate.txt for the modelzoo protocol, found {len(frames)} .h5 frames"
            )
        self.version = FRAMES
        return [Entry(frame.relative_to(root).with_suffix("").as_posix(), (frame, frame)) for frame in frames]

    def _read(self, entry: Entry) -> DenseSample:
        image, truth = entry.files
        if self.version == FRAMES:
            picture, depth = _read_frame(image)
            sample = self._dense(entry, picture, depth)
            sample.valid[depth <= _LEAST_DEPTH_M] = False
            return sample
        depth = read_tum_depth(truth)
        if self.protocol == "modelzoo":
            depth = np.rint(depth * 5000) // 256 / 5000  # stored numbers, upper byte, "metres"
        return self._dense(entry, self._image(image), depth)


def _list_sequence(root: Path, associations: Path) -> list[Entry]:
    entries = []
    for number, fields in read_fields(associations):
        files = [field for field in fields if not is_number(field)]
        is_depth = ["depth" in Path(file).parent.name.lower() for file in files]  # folders above may have any name
        if len(files) >= 2:
            truth = is_depth.index(True) if True in is_depth else 1
            picture = is_depth.index(False) if False in is_depth else 1 - truth
            paths = tuple(_unpacked(root / files[index]) for index in (picture, truth))
            entries.append(Entry(paths[0].stem, paths))
        else:
            fault = f"{associations}: line {number}: expected a colour and a depth picture, found {' '.join(fields)!r}"
            entries.append(Entry(f"line {number}", fault=fault))
    return entries


def _unpacked(path: Path) -> Path:
    """The file itself, or its place where an archive was unpacked into the folder it makes (rgb/rgb/*.png)."""
    nested = path.parent / path.parent.name / path.name
    found = find_picture(path)
    return found if os.path.isfile(found) else find_picture(nested) if os.path.isdir(nested.parent) else path


def _read_frame(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a .h5 frame: float32 RGB (H, W, 3) on the scale 0..1, and float64 metres (H, W)."""
    import h5py  # only these frames and NYU need it

    with reading(path, f"an HDF5 file with /{_IMAGE} and /{_DEPTH}"), h5py.File(path, "r") as file:
        found = [file[key] for key in (_IMAGE, _DEPTH)]
        # Looked at before they are read: a damaged size asks for any amount of memory.
        kinds = [(array.dtype.kind, array.shape) for array in found]
        size = kinds[1][1]
        if kinds != [("f", (*size, 3)), ("f", size)] or len(size) != 2 or not 0 < math.prod(size) <= _MOST_PIXELS:
            texts = " and ".join(f"{array.name} {array.dtype} {array.shape}" for array in found)
            raise DataError(f"{path}: expected /{_IMAGE} float (H, W, 3) and /{_DEPTH} float (H, W), found {texts}")
        image, depth = found[0][()].astype(np.float32), found[1][()].astype(np.float64)
    if not (image.min() >= -_OVERSHOOT and image.max() <= 1 + _OVERSHOOT):  # false for NaN, too
        raise DataError(f"{path}: expected /{_IMAGE} on the scale 0..1, found {image.min():g}..{image.max():g}")
    return image, depth
