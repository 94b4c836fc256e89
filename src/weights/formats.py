"""File formats of weights: MindSpore's .ckpt, PyTorch's zip and legacy format, and safetensors, told by their content.

All of them are untrusted input. Each reader checks that every tensor has the bytes that its shape and type promise:
the libraries beneath fill up what is missing with whatever is in memory.
"""

import json
import math
import mmap
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from src.common.errors import CheckpointError
from src.weights import foreign

EXTRA = "midas_extra"  # the entry of our checkpoints that holds values instead of a tensor
_CRC_MARK, _CRC_SIZE = b"crc_num", 17  # how MindSpore ends a file with a checksum: this mark and ten bytes
_DEPTH = 16  # of nested dictionaries

MINDSPORE, TORCH, SAFETENSORS = "MindSpore checkpoint", "PyTorch file", "safetensors file"

# MindSpore's names of types, in lower case, but for bfloat16, of which NumPy knows nothing.
_MINDSPORE_TYPES = {
    name: np.dtype(name)
    for name in (
        "float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
        "uint64",
    )
}  # fmt: skip
_SAFETENSORS_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}

# What training code stores beside its weights. Objects of these classes are read as empty ones of ``_StandIn``: their
# own code does not run.
_HARMLESS = (
    "argparse.Namespace", "types.SimpleNamespace", "_codecs.encode", "decimal.Decimal", "uuid.UUID",
    "torch.torch_version.TorchVersion",
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "frozenset", "int", "list", "range", "slice", "str",
                                      "tuple")),
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "PurePath", "PurePosixPath", "WindowsPath")),
    *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "PurePath", "PurePosixPath", "WindowsPath")),
    "numpy.ndarray", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar", "numpy._core.multiarray._reconstruct",
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor of a file.

    Attributes:
        shape: Its shape.
        read: Returns it as float32; ValueError, with the reason, if it holds anything but dense floating-point numbers.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        format: ``MINDSPORE``, ``TORCH`` or ``SAFETENSORS``.
        tensors: Name -> tensor; the names of nested dictionaries are joined with dots.
        others: Names of what is no tensor.
        extra: What ``save_checkpoint`` was given as ``extra``.
    """

    format: str
    tensors: dict[str, Stored]
    others: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


def format_of(path: Path) -> str:
    """Tells the format of a checkpoint: ``MINDSPORE``, ``TORCH`` or ``SAFETENSORS``.

    Raises:
        CheckpointError: The file cannot be read, is empty, or is something else, which the text names.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path}: expected a checkpoint file: {error.strerror}") from error
    if not head:
        raise CheckpointError(f"{path}: expected a checkpoint file, found an empty one")
    # Its first bytes are a number, which can look like the start of any other format.
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 10**8:
        return SAFETENSORS
    if head.startswith(b"PK\x03\x04"):
        try:
            found = foreign.describe_zip(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise _damaged(path, TORCH) from error
        if found:
            raise CheckpointError(f"{path}: expected a checkpoint, found {found}")
        return TORCH
    if head.startswith(b"\x80"):
        return TORCH
    if re.match(rb"\n[\x80-\xff]{0,9}[\x00-\x7f]\n", head):  # an entry, its length, and in it a name
        return MINDSPORE
    raise CheckpointError(
        f"{path}: expected a MindSpore, PyTorch or safetensors checkpoint, found {foreign.describe_file(path, head)}"
    )


def read_content(path: Path) -> Content:
    """Reads a checkpoint of any format.

    Raises:
        CheckpointError: The file is missing, empty, damaged, something else, or would run code.
    """
    found = format_of(path)
    return {MINDSPORE: _read_mindspore, TORCH: _read_torch, SAFETENSORS: _read_safetensors}[found](path)


def _damaged(path: Path, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected a {expected}, found one that is damaged or cut short, or another kind of file"
    )


def to_float32(array: np.ndarray, kind: str) -> np.ndarray:
    """Returns float32; ``array`` has the numbers, or with bfloat16 their upper halves."""
    if kind == "bfloat16":
        return np.left_shift(array, 16, dtype=np.uint32).view(np.float32)
    if array.dtype.kind != "f":
        raise ValueError(f"expected floating-point numbers, found {kind}")
    with np.errstate(over="ignore"):  # infinity is for the caller to find
        return np.array(array, np.float32)  # its own memory, not that of the file


# ---- MindSpore


def _read_mindspore(path: Path) -> Content:
    arrays, others, extra = mindspore_arrays(path)

    def read(array: np.ndarray, kind: str) -> np.ndarray:
        return array if kind == "float32" else to_float32(array, kind)  # each has its own memory

    tensors = {name: Stored(array.shape, partial(read, array, kind)) for name, (array, kind) in arrays.items()}
    return Content(MINDSPORE, tensors, others, extra)


def mindspore_arrays(path: Path) -> tuple[dict[str, tuple[np.ndarray, str]], list[str], dict[str, Any]]:
    """Reads a .ckpt of any MindSpore program, of any name.

    MindSpore's own loader does not look whether a tensor has as many bytes as its shape and type say: it fills up what
    is too short, and what is too long overwrites memory.

    Returns:
        Name -> (array, name of its type in lower case; of bfloat16 the array has the bits as uint16), names of what
        is text, and the ``extra`` of ``save_checkpoint``.

    Raises:
        CheckpointError: The file is damaged, cut short or something else.
    """
    from google.protobuf.message import DecodeError
    from mindspore.train.checkpoint_pb2 import Checkpoint

    with open(path, "rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    has_crc = data[-_CRC_SIZE:][: len(_CRC_MARK)] == _CRC_MARK
    checksum = int.from_bytes(data[-_CRC_SIZE + len(_CRC_MARK) :], "big")
    body = data[:-_CRC_SIZE] if has_crc else data
    pieces: dict[str, list[bytes]] = {}
    kinds: dict[str, tuple[str, tuple[int, ...]]] = {}
    try:
        if has_crc and zlib.crc32(body) != checksum:
            raise ValueError("another checksum")
        for entry in Checkpoint.FromString(body).value:
            if not entry.HasField("tensor"):
                raise ValueError(f"{entry.tag}: no tensor")
            pieces.setdefault(entry.tag, []).append(entry.tensor.tensor_content)
            kinds[entry.tag] = entry.tensor.tensor_type.lower(), tuple(entry.tensor.dims)
        if not kinds:
            raise ValueError("no tensor")
        texts = {tag: b"".join(pieces[tag]).decode("utf-32-le") for tag, (kind, _) in kinds.items() if kind == "str"}
        extra = json.loads(texts.pop(EXTRA, "{}").rstrip("\0"))
        if not isinstance(extra, dict) or (extra and not has_crc):
            raise ValueError("values without a checksum, which is cut off, or no values")
        arrays = {
            tag: (_shaped(b"".join(pieces[tag]), kind, dims), kind)
            for tag, (kind, dims) in kinds.items()
            if kind != "str"
        }
    except (ValueError, KeyError, RecursionError, DecodeError) as error:
        raise _damaged(path, MINDSPORE) from error
    return arrays, list(texts), extra


def _shaped(content: bytes, kind: str, dims: tuple[int, ...]) -> np.ndarray:
    """Returns the numbers of a tensor; ValueError or KeyError if they are not those that its shape and type say."""
    if dims == (0,):
        dims = ()  # MindSpore 1 wrote scalars so
    numbers = np.frombuffer(content, np.uint16 if kind == "bfloat16" else _MINDSPORE_TYPES[kind])
    if any(side < 0 for side in dims) or math.prod(dims) != numbers.size:
        raise ValueError(f"{numbers.size} numbers instead of {list(dims)}")
    return numbers.reshape(dims)


# ---- PyTorch


class _StandIn:
    """In place of an object that a pickle wants to make."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _PlainDict:
    """In place of a dictionary with a default, whose content counts."""

    def __new__(cls, *args: Any) -> dict:
        return {}


class _PlainList:
    """In place of a queue."""

    def __new__(cls, *args: Any) -> list:
        return []


def _read_torch(path: Path) -> Content:
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            f"{path}: a PyTorch file needs PyTorch to be read: pip install torch==2.13.0, or convert the file with"
            " src/utils/pth2ckpt.py where PyTorch is installed"
        ) from error
    with open(path, "rb") as file:
        is_zip = file.read(2) == b"PK"
    stand_ins = [(_StandIn, name) for name in _HARMLESS]
    stand_ins += [(_PlainDict, "collections.defaultdict"), (_PlainList, "collections.deque")]
    try:
        if is_zip:
            _check_zip(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")
            # A tensor cannot reach beyond storage that is mapped; other storage would grow, with what is in memory.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a damaged pickle raises almost anything
        raise CheckpointError(
            f"{path}: expected a PyTorch file of plain tensors, found {_cause(path, error)}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary of named tensors, found {type(content).__name__}")
    tensors: dict[str, Stored] = {}
    others: list[str] = []
    seen: set[int] = set()
    size = path.stat().st_size

    def collect(values: dict, prefix: str, depth: int) -> None:
        seen.add(id(values))
        for key, value in dict.items(values):  # the pickle may have given an OrderedDict an ``items`` of its own
            name = f"{prefix}{key}" if isinstance(key, (str, int)) else f"{prefix}({type(key).__name__})"
            if isinstance(value, torch.Tensor):
                tensors[name] = Stored(tuple(value.shape), lambda value=value: _torch_floats(value, size))
            elif isinstance(value, dict) and value and depth < _DEPTH:
                if id(value) not in seen:  # the same dictionary under two names, or within itself
                    collect(value, f"{name}.", depth + 1)
            else:
                others.append(name)

    collect(content, "", 0)
    if content and not any(isinstance(name, str) for name in content):
        raise CheckpointError(f"{path}: expected a dictionary of named tensors, found one without names")
    if others and not tensors:
        raise CheckpointError(
            f"{path}: expected a dictionary of named tensors, found none but {len(others)} other things, such as "
            f"{others[0]!r}; {foreign.SAVE_STATE}"
        )
    return Content(TORCH, tensors, others)


def _check_zip(path: Path) -> None:
    """Raises BadZipFile unless all members are whole; PyTorch does not look at their checksums."""
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise zipfile.BadZipFile("compressed")
        bad = archive.testzip()
        if bad:
            raise zipfile.BadZipFile(bad)


def _cause(path: Path, error: Exception) -> str:
    """Says what is wrong with a PyTorch file."""
    code = re.search(r"GLOBAL (\w[\w.]*)", str(error))
    if not code and re.search("Unsupported operand|magic number", str(error)):
        return f"a pickle that torch.save does not write by default, or a damaged one; {foreign.SAVE_STATE}"
    if not code:
        return "one that is damaged or cut short"
    with open(path, "rb") as file:
        is_module = b"torch.nn.modules" in file.read(10**6)
    found = f"a pickled module ({code[1]})" if is_module else f"a pickle that asks for {code[1]}"
    return f"{found}; it was not run; {foreign.SAVE_STATE}"


def _torch_floats(tensor: Any, file_size: int) -> np.ndarray:
    """Returns a tensor of PyTorch as float32, if it comes from a file of so many bytes."""
    import torch

    tensor = torch.Tensor.detach(tensor)  # anew: the pickle may have given it attributes in place of methods
    is_plain = tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta
    if not is_plain or tensor.is_quantized or tensor.element_size() < 2:
        raise ValueError(f"expected dense floating-point numbers, found {tensor.type()}")
    storage_size = tensor.untyped_storage().nbytes()
    if storage_size > file_size:  # a pickle may make a tensor of any size, of whatever is in memory
        raise ValueError(f"expected numbers in the file, found a tensor of {storage_size} bytes that is not in it")
    if tensor.numel() * tensor.element_size() > storage_size:
        raise ValueError(f"expected {tensor.numel()} numbers, found fewer, which are repeated")
    return tensor.float().contiguous().numpy()


# ---- safetensors


def _read_safetensors(path: Path) -> Content:
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            checksum = (file.metadata() or {}).get("crc_num")
        entries = dict(sorted(deserialize(path.read_bytes())))  # they come in another order each time
        if checksum is not None and not _has_checksum(entries, checksum):
            raise ValueError("another checksum")
    except (SafetensorError, ValueError, OSError) as error:
        raise _damaged(path, SAFETENSORS) from error

    def floats(entry: dict[str, Any]) -> np.ndarray:
        kind = entry["dtype"]
        if kind not in _SAFETENSORS_TYPES:
            raise ValueError(f"expected floating-point numbers, found {kind}")
        numbers = np.frombuffer(entry["data"], _SAFETENSORS_TYPES[kind]).reshape(entry["shape"])
        return to_float32(numbers, "bfloat16" if kind == "BF16" else kind)

    tensors = {
        name: Stored(tuple(entry["shape"]), lambda entry=entry: floats(entry)) for name, entry in entries.items()
    }
    return Content(SAFETENSORS, tensors)


def _has_checksum(entries: dict[str, dict[str, Any]], checksum: str) -> bool:
    """Whether entries in the order of their names have the checksum that MindSpore wrote (``crc_check=True``)."""
    crc = 0
    for name, entry in entries.items():
        if not entry["shape"] and not entry["dtype"].startswith("F"):
            return True  # of whole numbers it sums other bytes: as many zeros as the number says
        crc = zlib.crc32(entry["data"], zlib.crc32(name.encode(), crc))
    return str(crc) == checksum
