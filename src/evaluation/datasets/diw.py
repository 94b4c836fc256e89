"""Depth in the Wild."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.common.errors import DataError
from src.evaluation.datasets.base import Broken, EvalDataset, OrdinalSample, text_lines
from src.util import PathLike


class _Annotation(NamedTuple):
    """A picture of DIW and the line of the table that belongs to it."""

    name: str
    image: Path
    where: str
    text: str


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
        for number, line in enumerate(map(str.strip, text_lines(table)), start=1):
            where = f"{table}: line {number}"
            if "/" in line:
                if picture:
                    entries.append(Broken(picture, f"{where}: expected the annotation of {picture}, found {line!r}"))
                picture = line
            elif line and picture:
                entries.append(_Annotation(picture, Path(path) / picture, where, line))
                picture = ""
            elif line:
                entries.append(Broken(f"line {number}", f"{where}: expected the path of a picture, found {line!r}"))
        if picture:
            entries.append(Broken(picture, f"{table}: expected the annotation of {picture}, found the end"))
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
