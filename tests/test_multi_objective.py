"""Steps on several sets: weights, the direction of descent, statistics, parts."""

import mindspore as ms
import numpy as np
import pytest
import torch
from conftest import TINY
from mindspore import amp, nn, ops
from torch_midas import TorchMidas, lively, torch_loss

from src.loss import create_loss
from src.midas_net import MidasNet
from src.training.min_norm import min_norm_weights
from src.training.precision import Precision, apply_precision
from src.training.step import EQUAL, EXACT, UPPER_BOUND, TrainStep
from src.weights.checkpoint import load_into, read_weights

NOTHING = np.zeros(3, np.float32)
_descend = ops.MultitypeFuncGraph("descend")


@_descend.register("Tensor", "Tensor", "Tensor")
def _descend_tensor(rate, parameter, gradient):
    return ops.assign_sub(parameter, rate * gradient)


@_descend.register("Tensor", "Tensor")
def _keep_tensor(seen, gradient):
    return ops.assign(seen, gradient)


class Descent(nn.Optimizer):
    """Plain gradient descent; with rate 0 it only notes the gradients."""

    def __init__(self, net, rate=0.0):
        super().__init__(rate, net.trainable_params())
        self.seen = self.parameters.clone(prefix="seen", init="zeros")
        self.rate, self.each = ms.Tensor(rate, ms.float32), ops.HyperMap()

    def construct(self, gradients, is_finite):
        done = self.each(_descend, self.seen, gradients)
        return ops.depend(self.each(ops.partial(_descend, self.rate), self.parameters, gradients), done)


def make_step(net, weighting, rate=0.0, **settings):
    return TrainStep(net, create_loss("ssi_trim"), Descent(net, rate), sets=2, weighting=weighting, **settings)


def tell(step, batch):
    return step(*map(ms.Tensor, (*batch, NOTHING))).asnumpy().astype(np.float64)


def gradients_of(step):
    return np.concatenate([seen.asnumpy().ravel() for seen in step.optimizer.seen]).astype(np.float64)


def of_each_set(step, batch):
    """The gradient of each set's loss alone: in the plain mean, where the pixels of the other are invalid."""
    image, target, mask = batch
    rows = []
    for number in range(2):
        chosen = (np.arange(len(mask)) % 2 == number)[:, None, None]
        tell(step, (image, target, mask * chosen.astype(np.float32)))
        rows.append(2 * gradients_of(step))
    return np.stack(rows)


def random_batch(seed):
    """Images of two sets whose ground truths have little in common."""
    rng, size = np.random.default_rng(seed), 4
    image = rng.standard_normal((size, 3, 32, 32)).astype(np.float32)
    target = rng.uniform(0, 1, (size, 32, 32)) + np.linspace(0, 1, 32)
    target[1::2] = 2 * image[1::2, 0] + np.linspace(1, 0, 32)[:, None]
    mask = rng.random((size, 32, 32)) < rng.uniform(0.3, 1, (size, 1, 1))
    return image, target.astype(np.float32), mask.astype(np.float32)


# ---- two parameters, by hand


class TwoParameters(nn.Cell):
    """Prediction: the first channel, ``shared`` times the second and ``torn`` times the third."""

    def __init__(self):
        super().__init__()
        self.shared = ms.Parameter(ms.Tensor(0.9, ms.float32), "shared")
        self.torn = ms.Parameter(ms.Tensor(0.5, ms.float32), "torn")

    def construct(self, image):
        return image[:, 0] + self.shared * image[:, 1] + self.torn * image[:, 2]


def conflict():
    """Ground truth of which one set wants ``torn`` to be 2, and the other, to which it matters less, to be 0."""
    rng = np.random.default_rng(2)
    image = rng.standard_normal((4, 3, 32, 32)).astype(np.float32)
    torn = np.array([2, 0, 2, 0], np.float32)[:, None, None]
    target = image[:, 0] + image[:, 1] + torn * image[:, 2]
    return image, target, np.ones((4, 32, 32), np.float32)


def test_no_loss_grows_in_a_conflict():
    """Both sets want ``shared`` to rise, and pull ``torn`` apart. The plain mean gives in to one of them."""
    batch, moved = conflict(), {}
    for weighting in (EQUAL, EXACT):
        step = make_step(TwoParameters(), weighting, 1e-3)
        losses = np.stack([tell(step, batch)[-4:-2] for _ in range(2)])
        moved[weighting] = losses[1] - losses[0]
    assert moved[EQUAL].max() > 1e-6 * losses.max()
    assert moved[EXACT].max() <= 0
    assert moved[EXACT].min() < 0


