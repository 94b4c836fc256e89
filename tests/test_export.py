"""Exported networks: MINDIR and ONNX files compute what the network computes; the translator; midas_export.py."""

import errno
import json
import os
import signal
import subprocess
import sys

import mindspore as ms
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import TINY, TINY_FLAGS, hand_signal
from mindspore import nn, ops
from torch_midas import TorchMidas, lively

import midas_export
from src.common.device import Device
from src.common.errors import DataError, ExportError, UsageError
from src.common.names import NETWORK_OPS
from src.common.stop import StopRequest
from src.config import load_config
from src.export import mindir as mindir_files
from src.export.check import Trial, difference, random_image
from src.export.mindir import converter_command, converter_settings, write_mindir
from src.export.onnx_graph import OPSET, read_mindir, user_info, write_onnx
from src.inference.mindspore import load_mindir
from src.inference.openvino import openvino  # there it does not send statistics of use
from src.midas_net import MidasNet
from src.weights.checkpoint import load_into, read_weights
from src.weights.graphs import ABOUT

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


@pytest.fixture(scope="module")
def lively_nets(official):
    """Both kinds of network, with these weights."""
    nets = {}
    for kind in NETWORK_OPS:
        nets[kind] = net = MidasNet(**TINY, network_ops=kind)
        load_into(net, read_weights(official))
        net.set_inputs(ms.Tensor(shape=[None, 3, None, None], dtype=ms.float32))
        net.set_train(False)
    return nets


@pytest.fixture(scope="module", params=NETWORK_OPS)
def each_net(request, lively_nets):
    return lively_nets[request.param]


@pytest.fixture
def lively_net(lively_nets):
    return lively_nets["midas"]


@pytest.fixture(scope="module", params=[SIZE, None], ids=["static", "dynamic"])
def exported(request, each_net, tmp_path_factory):
    """The network, its fixed size, and its MINDIR in a folder whose name MindSpore would refuse."""
    folder = tmp_path_factory.mktemp("exported") / "größe 图"
    write_mindir(each_net, folder / "net 1.mindir", request.param, NOTE)
    assert [path.name for path in folder.iterdir()] == ["net 1.mindir"]
    return each_net, request.param, folder / "net 1.mindir"


def image(batch, size):
    return np.random.default_rng(size[0]).normal(size=(batch, 3, *size)).astype(np.float32)


def with_mindspore(path):
    net = load_mindir(path)
    return lambda array: net(ms.Tensor(array)).asnumpy()


def with_onnxruntime(path):
    options = onnxruntime.SessionOptions()
    # Otherwise ONNX Runtime 1.23 makes padding a part of the pool after it even where the pool does not allow it.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda array: session.run(["inverse_depth"], {"image": array})[0]


def with_openvino(path):
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda array: compiled({"image": array})["inverse_depth"]


def test_mindir(exported):
    net, fixed, path = exported
    run = with_mindspore(path)
    for size in [SIZE] if fixed else [SIZE, OTHER_SIZE]:
        expected = net(ms.Tensor(image(1, size))).asnumpy()
        assert np.ptp(expected) > 0.1 * expected.max()  # so that the comparison means something
        assert difference(run(image(1, size)), expected) < 1e-6
    model = read_mindir(path)
    assert user_info(model) == {ABOUT: NOTE}
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
    assert {item.key: item.value for item in model.metadata_props} == {ABOUT: NOTE}
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
        self.last = nn.Conv2d(8, 4, 1, pad_mode="valid", has_bias=True)
        self.bias_add = ops.BiasAdd()
        self.second_bias = ms.Parameter(ms.Tensor(np.zeros(4, np.float32)), name="second_bias")
        self.wide = ops.Pad(((0, 0), (0, 0), (3, 3), (3, 3)))

    def construct(self, x):
        x = self.norm(self.uneven(x))
        x = self.pool(self.border(x))  # of negative numbers, too: zeros at the border count
        x = x + self.dilated(x)
        x = self.border(self.relu(self.same(x)))
        x = self.bias_add(self.last(x + self.relu(x)), self.second_bias)
        x = self.pool(self.border(self.relu(x)))
        return self.pool(self.wide(self.relu(x)))  # wider than the window


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
    assert expected.shape[2:] == (4, 7)
    assert difference(with_onnxruntime(tmp_path / "others.onnx")(array), expected) < 1e-5
    assert difference(with_openvino(tmp_path / "others.onnx")(array), expected) < 1e-5
    model = onnx.load(tmp_path / "others.onnx")
    assert sum(node.op_type == "Pad" for node in model.graph.node) == 3
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


