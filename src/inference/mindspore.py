"""Predictions by MindSpore: of a network of this project, or of a MINDIR file."""

from pathlib import Path
from typing import Any

import numpy as np

from src.common.errors import CheckpointError
from src.inference.predictor import Predictor


class MindSporePredictor(Predictor):
    """Runs a MindSpore network.

    Args:
        net: (1, 3, h, w) -> (1, h, w).
        **kwargs: See ``Predictor``.
    """

    def __init__(self, net: Any, **kwargs: Any):
        super().__init__(**kwargs)
        import mindspore as ms

        self._tensor = ms.Tensor
        self.net = net.set_train(False)
        self._seen: set[tuple[int, ...]] = set()
        if self.shapes == "dynamic":
            net.set_inputs(ms.Tensor(shape=[1, 3, None, None], dtype=ms.float32))

    def _run(self, prepared: np.ndarray) -> np.ndarray:
        self._seen.add(() if self.shapes == "dynamic" else prepared.shape)
        self.compilations = len(self._seen)
        return self.net(self._tensor(prepared))[0].asnumpy()


def load_mindir(path: Path) -> Any:
    """Returns the network of a MINDIR file, with its weights; none of this project's network code is needed.

    Raises:
        CheckpointError: MindSpore cannot read the file.
    """
    import mindspore as ms

    try:
        return ms.nn.GraphCell(ms.load(str(path)))
    except (RuntimeError, ValueError) as error:
        reason = next(filter(None, str(error).splitlines()), "no reason given")
        raise CheckpointError(f"{path}: MindSpore {ms.__version__} cannot read this MINDIR file: {reason}") from error