@pytest.mark.parametrize("is_host", [True, False])
def test_weights_of_two_sets_are_those_of_the_closed_form(is_host, monkeypatch):
    """On the CPU, and as other devices find them."""
    monkeypatch.setattr("src.training.multi_objective.is_device_the_host", lambda: is_host)
    batch = conflict()
    first, second = of_each_set(make_step(TwoParameters(), EQUAL), batch)
    difference = second - first
    expected = np.clip(second @ difference / (difference @ difference), 0, 1)
    assert 0.01 < expected < 0.99
    step = make_step(TwoParameters(), EXACT)
    assert tell(step, batch)[-2:] == pytest.approx([expected, 1 - expected], abs=1e-5)
    assert gradients_of(step) == pytest.approx(expected * first + (1 - expected) * second, rel=1e-4, abs=1e-6)


def test_sets_without_ground_truth_say_nothing():
    image, target, mask = conflict()
    mask[1::2] = 0
    step = make_step(TwoParameters(), EXACT)
    told = tell(step, (image, target, mask))
    assert told[1] == 1
    assert told[-3:].tolist() == [0, 1, 0]
    assert np.abs(gradients_of(step)).max() > 0


def test_a_single_set_trains_as_without_mixing():
    image, target, mask = conflict()
    runs = []
    for weighting in (EQUAL, EXACT, UPPER_BOUND):
        net = TwoParameters()
        step = TrainStep(net, create_loss("ssi_mse"), Descent(net, 1e-3), sets=1, weighting=weighting)
        runs.append([tell(step, (image, target, mask)).tolist() for _ in range(3)])
    assert runs[0] == runs[1] == runs[2]
    assert len(runs[0][0]) == 4 + len(NOTHING)


def test_a_step_that_is_not_finite_is_none():
    image, target, mask = conflict()
    image[1, 0, 3, 3] = np.nan
    net = TwoParameters()
    step = make_step(net, EXACT, 1e-3, scaler=amp.DynamicLossScaler(8, 2, 100))
    told = tell(step, (image, target, mask))
    assert (told[1], told[3]) == (0, 8)
    assert float(net.torn.asnumpy()) == 0.5
    image[1, 0, 3, 3] = 0
    told = tell(step, (image, target, mask))
    assert (told[1], told[3]) == (1, 4)
    assert float(net.torn.asnumpy()) != 0.5


# ---- a small network


class SmallNet(nn.Cell):
    """Four stages and a decoder, as ``MidasNet`` has them, at one resolution."""

    class Encoder(nn.Cell):
        def __init__(self):
            super().__init__()
            self.convolutions = nn.CellList([nn.Conv2d(3 if stage == 0 else 4, 4, 3) for stage in range(4)])
            self.norms = nn.CellList([nn.BatchNorm2d(4) for _ in range(4)])

        def construct(self, x):
            stages = ()
            for convolution, norm in zip(self.convolutions, self.norms):
                x = ops.relu(norm(convolution(x)))
                stages += (x,)
            return stages

    class Decoder(nn.Cell):
        def __init__(self):
            super().__init__()
            self.convolutions = nn.CellList([nn.Conv2d(4, 4, 3, has_bias=True) for _ in range(4)])
            self.last = nn.Conv2d(4, 1, 1, has_bias=True)

        def construct(self, stage1, stage2, stage3, stage4):
            x = 0
            for convolution, stage in zip(self.convolutions, (stage1, stage2, stage3, stage4)):
                x = ops.relu(convolution(stage) + x)
            return self.last(x)

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.squeeze = self.Encoder(), self.Decoder(), ops.Squeeze(1)

    def construct(self, image):
        return self.squeeze(self.decoder(*self.encoder(image)))


@pytest.fixture(scope="module")
def steps():
    """The three kinds of step on one network, which they leave as it is."""
    ms.set_seed(1)
    net = SmallNet().set_train(True)
    return {weighting: make_step(net, weighting) for weighting in (EQUAL, EXACT, UPPER_BOUND)}


@pytest.fixture
def state(steps):
    """The parameters of the network; statistics are put back at the end of a test."""
    parameters = list(steps[EQUAL].net.get_parameters())
    before = [parameter.asnumpy().copy() for parameter in parameters]
    yield parameters
    for parameter, array in zip(parameters, before):
        parameter.set_data(ms.Tensor(array))


def test_exact_weights_and_gradients(steps, state):
    batch = random_batch(0)
    gradients = of_each_set(steps[EQUAL], batch)
    expected = min_norm_weights(gradients @ gradients.T)
    told = tell(steps[EXACT], batch)
    assert told[-2:] == pytest.approx(expected, abs=1e-4)
    found = gradients_of(steps[EXACT])
    assert np.linalg.norm(found - expected @ gradients) <= 1e-3 * np.linalg.norm(found)
    assert (gradients @ found).min() > 0


