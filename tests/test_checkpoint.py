"""This project's and MindSpore's .ckpt: saving, reading, damage, and loading into a network."""

import json
import os
import resource
import subprocess
import sys
import zlib
from ast import literal_eval
from dataclasses import replace
from functools import cache
from itertools import accumulate

import mindspore as ms
import numpy as np
import pytest
from conftest import TINY
from mindspore import nn
from mindspore.nn.utils import no_init_parameters
from mindspore.train.checkpoint_pb2 import Checkpoint

from src.common.errors import CheckpointError, UsageError
from src.midas_net import MidasNet
from src.weights.checkpoint import (
    Weights,
    build_network,
    check_complete,
    load_into,
    open_weights,
    read_ckpt,
    read_weights,
    save_checkpoint,
    shapes_of,
)
from src.weights.families import OURS, SUITE_2021, TORCHVISION, network_sizes
from src.weights.locate import GET_ENCODER, GET_NETWORK

FULL = {"layers": [3, 4, 23, 3], "groups": 32, "width_per_group": 8, "in_channels": 64, "features": 256}
EXTRA = {
    "epoch": 3,
    "step": 2**40 + 1,
    "loss": 0.1,
    "best": None,
    "done": True,
    "name": "深度",
    "rates": [1e-05, 0.0001],
}


def net_shapes(**sizes):
    """Name -> shape of the parameters of a real network."""
    return dict(_net_shapes(repr(sizes)))


@cache
def _net_shapes(sizes):
    with no_init_parameters():
        net = MidasNet(**literal_eval(sizes))
    return shapes_of({parameter.name: parameter for parameter in net.get_parameters()})


def random_arrays(shapes, seed=0):
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def net_values(net):
    return {parameter.name: parameter.asnumpy().copy() for parameter in net.get_parameters()}


def encoder_of(tensors):
    return {name: array for name, array in tensors.items() if name.startswith("backbone")}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def read_complete(path):
    """Reads and checks as ``pth2ckpt.convert`` does: ``read_weights`` by itself does not ask for every tensor."""
    weights = read_weights(path)
    check_complete(weights)
    return weights


