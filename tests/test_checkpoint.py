import json
import os
import pickle
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
import torch
from conftest import TINY
from mindspore import nn
from torch_midas import TorchMidas, lively

from src.common.errors import CheckpointError, UsageError
from src.midas_net import MidasNet
from src.utils import pth2ckpt
from src.weights import checkpoint
from src.weights.checkpoint import (
    OFFICIAL,
    OURS,
    SUITE_2021,
    TORCHVISION,
    Architecture,
    initialise,
    load_into,
    read_ckpt,
    read_weights,
    save_checkpoint,
)

NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
TINY_ARCHITECTURE = Architecture(**{**TINY, "layers": tuple(TINY["layers"])})
FULL_ARCHITECTURE = Architecture((3, 4, 23, 3), 32, 8, 64, 256)


def name_table(layers):
    """Rows (our name, official name, torchvision name or None), spelt out one layer after another."""
    rows = [("backbone_conv.weight", "pretrained.layer1.0.weight", "conv1.weight")]
    rows += [
        (f"backbone_bn.{ours}", f"pretrained.layer1.1.{torch_leaf}", f"bn1.{torch_leaf}")
        for torch_leaf, ours in NORM.items()
    ]
    for stage, blocks in enumerate(layers, start=1):
        for block in range(blocks):
            ours = f"backbone_layer{stage}.{block}"
            official = f"pretrained.layer1.4.{block}" if stage == 1 else f"pretrained.layer{stage}.{block}"
            torchvision = f"layer{stage}.{block}"
            modules = [(f"conv{i}", f"conv{i}") for i in (1, 2, 3)] + [(f"bn{i}", f"bn{i}") for i in (1, 2, 3)]
            if block == 0:
                modules += [("down_sample.conv", "downsample.0"), ("down_sample.bn", "downsample.1")]
            for our_module, module in modules:
                leaves = NORM if "bn" in our_module else {"weight": "weight"}
                rows += [
                    (
                        f"{ours}.{our_module}.{leaf}",
                        f"{official}.{module}.{torch_leaf}",
                        f"{torchvision}.{module}.{torch_leaf}",
                    )
                    for torch_leaf, leaf in leaves.items()
                ]
    for stage in (1, 2, 3, 4):
        rows.append((f"layer{stage}_rn_scratch.weight", f"scratch.layer{stage}_rn.weight", None))
        for tail in ("1.conv1", "1.conv2", "2.conv1", "2.conv2"):
            for leaf in ("weight", "bias"):
                tail_leaf = f"resConfUnit{tail}.{leaf}"
                rows.append((f"refinenet{stage}_scratch.{tail_leaf}", f"scratch.refinenet{stage}.{tail_leaf}", None))
    for index in (0, 2, 4):
        for leaf in ("weight", "bias"):
            rows.append((f"output_conv_scratch.{index}.{leaf}", f"scratch.output_conv.{index}.{leaf}", None))
    return rows


@pytest.fixture(scope="module")
def model():
    return lively(TorchMidas(**TINY)).eval()


@pytest.fixture(scope="module")
def ours(model):
    """Our name -> array, of the whole tiny network."""
    state = model.state_dict()
    return {ours: state[official].numpy().copy() for ours, official, _ in name_table(TINY["layers"])}


@pytest.fixture(scope="module")
def encoder_state(model):
    """A state dict with torchvision's names, its classifier included."""
    state = model.state_dict()
    encoder = {name: state[official] for _, official, name in name_table(TINY["layers"]) if name}
    return {
        **encoder,
        "bn1.num_batches_tracked": torch.tensor(7),
        "fc.weight": torch.ones(10, 256),
        "fc.bias": torch.ones(10),
    }


@pytest.fixture(scope="module")
def random_net():
    """A tiny network; tests give it weights."""
    return MidasNet(**TINY)


def arrays(architecture, seed=0):
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape, np.float32) for name, shape in architecture.shapes().items()}


def net_values(net):
    return {parameter.name: parameter.asnumpy().copy() for parameter in net.get_parameters()}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def encoder_of(tensors):
    return {name: array for name, array in tensors.items() if name.startswith("backbone")}