# ---- the comparison


def test_difference_is_relative_to_the_largest_number():
    expected = np.array([[0.0, 8.0]], np.float32)
    assert difference(expected, expected) == 0
    assert difference(np.array([[0.5, 7.0]], np.float32), expected) == pytest.approx(1 / 8)
    assert difference(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32)) == 0
    with pytest.raises(ValueError, match=r"expected the shape \(1, 2\), found \(2,\)"):
        difference(expected[0], expected)
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="expected finite numbers, found NaN or infinity"):
            difference(np.full((1, 2), wrong, np.float32), expected)


def test_a_model_that_differs_at_one_size_is_refused():
    images = [random_image(size, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)) for size in (SIZE, OTHER_SIZE)]
    trial = Trial(images, [array[:, 0] for array in images])
    text = trial.compare("net.onnx", lambda array: array[:, 0], "here")
    assert text == "differs from the network by 0.0e+00 of the largest output (here, 64x96 and 96x32)"

    def scaled(array):
        return array[:, 0] * (1.001 if array.shape[2:] == OTHER_SIZE else 1)

    with pytest.raises(ExportError, match=r"net.onnx: expected what .* a difference of 1.0e-03 at 96x32; do that"):
        trial.compare("net.onnx", scaled, "here", "; do that")
    assert trial.first.compare("net.onnx", scaled, "here").endswith("(here, 64x96)")
    with pytest.raises(ExportError, match=r"net.onnx: differs from the network at 64x96: expected the shape"):
        trial.compare("net.onnx", lambda array: array, "here")


def test_random_image_is_a_normalised_image():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    array = random_image((64, 96), mean, std)
    assert (array.shape, array.dtype) == ((1, 3, 64, 96), np.float32)
    raw = array[0] * np.reshape(std, (3, 1, 1)) + np.reshape(mean, (3, 1, 1))
    assert -1e-6 <= raw.min() < 0.1
    assert 0.9 < raw.max() <= 1 + 1e-6


# ---- the script


def settings(folder, *words):
    argv = [*TINY_FLAGS, "--export_path", str(folder), "--img_height", "64", "--img_width", "96", *words]
    return load_config("Test.", argv, keys=midas_export.KEYS)


def refusal(function, *arguments):
    with pytest.raises(UsageError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_script(repo, official, twin, tmp_path):
    words = ["--model_weights", official, "--file_format", "[MINDIR, onnx]", "--export_shapes", "dynamic"]
    words += ["--img_height", 64, "--img_width", 96, "--export_path", tmp_path / "out", "--file_name", "größe"]
    command = [sys.executable, repo / "midas_export.py", *words]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stderr) == (0, "")
    out = tmp_path / "out"
    assert sorted(os.listdir(out)) == ["größe.cfg", "größe.mindir", "größe.onnx"]
    assert f"{out / 'größe.mindir'}: MINDIR, input 1x3xHxW, " in result.stdout
    assert f"{out / 'größe.onnx'}: ONNX, opset 11, IR version 6, input Nx3xHxW, " in result.stdout
    assert result.stdout.count("differs from the network by ") == 2
    assert f"--configFile={out / 'größe.cfg'}" in result.stdout
    assert "dynamic_dims=[160,384],[384,1280],[288,384],[64,96]\n" in (out / "größe.cfg").read_text()
    with torch.no_grad():
        expected = twin(torch.from_numpy(image(1, OTHER_SIZE))).numpy()
    assert difference(with_onnxruntime(out / "größe.onnx")(image(1, OTHER_SIZE)), expected) < 1e-5
    assert difference(with_mindspore(out / "größe.mindir")(image(1, OTHER_SIZE)), expected) < 1e-5
    note = {item.key: item.value for item in onnx.load(out / "größe.onnx").metadata_props}[ABOUT]
    assert note == user_info(read_mindir(out / "größe.mindir"))[ABOUT]
    assert json.loads(note) == {
        **TINY,
        "network_ops": "midas",
        "nm_img_mean": [0.485, 0.456, 0.406],
        "nm_img_std": [0.229, 0.224, 0.225],
        "checkpoint": "tiny.pt",
        "height": None,
        "width": None,
    }


