"""src/loss.py against hand-worked numbers and against torch autograd in float64."""

import mindspore as ms
import numpy as np
import pytest
import torch
from torch_midas import torch_loss

from src.common import names
from src.loss import LOSSES, OrderStatistic, align_scale_shift, count_inverted, create_loss

ROBUST = ("ssi_mae", "ssi_trim")
SHAPE = (3, 32, 64)  # of all batches that can have it: a graph is compiled for each shape


@pytest.fixture(scope="module")
def graphs():
    """Name of a loss -> (prediction, target, mask) -> (value, gradient for the prediction)."""
    return {name: ms.value_and_grad(create_loss(name), grad_position=0) for name in LOSSES}


@pytest.fixture(scope="module", params=list(LOSSES))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def select():
    return OrderStatistic()


def tensors(*arrays):
    return [ms.Tensor(np.asarray(x, np.float32)) for x in arrays]


def evaluate(function, prediction, target, mask):
    value, gradient = function(*tensors(prediction, target, mask))
    return float(value), gradient.asnumpy()


def evaluate_in_torch(prediction, target, mask, name, **settings):
    prediction, target, mask = (torch.tensor(x, dtype=torch.float64) for x in (prediction, target, mask))
    prediction.requires_grad_(True)
    value = torch_loss(prediction, target, mask, name, **settings)
    value.backward()
    return value.item(), prediction.grad.numpy()


def random_batch(seed, shape=SHAPE):
    rng = np.random.default_rng(seed)
    target = rng.uniform(0, 255, shape).astype(np.float32)
    prediction = (0.02 * target + rng.uniform(0, 3, shape)).astype(np.float32)
    return prediction, target, np.ones(shape, np.float32)


def cases():
    prediction, target, mask = random_batch(0)
    rng = np.random.default_rng(1)
    yield "full mask", prediction, target, mask
    yield "partial masks", prediction, target, (rng.random(SHAPE) < 0.4).astype(np.float32)
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
    yield "one inverted, partial masks", one_inverted, target, (rng.random(SHAPE) < 0.4).astype(np.float32)
    flat = target.copy()
    flat[0] = 30
    yield "one constant target", prediction, flat, mask
    odd = mask.copy()
    odd[:, 5, 5] = 0
    yield "odd counts", prediction, target, odd
    few = mask * 0
    for image, count in enumerate((2, 3, 4)):
        few[image, 0, :count] = 1
    yield "two, three and four valid pixels", prediction, target, few
    yield "ties", np.round(prediction), np.round(target / 40), (rng.random(SHAPE) < 0.7).astype(np.float32)
    yield "mostly zeros", np.maximum(prediction - 5, 0), target, mask
    yield "anything where invalid", np.where(odd, prediction, -1e30), np.where(odd, target, 1e30), odd


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0])
def test_value_and_gradient_equal_torch(graphs, name, case):
    title, *batch = case
    value, gradient = evaluate(graphs[name], *batch)
    expected, expected_gradient = evaluate_in_torch(*batch, name)
    assert np.isfinite(gradient).all()
    assert value == pytest.approx(expected, rel=1e-5)
    # float32 input of 50 +- 0.05 holds 14 bits of the variation: that case alone cannot reach 1e-5
    tolerance = 1e-3 if "large mean" in title else 1e-5
    assert np.abs(gradient - expected_gradient).max() <= tolerance * max(np.abs(expected_gradient).max(), 1e-30)


def test_by_hand(graphs):
    # One image, valid in the first row's first three pixels: prediction 0, 1, 2, target 1, 1, 4.
    # Least squares: mean p 1, mean t 2, scale = ((-1)(-1) + 0 + 1 * 2) / 2 = 1.5, shift = 2 - 1.5 = 0.5.
    # Residuals 0.5 - 1, 2 - 1, 3.5 - 4 = -0.5, 1, -0.5: data = (0.25 + 1 + 0.25) / (2 * 3) = 0.25.
    # Gradients: scale 1: (1.5 + 1.5) / 3 = 1; scale 2 has pixels 0 and 2: |0| / 2 = 0; scales 4, 8: one valid pixel, 0.
    prediction, target, mask = (np.zeros(SHAPE) for _ in range(3))
    prediction[0, 0, :3], target[0, 0, :3], mask[0, 0, :3] = (0, 1, 2), (1, 1, 4), 1
    value, _ = evaluate(graphs["ssi_mse"], prediction, target, mask)
    assert value == pytest.approx(0.25 + 0.5 * 1.0, rel=1e-6)


