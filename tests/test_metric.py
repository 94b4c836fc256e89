"""Metrics against pencil arithmetic and against a slow implementation written from the formulas alone."""

import math

import numpy as np
import pytest

from src.common.errors import DataError
from src.evaluation.metric import (
    ABS_REL,
    BAD_SHARE,
    align_scale_shift,
    mean_over_images,
    score_dense,
    score_ordinal,
)

ALL = np.ones((2, 3), bool)


def slow_dense(inverse_depth, depth, valid, metric, cap):
    """The metric by loops over Python numbers; scale and shift by Cramer's rule on the normal equations."""
    pairs = [
        (float(inverse_depth[i, j]), float(depth[i, j]))
        for i in range(depth.shape[0])
        for j in range(depth.shape[1])
        if valid[i, j]
    ]
    n = len(pairs)
    a00 = math.fsum(p * p for p, _ in pairs)
    a01 = math.fsum(p for p, _ in pairs)
    b0 = math.fsum(p / d for p, d in pairs)
    b1 = math.fsum(1 / d for _, d in pairs)
    determinant = a00 * n - a01 * a01
    scale = (n * b0 - a01 * b1) / determinant
    shift = (a00 * b1 - a01 * b0) / determinant
    total = 0.0
    for p, d in pairs:
        disparity = scale * p + shift
        predicted = cap if disparity < 1 / cap else 1 / disparity
        if metric == BAD_SHARE:
            total += 100.0 if predicted / d > 1.25 or d / predicted > 1.25 else 0.0
        else:
            total += abs(predicted - d) / d
    return total / n, scale, shift


# Six pixels, worked by hand. Disparities 1/d: 1, 0.5, 0.25, 0.25, 0.5, 1; depths 1, 2, 4, 4, 2, 1.
DEPTH = np.array([[1.0, 2.0, 4.0], [4.0, 2.0, 1.0]])


def test_six_pixels_by_hand():
    # Prediction p = 8, 4, 2, 2, 4, 10: mean 5. Target t: mean 3.5/6 = 7/12.
    # p - 5         =  3,   -1,    -3,    -3,   -1,    5     squares: 9+1+9+9+1+25 = 54
    # t - 7/12      =  5/12, -1/12, -4/12, -4/12, -1/12, 5/12
    # sum of products = (15 + 1 + 12 + 12 + 1 + 25) / 12 = 66/12 = 5.5
    # scale = 5.5/54 = 11/108;  shift = 7/12 - 5 * 11/108 = 63/108 - 55/108 = 8/108
    # aligned = (11 p + 8)/108 = 96, 52, 30, 30, 52, 118 over 108 (all above 1/10: no clip at cap 10)
    # d/d* = 108/96 = 1.125, 108/104 = 1.0385, 108/120 = 0.9, 0.9, 1.0385, 108/118 = 0.9153
    # max(d/d*, d*/d) <= 1.125: no pixel above 1.25
    # |d/d* - 1| = 12/96 + 4/104 + 12/120 + 12/120 + 4/104 + 10/118, over 6
    prediction = np.array([[8.0, 4.0, 2.0], [2.0, 4.0, 10.0]], np.float32)
    score = score_dense(prediction, DEPTH, ALL, ABS_REL, 10)
    assert score.scale == pytest.approx(11 / 108, rel=1e-14)
    assert score.shift == pytest.approx(8 / 108, rel=1e-14)
    assert score.value == pytest.approx((12 / 96 + 8 / 104 + 24 / 120 + 10 / 118) / 6, rel=1e-13)
    assert score.compared == 6
    assert not score.inverted
    assert score.abs_rel == score.value
    assert score.delta1 == 1.0
    # d - d* = 12/96, 8/104, -48/120, -48/120, 8/104, -10/118
    squares = (12 / 96) ** 2 + 2 * (8 / 104) ** 2 + 2 * (48 / 120) ** 2 + (10 / 118) ** 2
    assert score.rmse_m == pytest.approx(math.sqrt(squares / 6), rel=1e-13)
    # a constant one: disparity 7/12, d = 12/7: |12/7 - 1|, |12/14 - 1|, |12/28 - 1| = 5/7, 1/7, 4/7, twice each
    assert score.constant == pytest.approx(10 / 21, rel=1e-13)
    assert score_dense(prediction, DEPTH, ALL, BAD_SHARE, 10).value == 0.0
    assert score_dense(prediction, DEPTH, ALL, BAD_SHARE, 10).constant == pytest.approx(400 / 6)  # 12/7, 7/6, 7/3


