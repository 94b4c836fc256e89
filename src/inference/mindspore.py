"""Predictions by MindSpore: of a network of this project, or of a MINDIR file."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Optional

import numpy as np

from src.inference.predictor import Predictor, as_map, refusals_of


class MindSporePredictor(Predictor):
    """Runs a MindSpore network.

    Args:
        net: (1, 3, h, w) -> (1, h, w).
        mindir: The file that it was read from, if it is not one of this project's code; its errors name it.
        **kwargs: See ``Predictor``.
    """

    def __init__(self, net: Any, mindir: Optional[Path] = None, **kwargs: Any):
        super().__init__(**kwargs)
        import mindspore as ms

        self._tensor = ms.Tensor
        self._mindir = mindir
        self.net = net.set_train(False)
        self._seen: set[tuple[int, ...]] = set()
        if self.shapes == "dynamic":
            net.set_inputs(ms.Tensor(shape=[1, 3, None, None], dtype=ms.float32))

    def _run(self, prepared: np.ndarray) -> np.ndarray:
        self._seen.add(() if self.shapes == "dynamic" else prepared.shape)
        self.compilations = len(self._seen)
        with _refusals_of(self._mindir) if self._mindir else nullcontext():
            return as_map(self.net(self._tensor(prepared)).asnumpy(), prepared)


def load_mindir(path: Path) -> Any:
    """Returns the network of a MINDIR file, with its weights; none of this project's network code is needed.

    Raises:
        CheckpointError: MindSpore cannot read the file.
    """
    import mindspore as ms

    with _refusals_of(path):
        return ms.nn.GraphCell(ms.load(str(path)))


def _refusals_of(path: Path) -> AbstractContextManager:
    import mindspore as ms

    return refusals_of(f"{path}: MindSpore {ms.__version__}", RuntimeError, ValueError, TypeError)