@pytest.mark.parametrize(("name", "data"), [("ssi_mae", 5 / 18), ("ssi_trim", 5 / 36)])
def test_robust_by_hand(graphs, name, data):
    # One image, valid in five pixels: prediction 0, 1, 2, 3, 4, target 0, 0, 1, 5, 4. Medians 2 and 1, mean deviations
    # 6/5 and 9/5. 18 times the residuals: -30 + 10, -15 + 10, 0, 15 - 40, 30 - 30 = -20, -5, 0, -25, 0.
    # Data: 50/18 / (2 * 5), and without the one largest of five 25/18 / (2 * 5).
    # 18 times the gradients: scale 1: (15 + 5 + 25 + 25) / 5 = 14; scale 2: 20 / 3; scale 4: 20 / 2 = 10; scale 8: 0.
    prediction, target, mask = (np.zeros(SHAPE) for _ in range(3))
    prediction[0, 0, :5], target[0, 0, :5], mask[0, 0, :5] = (0, 1, 2, 3, 4), (0, 0, 1, 5, 4), 1
    value, _ = evaluate(graphs[name], prediction, target, mask)
    assert value == pytest.approx(data + 0.5 * (14 + 20 / 3 + 10) / 18, rel=1e-6)


@pytest.mark.parametrize(("scale", "shift"), [(7.0, 0.0), (1.0, 12.0), (0.05, 3.0), (300.0, -40.0)])
def test_invariant_to_scale_and_shift(graphs, name, scale, shift):
    prediction, target, mask = random_batch(5)
    mask[:, :, ::3] = 0
    plain, _ = evaluate(graphs[name], prediction, target, mask)
    moved, _ = evaluate(graphs[name], scale * prediction + shift, target, mask)
    assert moved == pytest.approx(plain, rel=1e-5)
    if name in ROBUST:  # the other is in units of the target
        moved, _ = evaluate(graphs[name], prediction, scale * target + shift, mask)
        assert moved == pytest.approx(plain, rel=1e-5)


def test_inverted_prediction_costs_more(graphs, name):
    prediction, target, mask = random_batch(5)
    prediction += 0.03 * target
    plain, _ = evaluate(graphs[name], prediction, target, mask)
    inverted, _ = evaluate(graphs[name], -prediction, target, mask)
    assert inverted > 1.3 * plain


def test_full_image_size_keeps_its_digits(name):
    # With this seed no residual and no difference of two is within 5e-6 of where its part in the gradient jumps: 0 and
    # the trimming threshold. Rounding moves them by 1e-7.
    batch = random_batch(12, (2, 384, 384))
    value, gradient = evaluate(ms.value_and_grad(create_loss(name), grad_position=0), *batch)
    expected, expected_gradient = evaluate_in_torch(*batch, name)
    assert value == pytest.approx(expected, rel=1e-5)
    assert np.abs(gradient - expected_gradient).max() <= 1e-5 * np.abs(expected_gradient).max()


def test_alignment_recovers_a_known_scale_and_shift():
    prediction, _, mask = random_batch(7)
    scale, shift = align_scale_shift(ms.Tensor(prediction), ms.Tensor(2.5 * prediction - 4), ms.Tensor(mask))
    assert scale.asnumpy() == pytest.approx(np.full((3, 1, 1), 2.5), rel=1e-5)
    assert shift.asnumpy() == pytest.approx(np.full((3, 1, 1), -4.0), rel=1e-5)


def test_inverted_prediction_by_hand(graphs):
    # One image, valid in three pixels: prediction 0, 1, 2, target 4, 1, 1. Means 1 and 2, sums about them p^2 = 2,
    # t^2 = 4 + 1 + 1 = 6, p t = -2 - 1 = -3: inverted, so scale = sqrt(6 / 2), shift = 2 - sqrt(3).
    # Residuals 2 - s - 4, 2 - 1, 2 + s - 1 = -2 - s, 1, 1 + s: data = ((2 + s)^2 + 1 + (1 + s)^2) / 6.
    # Gradients: scale 1: (3 + s + s) / 3; scale 2: pixels 0 and 2, |3 + 2 s| / 2; scales 4 and 8: one pixel, 0.
    s = 3**0.5
    prediction, target, mask = (np.zeros(SHAPE) for _ in range(3))
    prediction[0, 0, :3], target[0, 0, :3], mask[0, 0, :3] = (0, 1, 2), (4, 1, 1), 1
    value, gradient = evaluate(graphs["ssi_mse"], prediction, target, mask)
    expected = ((2 + s) ** 2 + 1 + (1 + s) ** 2) / 6 + 0.5 * ((3 + 2 * s) / 3 + (3 + 2 * s) / 2)
    assert value == pytest.approx(expected, rel=1e-6)
    assert (gradient * mask * (target - 2)).sum() < 0  # a step against it lets the prediction rise with the target


