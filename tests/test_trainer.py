"""src/training/trainer.py against a PyTorch twin; the training script is tested in test_train_script.py."""

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
import torch
from conftest import TINY
from torch_midas import TorchMidas, lively, torch_loss

from src.common.errors import CheckpointError
from src.loss import create_loss
from src.midas_net import MidasNet
from src.training.schedule import LoopSettings, Plan, Position, learning_rates
from src.training.step import (
    TrainStep,
    create_optimizer,
    invert_output,
    restore,
    set_learning_rates,
    training_state,
)
from src.training.trainer import Trainer
from src.weights.checkpoint import load_into, read_weights, save_checkpoint

STEPS = 10
PLAN = Plan(
    samples=40, files=1, batch_size=4, world=1, seed=1, img_width=64, img_height=64, network_ops="midas", loss="ssi_mse"
)


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        image = rng.standard_normal((4, 3, 64, 64)).astype(np.float32)
        target = (100 + 50 * image.mean(axis=1) + np.linspace(0, 50, 64, dtype=np.float32)).astype(np.float32)
        mask = (rng.random((4, 64, 64)) < 0.8).astype(np.float32)
        yield image, target, mask


def torch_losses(twin, backbone_lr, no_backbone_lr, clip):
    twin.train()
    optimizer = torch.optim.Adam(
        [{"params": twin.pretrained.parameters()}, {"params": twin.scratch.parameters()}], eps=1e-8
    )
    losses = []
    for step, batch in enumerate(batches()):
        image, target, mask = map(torch.from_numpy, batch)
        loss = torch_loss(twin(image), target, mask)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), clip)
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = backbone_lr[step], no_backbone_lr[step]
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_ten_steps_equal_pytorch(clip, tmp_path):
    twin = lively(TorchMidas(**TINY))
    torch.save(twin.state_dict(), tmp_path / "twin.pt")
    # Rates at which the loss moves visibly in ten steps, and a decay that makes a shifted schedule visible.
    rates = (learning_rates(1e-4, 1e-6, 0.5, STEPS, True), learning_rates(1e-3, 1e-5, 0.5, STEPS, True))
    expected = torch_losses(twin, *map(np.float64, rates), clip)
    net = MidasNet(**TINY)
    load_into(net, read_weights(tmp_path / "twin.pt"))
    step = TrainStep(net.set_train(True), create_loss("ssi_mse"), create_optimizer(net), clip)
    outputs = []
    for batch, backbone_lr, no_backbone_lr in zip(batches(), *rates):
        set_learning_rates(step.optimizer, float(backbone_lr), float(no_backbone_lr))
        outputs.append(step(*map(ms.Tensor, batch)))
    assert all(finite.asnumpy() for _, finite, *_ in outputs)
    found = [float(loss.asnumpy()) for loss, *_ in outputs]
    assert abs(expected[-1] - expected[0]) > 0.01 * expected[0]
    # Adam divides by the root of tiny second moments, where rounding shows: 1e-3, not the 1e-5 of a single pass.
    assert found == pytest.approx(expected, rel=1e-3)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)


def test_learning_rates_by_hand():
    # (1 - 0.2) * sqrt(1 - i / 4) + 0.2
    expected = [1.0, 0.8 * 0.75**0.5 + 0.2, 0.8 * 0.5**0.5 + 0.2, 0.8 * 0.5 + 0.2]
    assert learning_rates(1.0, 0.2, 0.5, 4, True) == pytest.approx(expected, rel=1e-6)
    assert learning_rates(1.0, 0.2, 0.5, 3, False).tolist() == [1, 1, 1]


def test_step_tells_gradients_that_are_not_finite():
    step = make_step()
    image, target, mask = next(batches())
    image[0, 0, 0, 0] = np.nan
    _, finite, *_ = step(*map(ms.Tensor, (image, target, mask)))
    assert not finite.asnumpy()