@pytest.fixture
def export(lively_net, monkeypatch):
    """Exports a network as the script does; ``differs`` names formats that are to read back different."""

    def run(config, differs=()):
        load = midas_export.load_back
        monkeypatch.setattr(
            midas_export,
            "load_back",
            lambda path, name, device: (double, "a test") if name in differs else load(path, name, device),
        )
        midas_export.export(lively_net, config, midas_export.targets_of(config, None), None, "CPU")

    return run


def double(array):
    return array[0, 0] * 2


def test_onnx_alone_leaves_no_mindir(export, tmp_path, capsys):
    export(settings(tmp_path, "--file_format", "ONNX"))
    assert os.listdir(tmp_path) == ["random_dynamic.onnx"]
    assert "(ONNX Runtime, CPU, 64x96 and 32x128)" in capsys.readouterr().out
    note = {item.key: item.value for item in onnx.load(tmp_path / "random_dynamic.onnx").metadata_props}[ABOUT]
    assert json.loads(note)["height"] is None


def test_what_differs_from_the_network_is_not_left(export, tmp_path):
    config = settings(tmp_path, "--file_format", "MINDIR,ONNX")
    with pytest.raises(ExportError, match=r"random_64x96.mindir: expected what the network computes"):
        export(config, differs=["MINDIR"])
    assert os.listdir(tmp_path) == []


def test_what_is_complete_stays(export, tmp_path):
    config = settings(tmp_path, "--file_format", "ONNX,MINDIR")
    with pytest.raises(ExportError, match=r"random_dynamic.onnx: expected what the network computes"):
        export(config, differs=["ONNX"])
    assert os.listdir(tmp_path) == ["random_64x96.mindir"]
    note = json.loads(user_info(read_mindir(tmp_path / "random_64x96.mindir"))[ABOUT])
    assert (note["height"], note["width"], note["checkpoint"]) == (64, 96, "")


@pytest.mark.parametrize(("name", "suffix"), [("MINDIR", "64x96.mindir"), ("ONNX", "dynamic.onnx")])
def test_a_full_disk_is_told_with_the_file(name, suffix, export, tmp_path, monkeypatch):
    def fill(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(midas_export, "write_mindir", fill)  # ONNX is made of a MINDIR
    with pytest.raises(OSError, match="No space left") as caught:
        export(settings(tmp_path, "--file_format", name))
    assert caught.value.filename == str(tmp_path / f"random_{suffix}")
    assert os.listdir(tmp_path) == []


def test_a_signal_ends_the_export_between_files(export, tmp_path, monkeypatch, capsys):
    heard = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    write = midas_export.write_mindir

    def write_and_signal(*arguments):
        hand_signal(signal.SIGTERM)
        write(*arguments)

    monkeypatch.setattr(midas_export, "write_mindir", write_and_signal)
    try:
        with pytest.raises(StopRequest, match=r"random_64x96.mindir written so far"):
            export(settings(tmp_path, "--file_format", "ONNX,MINDIR"))
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)
    assert os.listdir(tmp_path) == ["random_64x96.mindir"]


class Flat:
    """A network without a picture in its output."""

    def __init__(self, value):
        self.value = value

    def set_train(self, mode):
        assert not mode

    def __call__(self, array):
        generator = np.random.default_rng(0)
        return ms.Tensor(self.value * (1 + 0.005 * generator.random(array.shape[1:], np.float32)))


