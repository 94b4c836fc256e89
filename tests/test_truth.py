"""From stored ground truth to the target of the training: every kind in every type of file, by hand."""

import cv2
import numpy as np
import pytest
from training_data import write_truth

from src.util import read_truth
from src.utils.truth import (
    BY_MASK_MISSING,
    BY_MASK_SKY,
    BY_VALUE,
    Truth,
    classify,
    inverse_depth_of,
    inverse_depth_range,
)

NAN, INF = np.nan, np.inf
TYPES = [
    ("x.png", np.uint8),
    ("x.png", np.uint16),
    ("x.npy", np.float32),
    ("x.pfm", np.float32),
    ("x.tiff", np.float32),
]


def range_of(stored, truth, marks=None, top=255):
    return inverse_depth_range(stored, truth, classify(stored, truth, marks), top)


@pytest.mark.parametrize(("name", "dtype"), TYPES)
@pytest.mark.parametrize(
    ("kind", "bits8", "others"),
    [
        # 7 is invalid. The others, 10, 20, 40, stay, or go to 0, 255 * 10 / 30, 255.
        ("inverse_depth", [10, 20, 40], [0, 85, 255]),
        # 255 - v; or 255 * (40 - v) / 30.
        ("negative_disparity", [245, 235, 215], [255, 170, 0]),
        # 1/10, 1/20, 1/40 are 4, 2, 1 fortieths; 255 * (n - 1) / 3.
        ("depth", [255, 85, 0], [255, 85, 0]),
    ],
)
def test_every_kind_in_every_type_of_file(tmp_path, name, dtype, kind, bits8, others):
    write_truth(tmp_path / name, np.array([[10, 7], [20, 40]], dtype))
    stored = read_truth(tmp_path / name)
    assert stored.dtype == dtype
    target, valid = inverse_depth_of(stored, Truth(kind, 7))
    assert (target.dtype, valid.dtype) == (np.float32, bool)
    np.testing.assert_array_equal(valid, [[True, False], [True, True]])
    first, second, third = bits8 if dtype == np.uint8 else others
    np.testing.assert_allclose(target, [[first, 0], [second, third]], rtol=1e-6)


def test_values_that_are_never_valid():
    stored = np.array([[NAN, INF, -INF, -2, 0, 2, 4]], np.float32)
    _, valid = inverse_depth_of(stored, Truth("depth"))
    assert valid.tolist() == [[False] * 5 + [True] * 2]
    target, valid = inverse_depth_of(stored, Truth("inverse_depth", 4))
    assert valid.tolist() == [[False] * 3 + [True] * 3 + [False]]
    assert target.tolist() == [[0, 0, 0, 0, 127.5, 255, 0]]  # -2 .. 2
    _, valid = inverse_depth_of(np.array([[0, 1]], np.uint16), Truth("depth", 65535))
    assert valid.tolist() == [[False, True]]


@pytest.mark.parametrize("invalid", [-1, 256, 70000, 0.5, -3.4028234663852886e38, 10**38])
def test_invalid_values_that_the_type_cannot_hold_match_nothing(invalid):
    for dtype in (np.uint8, np.uint16):
        if invalid == 256 and dtype == np.uint16:
            continue
        _, valid = inverse_depth_of(np.array([[0, 255, 1]], dtype), Truth("inverse_depth", invalid))
        assert valid.all()


def test_invalid_value_of_float_files():
    stored = np.array([[1e38, 255, 1]], np.float32)
    assert inverse_depth_of(stored, Truth("inverse_depth", 10**38))[1].tolist() == [[False, True, True]]
    assert inverse_depth_of(stored, Truth("inverse_depth", 255))[1].tolist() == [[True, False, True]]
    stored = np.array([[0.1, -3.4028234663852886e38, 1, 3]], np.float32)
    assert inverse_depth_of(stored, Truth("inverse_depth", 0.1))[1].tolist() == [[False, True, True, True]]
    target, valid = inverse_depth_of(stored, Truth("inverse_depth", -3.4028234663852886e38))
    assert valid.tolist() == [[True, False, True, True]]
    np.testing.assert_allclose(target, [[0, 0, 255 * 0.9 / 2.9, 255]], rtol=1e-6)


