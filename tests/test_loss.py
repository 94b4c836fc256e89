"""src/loss.py against hand-worked numbers and against torch autograd in float64."""

import mindspore as ms
import numpy as np
import pytest
import torch
from torch_midas import torch_loss

from src.common import names
from src.loss import LOSSES, ScaleAndShiftInvariantLoss, align_scale_shift, count_inverted, create_loss


@pytest.fixture(scope="module")
def loss_and_gradient():
    return ms.value_and_grad(ScaleAndShiftInvariantLoss(), grad_position=0)


def evaluate(function, prediction, target, mask):
    value, gradient = function(*(ms.Tensor(x.astype(np.float32)) for x in (prediction, target, mask)))
    return float(value), gradient.asnumpy()


def random_batch(seed, shape=(3, 32, 64)):
    rng = np.random.default_rng(seed)
    target = rng.uniform(0, 255, shape).astype(np.float32)
    prediction = (0.02 * target + rng.uniform(0, 3, shape)).astype(np.float32)
    return prediction, target, np.ones(shape, np.float32)


def cases():
    prediction, target, mask = random_batch(0)
    rng = np.random.default_rng(1)
    yield "full mask", prediction, target, mask
    yield "partial masks", prediction, target, (rng.random(mask.shape) < 0.4).astype(np.float32)
    one_empty = mask.copy()
    one_empty[1] = 0
    yield "one image without ground truth", prediction, target, one_empty
    yield "empty mask", prediction, target, mask * 0
    constant = prediction.copy()
    constant[2] = 0.3
    yield "one constant prediction", constant, target, mask
    yield "all constant", np.full_like(prediction, 7.7), target, mask
    yield "all zero", np.zeros_like(prediction), target, mask
    one_pixel = mask * 0
    one_pixel[:, 8, 8] = 1
    yield "one valid pixel an image", prediction, target, one_pixel
    yield "small variation around a large mean", prediction * 1e-2 + 50, target, mask
    yield "inverted", prediction.max() - prediction, target, mask
    one_inverted = prediction.copy()
    one_inverted[1] *= -0.5
    yield "one inverted, partial masks", one_inverted, target, (rng.random(mask.shape) < 0.4).astype(np.float32)
    flat = target.copy()
    flat[0] = 30
    yield "one constant target", prediction, flat, mask


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0])
def test_value_and_gradient_equal_torch(loss_and_gradient, case):
    _, prediction, target, mask = case
    value, gradient = evaluate(loss_and_gradient, prediction, target, mask)
    tensors = [torch.tensor(x, dtype=torch.float64) for x in (prediction, target, mask)]
    tensors[0].requires_grad_(True)
    expected = torch_loss(*tensors)
    expected.backward()
    expected_gradient = tensors[0].grad.numpy()
    assert np.isfinite(gradient).all()
    assert value == pytest.approx(expected.item(), rel=1e-5)
    # float32 input of 50 +- 0.05 holds 14 bits of the variation: that case alone cannot reach 1e-5
    tolerance = 1e-3 if "large mean" in case[0] else 1e-5
    assert np.abs(gradient - expected_gradient).max() <= tolerance * max(np.abs(expected_gradient).max(), 1e-30)


def test_by_hand(loss_and_gradient):
    # One image of 16x16, valid in the first row's first three pixels: prediction 0, 1, 2, target 1, 1, 4.
    # Least squares: mean p 1, mean t 2, scale = ((-1)(-1) + 0 + 1 * 2) / 2 = 1.5, shift = 2 - 1.5 = 0.5.
    # Residuals 0.5 - 1, 2 - 1, 3.5 - 4 = -0.5, 1, -0.5: data = (0.25 + 1 + 0.25) / (2 * 3) = 0.25.
    # Gradients: scale 1: (1.5 + 1.5) / 3 = 1; scale 2 has pixels 0 and 2: |0| / 2 = 0; scales 4, 8: one valid pixel, 0.
    prediction, target, mask = (np.zeros((1, 16, 16)) for _ in range(3))
    prediction[0, 0, :3], target[0, 0, :3], mask[0, 0, :3] = (0, 1, 2), (1, 1, 4), 1
    value, _ = evaluate(loss_and_gradient, prediction, target, mask)
    assert value == pytest.approx(0.25 + 0.5 * 1.0, rel=1e-6)


