"""Mixed precision: which operators compute in half and which do not, and that batch normalisation stays right."""

from collections import Counter
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
import torch
from conftest import TINY
from mindspore import Tensor, nn, ops
from mindspore.nn.layer import normalization
from mindspore.train import mind_ir_pb2
from torch_midas import TorchMidas, lively

from src.common.errors import UsageError
from src.common.names import AMP_LEVELS
from src.midas_net import MidasNet
from src.training.precision import (
    Precision,
    apply_precision,
    freeze_normalisation,
    revive_output,
    settle_precision,
    synchronise_normalisation,
)
from src.weights.checkpoint import load_into, read_weights, save_checkpoint
from src.weights.families import recognise, to_our_names

SIZE = 64
FLOAT, HALF = "FLOAT", "FLOAT16"
MIXED = [level for level in AMP_LEVELS if level != "O0"]
_TYPES = {value: name for name, value in mind_ir_pb2.TensorProto.DataType.items()}


class ValueAndGradients(nn.Cell):
    """(image, weight) -> (sum of weight * prediction, gradients of the parameters), as the training step forms them."""

    def __init__(self, net):
        super().__init__(auto_prefix=False)
        self.net = net
        self.value_and_grad = ops.value_and_grad(self.forward, None, net.trainable_params())

    def forward(self, image, weight):
        return (self.net(image) * weight).sum()

    def construct(self, image, weight):
        return self.value_and_grad(image, weight)


