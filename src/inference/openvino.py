"""Predictions of an ONNX file by OpenVINO, on the processor."""

import sys
from pathlib import Path
from typing import Any, Optional

import numpy as np

from src.inference.predictor import Predictor, as_map, refusals_of

# Of OpenVINO, this part converts models of other programs. It takes most of the import, and it sends statistics of use
# over the network, from a process of its own. OpenVINO does without it where it is not there.
_CONVERTER = "openvino.tools.ovc"
sys.modules.setdefault(_CONVERTER, None)
import openvino  # noqa: E402

if sys.modules[_CONVERTER] is None:
    del sys.modules[_CONVERTER]

_HINT = {"fp32": "f32", "bf16": "bf16"}


def has_bf16() -> bool:
    """Whether this processor has instructions for bfloat16 that OpenVINO uses."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoPredictor(Predictor):
    """Runs an ONNX network through OpenVINO.

    Args:
        path: The file.
        precision: ``fp32`` or ``bf16``.
        cache: Folder for compiled networks, which the next start takes from there; None for none.
        **kwargs: See ``Predictor``.

    Raises:
        CheckpointError: OpenVINO cannot run what is in the file.
    """

    def __init__(self, path: Path, precision: str = "fp32", cache: Optional[Path] = None, **kwargs: Any):
        super().__init__(**kwargs)
        core = openvino.Core()
        hints = {"INFERENCE_PRECISION_HINT": _HINT[precision], "PERFORMANCE_HINT": "LATENCY"}
        if cache:
            hints["CACHE_DIR"] = str(cache)
        self._what = f"{path}: OpenVINO {openvino.get_version().partition('-')[0]}"
        # One network for all sizes: another one for each would keep the weights once more.
        shape = (1, 3, self.height, self.width) if self.shapes == "fixed" else (1, 3, -1, -1)
        with refusals_of(self._what, RuntimeError):
            model = core.read_model(str(path))
            model.reshape(list(shape))
            self._request = core.compile_model(model, "CPU", hints).create_infer_request()
        self.compilations = 1

    def _run(self, prepared: np.ndarray) -> np.ndarray:
        with refusals_of(self._what, RuntimeError, ValueError):
            # The request keeps its output and writes the next one into the same memory.
            return as_map(self._request.infer([prepared], share_inputs=True)[0].copy(), prepared)
