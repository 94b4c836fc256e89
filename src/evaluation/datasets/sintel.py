"""MPI Sintel."""

import os
from dataclasses import replace
from pathlib import Path

from src.evaluation.datasets.base import DatasetMissing, DenseSample, Entry, EvalDataset, check_size, list_entries
from src.evaluation.metric import ABS_REL
from src.util import PathLike, read_dpt, read_gray


class Sintel(EvalDataset):
    """MPI Sintel, final pass, left view. The occlusion masks are read under ``modelzoo`` only."""

    name = "Sintel"
    metric = ABS_REL
    benchmark_images = 1064
    cap_m = 72.0
    layout = "depth/SCENE/FRAME.dpt and final_left/SCENE/FRAME.png"

    def _list(self, path: PathLike) -> list[Entry]:
        masks = ["occlusions/{}/{}.png"] if self.protocol == "modelzoo" else []
        entries = list_entries(Path(path), "final_left/{}/{}.png", "depth/{}/{}.dpt", *masks)
        if entries and masks and not os.path.isdir(Path(path) / "occlusions"):
            raise DatasetMissing(f"{path}: expected occlusions/SCENE/FRAME.png for the modelzoo protocol, found none")
        return entries

    def _read(self, entry: Entry) -> DenseSample:
        image, truth, *masks = entry.files
        sample = self._dense(entry, self._image(image), read_dpt(truth))
        for mask in masks:
            occlusion = read_gray(mask)
            check_size(mask, occlusion, sample.image)
            sample = replace(sample, valid=sample.valid & (occlusion == 255))
        return sample