@pytest.mark.parametrize("kind", ["inverse_depth", "negative_disparity", "depth"])
def test_constant_and_empty_ground_truth_is_zero(kind):
    for values in ([5, 5, 5], [5, 9, 9], [9, 9, 9]):
        target, valid = inverse_depth_of(np.array([values], np.uint16), Truth(kind, 9))
        assert valid.tolist() == [[value != 9 for value in values]]
        assert not target.any()


def test_extreme_depths_stay_finite():
    tiny = np.nextafter(np.float32(0), np.float32(1))
    with np.errstate(all="raise"):
        target, _ = inverse_depth_of(np.array([[tiny, 1, 3e38]], np.float32), Truth("depth"))
    np.testing.assert_allclose(target, [[255, 0, 0]], rtol=0, atol=1e-30)
    target, _ = inverse_depth_of(np.array([[-3e38, 0, 3e38]], np.float32), Truth("inverse_depth"))
    assert target.tolist() == [[0, 127.5, 255]]


def test_part_of_an_image_goes_by_the_limits_of_the_whole():
    stored = np.array([[1, 2, 4, 8]], np.uint16)
    limits = range_of(stored, Truth("depth", 1))
    assert limits == (1 / 8, 1 / 2)
    target, valid = inverse_depth_of(stored[:, :3], Truth("depth", 1), limits)
    np.testing.assert_allclose(target, [[0, 255, 85]], rtol=1e-6)  # (1/4 - 1/8) / (1/2 - 1/8) = 1/3
    assert valid.tolist() == [[False, True, True]]
    assert range_of(stored.astype(np.uint8), Truth("negative_disparity", 1)) is None  # keeps its units
    marks = np.array([[BY_VALUE, BY_VALUE, BY_MASK_MISSING, BY_VALUE]], np.uint8)
    assert range_of(stored.astype(np.uint8), Truth("negative_disparity"), marks) is None  # which only sky needs
    marks[0, 3] = BY_MASK_SKY
    assert range_of(stored.astype(np.uint8), Truth("negative_disparity"), marks) == (-2, -1)
    assert range_of(stored.astype(np.uint8), Truth("depth")) == (1 / 8, 1)
    assert range_of(stored * 0, Truth("depth")) is None


def test_a_set_of_16_bits_spans_what_a_set_of_8_bits_spans():
    """The gradients of the loss go with the range of the target: neither set may silence the other."""
    ramp = np.linspace(0, 1, 60).reshape(6, 10)
    bits8 = inverse_depth_of(np.rint(255 * ramp).astype(np.uint8), Truth("inverse_depth"))[0]
    bits16 = inverse_depth_of(np.rint(65535 * ramp).astype(np.uint16), Truth("inverse_depth"))[0]
    np.testing.assert_allclose(bits16, bits8, rtol=0, atol=0.51)
    for target in (bits8, bits16):
        assert (target.min(), target.max()) == (0, 255)
    assert np.abs(cv2.Sobel(bits16, -1, 1, 0)).sum() == pytest.approx(
        np.abs(cv2.Sobel(bits8, -1, 1, 0)).sum(), rel=0.02
    )


# Sky, masks, scale and the largest depth