@pytest.mark.parametrize("value", [0, 7])
def test_a_network_without_a_picture_in_its_output_is_told(value, tmp_path, capsys):
    midas_export.try_network(Flat(value), settings(tmp_path), [(32, 32)])
    assert capsys.readouterr().err.startswith("warning: the network predicts nearly the same for all of a random image")


def test_a_network_for_several_files_is_refused(lively_net, tmp_path, monkeypatch):
    monkeypatch.setattr(mindir_files, "_MOST_BYTES", 10**6)
    with pytest.raises(ExportError, match=r"net.mindir: expected a network of less than 1 GB"):
        write_mindir(lively_net, tmp_path / "net.mindir", SIZE, "")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["midas_64x96.mindir"]),
        (["--export_shapes", "dynamic"], ["midas_dynamic.mindir", "midas_dynamic.cfg"]),
        (["--file_format", "ONNX,AIR"], ["midas_dynamic.onnx", "midas_64x96.air"]),
        (["--file_format", "onnx", "--file_name", "v2.1"], ["v2.1.onnx"]),
        (["--file_format", "onnx", "--file_name", "v2.1.ONNX"], ["v2.1.onnx"]),
        (["--file_format", "onnx,mindir", "--file_name", "net"], ["net.onnx", "net.mindir"]),
    ],
)
def test_names(words, names, tmp_path):
    targets = midas_export.targets_of(settings(tmp_path / "new", *words), tmp_path / "midas.ckpt")
    assert list(targets.values()) == [tmp_path / "new" / name for name in names]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("name", "size"), [("Sintel", "160x384"), ("kitti", "384x1280"), ("TUM", "288x384")])
def test_sizes_of_the_sets(name, size, tmp_path):
    config = load_config("Test.", ["--export_for", name, "--export_path", str(tmp_path)])
    midas_export.check_format(config)
    assert midas_export.targets_of(config, None)["MINDIR"].name == f"random_{size}.mindir"


def test_contradictions(tmp_path):
    message = refusal(midas_export.check_format, settings(tmp_path, "--export_for", "Kitti"))
    assert message.startswith("command line: img_height: expected 384 for export_for Kitti, found 64; ")
    config = load_config("Test.", ["--export_for", "Kitti", "--img_height", "384", "--img_width", "1280"])
    midas_export.check_format(config)
    file = tmp_path / "run.yaml"
    file.write_text("img_width: 384\nexport_for: ''\n")
    midas_export.check_format(load_config("Test.", ["--config_path", str(file), "--export_for", "Kitti"]))
    file.write_text("img_width: 384\nexport_for: Kitti\n")
    message = refusal(midas_export.check_format, load_config("Test.", ["--config_path", str(file)]))
    assert message.startswith(f"{file}:1: img_width: expected 1280 for export_for Kitti, found 384; ")


def test_files_that_are_there_are_kept(tmp_path):
    path = tmp_path / "random_64x96.mindir"
    path.write_text("earlier")
    message = refusal(midas_export.targets_of, settings(tmp_path), None)
    assert message == f"{path}: expected nothing there, found a file; --export_overwrite True replaces it"
    midas_export.targets_of(settings(tmp_path, "--export_overwrite", "True"), None)
    (tmp_path / "random_dynamic.cfg").mkdir()
    config = settings(tmp_path, "--export_shapes", "dynamic", "--export_overwrite", "True")
    assert refusal(midas_export.targets_of, config, None).endswith("expected nothing there, found a folder")


def test_wrong_names_and_folders(tmp_path, monkeypatch):
    config = settings(tmp_path, "--file_name", "net.onnx")
    assert refusal(midas_export.targets_of, config, None) == (
        "file_name: expected no suffix or .mindir, found net.onnx"
    )
    for name in (".onnx", "..", "models/net"):  # the first two would be hidden files
        assert "file_name: expected a name without a folder" in refusal(settings, tmp_path, "--file_name", name)
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        message = refusal(midas_export.prepare_folder, folder)
        assert message.startswith(f"export_path: expected a folder, found {folder}: ")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write everywhere
    message = refusal(midas_export.prepare_folder, tmp_path)
    assert message == f"export_path: expected a folder that may be written to, found {tmp_path}, which may not"


