"""Predictions of an ONNX file by ONNX Runtime: on the processor, on a GPU, or on Ascend."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from src.common.errors import UsageError
from src.inference.predictor import Predictor, as_map, refusals_of

_PROVIDERS = {"CPU": "CPUExecutionProvider", "GPU": "CUDAExecutionProvider", "Ascend": "CANNExecutionProvider"}
_PACKAGES = {"CPU": "onnxruntime", "GPU": "onnxruntime-gpu", "Ascend": "onnxruntime-cann"}


def best_device(device_target: str) -> str:
    """Returns the device that this build of ONNX Runtime has: the one that is asked for, or the best for ``auto``.

    Raises:
        UsageError: It does not have it.
    """
    available = onnxruntime.get_available_providers()
    if device_target == "auto":
        return next(device for device in ("Ascend", "GPU", "CPU") if _PROVIDERS[device] in available)
    if _PROVIDERS[device_target] not in available:
        raise UsageError(
            f"device_target {device_target}: expected ONNX Runtime with {_PROVIDERS[device_target]} (package "
            f"{_PACKAGES[device_target]}), found {', '.join(available)}"
        )
    return device_target


class OnnxRuntimePredictor(Predictor):
    """Runs an ONNX network through ONNX Runtime, in float32.

    Args:
        path: The file.
        device_target: ``CPU``, ``GPU`` (CUDA) or ``Ascend`` (CANN).
        device_id: Which of several devices.
        **kwargs: See ``Predictor``.

    Raises:
        CheckpointError: ONNX Runtime cannot run what is in the file.
        UsageError: The device cannot be used.
    """

    def __init__(self, path: Path, device_target: str = "CPU", device_id: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        provider = _PROVIDERS[device_target]
        options = {} if device_target == "CPU" else {"device_id": device_id}
        onnxruntime.set_default_logger_severity(3)  # errors alone
        self._what = f"{path}: ONNX Runtime {onnxruntime.__version__}"
        with refusals_of(self._what, Exception):  # its own exceptions have no common class
            self._session = onnxruntime.InferenceSession(str(path), providers=[(provider, options)])
        if provider not in self._session.get_providers():  # it falls back to the processor
            raise UsageError(
                f"device_target {device_target}, device_id {device_id}: ONNX Runtime cannot use it here; "
                "--device_target CPU does without"
            )
        self._input = self._session.get_inputs()[0].name
        self.compilations = 1

    def _run(self, prepared: np.ndarray) -> np.ndarray:
        with refusals_of(self._what, Exception):
            return as_map(self._session.run(None, {self._input: prepared})[0], prepared)
