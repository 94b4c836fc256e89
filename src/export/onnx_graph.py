"""ONNX from a MINDIR file, for the operators that MidasNet is made of.

MindSpore's own exporter refuses bilinear resizing. The result is smaller than the MINDIR graph: batch normalisation and
biases are part of the convolutions, the zero padding before the max-pool is part of the max-pool, and what only serves
MindSpore (states, shape arithmetic) is gone. Batch, height and width are dynamic, even where the MINDIR has fixed ones:
these operators work at any size, because every resize doubles.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Optional, Union

import numpy as np

from src.common.atomic import atomic_path
from src.common.errors import DataError, ExportError
from src.export.mindir import INPUT, OUTPUT

PathLike = Union[str, Path]

OPSET = 11  # the oldest whose Resize has the coordinate modes, for the sake of old readers
IR_VERSION = 6  # that of ONNX 1.6, which came with opset 11

_FLOAT32 = 1  # in both formats


@dataclass
class _Op:
    """An operator of the ONNX graph; its output has its name.

    Attributes:
        source: The input that it works on.
        others: Names of further inputs.
        arrays: Constant inputs, which come last: name -> array.
    """

    kind: str
    name: str
    source: "_Tensor"
    others: tuple[str, ...]
    attributes: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class _Tensor(NamedTuple):
    """A tensor that is computed.

    Attributes:
        op: What computes it; None for the input.
        shape: (N, C, H, W) or (N, H, W) in the MINDIR; -1 where it is dynamic.
    """

    op: Optional[_Op]
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.op.name if self.op else INPUT


class _Parameter(NamedTuple):
    name: str
    array: np.ndarray


class _Length(NamedTuple):
    """``factor`` * the length of an axis of a tensor, which the MINDIR leaves open."""

    tensor: str
    axis: int
    factor: int = 1


def write_onnx(mindir: PathLike, target: PathLike, metadata: Optional[Mapping[str, str]] = None) -> None:
    """Translates a MINDIR file into an ONNX file, which is checked before it takes its place under its name.

    Input and output are called ``image`` and ``inverse_depth``. The folder of ``target`` is made if need be.

    Args:
        mindir: A file of MindSpore 2.7 or later with one input (N, C, H, W) float32, one output, and the operators
            Conv2D, BatchNorm after it, BiasAdd after it, ReLU, Pad, MaxPool, Add, ResizeBilinearV2 to twice the
            size, and Squeeze of the channel axis.
        target: The file to write or replace.
        metadata: Key -> text that goes with it; what the MINDIR has as ``user_info`` if None.

    Raises:
        DataError: ``mindir`` is missing, damaged or something else.
        ExportError: The graph has other operators, or the result is not valid.
        OSError: ``target`` cannot be written.
    """
    model = read_mindir(mindir)
    metadata = user_info(model) if metadata is None else metadata
    translation = _Translation(model, str(mindir))
    output = translation.translate()
    image, ops = translation.input, translation.ops
    del model, translation  # the weights of the MINDIR
    _save(ops, image, output, metadata, Path(target))


def read_mindir(path: PathLike) -> Any:
    """Reads a MINDIR file.

    Returns:
        A ``ModelProto`` of ``mindspore.train.mind_ir_pb2``.

    Raises:
        DataError: The file is missing, damaged or something else.
    """
    import mindspore  # noqa: F401 (switches protobuf to what it needs itself, which must come before all others)
    from google.protobuf.message import DecodeError
    from mindspore.train import mind_ir_pb2

    model = mind_ir_pb2.ModelProto()
    try:
        model.ParseFromString(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"{path}: expected a MINDIR file, found none that can be read: {error.strerror}") from error
    except (DecodeError, ValueError) as error:  # the latter for names that are no text
        raise DataError(f"{path}: expected a MINDIR file, found a damaged, encrypted or different one") from error
    if not (len(model.graph.node) and len(model.graph.input) and len(model.graph.output)):
        raise DataError(f"{path}: expected a MINDIR file with a graph, found none in it")
    return model


def user_info(model: Any) -> dict[str, str]:
    """Returns what the writer of a MINDIR has noted in it."""
    entries = model.user_info  # a mapping with some versions of protobuf, a list with others
    return dict(entries) if isinstance(entries, Mapping) else {entry.key: entry.value for entry in entries}


# ---- from MINDIR


def _plain(item: Any) -> Any:
    """The value of a MINDIR attribute; None where it is of another kind (a shape, a state)."""
    if item.values:
        return tuple(map(_plain, item.values))
    for one, many in (("i", "ints"), ("f", "floats"), ("d", "doubles"), ("s", "strings")):
        if item.HasField(one) or len(getattr(item, many)):
            value = getattr(item, one) if item.HasField(one) else getattr(item, many)[0]
            return value.decode() if one == "s" else value
    return None


class _Translation:
    """Translates one graph.

    Attributes:
        input: Of the graph.
        ops: Of the ONNX graph, in order.
    """

    def __init__(self, model: Any, path: str):
        self.ops: list[_Op] = []
        self._graph, self._path = model.graph, path
        if len(self._graph.input) != 1 or len(self._graph.output) != 1:
            found = f"{len(self._graph.input)} and {len(self._graph.output)}"
            raise ExportError(f"{path}: expected one input and one output, found {found}")
        self.input = self._input(self._graph.input[0])
        self._primitives = {item.name: item for item in model.primitives}
        self._values: dict[str, Any] = {}  # name -> parameter, constant, tensor, tuple of them, or None for a state
        self._uses = Counter(name for node in self._graph.node for name in node.input)
        self._uses.update(value.name for value in self._graph.output)
        self._names = Counter((INPUT, OUTPUT))
        self._node: Any = None  # the one at work

    def translate(self) -> _Tensor:
        """Fills ``ops`` and returns the output."""
        graph = self._graph
        self._values.update((item.name, self._parameter(item)) for item in graph.parameter)
        self._values[graph.input[0].name] = self.input
        for node in graph.node:
            self._node = node
            primitive = self._primitives.get(node.op_type.partition("REF::")[2])
            operator = primitive.op_type if primitive else node.op_type
            if operator not in _OPERATORS:
                self._refuse(f"one of {', '.join(_OPERATORS)}", f"the operator {operator}")
            try:
                attributes = {item.name: _plain(item) for item in (primitive or node).attribute}
                inputs = [self._values[name] for name in node.input]
                self._values[node.output[0]] = _OPERATORS[operator](self, inputs, attributes)
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{self._path}: {self._label}: expected {operator} as MindSpore 2.7 and later write it, found "
                    f"another form, or the file is damaged ({type(error).__name__}: {error})"
                ) from error
        output = self._values.get(graph.output[0].name)
        if not isinstance(output, _Tensor) or output.op is None:
            raise DataError(f"{self._path}: expected the output among what the graph computes, found none")
        return output

    @property
    def _label(self) -> str:
        return self._node.domain or self._node.name

    def _refuse(self, expected: str, found: object) -> NoReturn:
        raise ExportError(f"{self._path}: {self._label}: expected {expected}, found {found}")

    def _input(self, value: Any) -> _Tensor:
        tensors = [(tuple(tensor.dims), tensor.data_type) for tensor in value.tensor]
        if len(tensors) != 1 or len(tensors[0][0]) != 4 or tensors[0][0][1] < 1 or tensors[0][1] != _FLOAT32:
            raise ExportError(f"{self._path}: expected an input (N, C, H, W) of float32, found {tensors}")
        return _Tensor(None, tensors[0][0])

    def _parameter(self, item: Any) -> _Parameter:
        name, shape = item.name.rpartition(":")[2], tuple(item.dims)
        if item.HasField("external_data"):
            raise ExportError(
                f"{self._path}: expected a MINDIR in one file, found {name} in another (MindSpore splits above 1 GB)"
            )
        if item.data_type != _FLOAT32:
            raise ExportError(f"{self._path}: {name}: expected float32, found data type {item.data_type}")
        if min(shape, default=0) < 1 or len(item.raw_data) != 4 * math.prod(shape):
            raise DataError(f"{self._path}: {name}: expected numbers for {shape}, found {len(item.raw_data)} bytes")
        array = np.frombuffer(item.raw_data, "<f4").reshape(shape)
        item.ClearField("raw_data")
        return _Parameter(name, array)

    def _unique(self, name: str) -> str:
        self._names[name] += 1
        return name if self._names[name] == 1 else self._unique(f"{name}_{self._names[name]}")

    def _add(self, kind: str, source: _Tensor, *others: str, **attributes: Any) -> _Tensor:
        """Appends an operator."""
        if not isinstance(source, _Tensor):
            raise TypeError(f"no tensor: {source}")
        op = _Op(kind, self._unique(self._label.removeprefix("Default/")), source, others, attributes)
        self.ops.append(op)
        shape = next(item.tensors[0].dims for item in self._node.attribute if item.name == "shape")
        return _Tensor(op, tuple(shape))

    def _takes_alone(self, source: _Tensor, kind: str) -> bool:
        """Whether the node's first input comes from an operator of this kind and goes nowhere else."""
        return source.op is not None and source.op.kind == kind and self._uses[self._node.input[0]] == 1

    # ---- operators: (inputs, attributes) -> output

    def conv(self, inputs: list, attributes: dict) -> _Tensor:
        source, (name, weight) = inputs
        if attributes["format"] != "NCHW" or attributes["mode"] != 1 or weight.ndim != 4:
            self._refuse("a 2-D convolution in NCHW", attributes)
        kernel, strides, dilations = weight.shape[2:], attributes["stride"][-2:], attributes["dilation"][-2:]
        group = attributes["group"]
        if source.shape[1] != weight.shape[1] * group:
            raise ValueError(f"weight {weight.shape} for {source.shape}")
        padding = self._padding(attributes["pad_mode"], attributes["pad"])
        if dilations != (1, 1):
            padding["dilations"] = dilations
        out = self._add("Conv", source, kernel_shape=kernel, strides=strides, group=group, **padding)
        out.op.arrays[self._unique(name)] = weight
        return out

    def _padding(self, mode: str, pad: Sequence[int]) -> dict[str, Any]:
        """The padding of a sliding window as ONNX says it.

        Args:
            mode: ``pad``, ``same`` or ``valid``, in any letter case.
            pad: Top, bottom, left and right for ``pad``.
        """
        if mode.lower() not in ("pad", "same", "valid"):
            self._refuse("pad_mode pad, same or valid", mode)
        if mode.lower() == "same":
            return {"auto_pad": "SAME_UPPER"}
        top, bottom, left, right = pad if mode.lower() == "pad" else (0, 0, 0, 0)
        return {"pads": (top, left, bottom, right)}

    def batch_norm(self, inputs: list, attributes: dict) -> tuple[_Tensor]:
        source, *statistics, is_training, epsilon, _, data_format = inputs
        if is_training or data_format:
            self._refuse("inference in NCHW", f"is_training {is_training}, data_format {data_format}")
        gamma, beta, mean, variance = (item.array.astype(np.float64) for item in statistics)
        factor = gamma / np.sqrt(variance + epsilon)
        (name, weight), bias = self._folded_into(source)
        source.op.arrays[name] = (weight * factor[:, None, None, None]).astype(np.float32)
        self._set_bias(source.op, (bias - mean) * factor + beta)
        return (source,)

    def bias_add(self, inputs: list, attributes: dict) -> _Tensor:
        source, added, *data_format = inputs
        if any(data_format):
            self._refuse("a bias in NCHW", f"data_format {data_format}")
        _, bias = self._folded_into(source)
        self._set_bias(source.op, bias + added.array)
        return source

    def _folded_into(self, source: _Tensor) -> tuple[tuple[str, np.ndarray], np.ndarray]:
        """The weight and the bias of the convolution that the node can be made a part of."""
        if not self._takes_alone(source, "Conv"):
            found = source.op.kind if source.op else "the input"
            self._refuse("it right after a Conv2D whose output goes nowhere else", found)
        weight, *biases = source.op.arrays.items()
        return weight, biases[0][1].astype(np.float64) if biases else np.zeros(len(weight[1]))

    def _set_bias(self, conv: _Op, bias: np.ndarray) -> None:
        weight, *names = conv.arrays
        if bias.shape != conv.arrays[weight].shape[:1]:
            raise ValueError(f"{bias.shape} numbers for {conv.arrays[weight].shape[0]} channels")
        name = names[0] if names else self._unique(f"{weight.removesuffix('.weight')}.bias")
        conv.arrays[name] = bias.astype(np.float32)

    def relu(self, inputs: list, attributes: dict) -> _Tensor:
        (source,) = inputs
        return self._add("Relu", source)

    def added(self, inputs: list, attributes: dict) -> _Tensor:
        first, second = inputs
        if len(first.shape) != 4 or first.shape[1:] != second.shape[1:]:
            self._refuse("two tensors of one shape", f"{first.shape} and {second.shape}")
        return self._add("Add", first, second.name)

    def pad(self, inputs: list, attributes: dict) -> _Tensor:
        (source,) = inputs
        *outer, (top, bottom), (left, right) = attributes["paddings"]
        if outer != [(0, 0), (0, 0)] or min(top, bottom, left, right) < 0:
            self._refuse("padding of height and width", attributes["paddings"])
        out = self._add("Pad", source)
        out.op.arrays[self._unique(f"{out.name}.pads")] = np.array([0, 0, top, left, 0, 0, bottom, right])
        return out

    def max_pool(self, inputs: list, attributes: dict) -> _Tensor:
        (source,) = inputs
        if attributes["format"] != "NCHW":
            self._refuse("a max-pool in NCHW", attributes["format"])
        kernel, strides = attributes["kernel_size"][-2:], attributes["strides"][-2:]
        mode, pad = attributes["pad_mode"], (0, 0, 0, 0)
        if mode.lower() == "valid" and self._takes_alone(source, "Pad"):
            (pads,) = source.op.arrays.values()
            before = source.op.source
            # Among numbers >= 0, a border of zeros changes no maximum, and the pool's own padding does not, either.
            # Beyond its window, ONNX allows no padding.
            if before.op and before.op.kind == "Relu" and all(pads[[2, 6, 3, 7]] < np.repeat(kernel, 2)):
                self.ops = [op for op in self.ops if op is not source.op]
                source, mode, pad = before, "pad", tuple(map(int, pads[[2, 6, 3, 7]]))
        # No "dilations", not even (1, 1): the converter of MindSpore Lite 2.0 refuses it.
        return self._add("MaxPool", source, kernel_shape=kernel, strides=strides, **self._padding(mode, pad))

    def resize(self, inputs: list, attributes: dict) -> _Tensor:
        source, size, align_corners, half_pixel_centers = inputs
        sides = enumerate(source.shape[2:], start=2)
        if tuple(size) != tuple(2 * side if side > 0 else _Length(source.name, axis, 2) for axis, side in sides):
            self._refuse("a resize that doubles height and width", f"{source.shape[2:]} -> {size}")
        modes = {
            (True, False): "align_corners",
            (False, True): "half_pixel",
            (False, False): "asymmetric",
        }
        mode = modes[bool(align_corners), bool(half_pixel_centers)]
        out = self._add("Resize", source, mode="linear", coordinate_transformation_mode=mode)
        out.op.arrays.update(no_roi=np.zeros(0, np.float32), twice=np.array([1, 1, 2, 2], np.float32))
        return out

    def squeeze(self, inputs: list, attributes: dict) -> _Tensor:
        source, axes = inputs
        if axes not in ((1,), (-3,)) or len(source.shape) != 4 or source.shape[1] != 1:
            self._refuse("axis 1 of (N, 1, H, W)", f"{axes} of {source.shape}")
        return self._add("Squeeze", source, axes=(1,))

    # ---- what only MindSpore needs

    def constant(self, inputs: list, attributes: dict) -> Any:
        return attributes["value"]

    def first(self, inputs: list, attributes: dict) -> Any:
        return inputs[0]

    def state(self, inputs: list, attributes: dict) -> None:
        """Has no value."""

    def make_tuple(self, inputs: list, attributes: dict) -> tuple:
        return tuple(inputs)

    def tuple_item(self, inputs: list, attributes: dict) -> Any:
        items, index = inputs
        return items[index]

    def shape(self, inputs: list, attributes: dict) -> tuple:
        (source,) = inputs
        return tuple(length if length > 0 else _Length(source.name, axis) for axis, length in enumerate(source.shape))

    def product(self, inputs: list, attributes: dict) -> Union[int, _Length]:
        lengths = [item for item in inputs if isinstance(item, _Length)]
        factor = math.prod(item for item in inputs if not isinstance(item, _Length))
        if not lengths:
            return factor
        (length,) = lengths
        return length._replace(factor=length.factor * factor)


