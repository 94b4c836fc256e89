"""Checkpoint files: atomic save, and loading of four weight families with a report of what matched.

Files are MindSpore's .ckpt (a sequence of protobuf messages, see its ``checkpoint.proto``) or PyTorch's .pt/.pth. The
.ckpt format is read and written here rather than through MindSpore, whose loader accepts a file that was cut between
two tensors; besides, conversion then needs no MindSpore: only ``load_into`` and ``initialise`` do.

Weights are recognised by the names of their tensors. The names of this project are those of the 2021 suite.
"""

import json
import math
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Optional, Union

import numpy as np

from src.common.errors import CheckpointError, UsageError
from src.common.atomic import atomic_path

if TYPE_CHECKING:
    from mindspore import nn

PathLike = Union[str, Path]
Shape = tuple[int, ...]

OURS = "this project's .ckpt"
SUITE_2021 = "2021 suite .ckpt"
TORCHVISION = "torchvision ResNeXt"
OFFICIAL = "official MiDaS .pt"

_EXTRA = "midas_extra"  # first entry of every file written here: JSON text of the caller's `extra`
_CRC = b"crc_num"  # MindSpore's optional trailer: this mark and the CRC-32 of all that is before it, 10 bytes
_CRC_SIZE = len(_CRC) + 10

_NUMPY_TYPES = {
    "Float32": np.dtype(np.float32),
    "Float16": np.dtype(np.float16),
    "Float64": np.dtype(np.float64),
    "Int8": np.dtype(np.int8),
    "Int16": np.dtype(np.int16),
    "Int32": np.dtype(np.int32),
    "Int64": np.dtype(np.int64),
    "UInt8": np.dtype(np.uint8),
    "UInt16": np.dtype(np.uint16),
    "UInt32": np.dtype(np.uint32),
    "UInt64": np.dtype(np.uint64),
    "Bool": np.dtype(np.bool_),
}
_TYPE_NAMES = {dtype: name for name, dtype in _NUMPY_TYPES.items()}

# Not part of the network: names without a dot (counters, learning rates, beta powers, loss scale), optimizer moments,
# the classifier of ImageNet models and PyTorch's batch counters.
_IGNORED = re.compile(r"[^.]*|(moment1|moment2|vhat|moments|adam_m|adam_v)\..*|fc\.[^.]*|.*\.num_batches_tracked")