def test_losses_are_the_same_and_statistics_move_once(steps, state):
    """The network runs once for each set, or once more: with the same losses, and one trace in the statistics."""
    batch, before = random_batch(1), {p.name: p.asnumpy().copy() for p in state}
    seen = {}
    for weighting, step in steps.items():
        for parameter in state:
            parameter.set_data(ms.Tensor(before[parameter.name]))
        losses = tell(step, batch)[-4:-2]
        seen[weighting] = losses, {name: p.asnumpy().copy() for name, p in step.statistics().items()}
    expected_losses, expected = seen[EQUAL]
    assert any(np.abs(array - before[name]).max() > 1e-3 for name, array in expected.items())
    for losses, statistics in seen.values():
        assert losses == pytest.approx(expected_losses, rel=1e-5)
        for name, array in statistics.items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_upper_bound_descends_where_the_exact_weights_do(steps, state):
    """The sign of the change of each loss, to first order, in 50 random states of the network."""
    rng, seen = np.random.default_rng(5), []
    start = [parameter.asnumpy().copy() for parameter in state]
    for number in range(50):
        for parameter, array in zip(state, start):
            if "moving" not in parameter.name:
                noise = rng.standard_normal(array.shape) * (0.3 * array.std() + 0.01)
                parameter.set_data(ms.Tensor((array + noise).astype(np.float32)))
        batch = random_batch(number)
        gradients = of_each_set(steps[EQUAL], batch)
        assert np.abs(gradients).max(axis=1).min() > 0
        exact = gradients @ (min_norm_weights(gradients @ gradients.T) @ gradients)
        weights = tell(steps[UPPER_BOUND], batch)[-2:]
        assert gradients_of(steps[UPPER_BOUND]) @ gradients[0] == pytest.approx(
            weights @ gradients @ gradients[0], rel=1e-2, abs=1e-3 * np.square(gradients).sum()
        )
        seen.append((np.sign(exact), np.sign(gradients @ (weights @ gradients))))
    exact, bound = np.array(seen).transpose(1, 0, 2)
    assert (exact > 0).all()
    np.testing.assert_array_equal(bound, exact)


@pytest.mark.parametrize("weighting", [EXACT, UPPER_BOUND])
def test_parts_of_a_batch_do_what_the_batch_does(steps, state, weighting):
    """Each part is a copy of the batch, since batch normalisation is over each part."""
    batch = random_batch(3)
    expected = tell(steps[weighting], batch)
    step = make_step(steps[EQUAL].net, weighting, parts=2)
    told = tell(step, [np.concatenate((array, array)) for array in batch])
    assert 0 < expected[-1] < 1
    assert told[[0, *range(3, len(told))]] == pytest.approx(expected[[0, *range(3, len(told))]], rel=1e-4)
    found, wanted = gradients_of(step), gradients_of(steps[weighting])
    assert np.linalg.norm(found - wanted) <= 1e-4 * np.linalg.norm(wanted)


@pytest.mark.parametrize("level", ["O0", "O2"])
def test_the_real_network(level, tmp_path):
    """The features are those between its encoder and its decoder, and half precision finds nearly the same weights."""
    twin = lively(TorchMidas(**TINY))
    torch.save(twin.state_dict(), tmp_path / "twin.pt")
    net = MidasNet(**TINY)
    load_into(net, read_weights(tmp_path / "twin.pt"))
    apply_precision(net, Precision(level, "float16", "static"))
    batch = [np.repeat(np.repeat(array, 2, -1), 2, -2) for array in random_batch(4)]
    scaler = amp.StaticLossScaler(2.0**10) if level == "O2" else None
    step = make_step(net.set_train(True), UPPER_BOUND, scaler=scaler)
    loss, (image, target, mask) = step.loss, map(ms.Tensor, batch)
    found = step._step._squares(
        image, target, mask, loss.valid_pixels(mask, 2), ms.Tensor([0, 0], ms.float32)
    ).asnumpy()

    image, target, mask = map(torch.from_numpy, batch)
    stages, encoder = [], twin.train().pretrained

    def cut(_layer, _inputs, output):  # so that no gradient comes through later stages
        stages.append(output.detach().requires_grad_())
        return stages[-1]

    for layer in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        layer.register_forward_hook(cut)
    prediction = twin(image)
    losses = [torch_loss(prediction[k::2], target[k::2], mask[k::2], "ssi_trim") for k in range(2)]
    sum(losses).backward()
    squares = sum((stage.grad**2).flatten(1).sum(1).reshape(2, 2).sum(0).numpy() for stage in stages)
    scale = 2.0**20 if level == "O2" else 1
    assert found == pytest.approx(scale * squares, rel=1e-3 if level == "O0" else 0.25)  # signs flip