_OPERATORS = {
    "Conv2D": _Translation.conv,
    "BatchNorm": _Translation.batch_norm,
    "BiasAdd": _Translation.bias_add,
    "ReLU": _Translation.relu,
    "Pad": _Translation.pad,
    "MaxPool": _Translation.max_pool,
    "Add": _Translation.added,
    "ResizeBilinearV2": _Translation.resize,
    "Squeeze": _Translation.squeeze,
    "Identity": _Translation.first,
    "Load": _Translation.first,
    "Depend": _Translation.first,
    "UpdateState": _Translation.state,
    "Constant": _Translation.constant,
    "MakeTuple": _Translation.make_tuple,
    "TupleGetItem": _Translation.tuple_item,
    "Shape": _Translation.shape,
    "ScalarMul": _Translation.product,
}


# ---- to ONNX


def _save(ops: list[_Op], image: _Tensor, output: _Tensor, metadata: Mapping[str, str], target: Path) -> None:
    import mindspore  # noqa: F401 (before onnx, see read_mindir)
    import onnx

    def renamed(name: str) -> str:
        return OUTPUT if name == output.name else name

    def described(name: str, tensor: _Tensor) -> "onnx.ValueInfoProto":
        is_full_size = tensor.shape[-2:] == image.shape[-2:]
        sides = ("height", "width") if is_full_size else ("output_height", "output_width")
        shape = ["batch", *tensor.shape[1:-2], *sides]
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    nodes, arrays = [], {}
    for op in ops:
        names = [op.source.name, *op.others, *op.arrays]
        nodes.append(
            onnx.helper.make_node(op.kind, list(map(renamed, names)), [renamed(op.name)], op.name, **op.attributes)
        )
        arrays.update(op.arrays)
        op.arrays.clear()
    graph = onnx.helper.make_graph(
        nodes,
        "MidasNet",
        [described(INPUT, image)],
        [described(OUTPUT, output)],
    )
    for name in list(arrays):
        graph.initializer.append(onnx.numpy_helper.from_array(arrays.pop(name), name))
    model = onnx.helper.make_model(
        graph, producer_name="midas_export", ir_version=IR_VERSION, opset_imports=[onnx.helper.make_opsetid("", OPSET)]
    )
    del graph
    onnx.helper.set_model_props(model, dict(metadata))
    with atomic_path(target) as temporary:
        temporary.write_bytes(model.SerializeToString())
        del model
        try:
            onnx.checker.check_model(str(temporary), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"{target}: expected valid ONNX, found: {' '.join(str(error).split())}") from error
