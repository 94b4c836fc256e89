"""KITTI."""

from pathlib import Path

from src.evaluation.datasets.base import DenseSample, EvalDataset, Pair, list_files
from src.util import PathLike, read_kitti_depth


class Kitti(EvalDataset):
    """KITTI raw drives with lidar depth. Pictures without ground truth are no samples."""

    name = "Kitti"
    metric = "delta1"
    cap_m = 80.0
    resize_method = "lower_bound"
    layout = "DRIVE/image/NAME.png and DRIVE/depth/NAME.png"

    def _list(self, path: PathLike) -> list[Pair]:
        pairs = []
        for truth in list_files(Path(path), "*/depth/*.png"):
            drive = truth.parents[1]
            pairs.append(Pair(f"{drive.name}/{truth.stem}", drive / "image" / truth.name, truth))
        return pairs

    def _read(self, entry: Pair) -> DenseSample:
        return self._dense(entry, self._image(entry.image), read_kitti_depth(entry.truth))
