"""Checkpoint files: MindSpore's .ckpt written so that damage shows, PyTorch's .pt and .pth, and loading into a network.

A .ckpt of this project is MindSpore's, with its CRC-32 at the end and one entry more, ``midas_extra``, at the start:
JSON text of what the caller wants to find again. Names of other projects are translated in ``families.py``.
"""

import json
import logging
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np

from src.common.atomic import atomic_path
from src.common.errors import CheckpointError, UsageError
from src.weights import families
from src.weights.families import LoadReport, Shape

if TYPE_CHECKING:
    from mindspore import nn

PathLike = Union[str, Path]

_EXTRA = "midas_extra"
_CRC_MARK, _CRC_SIZE = b"crc_num", 17  # how MindSpore ends a file with a checksum: this mark and ten bytes


@dataclass(frozen=True)
class Weights:
    """Weights of a network, or of its encoder, under our names.

    Attributes:
        path: The file.
        family: ``OURS``, ``SUITE_2021``, ``TORCHVISION`` or ``OFFICIAL`` of ``families.py``.
        sizes: Settings of the network that they are of, see ``families.network_sizes``.
        parameters: Our name -> float32 array.
        extra: What ``save_checkpoint`` was given as ``extra``; empty for other families.
        ignored: Names in the file that are not part of the network (optimizer state, classifier, counters).
    """

    path: Path
    family: str
    sizes: dict[str, Any]
    parameters: dict[str, np.ndarray]
    extra: dict[str, Any]
    ignored: list[str]

    @property
    def whole(self) -> bool:
        """Whether the file promises the whole network; otherwise it is of the encoder alone."""
        return "features" in self.sizes


def shapes_of(tensors: Mapping[str, Any]) -> dict[str, Shape]:
    """Returns name -> shape of arrays, tensors or parameters."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


# ---- files


def save_checkpoint(path: PathLike, parameters: Mapping[str, Any], extra: Optional[Mapping[str, Any]] = None) -> None:
    """Writes a .ckpt atomically, readable by ``read_weights``, ``read_ckpt`` and ``mindspore.load_checkpoint``.

    Args:
        path: Ends in ``.ckpt``.
        parameters: Name -> Parameter or array of numbers; each keeps its type.
        extra: Small values that JSON can hold (epoch, step, ...), keys are strings; they come back equal.

    Raises:
        ValueError: If ``path`` does not end in ``.ckpt``, which MindSpore's loader demands.
        TypeError: If a value of ``parameters`` is something else; MindSpore would drop or garble it without a word.
        CheckpointError: If the file cannot be written.
    """
    import mindspore as ms

    path = Path(path)
    if path.suffix != ".ckpt":
        raise ValueError(f"{path}: expected a name that ends in .ckpt")
    for name, value in parameters.items():
        is_numbers = isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.isnative
        if not isinstance(value, ms.Parameter) and not (is_numbers and value.size):
            raise TypeError(f"{name}: expected a Parameter or an array of numbers, found {type(value).__name__}")
    content = {_EXTRA: json.dumps(dict(extra or {})), **parameters}
    try:
        with atomic_path(path) as temporary, _quiet_mindspore():
            temporary.touch()
            mode = temporary.stat().st_mode
            try:
                ms.save_checkpoint(content, str(temporary), crc_check=True)
            finally:
                temporary.with_suffix(".tmp").unlink(missing_ok=True)  # what MindSpore leaves when it fails
            temporary.chmod(mode)  # MindSpore leaves a file that its owner alone can read, and nobody can write
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error


def read_ckpt(path: PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads every tensor of a MindSpore .ckpt, optimizer state included, under the names of the file.

    Args:
        path: A .ckpt of any MindSpore program.

    Returns:
        Name -> array of the stored type (bfloat16 becomes float32), and the ``extra`` of ``save_checkpoint``.

    Raises:
        CheckpointError: If the file is missing, damaged, cut short or something else.
    """
    path = Path(path)
    _first_bytes(path)
    return _read_mindspore(path, lambda name: True)


