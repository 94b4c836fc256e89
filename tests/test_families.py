"""Weights of other projects: their names, the sizes they tell, PyTorch files, and the conversion to our .ckpt."""

import math
import os
import pickle
import sys
import warnings

import mindspore as ms
import numpy as np
import pytest
import torch
from conftest import TINY
from test_checkpoint import FULL, assert_same, encoder_of, net_shapes, random_arrays, read_complete, refusal
from torch_midas import TorchMidas, lively

from src.common.errors import CheckpointError, UsageError
from src.midas_net import MidasNet
from src.utils import pth2ckpt
from src.weights.checkpoint import load_into, read_weights, save_checkpoint
from src.weights.families import OFFICIAL, OURS, SUITE_2021, TORCHVISION, network_sizes

NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


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
def full_shapes():
    """Name -> shape of the published network."""
    return net_shapes()


# ---- sizes


def test_the_published_network(full_shapes):
    with torch.device("meta"):
        state = TorchMidas().state_dict()
    assert full_shapes == {ours: tuple(state[official].shape) for ours, official, _ in name_table((3, 4, 23, 3))}
    encoder = sum(math.prod(shape) for name, shape in encoder_of(full_shapes).items() if "moving" not in name)
    # torchvision's figure for resnext101_32x8d, less its classifier
    assert encoder == 88_791_336 - (2048 * 1000 + 1000)


def test_sizes_are_inferred(full_shapes):
    for sizes, shapes in ((FULL, full_shapes), (TINY, net_shapes(**TINY))):
        assert network_sizes(shapes) == sizes
        del (encoder_sizes := dict(sizes))["features"]
        assert network_sizes(encoder_of(shapes)) == encoder_sizes


@pytest.mark.parametrize(("width_per_group", "in_channels"), [(4, 16), (5, 16), (64, 16), (7, 12), (9, 12)])
def test_width_per_group_is_inferred(width_per_group, in_channels):
    sizes = {"layers": [1, 1, 2, 1], "groups": 2, "width_per_group": width_per_group}
    sizes |= {"in_channels": in_channels, "features": 8}
    shapes = net_shapes(**sizes)
    inferred = network_sizes(shapes)
    assert net_shapes(**inferred) == shapes
    assert inferred.pop("width_per_group") <= sizes.pop("width_per_group")
    assert inferred == sizes


@pytest.mark.parametrize(
    ("name", "shape", "found"),
    [
        ("backbone_conv.weight", None, "none"),
        ("backbone_conv.weight", (8,), "[8]"),
        ("backbone_conv.weight", (0, 3, 7, 7), "[0, 3, 7, 7]"),
        ("backbone_layer3.0.conv1.weight", None, "none"),
        ("backbone_layer4.0.conv2.weight", (128, 0, 3, 3), "[128, 0, 3, 3]"),
        ("layer1_rn_scratch.weight", None, "none"),
    ],
)
def test_sizes_that_cannot_be_inferred(name, shape, found):
    shapes = net_shapes(**TINY)
    del shapes[name]
    if shape is not None:
        shapes[name] = shape
    with pytest.raises(CheckpointError) as caught:
        network_sizes(shapes)
    assert str(caught.value) == f"expected a 4-D tensor {name}, found {found}"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layer1_rn_scratch.weight": (20, 32, 3, 3)}, "features 20"),  # no multiple of 8
        (
            {
                "backbone_layer4.0.conv2.weight": (4, 1, 3, 3),
                **{f"backbone_layer{stage}.0.conv1.weight": (stage, 8, 1, 1) for stage in (1, 2, 3, 4)},
            },
            "width_per_group 1, in_channels 8",  # stage 1 would be no channels wide
        ),
    ],
)
def test_sizes_that_no_network_has(tmp_path, ours, change, named):
    path = tmp_path / "a.ckpt"
    changed = {**ours, **{name: np.zeros(shape, np.float32) for name, shape in change.items()}}
    save_checkpoint(path, changed)
    text = refusal(path, lambda path: pth2ckpt.convert(path, tmp_path / "b.ckpt"))
    assert text.startswith(f"{path}: not a MidasNet ({OURS}): no network has layers [1, 2, 1, 1], ")
    assert named in text


# ---- the families


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
    sizes = {"layers": [1, 2, 1, 1], "groups": 12, "width_per_group": 16, "in_channels": 8, "features": 16}
    parameters = random_arrays(net_shapes(**sizes))
    path = str(tmp_path / "Midas_0-600_56_1.ckpt")
    entries = suite_list(parameters, 12)
    ms.save_checkpoint([*entries, {"name": "fc.bias", "data": ms.Tensor([1.0])}], path, append_dict={"epoch_num": 3})
    weights = read_complete(path)
    assert (weights.family, weights.whole, weights.ignored) == (SUITE_2021, True, ["fc.bias", "epoch_num"])
    assert weights.sizes == sizes
    assert_same(weights.parameters, parameters)


