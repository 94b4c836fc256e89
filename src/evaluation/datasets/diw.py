"""Depth in the Wild."""

import os
import re
from pathlib import Path

import numpy as np

from src.common.errors import DataError
from src.evaluation.datasets.base import Entry, EvalDataset, OrdinalSample
from src.evaluation.metric import WHDR
from src.util import PathLike, read_lines, split_fields

_ANNOTATION = re.compile(r"(\d{1,9}),(\d{1,9}),(\d{1,9}),(\d{1,9}),([<>]),(\d{1,9}),(\d{1,9})(?:,.*)?")


class Diw(EvalDataset):
    """Depth in the Wild, test set: one pair of points per picture.

    DIW_test.csv alternates between a line with the path of a picture and a line
    ``y1,x1,y2,x2,relation,width,height``, counted from 1. The relation ``>`` says that the depth of point 1 is larger.
    """

    name = "DIW"
    metric = WHDR
    benchmark_images = 74_441
    cap_m = None
    layout = "DIW_Annotations/DIW_test.csv and the pictures that it names"
    _bgr_in_modelzoo = True

    def _list(self, path: PathLike) -> list[Entry]:
        # perhaps deeper: an archive was extracted into a folder that was made for it
        table = next((Path(path) / "DIW_Annotations").rglob("DIW_test.csv"), None)
        if table is None:
            raise self._missing(path)
        entries = []
        picture = ""  # named by the last line with a path, not annotated yet
        for number, text in read_lines(table):
            fields = split_fields(text)
            where, line = f"{table}: line {number}", ",".join(fields)
            if "/" in line:
                if picture:
                    fault = f"{where}: expected the annotation of {picture}, found {line!r}"
                    entries.append(Entry(picture, fault=fault))
                picture = fields[0]
                if len(fields) > 1 and os.path.isfile(Path(path) / text):  # its name holds what separates fields
                    picture = text
            elif picture:
                entries.append(Entry(picture, (Path(path) / picture,), annotation=(where, line)))
                picture = ""
            else:
                fault = f"{where}: expected the path of a picture, found {line!r}"
                entries.append(Entry(f"line {number}", fault=fault))
        if picture:
            entries.append(Entry(picture, fault=f"{table}: expected the annotation of {picture}, found the end"))
        return entries

    def _read(self, entry: Entry) -> OrdinalSample:
        where, line = entry.annotation
        match = _ANNOTATION.fullmatch(line)
        if match is None:
            raise DataError(f"{where}: expected y1,x1,y2,x2,< or >,width,height, found {line!r}")
        y1, x1, y2, x2, width, height = map(int, match.group(1, 2, 3, 4, 6, 7))
        image = self._image(entry.files[0])
        if image.shape[:2] != (height, width):
            found = f"{image.shape[0]} x {image.shape[1]}"
            raise DataError(f"{entry.files[0]}: expected {height} x {width} pixels ({where}), found {found}")
        if min(y1, x1, y2, x2) < 1 or max(y1, y2) > height or max(x1, x2) > width:
            raise DataError(f"{where}: expected points within {height} x {width}, found {line!r}")
        relation = 1 if (match[5] == ">") == (self.protocol == "paper") else -1
        points = np.array([[y1, x1, y2, x2]], np.int64) - 1
        return OrdinalSample(entry.name, image, points, np.array([relation], np.int64))
