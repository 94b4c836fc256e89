"""Exported networks: MINDIR and ONNX files compute what the network computes; the translator; midas_export.py."""

import json
import os
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
import torch
from conftest import TINY, TINY_FLAGS
from mindspore import nn, ops
from torch_midas import TorchMidas, lively

import midas_export
from src.common.errors import DataError, ExportError, UsageError
from src.config import load_config
from src.export import mindir as mindir_files
from src.export.check import compare, difference, random_image
from src.export.mindir import METADATA, converter_command, converter_settings, load_mindir, write_mindir
from src.export.onnx_graph import OPSET, read_mindir, user_info, write_onnx
from src.midas_net import MidasNet
from src.weights.checkpoint import load_into, read_weights

import onnx  # isort: skip  (after mindspore, which makes protobuf what it needs)
import onnxruntime  # isort: skip
import openvino  # isort: skip

NOTE = json.dumps({"checkpoint": "tiny.pt"})
SIZE, OTHER_SIZE = (64, 96), (96, 32)


@pytest.fixture(scope="module")
def twin():
    """A tiny network of PyTorch whose weights and batch statistics all matter."""
    return lively(TorchMidas(**TINY)).eval()


@pytest.fixture(scope="module")
def official(twin, tmp_path_factory):
    """Its weights, as the authors publish theirs."""
    path = tmp_path_factory.mktemp("official") / "tiny.pt"
    torch.save(twin.state_dict(), path)
    return path


@pytest.fixture(scope="module", params=["midas", "modelzoo"])
def lively_net(request, official):
    net = MidasNet(**TINY, network_ops=request.param)
    load_into(net, read_weights(official))
    net.set_inputs(ms.Tensor(shape=[None, 3, None, None], dtype=ms.float32))
    return net.set_train(False)


@pytest.fixture(scope="module", params=[SIZE, None], ids=["static", "dynamic"])
def exported(request, lively_net, tmp_path_factory):
    """The network, its fixed size, and its MINDIR in a folder whose name MindSpore would refuse."""
    folder = tmp_path_factory.mktemp("exported") / "größe 图"
    write_mindir(lively_net, folder / "net 1.mindir", request.param, NOTE)
    assert [path.name for path in folder.iterdir()] == ["net 1.mindir"]
    return lively_net, request.param, folder / "net 1.mindir"


def image(batch, size):
    return np.random.default_rng(size[0]).normal(size=(batch, 3, *size)).astype(np.float32)