@pytest.mark.parametrize("piece", [0, 1, 3])
def test_suite_2021_with_a_piece_missing(tmp_path, ours, piece):
    path = str(tmp_path / "a.ckpt")
    entries = suite_list(encoder_of(ours), TINY["groups"])
    ms.save_checkpoint([e for e in entries if e["name"] != f"backbone_layer2.0.conv2.convs.{piece}.weight"], path)
    assert "backbone_layer2.0.conv2.weight" in refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_torchvision_encoder(tmp_path, ours, encoder_state, zipped):
    path = tmp_path / "ig_resnext101_32x8-c38310e5.pth"
    torch.save(encoder_state, path, _use_new_zipfile_serialization=zipped)
    weights = read_complete(path)
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
    weights = read_complete(path)
    assert (weights.family, weights.whole, weights.sizes) == (OFFICIAL, True, TINY)
    assert weights.ignored  # num_batches_tracked
    others = {"epoch", "optimizer.lr"} if how == "state_dict" else set()
    assert {name for name in weights.ignored if not name.endswith(".num_batches_tracked")} == others
    assert_same(weights.parameters, ours)


def test_names_decide_and_not_the_kind_of_file(tmp_path, ours):
    path = tmp_path / "ours.pt"
    torch.save({name: torch.from_numpy(array) for name, array in ours.items()}, path)
    assert read_weights(path).family == OURS
    renamed = tmp_path / "model.ckpt"  # a .pt with a misleading suffix
    path.rename(renamed)
    assert_same(read_complete(renamed).parameters, ours)


def test_what_is_not_a_tensor_is_ignored(tmp_path, model, ours):
    path = tmp_path / "model.pt"
    torch.save({**model.state_dict(), "epoch": 3, "meta.date": "2020"}, path)
    weights = read_complete(path)
    assert "epoch" in weights.ignored
    assert_same(weights.parameters, ours)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_torch_types_become_float32(tmp_path, model, ours, dtype):
    path = tmp_path / "model.pt"
    torch.save({name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, path)
    assert_same(
        read_weights(path).parameters, {n: torch.from_numpy(a).to(dtype).float().numpy() for n, a in ours.items()}
    )


def test_integers_are_not_weights(tmp_path, ours):
    path = tmp_path / "a.pt"
    torch.save({n: torch.from_numpy(a).char() for n, a in ours.items()}, path)
    assert "CharTensor" in refusal(path)


def test_official_weights_give_the_official_output(tmp_path, model, ours):
    path = tmp_path / "model.pt"
    torch.save(model.state_dict(), path)
    net = MidasNet(**TINY).set_train(False)
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 64), np.float32)
    before = net(ms.Tensor(image)).asnumpy()  # compiled before it is loaded: new values must reach the compiled graph
    load_into(net, read_weights(path))
    found = net(ms.Tensor(image)).asnumpy()
    with torch.no_grad():
        expected = model(torch.from_numpy(image)).numpy()
    assert np.abs(found - before).max() > 0.1
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert expected.std() > 0.01  # an output that a wrong weight could change


# ---- refusals


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


def plain_resnet():
    layers = [3, 4, 6, 3]
    shapes = encoder_of(net_shapes(layers=layers, groups=1, width_per_group=64, in_channels=8))
    table = {ours: torchvision for ours, _, torchvision in name_table(layers)}
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
        (lambda state: {**state, "conv1.weight": torch.zeros(8)}, "backbone_conv.weight, found [8]"),
        (lambda state: {**state, "conv1.weight": state["conv1.weight"].to_sparse()}, "dense floating-point"),
    ],
)
def test_other_networks_are_refused(tmp_path, encoder_state, change, expected):
    path, output = tmp_path / "other.pth", tmp_path / "out.ckpt"
    torch.save(change(encoder_state), path)
    assert expected in refusal(path, lambda path: pth2ckpt.convert(path, output))
    assert os.listdir(tmp_path) == ["other.pth"]


@pytest.mark.parametrize("dropped", ["pretrained.", "scratch.refinenet4.resConfUnit1.", "scratch.layer1_rn."])
def test_a_part_of_the_official_network_is_refused(tmp_path, model, dropped):
    path = tmp_path / "part.pt"
    torch.save({name: tensor for name, tensor in model.state_dict().items() if not name.startswith(dropped)}, path)
    refusal(path)


def test_two_names_for_one_parameter_are_refused(tmp_path, model):
    path = tmp_path / "a.pt"
    state = model.state_dict()
    torch.save({**state, "bn1.weight": state["pretrained.layer1.1.weight"]}, path)
    assert "two names for backbone_bn.gamma" in refusal(path)