def refusal(path, reader=read_complete):
    """The text of the refusal: one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        reader(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def message(name, dims, type_name, content):
    """One tensor in the bytes of a .ckpt."""
    tensor = {"dims": dims, "tensor_type": type_name, "tensor_content": content}
    return Checkpoint(value=[{"tag": name, "tensor": tensor}]).SerializeToString()


def message_ends(data):
    """Offsets in the bytes of a .ckpt, without a checksum, at which a whole number of tensors has been read."""
    return list(accumulate(Checkpoint(value=[value]).ByteSize() for value in Checkpoint.FromString(data).value))


@pytest.fixture(scope="module")
def arrays():
    """Our name -> array, of the whole tiny network."""
    return random_arrays(net_shapes(**TINY))


# ---- saving and reading


@pytest.mark.parametrize("whole", [True, False])
def test_ours(tmp_path, arrays, whole):
    stored = arrays if whole else encoder_of(arrays)
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, stored)
    weights = read_complete(path)
    assert (weights.family, weights.whole, weights.ignored, weights.extra) == (OURS, whole, [], {})
    assert weights.sizes == (TINY if whole else {key: value for key, value in TINY.items() if key != "features"})
    assert_same(weights.parameters, stored)


def test_extra_and_optimizer_state_come_back(tmp_path, net):
    adam = nn.Adam(net.trainable_params())
    adam.moment1[0].set_data(ms.Tensor(np.full(adam.moment1[0].shape, 0.25, np.float32)))
    stored = {parameter.name: parameter for cell in (net, adam) for parameter in cell.get_parameters()}
    path = tmp_path / "new" / "a.ckpt"
    save_checkpoint(path, stored, EXTRA)
    assert os.listdir(path.parent) == ["a.ckpt"]
    tensors, extra = read_ckpt(path)
    assert extra == EXTRA
    assert isinstance(extra["step"], int)
    assert set(tensors) == set(stored)
    for name, parameter in stored.items():
        assert tensors[name].shape == parameter.shape
        assert tensors[name].dtype == parameter.asnumpy().dtype
        np.testing.assert_array_equal(tensors[name], parameter.asnumpy())
    weights = read_complete(path)
    assert weights.extra == EXTRA
    assert_same(weights.parameters, net_values(net))
    assert set(weights.ignored) == {p.name for p in adam.get_parameters()} - set(weights.parameters)
    assert {"global_step", "beta1_power", "moment2.backbone_conv.weight"} < set(weights.ignored)


def test_mindspore_reads_what_we_write(tmp_path, arrays):
    path = str(tmp_path / "a.ckpt")
    odd = {
        "scalar": np.array(1.5, np.float32),
        "integer": np.array([2**40], np.int64),
        "flags": np.array([True, False]),
        "half": np.arange(6, dtype=np.float16).reshape(2, 3).T,  # not contiguous
        "view": np.broadcast_to(np.float64(7), (2, 3)),  # not writable, one number in memory
    }
    brain = ms.Parameter(ms.Tensor([1.0, 2.0, 3.0], ms.bfloat16))
    save_checkpoint(path, {**arrays, **odd, "brain": brain}, EXTRA)
    ours, _ = read_ckpt(path)
    loaded = ms.load_checkpoint(path, crc_check=True)
    assert json.loads(loaded.pop("midas_extra")) == EXTRA
    assert set(loaded) == set(ours) == {*arrays, *odd, "brain"}
    assert_same({name: loaded[name].asnumpy() for name in arrays}, arrays)
    for name, array in odd.items():
        for found in (loaded[name].asnumpy(), ours[name]):
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(found, array)
    assert loaded["brain"].dtype == ms.bfloat16
    assert ours["brain"].dtype == np.float32
    np.testing.assert_array_equal(ours["brain"], [1, 2, 3])

    net = MidasNet(**TINY)
    assert ms.load_param_into_net(net, ms.load_checkpoint(path))[0] == []
    assert_same(net_values(net), arrays)


@pytest.mark.parametrize("crc_check", [True, False])
def test_we_read_what_mindspore_writes(tmp_path, net, crc_check):
    path = str(tmp_path / "a.ckpt")
    ms.save_checkpoint(net, path, append_dict={"step": 4, "text": "x"}, crc_check=crc_check)
    weights = read_complete(path)
    assert_same(weights.parameters, net_values(net))
    assert sorted(weights.ignored) == ["step", "text"]
    tensors, extra = read_ckpt(path)
    assert extra == {}
    assert set(tensors) == {*weights.parameters, "step"}  # a text is no tensor
    assert tensors["step"] == 4
    assert tensors["step"].shape == ()


@pytest.mark.parametrize("dtype", [ms.float16, ms.bfloat16, ms.float64])
def test_mindspore_types_become_float32(tmp_path, arrays, dtype):
    path = str(tmp_path / "a.ckpt")
    tensors = {name: ms.Tensor(array).astype(dtype) for name, array in arrays.items()}
    ms.save_checkpoint([{"name": name, "data": tensor} for name, tensor in tensors.items()], path)
    assert_same(read_complete(path).parameters, {n: t.astype(ms.float32).asnumpy() for n, t in tensors.items()})


def test_files_of_the_previous_version(tmp_path, arrays):
    """It wrote the bytes itself; they are those that MindSpore writes now."""
    stored = {**arrays, "global_step": np.array([7], np.int32), "beta1_power": np.array(0.5, np.float32)}
    data = message("midas_extra", [0], "str", np.array(json.dumps(EXTRA)).tobytes())
    for name, array in stored.items():
        data += message(name, array.shape, array.dtype.name.capitalize(), array.tobytes())
    path = tmp_path / "old.ckpt"
    path.write_bytes(data + b"crc_num" + zlib.crc32(data).to_bytes(10, "big"))
    tensors, extra = read_ckpt(path)
    assert extra == EXTRA
    assert set(tensors) == set(stored)
    for name, array in stored.items():
        assert (tensors[name].dtype, tensors[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(tensors[name], array)
    weights = read_complete(path)
    assert weights.extra == EXTRA
    assert_same(weights.parameters, arrays)
    save_checkpoint(tmp_path / "new.ckpt", stored, EXTRA)
    assert (tmp_path / "new.ckpt").read_bytes() == path.read_bytes()


def test_scalars_of_mindspore_1(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(message("a.b", [0], "Float32", np.float32(1.5).tobytes()))
    assert read_ckpt(path) == ({"a.b": np.float32(1.5)}, {})


def test_integers_are_not_weights(tmp_path, arrays):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, {**arrays, "backbone_conv.weight": arrays["backbone_conv.weight"].astype(np.int8)})
    assert "backbone_conv.weight: expected floating-point numbers, found int8" in refusal(path)


# ---- saving: permissions and failures


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_checkpoint_has_the_permissions_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        for _ in range(2):  # new, and in place of the old
            save_checkpoint(tmp_path / "a.ckpt", {"a.b": np.ones(3)})
        (tmp_path / "other").touch()
    finally:
        os.umask(before)
    mode = (tmp_path / "a.ckpt").stat().st_mode
    assert mode == (tmp_path / "other").stat().st_mode
    assert mode & 0o600 == 0o600


@pytest.mark.parametrize(
    "value",
    [
        ms.Tensor([1.0]),
        np.float32(1),
        1.0,
        "a text",
        None,
        np.array(["a text"]),
        np.array([1j]),
        np.arange(3, dtype=">f4"),
        np.zeros((0, 3), np.float32),
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}",
)
def test_what_mindspore_would_drop_or_garble_is_not_saved(tmp_path, value):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, {"a.b": np.ones(3)})
    old = path.read_bytes()
    with pytest.raises(TypeError, match=r"^x\.y: expected a Parameter or an array of numbers, found "):
        save_checkpoint(path, {"a.b": np.zeros(3), "x.y": value})
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, arrays):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, arrays)
    old = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, limits[1]))
    try:
        text = refusal(path, lambda path: save_checkpoint(path, {**arrays, "backbone_bn.beta": np.zeros(8)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert text == f"{path}: cannot be written: File too large"
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.ckpt"]  # neither our temporary file nor MindSpore's


def test_paths_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.ckpt").mkdir()
    for path in (tmp_path / "file" / "a.ckpt", tmp_path / "folder.ckpt"):
        assert "cannot be written" in refusal(path, lambda path: save_checkpoint(path, {"a.b": np.ones(3)}))
    with pytest.raises(ValueError, match=r"ends in \.ckpt"):
        save_checkpoint(tmp_path / "a.bin", {"a.b": np.ones(3)})
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.ckpt"]


# ---- damage


def test_a_file_cut_anywhere_is_refused(tmp_path, arrays):
    path, cut = tmp_path / "a.ckpt", tmp_path / "cut.ckpt"
    moments = {f"moment1.{name}": arrays[name] for name in list(arrays)[-10:]}
    save_checkpoint(path, {**arrays, **moments}, {"epoch": 1})
    data = path.read_bytes()
    ends = message_ends(data[:-17])
    assert len(ends) == 1 + len(arrays) + len(moments)
    assert ends[-1] == len(data) - 17
    cuts = {0, 1, 5, len(data) - 16, len(data) - 1, *range(7, len(data), len(data) // 30)}
    cuts |= {end + delta for end in [*ends[:: len(ends) // 8], *ends[-4:]] for delta in (-1, 0, 1, 9)}
    for size in sorted(cuts):
        cut.write_bytes(data[:size])
        refusal(cut)
        refusal(cut, read_ckpt)
    assert len(read_ckpt(path)[0]) == len(arrays) + len(moments)


def test_a_changed_byte_is_refused(tmp_path, arrays):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, arrays, {"epoch": 1})
    data = bytearray(path.read_bytes())
    for at in {*range(40), *range(40, len(data), len(data) // 50), *range(len(data) - 17, len(data))}:
        data[at] ^= 0x10
        path.write_bytes(data)
        refusal(path)
        refusal(path, read_ckpt)
        data[at] ^= 0x10
    path.write_bytes(data)
    assert_same(read_ckpt(path)[0], arrays)


def test_a_mindspore_file_cut_between_tensors_is_refused(tmp_path, net, arrays):
    path, cut = tmp_path / "a.ckpt", tmp_path / "cut.ckpt"
    ms.save_checkpoint([{"name": name, "data": ms.Tensor(array)} for name, array in arrays.items()], str(path))
    data = path.read_bytes()
    ends = message_ends(data)
    before = net_values(net)
    encoder = len(encoder_of(arrays))
    for count in (1, 2, encoder - 1, encoder + 1, len(ends) - 1):
        cut.write_bytes(data[: ends[count - 1]])
        assert len(ms.load_checkpoint(str(cut))) == count  # MindSpore does not see it
        assert "not a" in refusal(cut)
        refusal(cut, lambda path: load_into(net, read_weights(path)))
    assert_same(net_values(net), before)
    # No reader can tell this from an encoder alone; `whole` and the report say what was loaded.
    cut.write_bytes(data[: ends[encoder - 1]])
    assert not read_complete(cut).whole


UNREADABLE = {
    "empty": b"",
    "HTML": b"<!DOCTYPE html><html>",
    "JPEG": b"\xff\xd8\xff\xe0JFIF",
    "text": b"\n\nsome text\n",
    "no protobuf": b"\n" + b"\xff" * 30,
    "cut message": b"\n\x03\x12\x01\x00",
    "no tensor": Checkpoint(value=[{"tag": "a.b"}]).SerializeToString(),
    "another type": message("a.b", [1], "Complex64", bytes(8)),
    "negative side": message("a.b", [-1], "Float32", bytes(4)),
    "too few numbers": message("a.b", [1000, 1000], "Float32", bytes(48)),
    "too many numbers": message("a.b", [3, 3], "Float32", bytes(48)),
    "text in pieces": message("a.b", [0], "str", bytes(5)),
    "name": message("a.b", [1], "Float32", bytes(4)).replace(b"a.b", b"\xff\xfe."),
    "extra": message("midas_extra", [0], "str", bytes(4)) + message("a.b", [1], "Float32", bytes(4)),
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    assert "expected a" in refusal(path)
    assert "expected a" in refusal(path, read_ckpt)


SCRIPT_ON_MANY_FILES = """
import resource, runpy, sys
script, output, *sources = sys.argv[1:]
for source in sources:
    sys.argv = [script, source, output]
    if source == "good.ckpt":
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))  # the disk is full
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print(end.code)
"""


def test_the_script_says_one_line_per_bad_file(tmp_path, repo, arrays):
    """MindSpore has much to say about files that it cannot read or write, and none of it reaches stderr."""
    for name, content in UNREADABLE.items():
        (tmp_path / f"{name}.ckpt").write_bytes(content)
    save_checkpoint(tmp_path / "good.ckpt", arrays)
    data = (tmp_path / "good.ckpt").read_bytes()
    (tmp_path / "bad.ckpt").write_bytes(data[:5000] + b"damage" + data[5006:])
    sources = [f"{name}.ckpt" for name in (*UNREADABLE, "bad", "good")]
    script = repo / "src" / "utils" / "pth2ckpt.py"
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT_ON_MANY_FILES, script, "out/a.ckpt", *sources],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "1\n" * len(sources))
    said = run.stderr.splitlines()
    assert [line.split(":")[:2] for line in said[:-1]] == [["error", f" {source}"] for source in sources[:-1]]
    assert said[-2:] == [
        "error: bad.ckpt: expected a MindSpore checkpoint, found one that is damaged or cut short,"
        " or another kind of file",
        "error: out/a.ckpt: cannot be written: File too large",
    ]
    assert os.listdir(tmp_path / "out") == []


def test_no_file(tmp_path):
    for reader in (read_weights, read_ckpt):
        refusal(tmp_path / "absent.ckpt", reader)
        refusal(tmp_path, reader)


def test_a_mindspore_file_may_have_any_name(tmp_path, arrays):
    save_checkpoint(tmp_path / "a.ckpt", arrays, EXTRA)
    for name in ("a.ckpt.bak", "a", "a.pt"):
        path = (tmp_path / "a.ckpt").rename(tmp_path / name)
        assert_same(read_complete(path).parameters, arrays)
        assert_same(read_ckpt(path)[0], arrays)
        path.rename(tmp_path / "a.ckpt")


# ---- into a network


def test_encoder_alone_leaves_the_decoder(tmp_path, net, arrays):
    path = tmp_path / "encoder.ckpt"
    save_checkpoint(path, encoder_of(arrays))
    before = net_values(net)
    report = load_into(net, read_weights(path))
    assert set(report.loaded) == set(encoder_of(arrays))
    assert set(report.missing) == set(arrays) - set(encoder_of(arrays))
    assert report.unexpected == report.wrong_shape == []
    assert "not in the file keep their values (layer1_rn_scratch.weight" in report.summary()
    assert_same(net_values(net), {**before, **encoder_of(arrays)})


def test_networks_do_not_share_memory_with_the_weights(tmp_path, net, arrays):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, arrays)
    weights = read_weights(path)
    weights = replace(weights, parameters={name: array.copy() for name, array in weights.parameters.items()})
    load_into(net, weights)
    for array in weights.parameters.values():
        array.fill(0)
    assert_same(net_values(net), arrays)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layers": [1, 2, 2, 1]}, "layers: [1, 2, 2, 1] (now [1, 2, 1, 1])"),  # the network is covered, but is not it
        ({"layers": [1, 1, 1, 1]}, "layers: [1, 1, 1, 1] (now [1, 2, 1, 1])"),
        ({"groups": 2}, "groups: 2 (now 4)"),
        ({"width_per_group": 16}, "width_per_group: 16 (now 32)"),
        ({"in_channels": 16}, "in_channels: 16 (now 8)"),
        ({"features": 24}, "features: 24 (now 16)"),
    ],
)
def test_other_sizes_are_refused_and_change_nothing(tmp_path, net, change, named):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, random_arrays(net_shapes(**{**TINY, **change})))
    before = net_values(net)
    text = refusal(path, lambda path: load_into(net, read_weights(path)))
    assert text.endswith(f"; the file needs {named}")
    assert_same(net_values(net), before)


@pytest.mark.parametrize(
    ("dropped", "fault"),
    [
        ("backbone_layer3.0.bn2.beta", "1 missing (backbone_layer3.0.bn2.beta)"),
        ("refinenet4_scratch.resConfUnit1.", "4 missing (refinenet4_scratch.resConfUnit1.conv1.weight, "),
    ],
)
def test_an_incomplete_file_is_refused_and_changes_nothing(tmp_path, net, arrays, dropped, fault):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, {name: array for name, array in arrays.items() if not name.startswith(dropped)})
    before = net_values(net)
    for reader in (read_complete, lambda path: load_into(net, read_weights(path))):
        assert f"{path}: not a complete MidasNet or encoder ({OURS}): {fault}" in refusal(path, reader)
    assert_same(net_values(net), before)


def test_full_size_encoder_is_refused_by_a_tiny_network(net):
    shapes = encoder_of(net_shapes())
    parameters = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    weights = Weights("w.pth", TORCHVISION, network_sizes(shapes), parameters, {}, [])
    text = refusal("w.pth", lambda _: load_into(net, weights))
    for key in ("layers", "groups", "width_per_group", "in_channels"):
        assert f"{key}: {FULL[key]} (now {TINY[key]})" in text
    assert "features" not in text
    assert "missing" not in text  # the decoder is not promised


NETWORK = {**TINY, "layers": tuple(TINY["layers"]), "network_ops": "midas"}
SIZES = "layers [1, 2, 1, 1], groups 4, width_per_group 32, in_channels 8, features 16, network_ops midas"


def test_a_network_without_weights():
    assert open_weights("") is None
    net, said = build_network(None, NETWORK, "ckpt_path")
    assert shapes_of(net_values(net)) == net_shapes(**TINY)
    assert said == ["ckpt_path is empty: random initialisation", f"network: {SIZES} (from the settings)"]


def test_no_such_file(tmp_path):
    for path in (tmp_path / "absent.ckpt", tmp_path / "absent" / "absent.ckpt"):
        for whole, how in ((False, GET_ENCODER), (True, GET_NETWORK)):
            with pytest.raises(UsageError) as caught:
                open_weights(str(path), "ckpt_path", whole)
            assert str(caught.value) == (
                f"ckpt_path: expected a checkpoint file or a run folder, found none at {path}; {how}; '' selects random"
                " weights"
            )


def test_prediction_needs_the_whole_network(tmp_path, arrays):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, encoder_of(arrays))
    text = refusal(path, lambda path: open_weights(path, "ckpt_path", whole=True))
    assert text.startswith(f"ckpt_path: expected weights of the whole network, found the encoder alone in {path}; ")
    save_checkpoint(path, {**arrays, "global_step": np.array([3])})
    net, said = build_network(open_weights(path, whole=True), NETWORK, "ckpt_path")
    loaded = f"{path} ({OURS}): loaded {len(arrays)} tensors; 1 entries of other things left out (global_step)"
    assert said == [loaded, f"network: {SIZES} (from the weights)"]
    assert_same(net_values(net), arrays)


def test_an_encoder_gets_a_random_decoder(tmp_path, arrays):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, encoder_of(arrays))
    weights = open_weights(path)
    settings = weights.settings(NETWORK)
    assert "features" not in settings
    net, said = build_network(weights, {**NETWORK, **settings}, "model_weights")
    assert said[1] == f"network: {SIZES} (from the weights, but features from the settings)"
    assert_same(encoder_of(net_values(net)), encoder_of(arrays))
    assert net_values(net)["layer1_rn_scratch.weight"].std() > 0


def suite_2021_pieces(arrays):
    """Weights as the 2021 suite has them."""
    pieces = {}
    for name, array in arrays.items():
        is_grouped = name.startswith("backbone_layer") and name.endswith("conv2.weight")
        for i, piece in enumerate(np.split(array, TINY["groups"]) if is_grouped else [array]):
            pieces[f"{name[:-6]}convs.{i}.weight" if is_grouped else name] = piece
    return pieces


MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, {}),
        ({"network_ops": "modelzoo"}, {"network_ops": "modelzoo"}),  # an earlier version of this project
        (
            {"epoch": 1, "course": {"network_ops": "midas", "nm_img_mean": MEAN, "nm_img_std": STD, "seed": 3}},
            {"network_ops": "midas", "nm_img_mean": MEAN, "nm_img_std": STD},
        ),
    ],
)
def test_a_checkpoint_brings_its_settings(tmp_path, arrays, extra, expected):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, arrays, extra)
    sizes = {key: value for key, value in NETWORK.items() if key != "network_ops"}
    assert read_weights(path).settings(NETWORK) == {**sizes, **expected}


def test_the_2021_suite_wants_its_operators(tmp_path, arrays):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, suite_2021_pieces(arrays))
    weights = read_weights(path)
    assert (weights.family, weights.settings(NETWORK)["network_ops"]) == (SUITE_2021, "modelzoo")


def test_several_width_per_group_make_one_network(tmp_path):
    sizes = {"layers": [1, 1, 1, 1], "groups": 2, "width_per_group": 33, "in_channels": 2, "features": 8}
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, random_arrays(net_shapes(**sizes)))
    weights = read_weights(path)
    assert weights.sizes["width_per_group"] == 32
    for configured, expected in ((33, 33), (31, 32), (64, 32)):
        assert weights.settings({"width_per_group": configured})["width_per_group"] == expected
    save_checkpoint(path, random_arrays(net_shapes(**sizes)), {"course": {"width_per_group": 33}})
    assert read_weights(path).settings({"width_per_group": 64})["width_per_group"] == 33


@pytest.mark.parametrize(
    "extra",
    [
        {"course": 3},
        {"course": {"network_ops": "other"}},
        {"course": {"network_ops": ["midas"]}},
        {"course": {"nm_img_mean": [1, 2]}},
        {"course": {"nm_img_mean": ["a", 2, 3]}},
        {"course": {"nm_img_std": [1, 0, 1]}},
    ],
)
def test_settings_that_make_no_sense(tmp_path, arrays, extra):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, arrays, extra)
    assert "in what the file says of itself" in refusal(path)