@pytest.fixture(scope="module")
def twin_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "twin.pt"
    torch.save(lively(TorchMidas(**TINY)).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def build(twin_file):
    """Makes networks of the same weights, with statistics that no batch here has."""

    def make():
        net = MidasNet(**TINY)
        load_into(net, read_weights(twin_file))
        return net

    return make


def inputs():
    rng = np.random.default_rng(0)
    image = rng.standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
    return image, rng.standard_normal((2, SIZE, SIZE)).astype(np.float32)


def statistics(net):
    return {p.name: p.asnumpy().copy() for p in net.get_parameters() if "moving_" in p.name}


def types_of_operators(cell, path):
    """Counts (operator, type of its first result) in the graph of a cell, as MindSpore has compiled it.

    ``BatchNorm:parameters`` stands for its scale, shift and statistics: ``FLOAT`` if they are the parameters themselves
    and no casts of them.
    """
    ms.export(cell, *map(Tensor, inputs()), file_name=str(path), file_format="MINDIR")
    model = mind_ir_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    names = {p.name for p in cell.get_parameters()}
    found = Counter()
    for graph in (model.graph, *model.functions):
        operator = {node.output[0]: node.op_type.split("::")[-1].split(":")[0] for node in graph.node}
        source = {node.output[0]: node.input[0] for node in graph.node if node.input}
        taken = set()
        for node in graph.node:
            name = operator[node.output[0]]
            types = [_TYPES[t.data_type] for a in node.attribute if a.name.startswith("shape") for t in a.tensors]
            if name == "TupleGetItem":
                if node.input[0] in taken:
                    continue  # the first item is the result, or the gradient of the input
                taken.add(node.input[0])
                name = operator[node.input[0]]
            if types:
                found[name, types[0]] += 1
        for node in graph.node:
            if operator[node.output[0]] == "BatchNorm":
                given = [source.get(one, one) if operator.get(one) == "Load" else one for one in node.input[1:5]]
                found["BatchNorm:parameters", FLOAT if all(g.split(":")[-1] in names for g in given) else "cast"] += 1
    return found


def used(build, level, path):
    """What a network of this level does in one training step, in evaluation, and how it is compiled."""
    net = build()
    apply_precision(net, Precision(level, "float16", "dynamic"))
    step = ValueAndGradients(net)
    step.set_train(True)
    value, gradients = step(*map(Tensor, inputs()))
    after = statistics(net)
    operators = types_of_operators(step, path)
    step.set_train(False)
    net.set_inputs(Tensor(shape=[None, 3, None, None], dtype=ms.float32))  # as the predictor has it
    prediction = net(Tensor(inputs()[0]))
    return SimpleNamespace(
        net=net,
        value=float(value),
        gradients=gradients,
        statistics=after,
        operators=operators,
        prediction=prediction,
    )


@pytest.fixture(scope="module")
def reference(build, tmp_path_factory):
    return used(build, "O0", tmp_path_factory.mktemp("O0") / "step.mindir")


@pytest.fixture(scope="module", params=MIXED)
def mixed(request, build, tmp_path_factory):
    return request.param, used(build, request.param, tmp_path_factory.mktemp(request.param) / "step.mindir")


def test_what_computes_in_half(reference, mixed):
    level, run = mixed
    count = {name: n for (name, _), n in reference.operators.items()}
    assert [count[name] for name in ("Conv2D", "ReLU", "BatchNorm", "ResizeBilinearV2")] == [41, 32, 20, 5]
    assert not [name for (name, dtype) in reference.operators if dtype == HALF or name == "Cast"]
    found = run.operators

    def types(name):
        return {dtype: n for (operator, dtype), n in found.items() if operator == name}

    for name in ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter"):
        assert types(name) == {HALF: count[name]}
    for name in ("ResizeBilinearV2", "ResizeBilinearGrad", "Squeeze", "SumExt"):
        assert types(name) == {FLOAT: count[name]}
    half_pooling = level in ("O2", "O3")
    assert types("MaxPool") == {HALF if half_pooling else FLOAT: 1}
    halves = {"O1": 0, "O2": count["ReLU"] - 1, "O3": count["ReLU"] - 1, "auto": 4}[level]
    assert types("ReLU") == {t: n for t, n in ((FLOAT, count["ReLU"] - halves), (HALF, halves)) if n}
    for name in ("BatchNorm", "BatchNormGrad"):
        assert types(name) == {HALF if level == "O3" else FLOAT: count[name]}
    assert types("BatchNorm:parameters") == {FLOAT: count["BatchNorm"]}


def test_results_are_those_of_float32_but_for_rounding(reference, mixed):
    _, run = mixed
    assert run.prediction.dtype == ms.float32
    expected = reference.prediction.asnumpy()
    assert 0 < np.abs(run.prediction.asnumpy() - expected).max() < 0.01 * np.ptp(expected)
    assert {gradient.dtype for gradient in run.gradients} == {ms.float32}
    mine, theirs = (np.concatenate([g.asnumpy().ravel() for g in r.gradients]) for r in (run, reference))
    assert np.isfinite(mine).all()
    # Rounding turns some ReLUs on or off, and a small network notices: the direction is what counts.
    assert np.dot(mine, theirs) > 0.97 * np.linalg.norm(mine) * np.linalg.norm(theirs)


def test_statistics_are_float32(build, reference, mixed):
    _, run = mixed
    before = statistics(build())
    for name, expected in reference.statistics.items():
        found = run.statistics[name]
        moved = np.abs(expected - before[name]).max()
        assert found.dtype == np.float32
        assert moved > 0
        assert np.abs(found - expected).max() < 0.02 * moved
        assert (found != found.astype(np.float16)).any()  # no half precision number in disguise


def test_interface_and_checkpoint_stay(build, mixed, tmp_path):
    _, run = mixed
    plain, net = build(), run.net
    assert (type(net), type(net.output_layer)) == (MidasNet, nn.Conv2d)
    assert [(p.name, p.dtype, p.shape) for p in net.get_parameters()] == [
        (p.name, ms.float32, p.shape) for p in plain.get_parameters()
    ]
    assert [p.name for p in net.trainable_params()] == [p.name for p in plain.trainable_params()]
    with pytest.raises(ValueError, match="multiples of 32"):
        net(Tensor(np.zeros((1, 3, 33, 64), np.float32)))
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, {p.name: p for p in net.get_parameters()})
    load_into(plain, read_weights(path))
    assert all((a.asnumpy() == b.asnumpy()).all() for a, b in zip(net.get_parameters(), plain.get_parameters()))
    image = Tensor(inputs()[0])
    last = net.output_layer.bias
    last.set_data(last + 1)  # a compiled network takes weights that are loaded later
    prediction = run.prediction.asnumpy()
    is_positive = prediction > 0  # the others are cut off by the last ReLU
    spacing = 2**-10 * (prediction.max() + 1)  # of half precision
    assert (net(image).asnumpy() - prediction)[is_positive] == pytest.approx(1, abs=spacing)
    last.set_data(last - 1)