def test_inverted_images_are_counted():
    prediction, target, mask = random_batch(8)
    prediction[1] *= -1
    prediction[2] = 0.1  # constant: neither
    assert float(count_inverted(*tensors(prediction, target, mask))) == 1
    assert float(count_inverted(*tensors(-prediction, target, mask))) == 1
    assert float(count_inverted(*tensors(prediction, target, 0 * mask))) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows(graphs, name, bad):
    prediction, target, mask = random_batch(9)
    prediction[1, 3, 4] = bad
    assert not np.isfinite(evaluate(graphs[name], prediction, target, mask)[0])
    prediction[1] = bad
    assert not np.isfinite(evaluate(graphs[name], prediction, target, mask)[0])


def test_rounding_is_no_variation(graphs, name):
    _, target, mask = random_batch(18)
    constant = np.full(SHAPE, 7.7, np.float32)
    noisy = np.where(np.random.default_rng(19).random(SHAPE) < 0.3, np.nextafter(constant, np.float32(8)), constant)
    value, gradient = evaluate(graphs[name], noisy, target, mask)
    assert value == pytest.approx(evaluate(graphs[name], constant, target, mask)[0], rel=1e-6)
    assert (gradient == 0).all()


def test_half_precision_is_left_at_once(graphs):
    prediction, target, mask = random_batch(10)
    half, loss = ms.Tensor(prediction.astype(np.float16)), create_loss("ssi_mse")
    value = loss.share(half, *tensors(target, mask), loss.valid_pixels(*tensors(mask)))
    assert value.dtype == ms.float32
    expected, _ = evaluate(graphs["ssi_mse"], prediction.astype(np.float16), target, mask)
    assert value.asnumpy() == pytest.approx([expected], rel=1e-6)


def test_settings(name):
    batch = random_batch(11)
    for settings in ({"alpha": 2.0, "scales": 1, "trim": 0.05}, {"alpha": 0.0, "scales": 5, "trim": 0.7}):
        loss = create_loss(name, **settings)
        value = loss.share(*tensors(*batch), loss.valid_pixels(*tensors(batch[2])))
        assert value.asnumpy() == pytest.approx([evaluate_in_torch(*batch, name, **settings)[0]], rel=1e-5)


def test_nothing_trimmed_is_the_mean(graphs):
    prediction, target, mask = random_batch(12)
    mask[0, :, ::2] = 0
    mask[1] = 0
    loss = create_loss("ssi_trim", trim=0)
    value = loss.share(*tensors(prediction, target, mask), loss.valid_pixels(*tensors(mask)))
    assert value.asnumpy() == pytest.approx([evaluate(graphs["ssi_mae"], prediction, target, mask)[0]], rel=1e-6)


def test_exactly_the_stated_share_is_trimmed():
    # What the gradient of the sum of |residual| for the residual holds is the weight of each pixel.
    weights_of = ms.value_and_grad(create_loss("ssi_trim").data_sum, grad_position=0)
    rng = np.random.default_rng(13)
    counts = np.array([[2048, 2047, 2045], [1, 4, 5], [0, 9, 10]])
    for count in counts:
        mask = (np.arange(32 * 64) < count[:, None]).astype(np.float32)
        mask = rng.permuted(mask, axis=1).reshape(SHAPE)
        for ties in (False, True):
            residual = rng.standard_normal(SHAPE)
            residual = mask * (np.round(residual * 2) + 0.5 if ties else residual).astype(np.float32)
            weights = np.abs(weights_of(*tensors(residual, mask))[1].asnumpy())
            assert (weights[mask == 0] == 0).all()
            removed = count // 5
            assert count - weights.sum((1, 2), dtype=np.float64) == pytest.approx(removed, abs=1e-3)
            for image, size, valid, left in zip(weights, np.abs(residual), mask > 0, removed):
                if not ties:
                    assert (image[valid] == 0).sum() == left
                    assert (image[valid] == 1).sum() == valid.sum() - left
                for level in np.unique(size[valid]):
                    above = (size[valid] > level).sum()
                    share = 1 - np.clip((left - above) / (size[valid] == level).sum(), 0, 1)
                    assert image[valid & (size == level)] == pytest.approx(share, abs=1e-6)


