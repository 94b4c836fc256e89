"""MPI Sintel."""

import os
from pathlib import Path

from src.evaluation.datasets.base import DatasetMissing, DenseSample, EvalDataset, Pair, check_size, list_files
from src.util import PathLike, read_dpt, read_gray


class Sintel(EvalDataset):
    """MPI Sintel, final pass, left view. The occlusion masks are read under ``modelzoo`` only."""

    name = "Sintel"
    metric = "absrel"
    cap_m = 72.0
    layout = "depth/SCENE/FRAME.dpt and final_left/SCENE/FRAME.png"

    def _list(self, path: PathLike) -> list[Pair]:
        self._root = Path(path)
        pairs = []
        for truth in list_files(self._root, "depth/*/*.dpt"):
            name = f"{truth.parent.name}/{truth.stem}"
            pairs.append(Pair(name, self._root / "final_left" / f"{name}.png", truth))
        if pairs and self.protocol == "modelzoo" and not os.path.isdir(self._root / "occlusions"):
            raise DatasetMissing(
                f"{self._root}: expected occlusions/SCENE/FRAME.png for the modelzoo protocol, found none"
            )
        return pairs

    def _occlusion_path(self, entry: Pair) -> Path:
        return self._root / "occlusions" / f"{entry.name}.png"

    def _files_of(self, entry: Pair) -> list[Path]:
        masks = [self._occlusion_path(entry)] if self.protocol == "modelzoo" else []
        return super()._files_of(entry) + masks

    def _read(self, entry: Pair) -> DenseSample:
        sample = self._dense(entry, self._image(entry.image), read_dpt(entry.truth))
        if self.protocol == "paper":
            return sample
        path = self._occlusion_path(entry)
        occlusion = read_gray(path)
        check_size(path, occlusion, entry.image, sample.image)
        return DenseSample(sample.name, sample.image, sample.depth, sample.valid & (occlusion == 255))
