"""ETH3D."""

from pathlib import Path

from src.evaluation.datasets.base import DenseSample, EvalDataset, Pair, list_files
from src.util import PathLike, read_eth3d_depth


class Eth3d(EvalDataset):
    """ETH3D high-resolution multi-view training set, distorted DSLR pictures with their rendered depth."""

    name = "ETH3D"
    metric = "absrel"
    cap_m = 72.0
    layout = "SCENE/images/dslr_images/NAME.JPG and SCENE/ground_truth_depth/dslr_images/NAME.JPG"
    _bgr_in_modelzoo = True

    def _list(self, path: PathLike) -> list[Pair]:
        pairs = []
        for truth in list_files(Path(path), "*/ground_truth_depth/dslr_images/*.JPG"):
            scene = truth.parents[2]
            image = scene / "images" / "dslr_images" / truth.name
            pairs.append(Pair(f"{scene.name}/{truth.stem}", image, truth))
        return pairs

    def _read(self, entry: Pair) -> DenseSample:
        image = self._image(entry.image)
        return self._dense(entry, image, read_eth3d_depth(entry.truth, *image.shape[:2]))
