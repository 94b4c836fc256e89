"""Wrappers, prefixes, averaged twins, what lies beside the network: in files that the frameworks themselves write."""

import argparse
import copy
import datetime
import decimal
import itertools
import uuid
from collections import OrderedDict, defaultdict, deque
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import TINY
from mindspore import nn
from test_checkpoint import assert_same, encoder_of, net_values, read_complete, refusal
from test_families import name_table
from torch_midas import TorchMidas, lively

from src.midas_net import MidasNet
from src.weights.checkpoint import read_weights
from src.weights.families import OFFICIAL, OURS

WRAPPERS = ("model_state_dict", "state_dict", "model", "net", "network")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")


def to_ours(state):
    """The official names of a state dict -> ours, as float32 arrays."""
    return {ours: state[name].float().numpy() for ours, name, _ in name_table(TINY["layers"])}


@pytest.fixture(scope="module")
def model():
    return lively(TorchMidas(**TINY)).eval()


@pytest.fixture(scope="module")
def state(model):
    return model.state_dict()


@pytest.fixture(scope="module")
def other(model):
    """A second set of weights of the same network."""
    return lively(copy.deepcopy(model), seed=1).state_dict()


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def nested(state, wrappers):
    for key in reversed(wrappers):
        state = {key: state, "epoch": 3}
    return state


def save_zip(content, path):
    torch.save(content, path)


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_safetensors(content, path):
    safetensors.torch.save_file(content, path)


def save_ckpt(content, path):
    entries = [{"name": name, "data": ms.Tensor(tensor.numpy())} for name, tensor in content.items()]
    ms.save_checkpoint(entries, str(path))


FLAT = {"zip": save_zip, "legacy": save_legacy, "safetensors": save_safetensors, "MindSpore": save_ckpt}


# ---- wrappers and prefixes


@pytest.mark.parametrize(
    ("save", "wrappers"),
    [
        *((save_zip, wrappers) for wrappers in itertools.permutations(WRAPPERS, 2)),
        *itertools.product([save_zip, save_legacy], [(), *((key,) for key in WRAPPERS), WRAPPERS, WRAPPERS[::-1]]),
    ],
)
def test_wrappers(tmp_path, state, save, wrappers):
    path = tmp_path / "a.pt"
    save(nested(state, wrappers), path)
    weights = read_weights(path)
    assert (weights.family, weights.sizes, weights.remark) == (OFFICIAL, TINY, "")
    assert ("epoch" in weights.ignored) == bool(wrappers)
    assert_same(weights.parameters, to_ours(state))


PAIRS = list(map("".join, itertools.permutations(PREFIXES, 2)))


@pytest.mark.parametrize(
    ("save", "prefix"),
    [
        *((save_zip, prefix) for prefix in (*PREFIXES, *PAIRS, "module." * 3)),
        *itertools.product(FLAT.values(), ["", "module.", "".join(PREFIXES)]),
    ],
)
def test_prefixes(tmp_path, state, save, prefix):
    path = tmp_path / "a.ckpt"
    save(prefixed(state, prefix), path)
    assert_same(read_weights(path).parameters, to_ours(state))


def test_prefixes_in_wrappers(tmp_path, state):
    path = tmp_path / "a.pt"
    torch.save(nested(prefixed(state, "module._orig_mod."), ("model", "state_dict")), path)
    assert_same(read_complete(path).parameters, to_ours(state))


def test_a_prefix_on_a_part_of_the_names(tmp_path, state):
    path = tmp_path / "a.pt"
    mixed = {(f"module.{name}" if name.startswith("pretrained.") else name): value for name, value in state.items()}
    torch.save(mixed, path)
    assert_same(read_complete(path).parameters, to_ours(state))


def test_an_encoder_in_a_wrapper(tmp_path, state):
    path = tmp_path / "a.pth"
    names = {torchvision: official for _, official, torchvision in name_table(TINY["layers"]) if torchvision}
    torch.save({"state_dict": {f"module.{name}": state[official] for name, official in names.items()}}, path)
    weights = read_complete(path)
    assert not weights.whole
    assert_same(weights.parameters, encoder_of(to_ours(state)))