@pytest.mark.parametrize(("scale", "shift"), [(7.0, 0.0), (1.0, 12.0), (0.05, 3.0), (300.0, -40.0)])
def test_invariant_to_scale_and_shift_of_the_prediction(loss_and_gradient, scale, shift):
    prediction, target, mask = random_batch(5)
    mask[:, :, ::3] = 0
    plain, _ = evaluate(loss_and_gradient, prediction, target, mask)
    moved, _ = evaluate(loss_and_gradient, scale * prediction + shift, target, mask)
    assert moved == pytest.approx(plain, rel=1e-5)


def test_full_image_size_keeps_its_digits(loss_and_gradient):
    prediction, target, mask = random_batch(6, (2, 384, 384))
    value, gradient = evaluate(loss_and_gradient, prediction, target, mask)
    tensors = [torch.tensor(x, dtype=torch.float64) for x in (prediction, target, mask)]
    tensors[0].requires_grad_(True)
    expected = torch_loss(*tensors)
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-5)
    assert np.abs(gradient - tensors[0].grad.numpy()).max() <= 1e-5 * np.abs(tensors[0].grad.numpy()).max()


def test_alignment_recovers_a_known_scale_and_shift():
    prediction, _, mask = random_batch(7)
    scale, shift = align_scale_shift(ms.Tensor(prediction), ms.Tensor(2.5 * prediction - 4), ms.Tensor(mask))
    assert scale.asnumpy() == pytest.approx(np.full((3, 1, 1), 2.5), rel=1e-5)
    assert shift.asnumpy() == pytest.approx(np.full((3, 1, 1), -4.0), rel=1e-5)


def test_inverted_prediction_by_hand(loss_and_gradient):
    # One image, valid in three pixels: prediction 0, 1, 2, target 4, 1, 1. Means 1 and 2, sums about them p^2 = 2,
    # t^2 = 4 + 1 + 1 = 6, p t = -2 - 1 = -3: inverted, so scale = sqrt(6 / 2), shift = 2 - sqrt(3).
    # Residuals 2 - s - 4, 2 - 1, 2 + s - 1 = -2 - s, 1, 1 + s: data = ((2 + s)^2 + 1 + (1 + s)^2) / 6.
    # Gradients: scale 1: (3 + s + s) / 3; scale 2: pixels 0 and 2, |3 + 2 s| / 2; scales 4 and 8: one pixel, 0.
    s = 3**0.5
    prediction, target, mask = (np.zeros((1, 16, 16)) for _ in range(3))
    prediction[0, 0, :3], target[0, 0, :3], mask[0, 0, :3] = (0, 1, 2), (4, 1, 1), 1
    value, gradient = evaluate(loss_and_gradient, prediction, target, mask)
    expected = ((2 + s) ** 2 + 1 + (1 + s) ** 2) / 6 + 0.5 * ((3 + 2 * s) / 3 + (3 + 2 * s) / 2)
    assert value == pytest.approx(expected, rel=1e-6)
    assert (gradient * mask * (target - 2)).sum() < 0  # a step against it lets the prediction rise with the target


def test_inverted_images_are_counted():
    prediction, target, mask = random_batch(8)
    prediction[1] *= -1
    prediction[2] = 0.1  # constant: neither
    assert float(count_inverted(*map(ms.Tensor, (prediction, target, mask)))) == 1
    assert float(count_inverted(*map(ms.Tensor, (-prediction, target, mask)))) == 1
    assert float(count_inverted(*map(ms.Tensor, (prediction, target, 0 * mask)))) == 0


def test_unknown_name():
    assert tuple(LOSSES) == names.LOSSES
    with pytest.raises(ValueError, match="ssi_mse"):
        create_loss("l2")