def test_six_pixels_by_hand_with_mask_and_cap():
    # Valid: the first five pixels, t = 1, 1/2, 1/4, 1/4, 1/2 (mean 1/2); p = 6, 1, 1, 0, 2 (mean 2).
    # p - 2 = 4, -1, -1, -2, 0 (squares 22);  t - 1/2 = 1/2, 0, -1/4, -1/4, 0
    # sum of products = 2 + 0 + 1/4 + 1/2 = 11/4;  scale = 11/88 = 1/8;  shift = 1/2 - 2/8 = 1/4
    # aligned = (p + 2)/8 = 1, 3/8, 3/8, 1/4, 1/2;  cap 2.5 m clips from below at 0.4: 1, .4, .4, .4, .5
    # d = 1, 2.5, 2.5, 2.5, 2;  d* = 1, 2, 4, 4, 2
    # AbsRel = (0 + .25 + .375 + .375 + 0)/5 = 0.2
    # max(d/d*, d*/d) = 1, 1.25, 1.6, 1.6, 1: two of five above 1.25 (40 %), two below (1.25 itself is neither)
    # d - d* = 0, 1/2, -3/2, -3/2, 0: squares 1/4 + 9/4 + 9/4 = 19/4
    # constant: 1/2, so d = 2: |d/d* - 1| = 1, 0, 1/2, 1/2, 0
    prediction = np.array([[6.0, 1.0, 1.0], [0.0, 2.0, 1e6]])
    depth = np.array([[1.0, 2.0, 4.0], [4.0, 2.0, np.inf]])
    valid = np.array([[1, 1, 1], [1, 1, 0]], bool)
    score = score_dense(prediction, depth, valid, ABS_REL, 2.5)
    assert (score.scale, score.shift, score.compared) == (0.125, 0.25, 5)
    assert score.value == pytest.approx(0.2, rel=1e-14)
    assert score.constant == pytest.approx(0.4, rel=1e-14)
    assert score.rmse_m == pytest.approx(math.sqrt(19 / 4 / 5), rel=1e-14)
    bad = score_dense(prediction, depth, valid, BAD_SHARE, 2.5)
    assert (bad.value, bad.delta1, bad.abs_rel) == (pytest.approx(40.0), pytest.approx(0.4), score.value)


@pytest.mark.parametrize("metric", [BAD_SHARE, ABS_REL])
def test_agrees_with_the_slow_implementation(metric):
    rng = np.random.default_rng(0)
    clipped = 0
    for _ in range(30):
        depth = rng.uniform(0.3, 12, (17, 23)).astype(np.float32)
        noise = rng.normal(0, 0.3, depth.shape)
        prediction = (rng.uniform(1, 500) * (1 / depth + noise) + rng.uniform(-50, 50)).astype(np.float32)
        valid = rng.random(depth.shape) < rng.uniform(0.05, 1)
        depth[~valid] = 0
        score = score_dense(prediction, depth, valid, metric, 10)
        value, scale, shift = slow_dense(prediction, depth, valid, metric, 10)
        assert score.value == pytest.approx(value, abs=1e-9)
        assert score.scale == pytest.approx(scale, rel=1e-9)
        assert score.shift == pytest.approx(shift, abs=1e-9)
        assert score.compared == valid.sum()
        clipped += ((scale * prediction + shift)[valid] < 0.1).sum()
    assert clipped > 100  # the cap took part


def test_alignment_solves_the_least_squares_problem():
    rng = np.random.default_rng(1)
    prediction, target = rng.normal(size=(2, 9, 11))
    mask = rng.random((9, 11)) < 0.5
    columns = np.stack([prediction[mask], np.ones(mask.sum())], axis=1)
    expected = np.linalg.lstsq(columns, target[mask], rcond=None)[0]
    np.testing.assert_allclose(align_scale_shift(prediction, target, mask), expected, atol=1e-12)


def test_alignment_keeps_its_digits_on_large_offsets():
    # float32 sums of 1e8 would lose the signal; the fit is t = 2p - 3 exactly
    prediction = np.random.default_rng(2).uniform(1e4, 1e4 + 1, (300, 400)).astype(np.float32)
    scale, shift = align_scale_shift(prediction, 2 * prediction.astype(np.float64) - 3, prediction > 0)
    assert scale == pytest.approx(2, rel=1e-9)
    assert shift == pytest.approx(-3, abs=1e-4)