def test_what_torch_itself_wraps(tmp_path, model, state):
    for name, wrapped in (("DataParallel", torch.nn.DataParallel(model)), ("compile", torch.compile(model))):
        path = tmp_path / f"{name}.pt"
        torch.save({"model": wrapped.state_dict()}, path)
        assert_same(read_complete(path).parameters, to_ours(state))


@pytest.mark.parametrize("word", ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrapped_parts_of_the_network(tmp_path, state, word):
    path = tmp_path / "a.pt"
    for part in ("pretrained.", "pretrained.layer2.", "pretrained.layer2.0.", "scratch.refinenet2."):
        wrapped = {name.replace(part, f"{part}{word}."): tensor for name, tensor in state.items()}
        torch.save({"model": prefixed(wrapped, "module.")}, path)
        assert_same(read_weights(path).parameters, to_ours(state))


def test_a_wrapped_part_beside_the_same_part(tmp_path, state):
    path = tmp_path / "a.pt"
    for name in ("pretrained._orig_mod.layer1.0.weight", "pretrained.module.layer1.0.weight"):
        torch.save({name: torch.zeros(2, 3, 7, 7), **state}, path)
        assert f"1 unexpected ({name})" in refusal(path)


def test_an_unknown_prefix_is_said(tmp_path, state):
    path = tmp_path / "a.pt"
    torch.save({"state_dict": prefixed(state, "depth_net.")}, path)
    weights = read_complete(path)
    assert weights.remark == "found under state_dict.depth_net."
    assert_same(weights.parameters, to_ours(state))


def test_the_same_weights_twice(tmp_path, state):
    path = tmp_path / "a.pt"
    torch.save({"model": state, "state_dict": state}, path)
    assert_same(read_complete(path).parameters, to_ours(state))
    torch.save({"model": state, "state_dict": {name: tensor.clone() for name, tensor in state.items()}}, path)
    assert_same(read_complete(path).parameters, to_ours(state))


def test_two_networks_are_refused(tmp_path, state, other):
    path = tmp_path / "a.pt"
    torch.save({"model": state, "net": other}, path)
    assert "expected one network, found two that differ, under model. and under net.; keep one" in refusal(path)
    torch.save({"left": state, "right": other}, path)
    assert "expected one network, found several, under left. and under right.; keep one" in refusal(path)


def test_a_resnet_beside_a_network_of_an_unknown_prefix(tmp_path, state):
    path = tmp_path / "a.pt"
    resnet = {"net.conv1.weight": torch.ones(3), "net.layer1.0.conv1.weight": torch.ones(3)}
    torch.save({**prefixed(state, "depth."), **resnet}, path)
    weights = read_complete(path)
    assert weights.remark == "found under depth."
    assert_same(weights.parameters, to_ours(state))


@pytest.mark.parametrize("name", ["best_model_state_dict", "first"])
def test_another_network_that_is_left_is_named(tmp_path, state, other, name):
    path = tmp_path / "a.pt"
    torch.save({"model_state_dict": state, name: other, "part": {"scratch.layer1_rn.weight": torch.ones(3)}}, path)
    weights = read_complete(path)
    assert weights.remark == f"left other weights, under {name}."
    assert_same(weights.parameters, to_ours(state))


def test_dictionaries_that_contain_themselves(tmp_path, state):
    content = {"model": dict(state)}
    content["model"]["state"] = content
    path = tmp_path / "a.pt"
    torch.save(content, path)
    assert_same(read_complete(path).parameters, to_ours(state))


# ---- beside the network


def test_what_lies_beside_the_network(tmp_path, model, state):
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 3, 32, 32)).sum().backward()
    optimizer.step()
    now = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / "a.pt"
    content = {
        "epoch": 3,
        "global_step": 5,
        "pytorch-lightning_version": "2.0",
        "state_dict": {
            **prefixed(now, "model."),
            "loss.weight": torch.ones(3),
            "criterion.vgg.features.0.weight": torch.ones(3),
            "criterion.net.layer1.0.conv1.weight": torch.ones(3),
            "val_metrics.delta1.total": torch.tensor(3),
        },
        "optimizer_states": [optimizer.state_dict()],
        "optimizer": optimizer.state_dict(),
        "hyper_parameters": argparse.Namespace(lr=1, path=Path("x")),
        "best": np.float64(0.5),
        "history": np.zeros(3),
        "counts": OrderedDict(a=1),
    }
    torch.save(content, path)
    weights = read_complete(path)
    assert_same(weights.parameters, to_ours(now))
    names = {"epoch", "hyper_parameters", "best", "state_dict.loss.weight", "optimizer.state.0.exp_avg"}
    assert names <= set(weights.ignored)
    model.load_state_dict(state)
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", ["extra.weight", "pretrained.layer5.weight", "scratch.refinenet1.bn.weight"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_what_lies_within_the_network_is_not_passed_over(tmp_path, state, prefix, name):
    path = tmp_path / "a.pt"
    torch.save({**prefixed(state, prefix), f"{prefix}{name}": torch.ones(3)}, path)
    assert "1 unexpected" in refusal(path)


