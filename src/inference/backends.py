"""Which program runs a network, told by the file that holds it.

| file | backend |
| --- | --- |
| checkpoint (.ckpt, .pt, .safetensors), or none | MindSpore |
| .mindir | MindSpore, without the network code of this project |
| .onnx | OpenVINO if it is installed, else ONNX Runtime; neither MindSpore nor PyTorch is imported |
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional, Union

from src.common.compile_cache import OPENVINO_FOLDER, enable_compile_cache
from src.common.device import setup_device
from src.common.errors import CheckpointError, UsageError
from src.inference.predictor import Predictor
from src.weights.checkpoint import Weights, build_network, open_weights
from src.weights.formats import format_of
from src.weights.graphs import ONNX, Graph, graph_format, read_graph

Model = Union[Weights, Graph]

_NAMES = {"mindspore": "MindSpore", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
_INSTALL = {
    "mindspore": "pip install -r requirements.txt, or give an .onnx file",
    "openvino": "pip install -r requirements-deploy.txt, or choose backend onnxruntime",
    "onnxruntime": "pip install -r requirements-deploy.txt",
}
_MAKE_ONNX = "; python midas_export.py --file_format ONNX makes an .onnx file of a checkpoint"


@dataclass(frozen=True)
class Backend:
    """What runs a network, and where.

    Attributes:
        name: ``mindspore``, ``openvino`` or ``onnxruntime``.
        device_target: ``CPU``, ``GPU`` or ``Ascend``.
        device_id: Which of several devices.
        precision: ``fp32`` or ``bf16``.
        remark: Why that precision; may be empty.
        use_cache: Whether compiled networks are kept for the next start.
    """

    name: str
    device_target: str
    device_id: int
    precision: str
    remark: str = ""
    use_cache: bool = False

    @property
    def release(self) -> str:
        """Name and release of the program, for records."""
        return f"{_NAMES[self.name]} {import_module(self.name).__version__.partition('-')[0]}"

    def __str__(self) -> str:
        return f"device {self.device_target}, {self.release}, {self.precision}{self.remark and f' ({self.remark})'}"


def open_model(path: Union[str, Path], key: str) -> Optional[Model]:
    """Reads the file of a network that a setting names: weights, or what an exported graph says of itself.

    Args:
        path: A checkpoint, a .mindir or .onnx file (told by their content), or a run folder, whose newest checkpoint is
            taken; empty for random weights.
        key: The setting, for messages.

    Returns:
        The file; None if ``path`` is empty.

    Raises:
        UsageError: There is no such file.
        CheckpointError: It does not hold a whole network.
    """
    if not path:
        return None
    path = Path(path)
    if path.is_file():
        if graph_format(path):
            return read_graph(path)
        if path.suffix.lower() in (".onnx", ".mindir"):
            _expect_checkpoint(path)
    if path.exists():  # reading checkpoints needs it, too
        _require_package("mindspore")
    return open_weights(path, key, whole=True)


def _expect_checkpoint(path: Path) -> None:
    """Raises CheckpointError for what is named as an exported graph and is neither that nor a checkpoint."""
    try:
        format_of(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: expected a MINDIR or ONNX model, found a damaged or another file") from error


def _require_package(backend: str) -> None:
    if find_spec(backend) is None:
        raise UsageError(f"backend {backend}: expected the package {backend}, found none; {_INSTALL[backend]}")


def choose_backend(
    model: Optional[Model],
    device_target: str,
    device_id: int,
    seed: int,
    backend: str = "auto",
    precision: str = "auto",
    enable_compile_cache: bool = False,
) -> Backend:
    """Decides what runs a network, and sets MindSpore up if that is it.

    Args:
        model: The network.
        device_target: ``auto``, ``Ascend``, ``GPU`` or ``CPU``.
        device_id: Which of several devices.
        seed: Seeds MindSpore's initialisers.
        backend: ``auto`` or one of ``BACKENDS``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        enable_compile_cache: Keep compiled networks for the next start.

    Raises:
        UsageError: These do not go together, a package is not installed, or the device is not there.
    """
    is_onnx = isinstance(model, Graph) and model.format == ONNX
    if backend == "auto":
        backend = _best_for_onnx(device_target) if is_onnx else "mindspore"
    if is_onnx == (backend == "mindspore"):
        held = model.format if isinstance(model, Graph) else "a checkpoint" if model else "no file"
        found = f"{held} ({model.path})" if model else held
        expected = "a checkpoint or a .mindir file" if is_onnx else "an .onnx file"
        raise UsageError(f"backend {backend}: expected {expected}, found {found}{'' if is_onnx else _MAKE_ONNX}")
    _require_package(backend)
    if precision == "bf16" and backend != "openvino":
        raise UsageError(f"precision bf16: expected backend openvino, found {backend}, which computes with fp32 here")
    if backend == "mindspore":
        device = setup_device(device_target, device_id, seed)
        return Backend(backend, device.target, device.device_id, "fp32", use_cache=enable_compile_cache)
    if backend == "onnxruntime":
        from src.inference.onnxruntime import best_device

        return Backend(backend, best_device(device_target), device_id, "fp32", use_cache=enable_compile_cache)
    if device_target not in ("auto", "CPU"):
        raise UsageError(f"device_target {device_target}: expected CPU for backend openvino; onnxruntime has others")
    from src.inference.openvino import has_bf16

    is_fast = has_bf16()
    if precision == "bf16" and not is_fast:
        raise UsageError("precision bf16: expected a processor with instructions for it, found none; fp32 works here")
    remark = f"this processor has {'' if is_fast else 'no '}bf16" if precision == "auto" else ""
    precision = "bf16" if precision == "bf16" or (precision == "auto" and is_fast) else "fp32"
    return Backend(backend, "CPU", 0, precision, remark, enable_compile_cache)


def _best_for_onnx(device_target: str) -> str:
    return "openvino" if device_target in ("auto", "CPU") and find_spec("openvino") else "onnxruntime"


def load_predictor(
    model: Optional[Model], key: str, backend: Backend, network: Mapping[str, Any], **settings: Any
) -> Predictor:
    """Makes a network ready to predict, and prints what was built and loaded.

    Args:
        model: The network; None for random weights.
        key: The setting that names it, for messages.
        backend: What ``choose_backend`` chose for it.
        network: Arguments of ``MidasNet``, which agree with the file.
        **settings: Of ``Predictor``.

    Raises:
        CheckpointError: The file does not hold the whole network, or the backend cannot run it.
    """
    if isinstance(model, Graph):
        checkpoint = model.about.get("checkpoint")
        origin = f", exported from {checkpoint}" if checkpoint else ""
        size = f"{model.height}x{model.width}" if model.height else "any size"
        print(f"{model.path} ({model.format}{origin}; images of {size})")
        if backend.use_cache and backend.name != "openvino":
            print(f"enable_compile_cache: not used, {_NAMES[backend.name]} keeps no {model.format}", file=sys.stderr)
    if backend.name == "openvino":
        from src.inference.openvino import OpenVinoPredictor

        return OpenVinoPredictor(
            model.path, backend.precision, OPENVINO_FOLDER if backend.use_cache else None, **settings
        )
    if backend.name == "onnxruntime":
        from src.inference.onnxruntime import OnnxRuntimePredictor

        return OnnxRuntimePredictor(model.path, backend.device_target, backend.device_id, **settings)
    from src.inference.mindspore import MindSporePredictor, load_mindir

    if isinstance(model, Graph):
        return MindSporePredictor(load_mindir(model.path), model.path, **settings)
    shapes = settings.get("shapes", "dynamic")
    size = (settings["height"], settings["width"]) if shapes == "fixed" else None
    enable_compile_cache(
        backend.use_cache, ("predict", backend.device_target, network, shapes, size), shapes_vary=shapes == "static"
    )
    net, said = build_network(model, network, key)
    print(*said, sep="\n")
    return MindSporePredictor(net, **settings)