@pytest.mark.parametrize("metric", [BAD_SHARE, ABS_REL])
def test_scale_and_shift_do_not_matter(metric):
    rng = np.random.default_rng(3)
    depth = rng.uniform(0.5, 9, (20, 30))
    prediction = 1 / depth + rng.normal(0, 0.1, depth.shape)
    valid = rng.random(depth.shape) < 0.7
    reference = score_dense(prediction, depth, valid, metric, 10).value
    assert reference > 0.01
    for scale, shift in ((1000.0, 0.0), (0.01, 5.0), (3.0, -200.0)):
        moved = score_dense(scale * prediction + shift, depth, valid, metric, 10).value
        assert moved == pytest.approx(reference, abs=1e-9)


@pytest.mark.parametrize("metric", [BAD_SHARE, ABS_REL])
def test_perfect_scores_zero_and_depth_taken_for_inverse_depth_does_not(metric):
    depth = np.random.default_rng(4).uniform(0.5, 9, (20, 30))
    valid = np.ones(depth.shape, bool)
    perfect = score_dense(7 / depth + 2, depth, valid, metric, 10)
    assert perfect.value == pytest.approx(0, abs=1e-12)
    assert not perfect.inverted
    flipped = score_dense(depth, depth, valid, metric, 10)  # near and far exchanged
    assert flipped.inverted
    assert flipped.value > 0.1


def test_negative_scale_is_used_as_it_comes():
    score = score_dense(-3 / DEPTH + 1, DEPTH, ALL, ABS_REL, 10)
    assert score.inverted
    assert (score.scale, score.shift, score.value) == pytest.approx((-1 / 3, 1 / 3, 0), abs=1e-14)
    constant = score_dense(np.ones((2, 3)), DEPTH, ALL, ABS_REL, 10)
    assert not constant.inverted
    assert constant.value == constant.constant == score.constant


@pytest.mark.parametrize("metric", [BAD_SHARE, ABS_REL])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_in_place_arithmetic_equals_the_plain_formula(metric, dtype):
    rng = np.random.default_rng(8)
    for _ in range(10):
        depth = rng.uniform(0.3, 80, (60, 70)).astype(dtype)
        prediction = (300 / depth + rng.normal(0, 30, depth.shape) + 1e4).astype(dtype)
        valid = rng.random(depth.shape) < 0.6
        inputs = [array.copy() for array in (prediction, depth, valid)]
        score = score_dense(prediction, depth, valid, metric, 72)
        p, d = prediction[valid].astype(np.float64), depth[valid].astype(np.float64)
        scale = ((p - p.mean()) @ (1 / d - (1 / d).mean())) / ((p - p.mean()) @ (p - p.mean()))
        shift = (1 / d).mean() - scale * p.mean()
        ratio = 1 / np.maximum(scale * p + shift, 1 / 72) / d
        value = 100 * (np.maximum(ratio, 1 / ratio) > 1.25).mean() if metric == BAD_SHARE else np.abs(ratio - 1).mean()
        assert score.value == pytest.approx(value, rel=1e-12, abs=1e-12)
        assert (score.scale, score.shift) == pytest.approx((scale, shift), rel=1e-12, abs=1e-12)
        for array, before in zip((prediction, depth, valid), inputs):
            np.testing.assert_array_equal(array, before)


def test_degenerate_alignment():
    target = np.array([[1.0, 0.5, 0.25], [0.25, 0.5, 1.0]])
    # 0.1 is not a binary fraction: the mean of a constant map need not equal the constant
    constant = np.full((2, 3), 0.1)
    assert align_scale_shift(constant, target, ALL) == (0, pytest.approx(3.5 / 6))
    one = np.zeros((2, 3), bool)
    one[0, 2] = True
    assert align_scale_shift(np.arange(6.0).reshape(2, 3), target, one) == (0, 0.25)
    assert all(math.isnan(number) for number in align_scale_shift(constant, target, ~ALL))

    score = score_dense(constant, DEPTH, ALL, ABS_REL, 10)
    # disparity 7/12 everywhere, d = 12/7: |12/7 - 1|, |12/14 - 1|, |12/28 - 1| = 5/7, 1/7, 4/7, twice each
    assert score.value == pytest.approx(10 / 21)
    score = score_dense(constant, DEPTH, ~ALL, BAD_SHARE, 10)
    assert all(map(math.isnan, (score.value, score.constant, score.abs_rel, score.delta1, score.rmse_m)))
    assert score.compared == 0