def make_step(**sizes):
    net = MidasNet(**{**TINY, **sizes})
    step = TrainStep(net, create_loss("ssi_mse"), create_optimizer(net))
    set_learning_rates(step.optimizer, 1e-3, 1e-3)
    return step


def test_inverted_output_has_the_same_loss_and_learns_as_before():
    ms.set_seed(1)
    steps = [make_step().set_train(True), make_step().set_train(True)]
    for other, parameter in zip(steps[1].get_parameters(), steps[0].get_parameters()):
        other.set_data(ms.Tensor(parameter.asnumpy()))
    image, target, mask = map(ms.Tensor, next(batches()))
    peak = [step(image, target, mask)[3] for step in steps][1]
    invert_output(steps[1], float(peak.asnumpy()))
    for _ in range(2):
        (loss, _, inverted, _), (other_loss, _, other_inverted, _) = (step(image, target, mask) for step in steps)
        # The optimizer does not see the shift, but rounding does.
        assert float(other_loss.asnumpy()) == pytest.approx(float(loss.asnumpy()), rel=1e-4)
        assert float(other_inverted.asnumpy()) == 4 - float(inverted.asnumpy())


def test_restore_gives_back_all_of_the_state(tmp_path):
    step = make_step()
    rng = np.random.default_rng(1)
    for parameter in step.get_parameters():
        if parameter.dtype == ms.float32:
            parameter.set_data(ms.Tensor(rng.random(parameter.shape, np.float32)))
    step.optimizer.global_step.set_data(ms.Tensor([7], ms.int32))
    path = tmp_path / "Midas_0-2_3.ckpt"
    save_checkpoint(path, training_state(step), {"epoch": 2, "step": 3, "inverted": 5, **vars(PLAN)})
    other = make_step()
    assert restore(other, path, PLAN) == Position(2, 3, 5)
    state = training_state(step)
    names = set(state)
    assert {"global_step", "beta1_power", "moment1.backbone_conv.weight", "backbone_bn.moving_mean"} <= names
    for name, parameter in training_state(other).items():
        assert np.array_equal(parameter.asnumpy(), state[name].asnumpy()), name


def test_restore_refuses_what_does_not_fit(tmp_path):
    step = make_step()
    extra = {"epoch": 2, "step": 3, "inverted": 5, **vars(PLAN)}
    weights, other_plan, good = (tmp_path / name for name in ("weights.ckpt", "plan.ckpt", "good.ckpt"))
    save_checkpoint(weights, {p.name: p for p in step.network.net.get_parameters()})
    save_checkpoint(other_plan, training_state(step), {**extra, "batch_size": 8})
    save_checkpoint(good, training_state(step), extra)
    with pytest.raises(CheckpointError, match="weights alone"):
        restore(step, weights, PLAN)
    with pytest.raises(CheckpointError, match="batch_size 8 then and 4 now"):
        restore(step, other_plan, PLAN)
    with pytest.raises(CheckpointError, match="other training images, network_ops midas then and modelzoo now"):
        restore(step, good, replace(PLAN, files=2, network_ops="modelzoo"))
    with pytest.raises(CheckpointError, match="of another shape, first"):
        restore(make_step(features=8), good, PLAN)


def test_output_is_inverted_by_a_clear_majority_of_an_epoch_only():
    trainer = Trainer(None, PLAN, LoopSettings(epochs=3), np.ones((2, 30)), None, None)
    assert PLAN.steps_per_epoch == 10  # of four images each: three quarters are 30
    assert trainer.is_inverted(Position(1, 10, 30))
    assert not trainer.is_inverted(Position(1, 10, 29))
    assert not trainer.is_inverted(Position(3, 10, 40))  # the last epoch
    assert Position(1, 9, 7).or_next_epoch(10) == Position(1, 9, 7)
    assert Position(1, 10, 7).or_next_epoch(10) == Position(2, 0, 0)
    assert Position(1, 9, 7).after_step(2) == Position(1, 10, 9)
    assert Position(3, 4, 7).steps_done(10) == 24
