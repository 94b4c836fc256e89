"""TUM RGB-D."""

import os
from pathlib import Path
from typing import Union

import numpy as np

from src.common.errors import DataError
from src.evaluation.datasets.base import Broken, DenseSample, EvalDataset, Pair, text_lines
from src.util import PathLike, read_tum_depth


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

    def _list(self, path: PathLike) -> list[Union[Pair, Broken]]:
        root = Path(path)
        if os.path.isdir(root / self.sequence):
            root = root / self.sequence
        associations = root / "associate.txt"
        if not os.path.isfile(associations):
            raise self._missing(path)
        entries = []
        for number, line in enumerate(text_lines(associations), start=1):
            fields = line.split()
            if not fields or fields[0].startswith("#"):
                continue
            if len(fields) not in (2, 4):
                fault = f"{associations}: line {number}: expected 2 or 4 columns, found {len(fields)}"
                entries.append(Broken(f"line {number}", fault))
                continue
            image, truth = (self._unpacked(root / field) for field in (fields if len(fields) == 2 else fields[1::2]))
            entries.append(Pair(image.stem, image, truth))
        if not entries:
            raise DataError(f"{associations}: expected pairs of files, found none")
        return entries

    def _read(self, entry: Pair) -> DenseSample:
        depth = read_tum_depth(entry.truth)
        if self.protocol == "modelzoo":
            depth = np.rint(depth * 5000) // 256 / 5000  # stored numbers, upper byte, "metres"
        return self._dense(entry, self._image(entry.image), depth)

    @staticmethod
    def _unpacked(path: Path) -> Path:
        """The file itself, or its place where an archive was unpacked into the folder it makes (rgb/rgb/*.png)."""
        nested = path.parent / path.parent.name / path.name
        return nested if os.path.isfile(nested) and not os.path.isfile(path) else path