def test_an_incomplete_network_is_refused_in_any_wrapper(tmp_path, state):
    path = tmp_path / "a.pt"
    part = {name: tensor for name, tensor in state.items() if name != "scratch.layer2_rn.weight"}
    torch.save({"model": prefixed(part, "module."), "loss.weight": torch.ones(3)}, path)
    assert "1 missing (layer2_rn_scratch.weight)" in refusal(path)


# ---- averaged twins


@pytest.mark.parametrize(
    "twin",
    [
        "model_ema",
        "ema",
        "ema_state_dict",
        "state_dict_ema",
        "ema_model",
        "model_ema_state_dict",
        "swa_model",
        "avg_model",
    ],
)
@pytest.mark.parametrize("flat", [True, False])
def test_averaged_weights_are_taken(tmp_path, state, other, twin, flat):
    path = tmp_path / "a.pt"
    torch.save(
        {**prefixed(state, "model."), **prefixed(other, f"{twin}.")} if flat else {"model": state, twin: other}, path
    )
    weights = read_complete(path)
    assert weights.remark == f"took the averaged weights, under {twin}., left the plain ones, under model."
    assert_same(weights.parameters, to_ours(other))
    assert "model.pretrained.layer1.0.weight" in weights.ignored


def test_averaged_weights_deeper(tmp_path, state, other):
    path = tmp_path / "a.pt"
    torch.save({"state_dict": {**prefixed(state, "net."), **prefixed(other, "net_ema.module.")}}, path)
    weights = read_complete(path)
    assert weights.remark.startswith("took the averaged weights, under state_dict.net_ema.module., left the plain ones")
    assert_same(weights.parameters, to_ours(other))


def test_averaged_weights_alone(tmp_path, other):
    path = tmp_path / "a.pt"
    torch.save({"ema_state_dict": other}, path)
    assert read_complete(path).remark == "took the averaged weights, under ema_state_dict."


@pytest.mark.parametrize("dropped", ["running_mean", "scratch.layer1_rn"])
def test_averaged_weights_that_are_not_whole_are_left(tmp_path, state, other, dropped):
    path = tmp_path / "a.pt"
    torch.save({"model": state, "ema": {name: value for name, value in other.items() if dropped not in name}}, path)
    weights = read_complete(path)
    assert weights.remark == "left averaged weights that are not complete, under ema."
    assert_same(weights.parameters, to_ours(state))


def test_averaged_weights_whose_names_have_lost_their_dots(tmp_path, state, other):
    path = tmp_path / "a.pt"
    averaged = {f"model_ema.{name.replace('.', '')}": value for name, value in other.items()}
    torch.save({**prefixed(state, "model."), **averaged, "model_ema.decay": torch.tensor(0.99)}, path)
    weights = read_complete(path)
    assert weights.remark == "left averaged weights that are not complete, under model_ema."
    assert_same(weights.parameters, to_ours(state))


