"""Exported graphs: what a MINDIR or ONNX file says of itself.

Both are protobuf messages. The few fields that are wanted here are read from the file without the libraries that run
it: of 400 MB some kilobytes are touched, and what the settings are is known before anything heavy is imported.
"""

import json
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

from src.common.errors import CheckpointError
from src.weights.checkpoint import check_course

MINDIR, ONNX = "MINDIR", "ONNX"
ABOUT = "midas_export"  # the entry of the metadata that midas_export.py writes: JSON text

# Paths of protobuf field numbers.
_INPUT = {MINDIR: (7, 5), ONNX: (7, 11)}  # ModelProto.graph.input
_INITIALIZER_NAME = (7, 5, 8)  # ModelProto.graph.initializer.name of ONNX, which may be listed as inputs, too
_NAME = (1,)  # ValueInfoProto.name
_TYPE = {MINDIR: (2, 2), ONNX: (2, 1, 1)}  # ValueInfoProto.tensor.data_type, or .type.tensor_type.elem_type
_FLOAT32 = 1
_MINDIR_SIDES = (2, 1)  # ValueInfoProto.tensor.dims
_ONNX_SIDES = (2, 1, 2, 1)  # ValueInfoProto.type.tensor_type.shape.dim
_ONNX_VALUE = (1,)  # dim_value; a name stands in its place for any size
_METADATA, _KEY, _VALUE = (14,), (1,), (2,)  # ModelProto.metadata_props, or user_info
_FIXED_SIZE = {1: 8, 5: 4}  # kind of field -> bytes

Span = tuple[int, int]  # first byte of a field's content, and the byte after it


@dataclass(frozen=True)
class Graph:
    """An exported network.

    Attributes:
        path: The file.
        format: ``MINDIR`` or ``ONNX``.
        height: Of the images that it takes, in pixels; None if it takes any.
        width: See ``height``.
        about: What ``midas_export.py`` wrote into it; empty for files of other origin.
    """

    path: Path
    format: str
    height: Optional[int]
    width: Optional[int]
    about: dict[str, Any] = field(default_factory=dict)

    def settings(self, network: Mapping[str, Any]) -> dict[str, Any]:
        """Lists the settings that the file decides: key -> value, of the types that a configuration has.

        Args:
            network: The arguments of ``MidasNet`` that are configured.
        """
        wanted = (*network, "nm_img_mean", "nm_img_std")
        settings = {key: self.about[key] for key in wanted if key in self.about}
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        if self.height and self.width:
            settings.update(eval_shapes="fixed", img_height=self.height, img_width=self.width)
        return settings


def graph_format(path: Path) -> Optional[str]:
    """Tells an exported graph from other files, by its first bytes: ``MINDIR``, ``ONNX`` or None."""
    with open(path, "rb") as file:
        head = file.read(64)
    if head[4:9] == b"\0\0\0\0{":  # safetensors: eight bytes of a number that can begin like any other format
        return None
    # The first field of both is the version of the format: a text in MINDIR, a number in ONNX.
    if re.match(rb"\n.\d+\.\d+\.?\d*\x12\tMindSpore", head):
        return MINDIR
    if re.match(rb"\x08[\x01-\x40][\x12\x1a\x22\x28\x32\x3a\x42]", head):
        return ONNX
    return None


def read_graph(path: Path) -> Graph:
    """Reads what an exported graph says of itself.

    Raises:
        CheckpointError: The file is neither MINDIR nor ONNX, is damaged or cut short, or is of a network that takes
            anything but an RGB image in float32.
    """
    kind = graph_format(path)
    if kind is None:
        raise CheckpointError(f"{path}: expected a MINDIR or ONNX model, found another file")
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            inputs, metadata = _read_model(data, kind)
        about = json.loads(metadata.get(ABOUT.encode(), "{}"))
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected a model in {kind} format, found one that is damaged or cut short ({error})"
        ) from error
    if len(inputs) != 1:
        raise CheckpointError(f"{path}: expected a network of one input, an image, found one of {len(inputs)}")
    number, sides = inputs[0]
    if number != _FLOAT32:
        raise CheckpointError(
            f"{path}: expected a network that takes float32 (type {_FLOAT32} of {kind}), found one of type {number}"
        )
    if len(sides) != 4 or sides[0] not in (1, None) or sides[1] not in (3, None):
        found = " x ".join("any" if side is None else str(side) for side in sides)
        raise CheckpointError(f"{path}: expected a network that takes 1 x 3 x height x width, found one of {found}")
    if (sides[2] is None) != (sides[3] is None):
        raise CheckpointError(
            f"{path}: expected a network of fixed height and width or of neither, found one of the two"
        )
    check_course(path, about)
    return Graph(path, kind, sides[2], sides[3], about)


def _read_model(data: mmap.mmap, kind: str) -> tuple[list[tuple[int, list[Optional[int]]]], dict[bytes, bytes]]:
    """Returns the type and the sides of each input, None for any, and the metadata."""
    whole = 0, len(data)
    known = {data[slice(*name)] for name in _find(data, whole, _INITIALIZER_NAME)} if kind == ONNX else set()
    inputs = []
    for value in _find(data, whole, _INPUT[kind]):
        if data[slice(*next(_find(data, value, _NAME), (0, 0)))] in known:
            continue
        if kind == ONNX:
            sides = [next(_find(data, side, _ONNX_VALUE), None) for side in _find(data, value, _ONNX_SIDES)]
        else:
            sides = list(_find(data, value, _MINDIR_SIDES))
        number = next(_find(data, value, _TYPE[kind]), 0)
        inputs.append((number, [side if side and side < 2**31 else None for side in sides]))
    if not inputs:
        raise ValueError("it has no input")
    metadata = {}
    for entry in _find(data, whole, _METADATA):
        key, text = (next(_find(data, entry, field), (0, 0)) for field in (_KEY, _VALUE))
        metadata[data[slice(*key)]] = data[slice(*text)]
    return inputs, metadata


def _find(data: mmap.mmap, message: Span, path: Sequence[int]) -> Iterator[Union[int, Span]]:
    """Yields all fields at a path of field numbers below a message: numbers, or where their content is."""
    for number, value in _fields(data, *message):
        if number == path[0]:
            if len(path) > 1:
                yield from _find(data, value, path[1:])
            else:
                yield value


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, Union[int, Span]]]:
    """Yields number and value of each field of a message.

    Raises:
        ValueError: It is no protobuf message, or ends too early.
    """
    while at < end:
        key, at = _varint(data, at, end)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at, end)
        elif kind == 2:
            size, at = _varint(data, at, end)
            value = at, at + size
            at += size
        elif kind in _FIXED_SIZE:
            value = at, at + _FIXED_SIZE[kind]
            at += _FIXED_SIZE[kind]
        else:
            raise ValueError(f"no field of protobuf begins with {key}")
        if at > end:
            raise ValueError(f"{at - end} bytes are missing")
        yield key >> 3, value


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """Returns a number of variable length, and where the next byte is."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("it ends in a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is too long")