def with_onnxruntime(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda array: session.run(["inverse_depth"], {"image": array})[0]


def with_openvino(path):
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda array: compiled({"image": array})["inverse_depth"]


def test_mindir(exported):
    net, fixed, path = exported
    run = load_mindir(path)
    for size in [SIZE] if fixed else [SIZE, OTHER_SIZE]:
        expected = net(ms.Tensor(image(1, size))).asnumpy()
        assert np.ptp(expected) > 0.1 * expected.max()  # so that the comparison means something
        assert difference(run(image(1, size)), expected) < 1e-6
    model = read_mindir(path)
    assert user_info(model) == {METADATA: NOTE}
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("image", "inverse_depth")
    assert list(model.graph.input[0].tensor[0].dims) == [1, 3, *(fixed or (-1, -1))]
    other = path.with_name("other")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode
    other.unlink()


def test_onnx(exported, twin, tmp_path):
    net, _, path = exported
    target = tmp_path / "folder" / "net.onnx"
    write_onnx(path, target)
    runs = with_onnxruntime(target), with_openvino(target)
    for batch, size in ((1, SIZE), (1, OTHER_SIZE), (2, (32, 32))):
        expected = net(ms.Tensor(image(batch, size))).asnumpy()
        if net.network_ops == "midas":  # PyTorch's
            with torch.no_grad():
                assert difference(twin(torch.from_numpy(image(batch, size))).numpy(), expected) < 1e-5
        for run in runs:
            assert difference(run(image(batch, size)), expected) < 1e-5
    model = onnx.load(target)
    assert {item.key: item.value for item in model.metadata_props} == {METADATA: NOTE}
    assert [(item.domain, item.version) for item in model.opset_import] == [("", OPSET)]
    described = [onnx.helper.printable_value_info(value) for value in (*model.graph.input, *model.graph.output)]
    assert described == ["%image[FLOAT, batchx3xheightxwidth]", "%inverse_depth[FLOAT, batchxheightxwidth]"]
    # All batch normalisation, biases and padding are folded.
    assert {node.op_type for node in model.graph.node} == {"Conv", "Relu", "MaxPool", "Add", "Resize", "Squeeze"}
    (pool,) = (node for node in model.graph.node if node.op_type == "MaxPool")
    assert "dilations" not in {item.name for item in pool.attribute}
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert "backbone_conv.weight" in {item.name for item in model.graph.initializer}


# ---- the translator and other networks


class Others(nn.Cell):
    """What MidasNet does not have: odd padding, dilation, padding that cannot be folded, biases before statistics."""

    def __init__(self):
        super().__init__()
        self.uneven = nn.Conv2d(3, 8, (3, 5), (2, 1), "pad", (0, 1, 2, 1), has_bias=True)
        self.norm = nn.BatchNorm2d(8)
        self.same = nn.Conv2d(8, 8, 5, 2, "same", group=2)
        self.dilated = nn.Conv2d(8, 8, 3, 1, "pad", 2, dilation=2)
        self.border = ops.Pad(((0, 0), (0, 0), (1, 0), (2, 1)))
        self.pool = nn.MaxPool2d(3, 2, "valid")
        self.relu = nn.ReLU()
        self.last = nn.Conv2d(8, 4, 1, pad_mode="valid")

    def construct(self, x):
        x = self.norm(self.uneven(x))
        x = self.pool(self.border(x))  # of negative numbers, too: zeros at the border count
        x = x + self.dilated(x)
        x = self.border(self.relu(self.same(x)))
        return self.last(x + self.relu(x))


def export_cell(cell, path, shape=(1, 3, 40, 56)):
    ms.export(cell, ms.Tensor(np.zeros(shape, np.float32)), file_name=str(path), file_format="MINDIR")
    return path


def test_operators_in_other_forms(tmp_path):
    ms.set_seed(3)
    cell = Others().set_train(False)
    generator = np.random.default_rng(4)
    for parameter in cell.get_parameters():
        spread = generator.uniform(0.5, 1.5, parameter.shape).astype(np.float32)
        if parameter.name.startswith("norm") or parameter.name.endswith("bias"):
            parameter.set_data(ms.Tensor(spread if "variance" in parameter.name else spread - 1))
    write_onnx(export_cell(cell, tmp_path / "others.mindir"), tmp_path / "others.onnx")
    array = generator.normal(size=(1, 3, 40, 56)).astype(np.float32)
    expected = cell(ms.Tensor(array)).asnumpy()
    assert expected.shape[2:] == (6, 17)
    assert difference(with_onnxruntime(tmp_path / "others.onnx")(array), expected) < 1e-5
    assert difference(with_openvino(tmp_path / "others.onnx")(array), expected) < 1e-5
    model = onnx.load(tmp_path / "others.onnx")
    assert sum(node.op_type == "Pad" for node in model.graph.node) == 2
    output = onnx.helper.printable_value_info(model.graph.output[0])
    assert output == "%inverse_depth[FLOAT, batchx4xoutput_heightxoutput_width]"


class Unknown(nn.Cell):
    """A convolution, and then something that the translator does not know."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 1, 3, has_bias=True)
        self.norm = nn.BatchNorm2d(1)
        self.sigmoid, self.relu, self.squeeze = ops.Sigmoid(), ops.ReLU(), ops.Squeeze(2)
        self.resize = ops.ResizeBilinearV2()
        self.pool = nn.MaxPool2d((32, 1), 1)
        self.left = ops.Pad(((0, 0), (0, 0), (0, 0), (1, 0)))
        self.batch = ops.Pad(((1, 0), (0, 0), (0, 0), (0, 0)))

    def construct(self, x):
        x = self.conv(x)
        if self.kind == "sigmoid":
            x = self.sigmoid(x)
        elif self.kind == "two uses":
            x = self.norm(x) + x
        elif self.kind == "norm after ReLU":
            x = self.norm(self.relu(x))
        elif self.kind == "three times":
            x = self.resize(x, (96, 192))
        elif self.kind == "flipped":
            x = self.resize(x, (128, 64))
        elif self.kind == "rows":
            x = self.squeeze(self.pool(x))
        elif self.kind == "batch":
            x = self.batch(x)
        elif self.kind == "broadcast":
            x = x + self.pool(x)
        return x


REFUSED = {
    "sigmoid": "Sigmoid-op0: expected one of Conv2D, BatchNorm, .*, found the operator Sigmoid",
    "two uses": "BatchNorm-op0: expected it right after a Conv2D whose output goes nowhere else, found Conv",
    "norm after ReLU": "BatchNorm-op0: expected it right after a Conv2D whose output goes nowhere else, found Relu",
    "three times": r"expected a resize that doubles height and width, found \(32, 64\) -> \(96, 192\)",
    "flipped": "expected a resize that doubles height and width",
    "rows": r"Squeeze-op0: expected axis 1 of \(N, 1, H, W\), found \(2,\) of \(1, 1, 1, 64\)",
    "batch": "Pad-op0: expected padding of height and width",
    "broadcast": "Add-op0: expected two tensors of one shape",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_translated_is_named(kind, tmp_path):
    path = export_cell(Unknown(kind).set_train(False), tmp_path / "net.mindir", (1, 3, 32, 64))
    with pytest.raises(ExportError, match=REFUSED[kind]) as caught:
        write_onnx(path, tmp_path / "net.onnx")
    assert str(caught.value).startswith(f"{path}: Default/")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "net.onnx").exists()


def changed(path, target, change):
    """Writes a MINDIR after ``change`` of its content."""
    model = read_mindir(path)
    change(model)
    target.write_bytes(model.SerializeToString())
    return target


CHANGES = {
    "float16": (lambda model: setattr(model.graph.parameter[0], "data_type", 10), "conv.weight: expected float32"),
    "short": (
        lambda model: setattr(model.graph.parameter[0], "raw_data", b"1234"),
        r"conv.weight: expected numbers for \(1, 3, 3, 3\), found 4 bytes",
    ),
    "elsewhere": (
        lambda model: setattr(model.graph.parameter[0].external_data, "location", "data_0"),
        "expected a MINDIR in one file, found conv.weight in another",
    ),
    "two inputs": (lambda model: model.graph.input.add(name="y"), "expected one input and one output, found 2 and 1"),
    "grey": (
        lambda model: model.graph.input[0].tensor[0].dims.pop(),
        r"expected an input \(N, C, H, W\) of float32, found",
    ),
    "no primitives": (lambda model: model.ClearField("primitives"), "found the operator REF::"),
    "no parameters": (lambda model: model.graph.ClearField("parameter"), "or the file is damaged"),
    "no nodes": (lambda model: model.graph.ClearField("node"), "expected a MINDIR file with a graph"),
    "other output": (lambda model: setattr(model.graph.output[0], "name", "y"), "expected the output among"),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A MINDIR that can be translated."""
    path = export_cell(Unknown("").set_train(False), tmp_path_factory.mktemp("small") / "small.mindir", (1, 3, 32, 64))
    write_onnx(path, path.with_suffix(".onnx"))
    return path


@pytest.mark.parametrize("kind", CHANGES)
def test_other_contents_are_refused(kind, small, tmp_path):
    change, expected = CHANGES[kind]
    path = changed(small, tmp_path / "changed.mindir", change)
    with pytest.raises((DataError, ExportError), match=expected) as caught:
        write_onnx(path, tmp_path / "net.onnx")
    assert str(caught.value).startswith(f"{path}: ")
    assert os.listdir(tmp_path) == ["changed.mindir"]


def test_damaged_files_are_refused(small, tmp_path):
    content = small.read_bytes()
    path = tmp_path / "damaged.mindir"
    for damaged in (b"", b"MINDIR", content[: len(content) // 2], content[:-1], content[::-1], os.urandom(1000)):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="expected a MINDIR file") as caught:
            write_onnx(path, tmp_path / "net.onnx")
        assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(DataError, match="none that can be read: No such file"):
        write_onnx(tmp_path / "missing.mindir", tmp_path / "net.onnx")
    with pytest.raises(DataError, match="none that can be read: Is a directory"):
        write_onnx(tmp_path, tmp_path / "net.onnx")


def test_user_info_of_both_kinds_of_protobuf():
    class Entry:
        key, value = "a", "b"

    class Model:
        user_info: object = [Entry()]

    assert user_info(Model()) == {"a": "b"}
    Model.user_info = {"c": "d"}
    assert user_info(Model()) == {"c": "d"}