def assert_target(stored, truth, expected, marks=None, top=255):
    """``expected`` has None where there is no ground truth."""
    target, valid = inverse_depth_of(stored, truth, marks=marks, top=top)
    assert valid.tolist() == [[value is not None for value in row] for row in expected]
    np.testing.assert_allclose(target, [[value or 0 for value in row] for row in expected], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("top", [1, 255])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_sky_of_depth_is_infinitely_far(dtype, top):
    """1/10, 1/20, 1/40 and 0."""
    stored = np.array([[10, 20, 40, 99, 7]], dtype)
    expected = [[top, top / 2, top / 4, 0, None]]
    assert_target(stored, Truth("depth", 7, sky=99), expected, top=top)
    assert_target(stored, Truth("depth", 7, sky=99, scale=0.001), expected, top=top)  # no matter
    assert_target(stored * 0 + dtype(99), Truth("depth", 7, sky=99), [[0] * 5], top=top)
    # Without sky in the picture, its farthest pixel is 0.
    assert_target(stored[:, :3], Truth("depth", 7, sky=99), [[top, top / 3, 0]], top=top)


def test_sky_of_inverse_depth_is_0_or_the_farthest():
    sky = Truth("inverse_depth", sky=500)
    assert_target(np.array([[100, 50, 500]], np.uint16), sky, [[255, 127.5, 0]])
    assert_target(np.array([[100, -50, 25, 500]], np.float32), sky, [[255, 0, 127.5, 0]])
    assert_target(np.array([[100, 50, 200]], np.uint8), Truth(sky=200), [[100, 50, 0]])  # as stored
    assert_target(np.array([[100, 50, 200]], np.uint8), Truth(sky=200), [[1, 0.5, 0]], top=1)


def test_sky_of_negative_disparity_is_the_farthest():
    """Nobody knows which value would be infinitely far."""
    sky = Truth("negative_disparity", 255, sky=254)
    assert_target(np.array([[20, 60, 100, 254, 255]], np.uint8), sky, [[235, 195, 155, 155, None]])
    assert_target(np.array([[20, 60, 100, 254, 255]], np.uint8), sky, [[1, 0.5, 0, 0, None]], top=1)
    assert_target(np.array([[20, 60, 100, 254, 255]], np.uint16), sky, [[255, 127.5, 0, 0, None]])
    # Values of another file may be below 0: their inverse depths are all above.
    assert_target(np.array([[-20, -60, -100, 9]], np.float32), Truth("negative_disparity", sky=9), [[0, 127.5, 255, 0]])
    assert_target(np.array([[254, 255]], np.uint8), sky, [[0, None]])
    limits = range_of(np.array([[20, 60, 100, 254]], np.uint8), sky)
    target, _ = inverse_depth_of(np.array([[20, 254]], np.uint8), sky, limits)  # a part without the farthest pixel
    assert target.tolist() == [[235, 155]]


def test_sky_may_be_infinite():
    assert_target(
        np.array([[1, 2, INF, -INF, NAN]], np.float32), Truth("depth", sky=INF), [[255, 127.5, 0, None, None]]
    )
    assert_target(np.array([[1, 65535]], np.uint16), Truth("depth", sky=INF), [[255, 0]])


def test_what_masks_say_goes_before_values_and_sky_before_missing():
    stored = np.array([[7, 9, 10, 20]] * 3, np.uint16)  # invalid, sky, and two depths
    marks = np.repeat(np.array([[BY_MASK_MISSING], [BY_VALUE], [BY_MASK_SKY]], np.uint8), 4, axis=1)
    expected = [[None] * 4, [None, 0, 255, 127.5], [0] * 4]
    assert_target(stored, Truth("depth", 7, sky=9), expected, marks)
    assert_target(stored, Truth("depth", 7), [[None] * 4, [None, 255, 229.5, 114.75], [0] * 4], marks)
    far = Truth("depth", 7, sky=9, max_depth=8)  # nor does the largest depth matter to sky
    assert_target(stored, far, [[None] * 4, [None, 0, None, None], [0] * 4], marks)


def test_depth_beyond_the_largest_is_missing():
    metres = Truth("depth", scale=0.001, max_depth=10)
    assert_target(np.array([[5000, 10000, 10001, 0]], np.uint16), metres, [[255, 0, None, None]])
    assert_target(np.array([[5000, 10000, 10001, INF]], np.float32), metres, [[255, 0, None, None]])
    assert_target(np.array([[3, 7]], np.float32), Truth("depth", scale=0.1, max_depth=0.3), [[0, None]])
    assert_target(np.array([[2, 4]], np.float32), Truth("depth", scale=1e-38, max_depth=1e38), [[255, 0]])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_range_of_one_stretches_every_target(dtype):
    stored = np.array([[10, 20, 40, 7]], dtype)
    assert_target(stored, Truth("inverse_depth", 7), [[0, 1 / 3, 1, None]], top=1)
    assert_target(stored, Truth("negative_disparity", 7), [[1, 2 / 3, 0, None]], top=1)
    assert_target(stored, Truth("depth", 7), [[1, 1 / 3, 0, None]], top=1)
    limits = range_of(stored, Truth("inverse_depth", 7), top=1)
    target, _ = inverse_depth_of(stored[:, 1:2], Truth("inverse_depth", 7), limits, top=1)
    np.testing.assert_allclose(target, [[1 / 3]], rtol=1e-6)