def test_order_statistic_is_that_of_a_sort(select):
    rng = np.random.default_rng(14)
    size = 20 * 30
    sign = rng.choice([-1, 1], size)
    images = [
        rng.standard_normal(size),
        rng.uniform(1, 2, size),
        -rng.uniform(1e3, 1e5, size),
        rng.integers(-2, 3, size),
        np.where(rng.random(size) < 0.7, 0, rng.random(size)),
        np.where(rng.random(size) < 0.5, -0.0, 0.0),
        sign * 10 ** rng.uniform(-29, 38, size),
        sign * np.finfo(np.float32).max * rng.choice([1, 0.5], size),
        7.7 + 1e-6 * rng.integers(0, 4, size),
        sign * 2.0 ** rng.integers(-100, 128, size),
        sign * np.nextafter(np.float32(2) ** rng.integers(-99, 128, size), np.float32(0), dtype=np.float32),
        255 * rng.integers(0, 2, size),
    ]
    x = np.array(images, np.float32)
    mask = (rng.random(x.shape) < 0.8).astype(np.float32)
    mask[0] = 1
    mask[1] = np.arange(size) == 17  # one valid pixel
    count = mask.sum(1)
    shape = (len(x), 20, 30)
    for share in (0, 0.01, 0.2, 0.3, 0.5, 0.51, 0.77, 0.999, 1):
        rank = np.floor(share * (count - 1))
        found = select(*tensors(x.reshape(shape), mask.reshape(shape), rank.reshape(-1, 1, 1))).asnumpy()
        expected = [np.sort(image[valid > 0])[int(r)] for image, valid, r in zip(x, mask, rank)]
        np.testing.assert_array_equal(found.ravel(), np.array(expected))
    # Below the smallest power of two that it knows
    found = select(*tensors(x.reshape(shape) * 1e-38, mask.reshape(shape), rank.reshape(-1, 1, 1))).asnumpy()
    assert np.abs(found.ravel() - np.array(expected) * 1e-38).max() <= 1e-37
    # An image without valid pixels
    assert (select(*tensors(x.reshape(shape), 0 * mask.reshape(shape), 0 * count.reshape(-1, 1, 1) - 1)) == 0).all()


@pytest.mark.parametrize(("name", "sets"), [("ssi_mse", 2), ("ssi_mae", 3), ("ssi_trim", 3)])
def test_sets_have_the_losses_of_their_images_alone(name, sets):
    prediction, target, mask = random_batch(15, (6, *SHAPE[1:]))
    mask *= np.random.default_rng(16).random(mask.shape) < np.linspace(0.2, 1, 6).reshape(6, 1, 1)
    mask[4] = 0
    loss, weights = create_loss(name), np.arange(1.0, sets + 1)

    def weighted(prediction, target, mask, weights):
        losses = loss.share(prediction, target, mask, loss.valid_pixels(mask, weights.shape[0]))
        return (losses * weights).sum(), losses

    (_, losses), gradient = ms.value_and_grad(weighted, grad_position=0, has_aux=True)(
        *tensors(prediction, target, mask, weights)
    )
    assert losses.shape == (sets,)
    for k, weight in enumerate(weights):
        value, expected = evaluate_in_torch(*(x[k::sets] for x in (prediction, target, mask)), name)
        assert float(losses[k]) == pytest.approx(value, rel=1e-5)
        error = gradient.asnumpy()[k::sets] - weight * expected
        assert np.abs(error).max() <= 1e-5 * weight * np.abs(expected).max()


def test_parts_of_a_batch_add_up(name):
    batch = random_batch(17, (6, *SHAPE[1:]))
    batch[2][:2, :, ::3] = 0
    batch[2][1::3] = 0  # the second set has no ground truth at all
    loss = create_loss(name)
    valid = loss.valid_pixels(*tensors(batch[2]), sets=3)
    parts = [[x[part] for x in batch] for part in (slice(0, 3), slice(3, 6))]
    counted = [loss.valid_pixels(*tensors(mask), sets=3).asnumpy() for _, _, mask in parts]
    assert (sum(counted) == valid.asnumpy()).all()
    whole = loss.share(*tensors(*batch), valid).asnumpy()
    assert whole[1] == 0
    assert sum(loss.share(*tensors(*part), valid).asnumpy() for part in parts) == pytest.approx(whole, rel=1e-6)


def test_valid_pixels_are_counted_at_each_scale():
    mask = np.zeros(SHAPE)
    mask[0, :4, :8] = 1
    mask[2, 8, 16] = 1
    assert create_loss("ssi_mse").valid_pixels(*tensors(mask)).asnumpy().tolist() == [[33, 9, 3, 2]]
    counts = create_loss("ssi_trim", scales=2).valid_pixels(*tensors(mask), sets=3)
    assert counts.asnumpy().tolist() == [[32, 8], [0, 0], [1, 1]]


def test_unknown_name():
    assert tuple(LOSSES) == names.LOSSES
    with pytest.raises(ValueError, match="ssi_mse"):
        create_loss("l2")