def read_weights(path: PathLike) -> Weights:
    """Reads the weights of a network or of its encoder; ``load_into`` tells whether they are complete.

    PyTorch files are untrusted input: only plain tensors are unpickled.

    Args:
        path: A MindSpore .ckpt, or a PyTorch file of any name (told by its content), of any family of ``families.py``.

    Raises:
        CheckpointError: If the file is missing, damaged or cut short, would run code, or is not a MidasNet's or its
            encoder's.
    """
    path = Path(path)
    magic = _first_bytes(path)
    extra: dict[str, Any] = {}
    ignored: list[str] = []

    def is_wanted(name: str) -> bool:
        if families.is_ignored(name):
            ignored.append(name)
            return False
        return True

    if magic.startswith((b"PK\x03\x04", b"\x80")):
        tensors = _read_torch(path, is_wanted)
    elif magic.startswith(b"\n"):
        tensors, extra = _read_mindspore(path, is_wanted)
    else:
        raise CheckpointError(
            f"{path}: expected a MindSpore or PyTorch checkpoint, found a file that begins with {magic!r}"
        )
    try:
        family = families.recognise(tensors)
        parameters = families.to_our_names(family, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    try:
        sizes = families.network_sizes(shapes_of(parameters))
    except CheckpointError as error:
        names = families.first_names(list(tensors))
        raise CheckpointError(f"{path}: not a MidasNet ({family}; {names}): {error}") from error
    if family in (families.TORCHVISION, families.OFFICIAL) and sizes["groups"] == 1:
        raise CheckpointError(f"{path}: expected a ResNeXt (grouped convolutions), found a plain ResNet")
    for name, array in parameters.items():
        if array.dtype.kind != "f":
            raise CheckpointError(f"{path}: {name}: expected floating-point numbers, found {array.dtype}")
        parameters[name] = np.ascontiguousarray(array, np.float32)
    return Weights(path, family, sizes, parameters, extra, ignored)


def _first_bytes(path: Path) -> bytes:
    """Returns the first four bytes of a file that can be read and is not empty."""
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path}: expected a checkpoint file: {error.strerror}") from error
    if not magic:
        raise CheckpointError(f"{path}: expected a checkpoint file, found an empty one")
    return magic


@contextmanager
def _quiet_mindspore() -> Iterator[None]:
    """Keeps MindSpore's own lines about a file off stderr: the fault is reported once, by its exception."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _read_mindspore(path: Path, is_wanted: Callable[[str], bool]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the tensors for whose names ``is_wanted`` is true, and the extra values."""
    import mindspore as ms

    if path.suffix != ".ckpt":
        raise CheckpointError(f"{path}: expected the name of a MindSpore checkpoint to end in .ckpt; rename it")
    with open(path, "rb") as file:
        file.seek(-min(_CRC_SIZE, path.stat().st_size), 2)
        has_crc = file.read().startswith(_CRC_MARK)
    try:
        if not has_crc:
            _check_sizes(path)
        with _quiet_mindspore():
            content = ms.load_checkpoint(
                str(path), crc_check=has_crc, choice_func=lambda name: name == _EXTRA or is_wanted(name)
            )
        if _EXTRA in content and not has_crc:
            raise ValueError("the checksum is cut off")
        extra = json.loads(content.pop(_EXTRA, "{}"))
        tensors = {name: value for name, value in content.items() if not isinstance(value, str)}
        if not all(isinstance(value, ms.Parameter) for value in tensors.values()):
            raise ValueError("an entry without a tensor")
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error.__cause__, (KeyboardInterrupt, MemoryError)):  # MindSpore blames the file for these too
            raise error.__cause__ from None
        raise CheckpointError(
            f"{path}: expected a MindSpore checkpoint, found one that is damaged or cut short, or another kind of file"
        ) from error
    arrays = {}
    for name, value in tensors.items():
        arrays[name] = (value.astype(ms.float32) if value.dtype == ms.bfloat16 else value).asnumpy()
    return arrays, extra


def _check_sizes(path: Path) -> None:
    """Raises ValueError unless every tensor has as many bytes as its shape and type say.

    MindSpore does not look: it fills up what is too short, and what is too long overwrites memory. A checksum makes
    this needless.
    """
    from google.protobuf.message import DecodeError
    from mindspore.train.checkpoint_pb2 import Checkpoint

    try:
        entries = Checkpoint.FromString(path.read_bytes()).value
    except DecodeError as error:
        raise ValueError(str(error)) from error
    found: Counter = Counter()  # of a tag that occurs more than once, each entry has a piece
    for entry in entries:
        found[entry.tag] += len(entry.tensor.tensor_content)
    for entry in entries:
        kind, dims = entry.tensor.tensor_type.lower(), entry.tensor.dims
        if kind != "str":
            itemsize = 2 if kind == "bfloat16" else np.dtype(kind).itemsize
            count = 1 if list(dims) == [0] else math.prod(dims)  # MindSpore 1 wrote scalars so
            if found[entry.tag] != count * itemsize:
                raise ValueError(f"{entry.tag}: {found[entry.tag]} bytes")