@pytest.mark.parametrize(
    ("missing", "named", "requirements"),
    [
        ({"mindspore"}, "mindspore", "requirements.txt"),
        ({"onnx"}, "onnx", "requirements-deploy.txt"),
        ({"onnxruntime", "openvino"}, "onnxruntime or openvino", "requirements-deploy.txt"),
    ],
)
def test_missing_packages_are_named(missing, named, requirements, tmp_path, monkeypatch):
    monkeypatch.setattr(midas_export, "find_spec", lambda name: None if name in missing else name)
    message = refusal(midas_export.check_format, settings(tmp_path, "--file_format", "ONNX"))
    expected = f"expected the package {named}, which is not installed; pip install -r {requirements}"
    assert message == f"file_format ONNX: {expected}"
    if "mindspore" in missing:
        assert refusal(midas_export.check_format, settings(tmp_path)) == f"file_format MINDIR: {expected}"
    else:
        midas_export.check_format(settings(tmp_path))


def test_what_is_wrong_is_told_before_mindspore_is_imported(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(midas_export, "setup_device", lambda *_: pytest.fail("MindSpore is set up"))
    (tmp_path / "tiny_64x96.mindir").touch()
    argv = ["midas_export.py", "--export_path", str(tmp_path), "--img_height", "64", "--img_width", "96"]
    for path, expected in ((weights, "expected nothing there"), (tmp_path / "missing.ckpt", "expected a checkpoint")):
        monkeypatch.setattr(sys, "argv", [*argv, "--model_weights", str(path)])
        assert expected in refusal(midas_export.main)


@pytest.mark.parametrize("device", ["auto", "CPU"])
def test_air_off_ascend_is_refused_before_any_work(device, tmp_path, monkeypatch):
    words = ["--file_format", "MINDIR,air", "--device_target", device, "--export_path", str(tmp_path / "new")]
    monkeypatch.setattr(sys, "argv", ["midas_export.py", *words, "--model_weights", ""])
    monkeypatch.setattr(midas_export, "setup_device", lambda *_: Device("CPU", 0))
    message = refusal(midas_export.main)
    assert message.startswith("file_format AIR: expected an Ascend device, which alone can write it, found CPU; ")
    assert os.listdir(tmp_path) == []


def test_air(lively_net, tmp_path, monkeypatch, capsys):
    """MindSpore writes none on the CPU: what it is asked for, and that its file comes to its place."""

    def write(net, array, file_name, file_format):
        assert (net, array.shape, file_format) == (lively_net, (1, 3, *SIZE), "AIR")
        mindir_files.Path(file_name).write_bytes(b"air")

    monkeypatch.setattr(ms, "export", write)
    config = settings(tmp_path, "--file_format", "AIR")
    midas_export.export(lively_net, config, midas_export.targets_of(config, None), None, "Ascend")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("random_64x96.air", b"air")]
    assert "not checked: MindSpore reads no AIR" in capsys.readouterr().out


def test_converter():
    assert converter_settings([(160, 384), (64, 96), (160, 384)]) == (
        "[ascend_context]\ninput_format=NCHW\ninput_shape=image:[1,3,-1,-1]\ndynamic_dims=[160,384],[64,96]\n"
    )
    path = mindir_files.Path("/a b/net.mindir")
    assert converter_command(path, path.with_suffix(".cfg")) == (
        "converter_lite --fmk=MINDIR --saveType=MINDIR --optimize=ascend_oriented '--modelFile=/a b/net.mindir' "
        "'--outputFile=/a b/net_ascend' '--configFile=/a b/net.cfg'"
    )
    assert "configFile" not in converter_command(path, None)