def refusal(path, reader=read_weights):
    """The text of the refusal: one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        reader(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


# Architecture


def test_architecture_has_the_names_and_shapes_of_the_network(random_net):
    shapes = {parameter.name: tuple(parameter.shape) for parameter in random_net.get_parameters()}
    assert TINY_ARCHITECTURE.shapes() == shapes
    assert Architecture.of(shapes) == TINY_ARCHITECTURE


def test_full_architecture_is_the_published_one():
    with torch.device("meta"):
        state = TorchMidas().state_dict()
    shapes = FULL_ARCHITECTURE.shapes()
    assert shapes == {ours: tuple(state[official].shape) for ours, official, _ in name_table((3, 4, 23, 3))}
    assert Architecture.of(shapes) == FULL_ARCHITECTURE
    encoder = sum(np.prod(shape) for name, shape in encoder_of(shapes).items() if "moving" not in name)
    assert encoder == 88_791_336 - (
        2048 * 1000 + 1000
    )  # torchvision's figure for resnext101_32x8d, less its classifier


@pytest.mark.parametrize("width_per_group", [4, 5, 7, 8, 12, 64])
def test_width_per_group_is_inferred(width_per_group):
    architecture = Architecture((1, 1, 2, 1), 2, width_per_group, 16, None)
    shapes = architecture.shapes()
    inferred = Architecture.of(shapes)
    assert inferred.shapes() == shapes
    assert (inferred.layers, inferred.groups, inferred.in_channels) == ((1, 1, 2, 1), 2, 16)


# The four families


@pytest.mark.parametrize("whole", [True, False])
def test_ours(tmp_path, ours, whole):
    stored = ours if whole else encoder_of(ours)
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, stored)
    weights = read_weights(path)
    assert (weights.family, weights.whole, weights.ignored, weights.extra) == (OURS, whole, [], {})
    assert_same(weights.parameters, stored)


def suite_list(parameters, groups):
    """What the 2021 suite saved: the grouped convolutions in pieces, here in the order of their names as text."""
    entries = []
    for name, array in parameters.items():
        if name.startswith("backbone_layer") and name.endswith("conv2.weight"):
            pieces = {f"{name[:-6]}convs.{i}.weight": piece for i, piece in enumerate(np.split(array, groups))}
            entries += [(piece, pieces[piece]) for piece in sorted(pieces)]
        else:
            entries.append((name, array))
    return [{"name": name, "data": ms.Tensor(array)} for name, array in entries]


def test_suite_2021_pieces_are_joined_by_number(tmp_path):
    parameters = arrays(Architecture((1, 2, 1, 1), 12, 16, 8, 16))
    path = str(tmp_path / "Midas_0-600_56_1.ckpt")
    entries = suite_list(parameters, 12)
    ms.save_checkpoint([*entries, {"name": "fc.bias", "data": ms.Tensor([1.0])}], path, append_dict={"epoch_num": 3})
    weights = read_weights(path)
    assert (weights.family, weights.whole, weights.ignored) == (SUITE_2021, True, ["fc.bias", "epoch_num"])
    assert weights.architecture == Architecture((1, 2, 1, 1), 12, 16, 8, 16)
    assert_same(weights.parameters, parameters)


@pytest.mark.parametrize("piece", [0, 7, 11])
def test_suite_2021_with_a_piece_missing(tmp_path, piece):
    path = str(tmp_path / "a.ckpt")
    entries = suite_list(arrays(Architecture((1, 1, 1, 1), 12, 16, 8, None)), 12)
    ms.save_checkpoint([e for e in entries if e["name"] != f"backbone_layer2.0.conv2.convs.{piece}.weight"], path)
    assert "backbone_layer2.0.conv2.weight" in refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_torchvision_encoder(tmp_path, ours, encoder_state, zipped):
    path = tmp_path / "ig_resnext101_32x8-c38310e5.pth"
    torch.save(encoder_state, path, _use_new_zipfile_serialization=zipped)
    weights = read_weights(path)
    assert (weights.family, weights.whole) == (TORCHVISION, False)
    assert weights.ignored == ["bn1.num_batches_tracked", "fc.weight", "fc.bias"]
    assert_same(weights.parameters, encoder_of(ours))


def wrap(state, how):
    if how == "state_dict":
        return {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}
    if how == "module":
        return {"model": {f"module.{name}": tensor for name, tensor in state.items()}}
    return state


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("how", ["plain", "state_dict", "module"])
def test_official(tmp_path, model, ours, how, zipped):
    path = tmp_path / "model.pt"
    torch.save(wrap(model.state_dict(), how), path, _use_new_zipfile_serialization=zipped)
    weights = read_weights(path)
    assert (weights.family, weights.whole) == (OFFICIAL, True)
    assert weights.ignored  # num_batches_tracked
    assert all(name.endswith(".num_batches_tracked") for name in weights.ignored)
    assert_same(weights.parameters, ours)


def test_names_decide_and_not_the_kind_of_file(tmp_path, ours):
    path = tmp_path / "ours.pt"
    torch.save({name: torch.from_numpy(array) for name, array in ours.items()}, path)
    assert read_weights(path).family == OURS
    renamed = tmp_path / "model.ckpt"  # a .pt with a misleading suffix
    path.rename(renamed)
    assert_same(read_weights(renamed).parameters, ours)


def test_what_is_not_a_tensor_is_ignored(tmp_path, model, ours):
    path = tmp_path / "model.pt"
    torch.save({**model.state_dict(), "epoch": 3, "meta.date": "2020"}, path)
    weights = read_weights(path)
    assert weights.ignored[-2:] == ["epoch", "meta.date"]
    assert_same(weights.parameters, ours)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_torch_types_become_float32(tmp_path, model, ours, dtype):
    path = tmp_path / "model.pt"
    torch.save({name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, path)
    assert_same(
        read_weights(path).parameters, {n: torch.from_numpy(a).to(dtype).float().numpy() for n, a in ours.items()}
    )


@pytest.mark.parametrize("dtype", [ms.float16, ms.bfloat16, ms.float64])
def test_mindspore_types_become_float32(tmp_path, ours, dtype):
    path = str(tmp_path / "a.ckpt")
    tensors = {name: ms.Tensor(array).astype(dtype) for name, array in ours.items()}
    ms.save_checkpoint([{"name": name, "data": tensor} for name, tensor in tensors.items()], path)
    assert_same(read_weights(path).parameters, {n: t.astype(ms.float32).asnumpy() for n, t in tensors.items()})


def test_integers_are_not_weights(tmp_path, ours):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, {**ours, "backbone_conv.weight": ours["backbone_conv.weight"].astype(np.int8)})
    assert "backbone_conv.weight: expected floating-point numbers, found int8" in refusal(path)
    path = tmp_path / "a.pt"
    torch.save({n: torch.from_numpy(a).char() for n, a in ours.items()}, path)
    assert "CharTensor" in refusal(path)


# Into a network


def test_official_weights_give_the_official_output(tmp_path, model):
    path = tmp_path / "model.pt"
    torch.save(model.state_dict(), path)
    net = MidasNet(**TINY).set_train(False)
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 64), np.float32)
    before = net(ms.Tensor(image)).asnumpy()  # compiled before it is loaded: new values must reach the compiled graph
    sentence = initialise(net, str(path))
    assert sentence == f"{path} ({OFFICIAL}): loaded {len(TINY_ARCHITECTURE.shapes())} tensors"
    found = net(ms.Tensor(image)).asnumpy()
    with torch.no_grad():
        expected = model(torch.from_numpy(image)).numpy()
    assert np.abs(found - before).max() > 0.1
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert expected.std() > 0.01  # an output that a wrong weight could change


def test_encoder_alone_leaves_the_decoder(tmp_path, random_net, encoder_state, ours):
    path = tmp_path / "encoder.pth"
    torch.save(encoder_state, path)
    before = net_values(random_net)
    report = load_into(random_net, read_weights(path))
    assert set(report.loaded) == set(encoder_of(ours))
    assert set(report.missing) == set(ours) - set(encoder_of(ours))
    assert report.unexpected == report.wrong_shape == []
    assert "not in the file keep their values (layer1_rn_scratch.weight" in report.summary()
    assert_same(net_values(random_net), {**before, **encoder_of(ours)})


def test_networks_do_not_share_memory_with_the_weights(tmp_path, random_net, ours):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, ours)
    weights = read_weights(path)
    load_into(random_net, weights)
    for array in weights.parameters.values():
        array.fill(0)
    assert_same(net_values(random_net), ours)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layers": (1, 2, 2, 1)}, "layers: [1, 2, 2, 1] (now [1, 2, 1, 1])"),  # the network is covered, but is not it
        ({"layers": (1, 1, 1, 1)}, "layers: [1, 1, 1, 1] (now [1, 2, 1, 1])"),
        ({"groups": 2}, "groups: 2 (now 4)"),
        ({"width_per_group": 16}, "width_per_group: 16 (now 32)"),
        ({"in_channels": 16}, "in_channels: 16 (now 8)"),
        ({"features": 24}, "features: 24 (now 16)"),
    ],
)
def test_other_sizes_are_refused_and_change_nothing(tmp_path, random_net, change, named):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, arrays(Architecture(**{**vars(TINY_ARCHITECTURE), **change})))
    before = net_values(random_net)
    text = refusal(path, lambda path: initialise(random_net, path))
    assert named in text
    assert_same(net_values(random_net), before)


def test_full_size_encoder_is_refused_by_a_tiny_network(random_net):
    shapes = Architecture((3, 4, 23, 3), 32, 8, 64, None).shapes()
    parameters = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    weights = checkpoint.Weights("w.pth", TORCHVISION, Architecture.of(shapes), parameters, {}, [])
    text = refusal("w.pth", lambda _: load_into(random_net, weights))
    for key in ("layers", "groups", "width_per_group", "in_channels"):
        assert f"{key}: " in text
    assert "features" not in text
    assert "missing" not in text  # the decoder is not promised


def test_initialise_without_weights(tmp_path, random_net):
    before = net_values(random_net)
    assert initialise(random_net, "") == "model_weights is empty: random initialisation"
    assert_same(net_values(random_net), before)
    for path in (tmp_path / "absent.ckpt", tmp_path):
        with pytest.raises(UsageError, match=f"^ckpt_path: expected a checkpoint file, found none at {path}$"):
            initialise(random_net, str(path), key="ckpt_path")


def test_initialise_can_demand_the_whole_network(tmp_path, random_net, ours):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, encoder_of(ours))
    before = net_values(random_net)
    text = refusal(path, lambda path: initialise(random_net, path, key="ckpt_path", whole=True))
    assert text == f"ckpt_path: expected weights of the whole network, found the encoder alone in {path}"
    assert_same(net_values(random_net), before)
    save_checkpoint(path, ours)
    initialise(random_net, path, whole=True)
    assert_same(net_values(random_net), ours)


# The .ckpt format


EXTRA = {
    "epoch": 3,
    "step": 2**40 + 1,
    "loss": 0.1,
    "best": None,
    "done": True,
    "name": "深度",
    "rates": [1e-05, 0.0001],
}


def test_extra_and_optimizer_state_come_back(tmp_path, random_net):
    adam = nn.Adam(random_net.trainable_params())
    adam.moment1[0].set_data(ms.Tensor(np.full(adam.moment1[0].shape, 0.25, np.float32)))
    stored = {parameter.name: parameter for cell in (random_net, adam) for parameter in cell.get_parameters()}
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
    weights = read_weights(path)
    assert weights.extra == EXTRA
    assert_same(weights.parameters, net_values(random_net))
    assert set(weights.ignored) == {p.name for p in adam.get_parameters()} - set(weights.parameters)
    assert {"global_step", "beta1_power", "moment2.backbone_conv.weight"} < set(weights.ignored)


def test_mindspore_reads_what_we_write(tmp_path, ours):
    path = str(tmp_path / "a.ckpt")
    odd = {
        "scalar": np.array(1.5, np.float32),
        "integer": np.array([2**40], np.int64),
        "flags": np.array([True, False]),
        "half": np.arange(6, dtype=np.float16).reshape(2, 3).T,  # not contiguous
        "brain": ms.Tensor([1.0, 2.0, 3.0], ms.bfloat16),
    }
    save_checkpoint(path, {**ours, **odd}, EXTRA)
    loaded = ms.load_checkpoint(path, crc_check=True)
    assert json.loads(loaded.pop("midas_extra")) == EXTRA
    assert set(loaded) == {*ours, *odd}
    assert_same({name: loaded[name].asnumpy() for name in ours}, ours)
    for name in ("scalar", "integer", "flags", "half"):
        assert loaded[name].asnumpy().dtype == odd[name].dtype
        np.testing.assert_array_equal(loaded[name].asnumpy(), odd[name])
    np.testing.assert_array_equal(loaded["brain"].asnumpy(), [1, 2, 3])

    net = MidasNet(**TINY)
    assert ms.load_param_into_net(net, ms.load_checkpoint(path))[0] == []
    assert_same(net_values(net), ours)


@pytest.mark.parametrize("crc_check", [True, False])
def test_we_read_what_mindspore_writes(tmp_path, random_net, crc_check):
    path = str(tmp_path / "a.ckpt")
    ms.save_checkpoint(random_net, path, append_dict={"step": 4, "text": "x"}, crc_check=crc_check)
    weights = read_weights(path)
    assert_same(weights.parameters, net_values(random_net))
    assert weights.ignored == ["step", "text"]
    tensors, extra = read_ckpt(path)
    assert extra == {}
    assert tensors["step"] == 4
    assert tensors["step"].shape == ()


def test_a_message_spelt_out_byte_by_byte(tmp_path):
    path = tmp_path / "a.ckpt"
    tag, kind, content = b"\x0a\x03a.b", b"\x12\x07Float32", b"\x1a\x04\x00\x00\xc0\x3f"  # 1.5
    path.write_bytes(b"\x0a\x16" + tag + b"\x12\x0f" + kind + content)
    assert read_ckpt(path) == ({"a.b": np.float32(1.5)}, {})
    path.write_bytes(b"\x0a\x18" + tag + b"\x12\x11" + b"\x08\x00" + kind + content)  # MindSpore 1: dims [0]
    assert read_ckpt(path) == ({"a.b": np.float32(1.5)}, {})
    path.write_bytes(b"\x0a\x18" + tag + b"\x12\x11" + b"\x08\x02" + kind + content)  # two numbers in four bytes
    refusal(path, read_ckpt)
    path.write_bytes(b"\x0a\x16" + tag + b"\x12\x10" + kind + b"\x1a\x05" + content[2:])  # one byte beyond its message
    refusal(path, read_ckpt)
    path.write_bytes(2 * (b"\x0a\x16" + tag + b"\x12\x0f" + kind + content))
    assert "expected one tensor a.b, found two" in refusal(path, read_ckpt)


def message_ends(data):
    """Offsets at which a whole number of tensors has been read."""
    at, ends = 0, []
    while data[at] == 0x0A:
        length, shift, at = 0, 0, at + 1
        while True:
            length |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 0x80:
                break
        at += length
        ends.append(at)
        if at == len(data):
            break
    return ends


def test_a_file_cut_anywhere_is_refused(tmp_path, ours):
    path, cut = tmp_path / "a.ckpt", tmp_path / "cut.ckpt"
    moments = {f"moment1.{name}": array for name, array in ours.items()}
    save_checkpoint(path, {**ours, **moments}, {"epoch": 1})
    data = path.read_bytes()
    ends = message_ends(data)
    assert len(ends) == 1 + 2 * len(ours)
    cuts = {0, 1, 5, len(data) - 17, len(data) - 16, len(data) - 1, *range(7, len(data), len(data) // 40)}
    cuts |= {end + delta for end in ends[:: len(ends) // 20] for delta in (-1, 0, 1, 9)} | {ends[-1]}
    for size in sorted(cuts):
        cut.write_bytes(data[:size])
        refusal(cut)
        refusal(cut, read_ckpt)
    assert len(ms.load_checkpoint(str(cut.with_name("a.ckpt")))) == 1 + 2 * len(ours)


def test_a_mindspore_file_cut_between_tensors_is_refused(tmp_path, ours):
    path, cut = str(tmp_path / "a.ckpt"), tmp_path / "cut.ckpt"
    ms.save_checkpoint([{"name": name, "data": ms.Tensor(array)} for name, array in ours.items()], path)
    with open(path, "rb") as file:
        data = file.read()
    ends = message_ends(data)
    encoder = len(encoder_of(ours))
    for count in (1, 2, encoder - 1, encoder + 1, len(ends) - 1):
        cut.write_bytes(data[: ends[count - 1]])
        assert len(ms.load_checkpoint(str(cut))) == count  # MindSpore does not see it
        assert "not a" in refusal(cut)
    # No reader can tell this from an encoder alone; `whole` and the report say what was loaded.
    cut.write_bytes(data[: ends[encoder - 1]])
    assert not read_weights(cut).whole


def test_a_changed_byte_is_refused(tmp_path, ours):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, ours, {"epoch": 1})
    data = bytearray(path.read_bytes())
    for at in range(3, len(data), len(data) // 50):
        data[at] ^= 0x10
        path.write_bytes(data)
        refusal(path, read_ckpt)
        data[at] ^= 0x10


def test_a_failed_save_leaves_the_old_file(tmp_path, ours):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, ours)
    old = path.read_bytes()
    with pytest.raises(KeyError):
        save_checkpoint(path, {**ours, "x": np.array(["a text"])})
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.ckpt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "a.ckpt", ours)
    with pytest.raises(ValueError, match=r"ends in \.ckpt"):
        save_checkpoint(tmp_path / "a.bin", ours)


# Refusals


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_not_run(tmp_path, encoder_state, kind):
    path, proof = tmp_path / "evil.pt", tmp_path / "ran"
    content = {**encoder_state, "x": Touch(proof)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Touch(proof), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    text = refusal(path)
    assert not proof.exists()
    assert "mkdir" in text
    torch.load(path, weights_only=False) if kind != "pickle" else pickle.loads(path.read_bytes())
    assert proof.exists()  # the file would have run it


def test_a_pickled_module_is_refused(tmp_path, model):
    path = tmp_path / "model.pt"
    torch.save(model, path)
    assert "plain tensors" in refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_cut_anywhere_is_refused(tmp_path, encoder_state, zipped):
    path, cut = tmp_path / "a.pth", tmp_path / "cut.pth"
    torch.save(encoder_state, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for size in (1, 2, 4, 100, len(data) // 2, len(data) - 100, len(data) - 1):
        cut.write_bytes(data[:size])
        refusal(cut)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html><html>",
        b"\xff\xd8\xff\xe0JFIF",
        b"\n\nsome text\n",
        b"\n" + b"\xff" * 30,
        b"\n\x03\x12\x01\x00",
    ],
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    assert "expected a" in refusal(path)


def test_no_file(tmp_path):
    refusal(tmp_path / "absent.ckpt")
    refusal(tmp_path)
    refusal(tmp_path / "absent.ckpt", read_ckpt)


def plain_resnet():
    shapes = Architecture((3, 4, 6, 3), 1, 64, 8, None).shapes()
    table = {ours: torchvision for ours, _, torchvision in name_table((3, 4, 6, 3))}
    return {table[name]: torch.zeros(shape) for name, shape in shapes.items()}


def vit(_):
    return {f"blocks.{i}.attn.qkv.weight": torch.zeros(3, 3) for i in range(12)}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda state: plain_resnet(), "plain ResNet"),
        (vit, "another network"),
        (lambda state: {}, "0 tensors"),
        (lambda state: [torch.zeros(3)], "found list"),
        (lambda state: {0: torch.zeros(3)}, "dictionary of named tensors"),
        (lambda state: {**state, "layer1.0.se.weight": torch.zeros(3)}, "1 unexpected (backbone_layer1.0.se.weight)"),
        (lambda state: {**state, "backbone_bn.gamma": torch.zeros(8)}, "not a MidasNet"),
        (
            lambda state: {k: v for k, v in state.items() if k != "layer3.0.bn2.bias"},
            "1 missing (backbone_layer3.0.bn2.beta)",
        ),
        (
            lambda state: {k: v for k, v in state.items() if "layer2.1" not in k or "bn" in k},
            "3 missing (backbone_layer2.1.conv1.weight",
        ),
        (
            lambda state: {k.replace("layer2.1", "layer2.2"): v for k, v in state.items()},
            "15 missing (backbone_layer2.1.conv1.weight",
        ),
        (
            lambda state: {k: v for k, v in state.items() if "layer4" not in k},
            "backbone_layer4.0.conv1.weight, found none",
        ),
        (lambda state: {**state, "bn1.weight": torch.zeros(9)}, "backbone_bn.gamma [9] instead of [8]"),
        (lambda state: {**state, "conv1.weight": torch.zeros(8)}, "backbone_conv.weight, found shape [8]"),
        (lambda state: {**state, "conv1.weight": state["conv1.weight"].to_sparse()}, "dense floating-point"),
    ],
)
def test_other_networks_are_refused(tmp_path, encoder_state, change, expected):
    path = tmp_path / "other.pth"
    torch.save(change(encoder_state), path)
    assert expected in refusal(path)


@pytest.mark.parametrize("dropped", ["pretrained.", "scratch.refinenet4.resConfUnit1.", "scratch.layer1_rn."])
def test_a_part_of_the_official_network_is_refused(tmp_path, model, dropped):
    path = tmp_path / "part.pt"
    torch.save({name: tensor for name, tensor in model.state_dict().items() if not name.startswith(dropped)}, path)
    refusal(path)


def test_dpt_and_small_are_refused(tmp_path, model):
    scratch = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("scratch.")}
    path = tmp_path / "dpt.pt"
    torch.save({"pretrained.model.cls_token": torch.zeros(1, 1, 8), **scratch}, path)
    assert "not a MidasNet (official MiDaS .pt; pretrained.model.cls_token" in refusal(path)
    small = {
        "pretrained.layer1.0.weight": torch.zeros(8, 3, 3, 3),
        "pretrained.layer1.3.0.conv_dw.weight": torch.zeros(8, 1, 3, 3),
        "scratch.refinenet4.out_conv.weight": torch.zeros(8, 8, 1, 1),
    }
    torch.save({**small, **scratch}, path)
    assert "not a MidasNet" in refusal(path)


def test_two_names_for_one_parameter_are_refused(tmp_path, model):
    path = tmp_path / "a.pt"
    state = model.state_dict()
    torch.save({**state, "bn1.weight": state["pretrained.layer1.1.weight"]}, path)
    assert "two names" in refusal(path)


def test_without_torch(tmp_path, encoder_state, monkeypatch):
    path = tmp_path / "a.pth"
    torch.save(encoder_state, path)
    monkeypatch.setitem(sys.modules, "torch", None)
    text = refusal(path)
    assert "pip install torch" in text
    assert "pth2ckpt.py" in text


# src/utils/pth2ckpt.py


def test_convert_the_wsl_encoder_without_mindspore(tmp_path, repo, encoder_state, ours):
    torch.save(encoder_state, tmp_path / "ig_resnext101_32x8-c38310e5.pth")
    script = repo / "src" / "utils" / "pth2ckpt.py"
    command = (
        "import runpy, sys; sys.modules['mindspore'] = None; sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    run = subprocess.run(
        [sys.executable, "-c", command, script, "ig_resnext101_32x8-c38310e5.pth"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "torchvision ResNeXt, encoder alone" in run.stdout
    assert "layers [1, 2, 1, 1], groups 4, width_per_group 32, in_channels 8\n" in run.stdout
    assert "ignored: 3 not part of the network" in run.stdout
    output = tmp_path / "ckpt" / "midas_resnext_101_WSL.ckpt"
    assert "written: ckpt/midas_resnext_101_WSL.ckpt" in run.stdout
    assert_same(
        {name: p.asnumpy() for name, p in ms.load_checkpoint(str(output)).items() if name in ours}, encoder_of(ours)
    )


def test_convert_a_bad_file_exits_with_1(tmp_path, repo):
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"\x89PNG")
    run = subprocess.run(
        [sys.executable, repo / "src" / "utils" / "pth2ckpt.py", bad],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert (
        run.stderr
        == f"error: {bad}: expected a MindSpore or PyTorch checkpoint, found a file that begins with b'\\x89PNG'\n"
    )
    assert not (tmp_path / "ckpt").exists()


def test_convert_official_and_suite_2021(tmp_path, monkeypatch, model, ours, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(model.state_dict(), tmp_path / "midas_v21.pt")
    pth2ckpt.main(["midas_v21.pt"])
    assert_same(read_weights("ckpt/midas_v21.ckpt").parameters, ours)
    assert "whole network" in capsys.readouterr().out

    ms.save_checkpoint(suite_list(ours, TINY["groups"]), str(tmp_path / "suite.ckpt"))
    pth2ckpt.main(["suite.ckpt", "other/repacked.ckpt"])
    weights = read_weights("other/repacked.ckpt")
    assert weights.family == OURS
    assert_same(weights.parameters, ours)


def test_convert_wrong_usage(tmp_path, monkeypatch, ours):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("ckpt/a.ckpt", ours)
    old = (tmp_path / "ckpt" / "a.ckpt").read_bytes()
    with pytest.raises(UsageError, match="is the input"):
        pth2ckpt.main(["ckpt/a.ckpt"])
    with pytest.raises(UsageError, match=r"ends in \.ckpt"):
        pth2ckpt.main(["ckpt/a.ckpt", "b.pth"])
    with pytest.raises(SystemExit) as caught:
        pth2ckpt.main([])
    assert caught.value.code == 2
    assert UsageError.exit_status == 2
    assert (tmp_path / "ckpt" / "a.ckpt").read_bytes() == old