def test_averaged_model_of_torch(tmp_path, model, state, other):
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.module.load_state_dict(other)
    path = tmp_path / "a.pt"
    torch.save(averaged.state_dict(), path)
    assert "n_averaged" in averaged.state_dict()
    weights = read_complete(path)
    assert weights.remark == "took the averaged weights, under module."
    assert_same(weights.parameters, to_ours(other))
    torch.save({"model": state, "slow": averaged.state_dict()}, path)
    weights = read_complete(path)
    assert weights.remark == "took the averaged weights, under slow.module., left the plain ones, under model."
    assert_same(weights.parameters, to_ours(other))


# ---- formats


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("save", [save_zip, save_legacy, save_safetensors])
def test_types_become_float32(tmp_path, state, dtype, save):
    path = tmp_path / "a.bin"
    stored = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save(stored, path)
    assert_same(read_weights(path).parameters, to_ours(stored))


@pytest.mark.parametrize(
    ("kind", "crc_check", "dtype"),
    [
        *itertools.product(["ckpt", "safetensors"], [True, False], [ms.float32, ms.float16]),
        ("ckpt", True, ms.bfloat16),
        ("ckpt", False, ms.bfloat16),
        ("safetensors", False, ms.bfloat16),  # with a checksum, MindSpore cannot write it
    ],
)
def test_mindspore_formats(tmp_path, kind, crc_check, dtype):
    net = MidasNet(**TINY)
    expected = net_values(net)
    entries = [{"name": name, "data": ms.Tensor(value).astype(dtype)} for name, value in expected.items()]
    path = tmp_path / f"a.{kind}"
    ms.save_checkpoint(entries, str(path), append_dict={"epoch": 3}, crc_check=crc_check, format=kind)
    weights = read_complete(path)
    assert (weights.family, weights.ignored) == (OURS, ["epoch"])
    assert_same(
        weights.parameters,
        {name: ms.Tensor(value).astype(dtype).astype(ms.float32).asnumpy() for name, value in expected.items()},
    )


def test_damage_in_safetensors_of_mindspore(tmp_path):
    path = tmp_path / "a.safetensors"
    ms.save_checkpoint(MidasNet(**TINY), str(path), crc_check=True, format="safetensors")
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    assert "expected a safetensors file, found one that is damaged" in refusal(path)