def _read_torch(path: Path, is_wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """Returns name -> float32 array of the wanted tensors, without the prefix ``module.``."""
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            f"{path}: a PyTorch file needs PyTorch to be read: pip install torch==2.13.0, or convert the file with"
            " src/utils/pth2ckpt.py where PyTorch is installed"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises almost anything
        code = re.search(r"GLOBAL (\S+)", str(error))
        found = f"a pickle that asks for {code[1]}; it was not run" if code else "one that is damaged or cut short"
        raise CheckpointError(f"{path}: expected a PyTorch file of plain tensors, found {found}") from error
    while isinstance(content, dict):
        inner = [content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(f"{path}: expected a dictionary of named tensors, found {type(content).__name__}")
    prefix = "module." if content and all(name.startswith("module.") for name in content) else ""
    tensors = {}
    for name, tensor in content.items():
        name = name[len(prefix) :]
        if not is_wanted(name) or not isinstance(tensor, torch.Tensor):
            continue
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            raise CheckpointError(f"{path}: {name}: expected dense floating-point numbers, found {tensor.type()}")
        tensors[name] = tensor.detach().float().numpy()  # float32 here, since NumPy has no bfloat16
    return tensors


# ---- into a network


def load_into(net: "nn.Cell", weights: Weights) -> LoadReport:
    """Gives ``net`` the weights of a file: all that the file promises, or none.

    Args:
        net: A ``MidasNet``.
        weights: Of the whole network, or of its encoder; the decoder then keeps its values.

    Returns:
        What matched. Only a file of the encoder alone leaves names in ``missing``; the other two lists are empty.

    Raises:
        CheckpointError: If the file is incomplete or its sizes differ from those of the network; ``net`` is then
            unchanged.
    """
    from mindspore import Tensor

    targets = {parameter.name: parameter for parameter in net.get_parameters()}
    report = check_fit(weights, shapes_of(targets))
    for name in report.loaded:
        parameter = targets[name]
        parameter.set_data(Tensor(weights.parameters[name], dtype=parameter.dtype))
    return report


def check_fit(weights: Weights, expected: Mapping[str, Shape]) -> LoadReport:
    """Compares weights with the parameters of a network.

    Args:
        weights: Of the whole network, or of its encoder.
        expected: Name -> shape of the network's parameters.

    Raises:
        CheckpointError: As ``load_into``.
    """
    report = LoadReport.of(shapes_of(weights.parameters), expected)
    faults = report.faults(encoder_alone=not weights.whole)
    if not faults:
        return report
    network = families.network_sizes(expected)
    differences = [
        f"{key}: {value} (now {network[key]})" for key, value in weights.sizes.items() if value != network[key]
    ]
    if not differences:
        raise CheckpointError(f"{weights.path}: not a complete MidasNet or encoder ({weights.family}): {faults}")
    raise CheckpointError(
        f"{weights.path}: expected weights of the configured network, found {faults};"
        f" the file needs {', '.join(differences)}"
    )


def initialise(net: "nn.Cell", path: PathLike, key: str = "model_weights", whole: bool = False) -> str:
    """Loads the weights that a configuration names, if any.

    Args:
        net: A ``MidasNet``.
        path: The file; empty for a network that keeps its random initialisation.
        key: Configuration key of ``path``, for messages.
        whole: Whether a file must hold the decoder too: an encoder alone is a start for training and no more.

    Returns:
        A sentence that says what was done.

    Raises:
        UsageError: If there is no such file.
        CheckpointError: As ``read_weights`` and ``load_into``, for an encoder alone if ``whole``, or if a checkpoint of
            this project was trained with other ``network_ops``.
    """
    if not str(path):
        return f"{key} is empty: random initialisation"
    if not Path(path).is_file():
        how = families.GET_NETWORK if whole else families.GET_ENCODER
        raise UsageError(f"{key}: expected a checkpoint file, found none at {path}; {how}")
    weights = read_weights(path)
    course = weights.extra.get("course", weights.extra)  # earlier versions had no level of its own for it
    trained_with = course.get("network_ops", net.network_ops)
    if trained_with != net.network_ops:
        raise CheckpointError(f"{path}: expected network_ops {trained_with} (trained so), found {net.network_ops}")
    if whole and not weights.whole:
        raise CheckpointError(f"{key}: expected weights of the whole network, found the encoder alone in {path}")
    said = f"{path} ({weights.family}): {load_into(net, weights).summary()}"
    usual = families.USUAL_OPS.get(weights.family, net.network_ops)
    if usual != net.network_ops:
        said += f"; note that such weights want network_ops {usual}, which is {net.network_ops} here"
    return said
