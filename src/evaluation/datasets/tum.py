"""TUM RGB-D."""

import os
from pathlib import Path

import numpy as np

from src.evaluation.datasets.base import DenseSample, Entry, EvalDataset
from src.util import PathLike, read_lines, read_tum_depth


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

    def _list(self, path: PathLike) -> list[Entry]:
        root = Path(path)
        if os.path.isdir(root / self.sequence):
            root = root / self.sequence
        associations = root / "associate.txt"
        if not os.path.isfile(associations):
            raise self._missing(path)
        entries = []
        for number, line in read_lines(associations):
            fields = line.split()
            if len(fields) in (2, 4):
                files = tuple(_unpacked(root / field) for field in (fields if len(fields) == 2 else fields[1::2]))
                entries.append(Entry(files[0].stem, files))
            else:
                fault = f"{associations}: line {number}: expected 2 or 4 columns, found {len(fields)}"
                entries.append(Entry(f"line {number}", fault=fault))
        return entries

    def _read(self, entry: Entry) -> DenseSample:
        image, truth = entry.files
        depth = read_tum_depth(truth)
        if self.protocol == "modelzoo":
            depth = np.rint(depth * 5000) // 256 / 5000  # stored numbers, upper byte, "metres"
        return self._dense(entry, self._image(image), depth)


def _unpacked(path: Path) -> Path:
    """The file itself, or its place where an archive was unpacked into the folder it makes (rgb/rgb/*.png)."""
    nested = path.parent / path.parent.name / path.name
    return nested if os.path.isfile(nested) and not os.path.isfile(path) else path
