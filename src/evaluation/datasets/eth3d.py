"""ETH3D."""

from pathlib import Path

from src.evaluation.datasets.base import DenseSample, Entry, EvalDataset, list_entries
from src.evaluation.metric import ABS_REL
from src.util import PathLike, read_eth3d_depth


class Eth3d(EvalDataset):
    """ETH3D high-resolution multi-view training set, distorted DSLR pictures with their rendered depth."""

    name = "ETH3D"
    metric = ABS_REL
    benchmark_images = 454
    cap_m = 72.0
    layout = "SCENE/images/dslr_images/NAME.JPG and SCENE/ground_truth_depth/dslr_images/NAME.JPG"
    _bgr_in_modelzoo = True

    def _list(self, path: PathLike) -> list[Entry]:
        return list_entries(Path(path), "{}/images/dslr_images/{}.JPG", "{}/ground_truth_depth/dslr_images/{}.JPG")

    def _read(self, entry: Entry) -> DenseSample:
        image = self._image(entry.files[0])
        return self._dense(entry, image, read_eth3d_depth(entry.files[1], *image.shape[:2]))
