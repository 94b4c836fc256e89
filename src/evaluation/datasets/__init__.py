"""The evaluation sets by name. A new set is a file here, a line in ``DATASETS`` and its name in ``common/names.py``."""

from collections.abc import Sequence
from typing import Union

from src.evaluation.datasets.base import EvalDataset
from src.evaluation.datasets.diw import Diw
from src.evaluation.datasets.eth3d import Eth3d
from src.evaluation.datasets.kitti import Kitti
from src.evaluation.datasets.nyu import Nyu
from src.evaluation.datasets.sintel import Sintel
from src.evaluation.datasets.tum import Tum
from src.util import PathLike

DATASETS = {dataset.name: dataset for dataset in (Kitti, Sintel, Tum, Nyu, Eth3d, Diw)}


def open_dataset(name: str, path: Union[PathLike, Sequence[PathLike]], protocol: str = "paper") -> EvalDataset:
    """Opens an evaluation set by its name; see ``EvalDataset`` for the other arguments and for errors."""
    return DATASETS[name](path, protocol)