# ---------------------------------------------------------------------------------------------------------------------
# Architecture: which tensors make a network
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """Sizes of a ``MidasNet``, under the names of their configuration keys.

    Attributes:
        layers: Bottlenecks per encoder stage.
        groups: Cardinality.
        width_per_group: Width per group.
        in_channels: Planes of the first stage.
        features: Channels of the decoder; None where there is the encoder alone.
    """

    layers: Shape
    groups: int
    width_per_group: int
    in_channels: int
    features: Optional[int]

    @classmethod
    def of(cls, shapes: Mapping[str, Shape]) -> "Architecture":
        """Infers the sizes from tensor shapes; whether all tensors agree with them is for ``shapes`` to tell.

        Args:
            shapes: Our parameter name -> shape.

        Returns:
            The sizes. ``width_per_group`` is the smallest of those that give the same widths.

        Raises:
            CheckpointError: If a tensor that tells a size is missing; the text names it.
        """

        def side(name: str, axis: int) -> int:
            shape = shapes.get(name, ())
            if len(shape) != 4 or shape[axis] < 1:
                found = f"shape {list(shape)}" if name in shapes else "none"
                raise CheckpointError(f"expected a 4-D tensor {name}, found {found}")
            return shape[axis]

        layers = []
        for stage in (1, 2, 3, 4):
            blocks = {name.split(".")[1] for name in shapes if name.startswith(f"backbone_layer{stage}.")}
            layers.append(len(blocks))
        in_channels = side("backbone_conv.weight", 0)
        groups = max(1, side("backbone_layer4.0.conv1.weight", 0) // side("backbone_layer4.0.conv2.weight", 1))
        width_per_group = max(
            math.ceil(
                side(f"backbone_layer{stage}.0.conv1.weight", 0) // groups * 64 / (in_channels * 2 ** (stage - 1))
            )
            for stage in (1, 2, 3, 4)
        )
        has_decoder = any("_scratch." in name for name in shapes)
        features = side("layer1_rn_scratch.weight", 0) if has_decoder else None
        return cls(tuple(layers), groups, width_per_group, in_channels, features)

    def shapes(self) -> dict[str, Shape]:
        """Returns our parameter name -> shape for every parameter of the network (of the encoder, without decoder)."""
        shapes: dict[str, Shape] = {}

        def conv(name: str, outputs: int, inputs: int, kernel: int, bias: bool = False) -> None:
            shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
            if bias:
                shapes[f"{name}.bias"] = (outputs,)

        def norm(name: str, channels: int) -> None:
            for leaf in ("gamma", "beta", "moving_mean", "moving_variance"):
                shapes[f"{name}.{leaf}"] = (channels,)

        conv("backbone_conv", self.in_channels, 3, 7)
        norm("backbone_bn", self.in_channels)
        inputs, stage_channels = self.in_channels, []
        for stage, blocks in enumerate(self.layers):
            planes = self.in_channels * 2**stage
            width, outputs = int(planes * self.width_per_group / 64) * self.groups, planes * 4
            for block in range(blocks):
                name = f"backbone_layer{stage + 1}.{block}"
                conv(f"{name}.conv1", width, inputs, 1)
                conv(f"{name}.conv2", width, width // self.groups, 3)
                conv(f"{name}.conv3", outputs, width, 1)
                for index, channels in enumerate((width, width, outputs), start=1):
                    norm(f"{name}.bn{index}", channels)
                if block == 0:
                    conv(f"{name}.down_sample.conv", outputs, inputs, 1)
                    norm(f"{name}.down_sample.bn", outputs)
                inputs = outputs
            stage_channels.append(outputs)
        if self.features is not None:
            features = self.features
            for index, channels in enumerate(stage_channels, start=1):
                conv(f"layer{index}_rn_scratch", features, channels, 3)
                for unit in ("resConfUnit1", "resConfUnit2"):
                    conv(f"refinenet{index}_scratch.{unit}.conv1", features, features, 3, bias=True)
                    conv(f"refinenet{index}_scratch.{unit}.conv2", features, features, 3, bias=True)
            conv("output_conv_scratch.0", features // 2, features, 3, bias=True)
            conv("output_conv_scratch.2", features // 8, features // 2, 3, bias=True)
            conv("output_conv_scratch.4", 1, features // 8, 1, bias=True)
        return shapes

    def settings(self) -> dict[str, Any]:
        """Returns configuration key -> value, without ``features`` where there is no decoder."""
        settings = {**vars(self), "layers": list(self.layers)}
        if self.features is None:
            del settings["features"]
        return settings

    def __str__(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.settings().items())


@dataclass(frozen=True)
class LoadReport:
    """How the weights of a file fit a network.

    Attributes:
        loaded: Names that are in both, with equal shapes.
        missing: Parameters of the network that the file does not have. They keep their values.
        unexpected: Tensors of the file that the network does not have.
        wrong_shape: Texts "name [shape in the file] instead of [shape in the network]".
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    wrong_shape: list[str]

    @classmethod
    def of(cls, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> "LoadReport":
        """Compares the shapes of a file's tensors with those of a network's parameters."""
        common = [name for name in expected if name in found]
        return cls(
            loaded=[name for name in common if found[name] == expected[name]],
            missing=[name for name in expected if name not in found],
            unexpected=[name for name in found if name not in expected],
            wrong_shape=[
                f"{name} {list(found[name])} instead of {list(expected[name])}"
                for name in common
                if found[name] != expected[name]
            ],
        )

    def faults(self) -> str:
        """Returns counts and first names of what does not match; an empty text if all does."""
        lists = (
            (self.missing, "missing"),
            (self.unexpected, "unexpected"),
            (self.wrong_shape, "of another shape"),
        )
        return ", ".join(f"{len(names)} {fault} ({_first(names)})" for names, fault in lists if names)

    def summary(self) -> str:
        """Returns one line with counts and first names."""
        loaded = f"loaded {len(self.loaded)} tensors"
        if not self.missing:
            return loaded
        return f"{loaded}; {len(self.missing)} not in the file keep their values ({_first(self.missing)})"


@dataclass(frozen=True)
class Weights:
    """Weights of a network, or of its encoder, under our names; complete and consistent by construction.

    Attributes:
        path: The file.
        family: ``OURS``, ``SUITE_2021``, ``TORCHVISION`` or ``OFFICIAL``.
        architecture: The sizes of the network that they fit.
        parameters: Our name -> float32 array.
        extra: What ``save_checkpoint`` was given as ``extra``; empty for other families.
        ignored: Names in the file that are not part of the network (optimizer state, classifier, counters).
    """

    path: Path
    family: str
    architecture: Architecture
    parameters: dict[str, np.ndarray]
    extra: dict[str, Any]
    ignored: list[str]

    @property
    def whole(self) -> bool:
        """Whether the file holds the whole network; otherwise it holds the encoder alone."""
        return self.architecture.features is not None


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _shapes(tensors: Mapping[str, Any]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


# ---------------------------------------------------------------------------------------------------------------------
# MindSpore's .ckpt: message Checkpoint {repeated Value value = 1}, Value {string tag = 1; TensorProto tensor = 2},
# TensorProto {repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3}
# ---------------------------------------------------------------------------------------------------------------------


def save_checkpoint(path: PathLike, parameters: Mapping[str, Any], extra: Optional[Mapping[str, Any]] = None) -> None:
    """Writes a .ckpt atomically, readable by ``read_weights``, ``read_ckpt`` and ``mindspore.load_checkpoint``.

    The file ends with MindSpore's CRC-32, which both readers here check, and so does
    ``mindspore.load_checkpoint(path, crc_check=True)``.

    Args:
        path: Ends in ``.ckpt``.
        parameters: Name -> Parameter, Tensor or array; each keeps its type, but bfloat16 becomes float32.
        extra: Small values that JSON can hold (epoch, step, ...), keys are strings; they come back equal.

    Raises:
        ValueError: If ``path`` does not end in ``.ckpt``, which MindSpore's loader demands.
        CheckpointError: If the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".ckpt":
        raise ValueError(f"{path}: expected a name that ends in .ckpt")
    text = np.array(json.dumps(dict(extra or {})))
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            crc = _write_entry(file, _EXTRA, (0,), "str", text.tobytes(), 0)
            for name, parameter in parameters.items():
                array = parameter if isinstance(parameter, np.ndarray) else parameter.asnumpy()
                if array.dtype.name == "bfloat16":
                    array = array.astype(np.float32)
                crc = _write_entry(file, name, array.shape, _TYPE_NAMES[array.dtype], array.tobytes(), crc)
            file.write(_CRC + crc.to_bytes(10, "big"))
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
    _check_is_file(path)
    tensors, extra, _ = _read_ckpt(path, lambda name: True)
    return tensors, extra


def _read_ckpt(path: Path, keep: Callable[[str], bool]) -> tuple[dict[str, np.ndarray], dict[str, Any], list[str]]:
    """Returns the tensors for whose names ``keep`` is true, the extra values, and the names of other entries."""
    tensors: dict[str, np.ndarray] = {}
    text = "{}"
    skipped: list[str] = []
    for name, value in _entries(path):
        if name in tensors:
            raise CheckpointError(f"{path}: expected one tensor {name}, found two")
        if name == _EXTRA:
            text = value.item()
        elif value.dtype.kind != "U" and keep(name):
            tensors[name] = value.astype(value.dtype)  # out of the buffer of its message, where it is not aligned
        else:
            skipped.append(name)
    return tensors, json.loads(text), skipped


def _entries(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, array) of a .ckpt with one message in memory at a time; at the end checks the CRC-32."""
    crc, needs_crc = 0, False
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = 0
        while start < size:
            head = file.read(11)  # key and length
            try:
                if head.startswith(_CRC):
                    trailer = head + file.read(_CRC_SIZE)
                    if len(trailer) != _CRC_SIZE or int.from_bytes(trailer[len(_CRC) :], "big") != crc:
                        raise ValueError("CRC-32")
                    return
                length, at = _varint(head, 1)
                end = start + at + length
                if head[0] != 0x0A or end > size:
                    raise ValueError("length")
                file.seek(start + at)
                body = file.read(length)
                name, value = _entry(body)
            except (ValueError, LookupError, TypeError, OverflowError) as error:
                raise CheckpointError(
                    f"{path}: expected a MindSpore checkpoint, found one that is damaged or cut short,"
                    f" or another kind of file (byte {start} of {size})"
                ) from error
            crc = zlib.crc32(body, zlib.crc32(head[:at], crc))
            needs_crc = needs_crc or name == _EXTRA
            yield name, value
            start = end
    if needs_crc:
        raise CheckpointError(f"{path}: expected a checkpoint that ends with its CRC-32, found one cut short")


def _entry(body: bytes) -> tuple[str, np.ndarray]:
    """Decodes a Value: name and array, which is a view of ``body`` or a text. Any fault is one of Python's errors."""
    value = dict(_fields(memoryview(body)))
    dims, fields = [], {}
    for number, content in _fields(value[2]):
        if number == 1:
            dims.append(content)
        else:
            fields[number] = content
    type_name, content = str(fields[2], "ascii"), fields[3]
    if type_name == "str":
        return str(value[1], "utf-8"), np.frombuffer(content, f"U{len(content) // 4}").reshape(())
    bfloat16 = type_name == "BFloat16"
    array = np.frombuffer(content, np.uint16 if bfloat16 else _NUMPY_TYPES[type_name])
    if bfloat16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    shape = () if dims == [0] and array.size == 1 else dims  # MindSpore 1 wrote scalars so
    return str(value[1], "utf-8"), array.reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Yields (field number, int or bytes) of a protobuf message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value, at = _varint(message, at)
        if key & 7 == 2:
            if value > len(message) - at:
                raise ValueError("length")
            value, at = message[at : at + value], at + value
        elif key & 7 != 0:
            raise ValueError("wire type")
        yield key >> 3, value


def _varint(data: Any, at: int) -> tuple[int, int]:
    """Decodes a protobuf integer: (value, offset after it)."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("integer")


def _integer(value: int) -> bytes:
    """Encodes a protobuf integer, >= 0."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _head(field: int, length: int) -> bytes:
    """Encodes what precedes ``length`` bytes of field ``field``, a string or a message."""
    return _integer(field << 3 | 2) + _integer(length)


def _write_entry(file: BinaryIO, name: str, shape: Shape, type_name: str, content: bytes, crc: int) -> int:
    """Writes a Checkpoint message with one Value; returns the CRC-32 of the file so far."""
    tag, kind = name.encode(), type_name.encode()
    dims = b"".join(_integer(1 << 3) + _integer(side) for side in shape)
    head = dims + _head(2, len(kind)) + kind + _head(3, len(content))
    head = _head(1, len(tag)) + tag + _head(2, len(head) + len(content)) + head
    head = _head(1, len(head) + len(content)) + head
    file.write(head)
    file.write(content)
    return zlib.crc32(content, zlib.crc32(head, crc))


# ---------------------------------------------------------------------------------------------------------------------
# Four families
# ---------------------------------------------------------------------------------------------------------------------


def read_weights(path: PathLike) -> Weights:
    """Reads the weights of a network or of its encoder.

    PyTorch files are untrusted input: only plain tensors are unpickled.

    Args:
        path: A MindSpore .ckpt or a PyTorch .pt/.pth (told apart by content), of any of the four families.

    Returns:
        The weights, complete and consistent.

    Raises:
        CheckpointError: If the file is missing, damaged or cut short, would run code, or is not a MidasNet's or its
            encoder's.
    """
    path = Path(path)
    magic = _check_is_file(path)
    if magic.startswith((b"PK\x03\x04", b"\x80")):
        tensors, ignored = _read_torch(path)
        extra: dict[str, Any] = {}
    elif magic.startswith(b"\n"):
        tensors, extra, ignored = _read_ckpt(path, lambda name: not _IGNORED.fullmatch(name))
    else:
        raise CheckpointError(
            f"{path}: expected a MindSpore or PyTorch checkpoint, found a file that begins with {magic!r}"
        )
    family = _family(path, tensors)
    if family == SUITE_2021:
        tensors = _join_groups(path, tensors)
    parameters = {_our_name(name, family): array for name, array in tensors.items()}
    if len(parameters) < len(tensors):
        raise CheckpointError(f"{path}: expected one tensor per parameter, found two names for the same one")
    try:
        architecture = Architecture.of(_shapes(parameters))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: not a MidasNet ({family}; {_first(list(tensors))}): {error}") from error
    if family in (TORCHVISION, OFFICIAL) and architecture.groups == 1:
        raise CheckpointError(f"{path}: expected a ResNeXt (grouped convolutions), found a plain ResNet")
    report = LoadReport.of(_shapes(parameters), architecture.shapes())
    if report.faults():
        raise CheckpointError(f"{path}: not a complete MidasNet or encoder ({family}): {report.faults()}")
    parameters = {name: _float32(path, name, array) for name, array in parameters.items()}
    return Weights(path, family, architecture, parameters, extra, ignored)


def _check_is_file(path: Path) -> bytes:
    """Returns the first four bytes of a file that can be read and is not empty."""
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path}: expected a checkpoint file: {error.strerror}") from error
    if not magic:
        raise CheckpointError(f"{path}: expected a checkpoint file, found an empty one")
    return magic


def _read_torch(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns name -> float32 array, and the ignored names, both without the prefix ``module.``."""
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
    names = list(content)
    prefix = "module." if names and all(name.startswith("module.") for name in names) else ""
    tensors, ignored = {}, []
    for name, tensor in content.items():
        name = name[len(prefix) :]
        if _IGNORED.fullmatch(name) or not isinstance(tensor, torch.Tensor):
            ignored.append(name)
        else:
            if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
                raise CheckpointError(f"{path}: {name}: expected dense floating-point numbers, found {tensor.type()}")
            tensors[name] = tensor.detach().float().numpy()  # float32 here, since NumPy has no bfloat16
    return tensors, ignored


def _float32(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """Converts an array of floating-point numbers; a contiguous float32 one is not copied."""
    if array.dtype.kind != "f":
        raise CheckpointError(f"{path}: {name}: expected floating-point numbers, found {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.float32)


def _family(path: Path, names: Mapping[str, Any]) -> str:
    """Recognises a family by its names."""
    if any(name.startswith("backbone_") for name in names):
        return SUITE_2021 if any(".convs." in name for name in names) else OURS
    if any(name.startswith(("pretrained.", "scratch.")) for name in names):
        return OFFICIAL
    if "conv1.weight" in names and any(name.startswith("layer1.0.") for name in names):
        return TORCHVISION
    raise CheckpointError(
        f"{path}: expected weights of MidasNet ({OURS}, {SUITE_2021}, {OFFICIAL}) or of its encoder ({TORCHVISION}),"
        f" found {len(names)} tensors of another network ({_first(list(names))})"
    )


# Applied in this order. Names that none of them touches stay as they are and count as unexpected later.
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^pretrained\.layer1\.0\.", "conv1."),
        (r"^pretrained\.layer1\.1\.", "bn1."),
        (r"^pretrained\.layer1\.4\.", "layer1."),
        (r"^pretrained\.layer([234])\.", r"layer\1."),
        (r"^scratch\.(layer\d_rn|refinenet\d|output_conv)\.", r"\1_scratch."),
        (r"\.downsample\.0\.", ".down_sample.conv."),
        (r"\.downsample\.1\.", ".down_sample.bn."),
        (r"\b(bn\d?)\.weight$", r"\1.gamma"),
        (r"\b(bn\d?)\.bias$", r"\1.beta"),
        (r"\b(bn\d?)\.running_mean$", r"\1.moving_mean"),
        (r"\b(bn\d?)\.running_var$", r"\1.moving_variance"),
        (r"^conv1\.", "backbone_conv."),
        (r"^bn1\.", "backbone_bn."),
        (r"^(layer[1-4]\.)", r"backbone_\1"),
    )
]


def _our_name(name: str, family: str) -> str:
    if family in (OFFICIAL, TORCHVISION):
        for pattern, replacement in _RENAMES:
            name = pattern.sub(replacement, name)
    return name


def _join_groups(path: Path, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Concatenates ``x.convs.{0, 1, ...}.weight`` on their first axis to ``x.weight``."""
    others: dict[str, np.ndarray] = {}
    groups: dict[str, dict[int, np.ndarray]] = {}
    for name, array in tensors.items():
        piece = re.fullmatch(r"(.*)\.convs\.(\d+)\.weight", name)
        if piece:
            groups.setdefault(f"{piece[1]}.weight", {})[int(piece[2])] = array
        else:
            others[name] = array
    for name, pieces in groups.items():
        absent = [index for index in range(len(pieces)) if index not in pieces]
        if absent:
            raise CheckpointError(f"{path}: {name}: expected pieces convs.0 to .{max(pieces)}, found no {absent[0]}")
        if name in others or len({piece.shape for piece in pieces.values()}) > 1:
            raise CheckpointError(f"{path}: {name}: expected it in pieces of one shape, found several shapes")
        others[name] = np.concatenate([pieces[index] for index in range(len(pieces))])
    return others


# ---------------------------------------------------------------------------------------------------------------------
# Into a network
# ---------------------------------------------------------------------------------------------------------------------


def load_into(net: "nn.Cell", weights: Weights) -> LoadReport:
    """Gives ``net`` the weights of a file: all that the file promises, or none.

    Args:
        net: A ``MidasNet``.
        weights: Of the whole network, or of its encoder; the decoder then keeps its values.

    Returns:
        What matched. Only a file of the encoder alone leaves names in ``missing``; the other two lists are empty.

    Raises:
        CheckpointError: If the sizes of the network differ from those of the file; ``net`` is then unchanged.
    """
    from mindspore import Tensor

    targets = {parameter.name: parameter for parameter in net.get_parameters()}
    expected = _shapes(targets)
    report = LoadReport.of(_shapes(weights.parameters), expected)
    missing = [name for name in report.missing if weights.whole or name.startswith("backbone")]
    if missing or report.unexpected or report.wrong_shape:
        network = Architecture.of(expected).settings()
        differences = [
            f"{key}: {value} (now {network[key]})"
            for key, value in weights.architecture.settings().items()
            if value != network[key]
        ]
        raise CheckpointError(
            f"{weights.path}: expected weights of the configured network, found"
            f" {replace(report, missing=missing).faults()}; the file needs {', '.join(differences)}"
        )
    for name in report.loaded:
        parameter = targets[name]
        parameter.set_data(Tensor(weights.parameters[name], dtype=parameter.dtype))
    return report


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
        raise UsageError(f"{key}: expected a checkpoint file, found none at {path}")
    weights = read_weights(path)
    trained_with = weights.extra.get("network_ops", net.network_ops)
    if trained_with != net.network_ops:
        raise CheckpointError(f"{path}: expected network_ops {trained_with} (trained so), found {net.network_ops}")
    if whole and not weights.whole:
        raise CheckpointError(f"{key}: expected weights of the whole network, found the encoder alone in {path}")
    said = f"{path} ({weights.family}): {load_into(net, weights).summary()}"
    usual = {SUITE_2021: "modelzoo", OFFICIAL: "midas"}.get(weights.family, net.network_ops)
    if usual != net.network_ops:
        said += f"; note that such weights want network_ops {usual}, which is {net.network_ops} here"
    return said