def test_without_torch(tmp_path, encoder_state, monkeypatch):
    path = tmp_path / "a.pth"
    torch.save(encoder_state, path)
    monkeypatch.setitem(sys.modules, "torch", None)
    text = refusal(path)
    assert "pip install torch" in text
    assert "pth2ckpt.py" in text


# ---- src/utils/pth2ckpt.py


def test_convert_the_wsl_encoder(tmp_path, monkeypatch, capfd, encoder_state, ours):
    monkeypatch.chdir(tmp_path)
    torch.save(encoder_state, "ig_resnext101_32x8-c38310e5.pth")
    pth2ckpt.main(["ig_resnext101_32x8-c38310e5.pth"])
    said, errors = capfd.readouterr()
    assert errors == ""
    assert "torchvision ResNeXt, encoder alone" in said
    assert "layers [1, 2, 1, 1], groups 4, width_per_group 32, in_channels 8\n" in said
    assert "ignored: 3 not part of the network" in said
    assert "written: ckpt/midas_resnext_101_WSL.ckpt" in said
    loaded = ms.load_checkpoint("ckpt/midas_resnext_101_WSL.ckpt")
    assert loaded.pop("midas_extra") == "{}"
    assert_same({name: parameter.asnumpy() for name, parameter in loaded.items()}, encoder_of(ours))


def test_convert_official(tmp_path, monkeypatch, model, ours, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(model.state_dict(), "midas_v21.pt")
    pth2ckpt.main(["midas_v21.pt"])
    assert_same(read_weights("ckpt/midas_v21.ckpt").parameters, ours)
    assert "whole network" in capsys.readouterr().out
    assert read_weights("ckpt/midas_v21.ckpt").network_ops == "midas"


def test_convert_suite_2021(tmp_path, monkeypatch, ours, capsys):
    monkeypatch.chdir(tmp_path)
    ms.save_checkpoint(suite_list(ours, TINY["groups"]), "suite.ckpt")
    pth2ckpt.main(["suite.ckpt", "other/repacked.ckpt"])
    assert "read:    suite.ckpt: 2021 suite .ckpt, whole network\n" in capsys.readouterr().out
    weights = read_weights("other/repacked.ckpt")
    assert (weights.family, weights.network_ops) == (OURS, "modelzoo")  # which its names do not tell any more
    assert_same(weights.parameters, ours)


def test_convert_a_run_folder(tmp_path, monkeypatch, ours, capsys):
    monkeypatch.chdir(tmp_path)
    course = {"network_ops": "modelzoo", "nm_img_mean": [0.1, 0.2, 0.3]}
    save_checkpoint("run/Midas_0-2_1.ckpt", ours, {"epoch": 2, "step": 1, "course": course})
    save_checkpoint("run/Midas_0-1_1.ckpt", ours, {"epoch": 1, "step": 1, "course": course})
    pth2ckpt.main(["run", "out.ckpt"])
    assert "read:    run/Midas_0-2_1.ckpt: " in capsys.readouterr().out
    weights = read_weights("out.ckpt")
    assert weights.extra == {"course": course}  # no place in a run, for there is no optimizer state
    assert_same(weights.parameters, ours)


def test_convert_does_not_overwrite(tmp_path, monkeypatch, ours, capsys):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("a.ckpt", ours)
    (tmp_path / "b.ckpt").write_text("mine")
    with pytest.raises(UsageError, match=r"^b\.ckpt: exists; --overwrite replaces it, or give another output name$"):
        pth2ckpt.main(["a.ckpt", "b.ckpt"])
    assert (tmp_path / "b.ckpt").read_text() == "mine"
    pth2ckpt.main(["a.ckpt", "b.ckpt", "--overwrite"])
    assert_same(read_weights("b.ckpt").parameters, ours)


def test_convert_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "midas_v21_384.pth").write_text("")
    with pytest.raises(UsageError, match=r"^IN: expected a checkpoint .*; did you mean midas_v21_384\.pth\? the auth"):
        pth2ckpt.main(["midas_v21_384.pt"])


def test_convert_says_which_weights_it_took(tmp_path, monkeypatch, model, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(
        {"model": model.state_dict(), "ema": {name: tensor + 1 for name, tensor in model.state_dict().items()}}, "a.pt"
    )
    pth2ckpt.main(["a.pt"])
    expected = "choice:  took the averaged weights, under ema., left the plain ones, under model.\n"
    assert expected in capsys.readouterr().out


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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    """Such a network predicts blank maps, and on some devices no NaN shows in them."""
    state = {name: tensor.double() for name, tensor in TorchMidas(**TINY).state_dict().items()}
    state["scratch.layer1_rn.weight"].view(-1)[5] = value
    path = tmp_path / "diverged.pt"
    torch.save(state, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = refusal(path)
    assert "found NaN or infinity in 1 of " in text
    assert " tensors (layer1_rn_scratch.weight); the training that wrote them had failed" in text
