"""Predictions of an ONNX file by OpenVINO, on the processor."""

import sys
from pathlib import Path
from typing import Any, Optional

import numpy as np

from src.common.errors import CheckpointError
from src.inference.predictor import Predictor

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
        CheckpointError: OpenVINO cannot read the file.
    """

    def __init__(self, path: Path, precision: str = "fp32", cache: Optional[Path] = None, **kwargs: Any):
        super().__init__(**kwargs)
        self._core = openvino.Core()
        self._hints = {"INFERENCE_PRECISION_HINT": _HINT[precision], "PERFORMANCE_HINT": "LATENCY"}
        if cache:
            self._hints["CACHE_DIR"] = str(cache)
        self._requests: dict[tuple[int, ...], openvino.InferRequest] = {}
        try:
            self._model = self._core.read_model(str(path))
            if self.shapes == "dynamic":
                self._compile((1, 3, -1, -1))
        except RuntimeError as error:
            raise CheckpointError(
                f"{path}: OpenVINO {openvino.get_version()} cannot run this model: {_reason(error)}"
            ) from error

    def _compile(self, shape: tuple[int, ...]) -> "openvino.InferRequest":
        if shape not in self._requests:
            self._model.reshape(list(shape))
            self._requests[shape] = self._core.compile_model(self._model, "CPU", self._hints).create_infer_request()
            self.compilations += 1
        return self._requests[shape]

    def _run(self, prepared: np.ndarray) -> np.ndarray:
        request = self._compile((1, 3, -1, -1) if self.shapes == "dynamic" else prepared.shape)
        # The request keeps its output and writes the next one into the same memory.
        return request.infer([prepared], share_inputs=True)[0].copy().reshape(prepared.shape[2:])


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line and not line.startswith("Exception from")), "no reason given")