def test_frozen_normalisation_is_that_of_pytorch(build, twin_file):
    image, weight = inputs()
    net = build()
    freeze_normalisation(net)
    before = statistics(net)
    step = ValueAndGradients(net)
    step.set_train(True)
    value, gradients = step(Tensor(image), Tensor(weight))
    twin = TorchMidas(**TINY).double()
    state = torch.load(twin_file)
    twin.load_state_dict(state)
    twin.eval()  # the statistics are used, and gradients still reach scale and shift
    expected = (twin(torch.tensor(image).double()) * torch.tensor(weight)).sum()
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-4)
    theirs = {name: p.grad.numpy() for name, p in twin.named_parameters() if p.grad is not None}
    theirs = to_our_names(recognise(state), theirs)
    mine = {p.name: g.asnumpy() for p, g in zip(net.trainable_params(), gradients)}
    scales = [name for name in theirs if name.endswith((".gamma", ".beta"))]
    assert len(scales) == 40
    assert all(np.abs(theirs[name]).max() > 0 for name in scales)
    for name, gradient in theirs.items():
        assert np.abs(mine[name] - gradient).max() < 1e-4 * np.abs(gradient).max(), name

    # A validation between two steps changes nothing, nor does a step.
    evaluated = (net.set_train(False)(Tensor(image)).asnumpy() * weight).sum()
    assert evaluated == pytest.approx(float(value), rel=1e-5)
    step.set_train(True)
    assert float(step(Tensor(image), Tensor(weight))[0]) == float(value)
    after = statistics(net)
    assert all((after[name] == before[name]).all() for name in before)


def test_synchronised_normalisation_has_the_same_parameters(build, reference, monkeypatch):
    # Outside of a group MindSpore makes no other operator of it: what is compared here is what is around the operator.
    monkeypatch.setattr(normalization, "get_rank", lambda: 0)
    monkeypatch.setattr(normalization, "get_group_size", lambda: 1)
    net, plain = build(), build()
    parameters = list(net.get_parameters())
    names = [p.name for p in parameters]
    synchronise_normalisation(net, "Ascend", 2)
    cells = [cell for _, cell in net.cells_and_names()]
    assert sum(type(cell) is nn.SyncBatchNorm for cell in cells) == 20
    assert not any(type(cell) is nn.BatchNorm2d for cell in cells)
    found = list(net.get_parameters())
    assert [p.name for p in found] == names
    assert all(a is b for a, b in zip(found, parameters))
    assert [p.name for p in net.trainable_params()] == [p.name for p in plain.trainable_params()]
    apply_precision(net, Precision("O2", "float16", "off"))
    image, weight = inputs()
    value = (net.set_train(True)(Tensor(image)).asnumpy() * weight).sum()
    assert value == pytest.approx(reference.value, abs=0.01 * np.abs(weight).sum())
    before, after = statistics(plain), statistics(net)
    assert all((after[name] != before[name]).any() for name in before)


def test_synchronised_normalisation_where_there_is_none(build):
    net = build()
    for target in ("CPU", "GPU"):
        with pytest.raises(UsageError, match=f"sync_bn: expected False on {target}, found True"):
            synchronise_normalisation(net, target, 2)
    synchronise_normalisation(net, "Ascend", 1)
    freeze_normalisation(net)
    synchronise_normalisation(net, "Ascend", 2)  # frozen: nothing to synchronise
    assert not any(isinstance(cell, nn.SyncBatchNorm) for _, cell in net.cells_and_names())