def test_damage_in_a_zip_of_torch(tmp_path, state):
    path = tmp_path / "a.pt"
    torch.save(state, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "damaged" in refusal(path)


def test_safetensors_of_other_numbers(tmp_path, state):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({name: tensor.to(torch.int8) for name, tensor in state.items()}, path)
    assert ": expected floating-point numbers, found I8" in refusal(path)


class Unwritten:
    """Is pickled as a tensor that is made when the file is read, and that would show what was in memory."""

    def __reduce__(self):
        return torch.FloatTensor, (10**5, 3, 7, 7)


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_numbers_that_are_not_in_the_file(tmp_path, state, save):
    path = tmp_path / "a.pt"
    save({**state, "pretrained.layer1.0.weight": Unwritten()}, path)
    assert "found a tensor of 58800000 bytes that is not in it" in refusal(path)


def test_numbers_that_are_repeated(tmp_path, state):
    """A small file could ask for any amount of memory."""
    path = tmp_path / "a.pt"
    torch.save({**state, "pretrained.layer1.0.weight": torch.ones(1).expand(10**9, 3, 7, 7)}, path)
    assert "numbers, found fewer, which are repeated" in refusal(path)


# ---- optimizers of MindSpore

OPTIMIZERS = {
    "SGD": lambda parameters: nn.SGD(parameters, 0.1, momentum=0.9),
    "Momentum": lambda parameters: nn.Momentum(parameters, 0.1, 0.9),
    "RMSProp": lambda parameters: nn.RMSProp(parameters, 0.1, centered=True),
    "Adam": lambda parameters: nn.Adam(parameters, use_amsgrad=True),
    "AdamWeightDecay": nn.AdamWeightDecay,
    "Lamb": lambda parameters: nn.Lamb(parameters, 0.1),
    "Adagrad": nn.Adagrad,
    "Adadelta": nn.Adadelta,
    "AdaMax": nn.AdaMax,
    "AdaFactor": nn.AdaFactor,
    "ASGD": nn.ASGD,
    "Rprop": nn.Rprop,
    "FTRL": nn.FTRL,
    "LazyAdam": nn.LazyAdam,
    "ProximalAdagrad": nn.ProximalAdagrad,
    "LARS": lambda parameters: nn.LARS(nn.Momentum(parameters, 0.1, 0.9)),
}


@pytest.mark.parametrize("create", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_state_of_optimizers_is_left(tmp_path, create):
    net = MidasNet(**TINY)
    loss = nn.WithLossCell(net, nn.MSELoss())
    step = nn.TrainOneStepWithLossScaleCell(loss, create(net.trainable_params()), ms.Tensor(1.0))
    path = tmp_path / "a.ckpt"
    ms.save_checkpoint(step, str(path))
    weights = read_complete(path)
    assert_same(weights.parameters, net_values(net))
    assert len(weights.ignored) > len(net.trainable_params())


class WithLoss(nn.Cell):
    """A network beside its loss, as training code of MindSpore joins them."""

    def __init__(self, net, attribute):
        super().__init__()
        setattr(self, attribute, net)
        self.loss_fn = nn.Dense(3, 4)


@pytest.mark.parametrize("attribute", ["network", "net", "model", "_backbone"])
def test_cells_of_mindspore(tmp_path, attribute):
    net = MidasNet(**TINY)
    expected = net_values(net)
    cell = WithLoss(net, attribute)
    cell.update_parameters_name("network.")
    path = tmp_path / "a.ckpt"
    ms.save_checkpoint(cell, str(path))
    weights = read_complete(path)
    assert_same(weights.parameters, expected)
    assert all("loss_fn" in name for name in weights.ignored)


def test_objects_of_the_standard_library(tmp_path, state):
    content = {
        "model": defaultdict(float, state),
        "counts": [defaultdict(int, a=1), defaultdict(list, a=[1]), defaultdict(dict, a={1: 2})],
        "queues": (deque([1]), deque([1, 2], maxlen=5)),
        "sets": [{1}, frozenset([1])],
        "ranges": [range(3), slice(1, 2)],
        "times": [
            datetime.datetime.now(datetime.timezone.utc), datetime.date(2020, 1, 1), datetime.time(1),
            datetime.timedelta(1),
        ],
        "version": torch.__version__,
        "more": [uuid.UUID(int=1), decimal.Decimal("0.1"), 1j, bytearray(b"x")],
    }  # fmt: skip
    path = tmp_path / "a.pt"
    for save in (save_zip, save_legacy):
        save(content, path)
        weights = read_complete(path)
        assert_same(weights.parameters, to_ours(state))
        assert {"queues", "sets", "ranges", "times", "more"} <= set(weights.ignored)


class Deceiver:
    """Is pickled as an ordered dictionary with an attribute in place of a method."""

    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        return OrderedDict, (), {"items": "x", "keys": "x"}, None, iter(self.content.items())


def test_methods_that_a_pickle_replaces(tmp_path, state):
    """It may set attributes of objects; they are not called."""
    weight = state["pretrained.layer1.0.weight"].clone()
    weight.float = weight.numpy = weight.contiguous = "x"
    path = tmp_path / "a.pt"
    torch.save({"model": Deceiver({**state, "pretrained.layer1.0.weight": weight})}, path)
    assert torch.load(path, weights_only=True)["model"].items == "x"
    assert torch.load(path, weights_only=True)["model"]["pretrained.layer1.0.weight"].float == "x"
    assert_same(read_complete(path).parameters, to_ours(state))