def test_score_dense_refuses():
    prediction = np.arange(6.0).reshape(2, 3)
    with pytest.raises(ValueError, match="'rmse'"):
        score_dense(prediction, DEPTH, ALL, "rmse", 10)
    with pytest.raises(ValueError, match=r"prediction \(3, 2\)"):
        score_dense(prediction.T, DEPTH, ALL, ABS_REL, 10)
    for bad in (0.0, -1.0, np.inf, np.nan):
        depth = DEPTH.copy()
        depth[1, 1] = bad
        with pytest.raises(ValueError, match="above 0"):
            score_dense(prediction, depth, ALL, ABS_REL, 10)
    for bad in (np.nan, np.inf):
        prediction[0, 0] = bad
        with pytest.raises(DataError, match="found 1 NaN or infinite"):
            score_dense(prediction, DEPTH, ALL, ABS_REL, 10)


def test_ordinal_by_hand():
    inverse_depth = np.array([[1.0, 5.0, 2.0], [3.0, 5.0, 4.0]])
    points = np.array(
        [
            [0, 0, 0, 1],  # 1 < 5: point 1 is predicted farther
            [0, 0, 0, 1],
            [1, 2, 0, 2],  # 4 > 2: nearer
            [1, 2, 0, 2],
            [0, 1, 1, 1],  # a tie
            [0, 1, 1, 1],
        ]
    )
    relation = np.array([1, -1, -1, 1, 1, -1])  # right, wrong, right, wrong, wrong, wrong
    score = score_ordinal(inverse_depth, points, relation)
    assert score.value == pytest.approx(4 / 6)
    assert score.compared == 6
    assert score.constant == score_ordinal(np.ones((2, 3)), points, relation).value == 1.0
    assert not score.inverted
    assert score_ordinal(-inverse_depth, points, relation).value == pytest.approx(4 / 6)
    assert score_ordinal(inverse_depth, points[[0, 2]], relation[[0, 2]]).value == 0
    assert score_ordinal(-inverse_depth, points[[0, 2]], relation[[0, 2]]).value == 1
    assert math.isnan(score_ordinal(inverse_depth, points[:0], relation[:0]).value)


def test_ordinal_agrees_with_a_loop_and_ignores_scale_and_shift():
    rng = np.random.default_rng(9)
    for _ in range(20):
        inverse_depth = rng.integers(0, 9, (7, 11)).astype(np.float32)  # with ties
        points = rng.integers(0, (7, 11, 7, 11), (50, 4))
        relation = rng.choice([-1, 1], 50)
        wrong = 0
        for (y1, x1, y2, x2), farther in zip(points, relation):
            difference = float(inverse_depth[y1, x1]) - float(inverse_depth[y2, x2])
            wrong += not (difference < 0 if farther == 1 else difference > 0)
        value = score_ordinal(inverse_depth, points, relation).value
        assert value == pytest.approx(wrong / 50, abs=1e-12)
        for scale, shift in ((1000, 0), (0.125, 5), (3, -200)):
            assert score_ordinal(scale * inverse_depth + shift, points, relation).value == value


def test_ordinal_refuses():
    inverse_depth = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"\(1, 4\)"):
        score_ordinal(inverse_depth, np.zeros((2, 4), int), np.array([1]))
    with pytest.raises(ValueError, match="relations"):
        score_ordinal(inverse_depth, np.zeros((1, 4), int), np.array([0]))
    for point in ([2, 0, 0, 0], [0, 3, 0, 0], [0, 0, 2, 0], [0, 0, 0, 3], [0, -1, 0, 0]):
        with pytest.raises(ValueError, match="2 x 3 pixels"):
            score_ordinal(inverse_depth, np.array([point]), np.array([1]))
    with pytest.raises(DataError, match="found 6 NaN"):
        score_ordinal(inverse_depth * np.nan, np.zeros((1, 4), int), np.array([1]))


def test_mean_over_images():
    assert mean_over_images([1.0, math.nan, 4.0]) == 2.5
    assert math.isnan(mean_over_images([math.nan]))
    assert math.isnan(mean_over_images([]))