@pytest.mark.parametrize(
    ("level", "dtype", "scaling", "target", "settled", "phrase"),
    [
        ("by_device", "float16", "dynamic", "CPU", ("O0", "float32", "off"), "O0 float32"),
        ("by_device", "bfloat16", "dynamic", "CPU", ("O0", "float32", "off"), "O0 float32"),
        ("O0", "bfloat16", "static", "Ascend", ("O0", "float32", "off"), "O0 float32"),
        ("by_device", "float16", "dynamic", "GPU", ("O2", "float16", "dynamic"), "O2 float16, dynamic loss scaling"),
        ("by_device", "float16", "static", "Ascend", ("O2", "float16", "static"), "O2 float16, static loss scaling"),
        ("auto", "float16", "off", "CPU", ("auto", "float16", "off"), "auto float16, no loss scaling"),
        ("O1", "bfloat16", "dynamic", "Ascend", ("O1", "bfloat16", "off"), "O1 bfloat16, which needs no loss scaling"),
    ],
)
def test_settled_precision(level, dtype, scaling, target, settled, phrase):
    precision = settle_precision(level, dtype, scaling, target)
    assert precision == Precision(*settled)
    assert precision.describe() == phrase


def test_bfloat16_where_there_is_none():
    for target in ("CPU", "GPU"):
        with pytest.raises(UsageError, match=f"amp_dtype: expected float16 on {target}, found bfloat16"):
            settle_precision("O2", "bfloat16", "off", target)
    with pytest.raises(UsageError, match="amp_level: expected O1, O2 or auto with bfloat16, found O3"):
        settle_precision("O3", "bfloat16", "off", "Ascend")


def test_last_relu_brings_dead_images_back(build):
    """It is a ReLU. In an image most of which is 0, a gradient against which a step would raise a pixel passes, too."""
    rng = np.random.default_rng(0)
    image = Tensor(rng.standard_normal((2, 3, SIZE, SIZE)).astype(np.float32))
    net = build().set_train(False)
    bias = net.output_layer.bias
    bias.set_data(Tensor(bias.asnumpy() - np.median(net(image).asnumpy()), ms.float32))
    expected = net(image).asnumpy()
    assert 0.4 < (expected == 0).mean() < 0.6
    revive_output(net)
    np.testing.assert_array_equal(net(image).asnumpy(), expected)
    relu = net.decoder.output_conv_scratch[-1]
    x = np.array([[-2, -2, 0, 3, 3], [-2, 3, 0, 3, 3]], np.float32).reshape(2, 1, 1, 5)
    weight = np.array([[1, -1, -1, 1, -1], [-1, -1, -1, 1, 1]], np.float32).reshape(x.shape)
    weight_tensor = Tensor(weight)

    def weighted(x):
        return (relu(x) * weight_tensor).sum()

    gradient = ms.grad(weighted)(Tensor(x))
    assert gradient.asnumpy().reshape(2, 5).tolist() == [[0, -1, -1, 1, -1], [0, -1, 0, 1, 1]]


def test_dead_network_learns_again(build):
    """Its output is 0 everywhere. With a plain ReLU no gradient is left; with the other a step raises it."""
    image = Tensor(np.random.default_rng(1).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32))
    weight = Tensor(np.full((1, SIZE, SIZE), -1, np.float32))
    for revive in (False, True):
        net = build().set_train(True)
        net.output_layer.bias.set_data(Tensor([-100.0], ms.float32))
        if revive:
            revive_output(net)
        value, gradients = ValueAndGradients(net)(image, weight)
        assert value.asnumpy() == 0
        largest = max(np.abs(gradient.asnumpy()).max() for gradient in gradients)
        assert (largest > 0) == revive
