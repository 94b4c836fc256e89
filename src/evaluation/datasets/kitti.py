"""KITTI."""

from pathlib import Path

from src.evaluation.datasets.base import DenseSample, Entry, EvalDataset, list_entries
from src.evaluation.metric import BAD_SHARE
from src.util import PathLike, read_kitti_depth


class Kitti(EvalDataset):
    """KITTI raw drives with lidar depth. Pictures without ground truth are no samples."""

    name = "Kitti"
    metric = BAD_SHARE
    benchmark_images = 161
    cap_m = 80.0
    resize_method = "lower_bound"
    layout = "DRIVE/image/NAME.png and DRIVE/depth/NAME.png"

    def _list(self, path: PathLike) -> list[Entry]:
        return list_entries(Path(path), "{}/image/{}.png", "{}/depth/{}.png")

    def _read(self, entry: Entry) -> DenseSample:
        image, truth = entry.files
        return self._dense(entry, self._image(image), read_kitti_depth(truth))
