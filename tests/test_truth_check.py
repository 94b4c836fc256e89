"""What is said of a set's ground truth, and when it is warned of."""

import numpy as np
import pytest

from src.utils.truth import BY_MASK_MISSING, BY_VALUE, Truth
from src.utils.truth_check import (
    TruthStatistics,
    describe_set,
    lower_is_nearer,
    measure_truth,
    option_entry,
    warnings_of_set,
)

RAMP = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[:, None], 80, axis=1)  # 60 x 80; 0 in the first row, 236 last


def figures(dtype="uint8", low=0, high=254, valid=0.9, zeros=0.001, tops=0.001, span=None, upright=True):
    return TruthStatistics(dtype, low, high, valid, zeros, tops, span, upright)


def test_figures_of_one_ground_truth():
    stored = RAMP.copy()
    stored[:, :8] = 255  # a tenth
    share = 0.9 / 60  # of each row, and so of the zeros
    as_inverse_depth = measure_truth(stored, Truth("inverse_depth", 255))
    assert as_inverse_depth == ("uint8", 0, 236, 0.9, pytest.approx(share), 0.1, None, True, 0)
    assert measure_truth(stored, Truth("negative_disparity", 255)).upright is False
    as_depth = measure_truth(stored.astype(np.uint16) * 10, Truth("depth", 2550))
    assert as_depth == ("uint16", 40, 2360, pytest.approx(0.9 - share), pytest.approx(share), 0, 1, False, 0)
    as_float = measure_truth(np.where(stored == 255, np.nan, stored).astype(np.float32), Truth("inverse_depth"))
    assert as_float == ("float32", 0, 236, 0.9, pytest.approx(share), 0, 1, True, 0)
    assert measure_truth(np.zeros((9, 9), np.uint16), Truth("depth")) == ("uint16", None, None, 0, 1, 0, None, None, 0)


@pytest.mark.parametrize("kind", ["inverse_depth", "negative_disparity", "depth"])
def test_figures_leave_sky_and_masks_out(kind):
    stored = np.tile(np.linspace(1000, 1100, 80).astype(np.uint16), (60, 1))
    stored[:15] = 65535  # sky
    stored[15:18] = 0  # which a mask leaves out
    marks = np.full(stored.shape, BY_VALUE, np.uint8)
    marks[15:18] = BY_MASK_MISSING
    found = measure_truth(stored, Truth(kind, sky=65535), marks)
    assert (found.low, found.high, found.valid, found.sky) == (1000, 1100, 0.95, 0.25)
    assert (found.zeros, found.tops, found.span) == (0, 0, pytest.approx(1, abs=0.02))  # of what is measured
    assert found.upright is True  # sky is far
    line = describe_set("A", Truth(kind, sky=65535, scale=0.01), 1, [found])
    assert line.startswith(f"A: 1 pairs, 16 bit, 10..11 after scaling by 0.01, 95 % valid (25 % sky), {kind}; ")
    assert warnings_of_set("A", Truth(kind, sky=65535), [found], knows_sky=True)[1:] == []
    without = measure_truth(stored[20:], Truth(kind, sky=65535))
    assert warnings_of_set("A", Truth(kind, sky=65535), [without] * 3, knows_sky=True)[-1] == (
        'A: no pixel of 3 pictures is sky, by "sky": {"A": 65535}'
    )
    assert warnings_of_set("A", Truth(kind), [without], knows_sky=True)[-1] == (
        "A: no pixel of 1 pictures is sky, by its masks"
    )


def test_settings_of_two_folders_are_options():
    (line,) = warnings_of_set("images", Truth(), [figures(upright=False)] * 5, entry=option_entry)
    assert line.endswith("; probably --train_kind negative_disparity")
    (line,) = warnings_of_set("images", Truth(), [figures(zeros=0.2)] * 5, entry=option_entry)
    assert line.endswith("; if that means no ground truth: --train_invalid 0")
    for invalid, option in ((None, "--train_invalid 0"), (7, "--train_invalid 7")):
        (line,) = warnings_of_set(
            "images", Truth("depth", invalid), [figures("float32", span=0.1)] * 5, entry=option_entry
        )
        assert line.endswith(f"store a value there that means no ground truth: {option}")


def test_orientation_is_undecided_where_it_cannot_be_told():
    ramp, valid = RAMP.astype(np.float32), np.ones(RAMP.shape, bool)
    assert lower_is_nearer(ramp, valid) is True
    assert lower_is_nearer(ramp[::-1], valid) is False
    assert lower_is_nearer(ramp.T, valid.T) is None  # from left to right
    assert lower_is_nearer(ramp * 0, valid) is None
    lidar = valid.copy()
    lidar[:40] = False  # the ramp below is still a ramp
    assert lower_is_nearer(ramp, lidar) is True
    few = np.zeros_like(valid)
    few[20:40, :7] = True  # 140 pixels
    assert lower_is_nearer(ramp, few) is None
    few[20:40, 7] = True
    assert lower_is_nearer(ramp, few) is True
    one_row = np.zeros_like(valid)
    one_row[30] = True
    assert lower_is_nearer(np.tile(ramp.T[:1], (60, 2))[:, :80], one_row) is None
    noise = np.random.default_rng(0).normal(size=RAMP.shape)
    tilt = np.linspace(-0.5, 0.5, 60)[:, None]  # the means of the thirds differ by 2/3 of the tilt
    assert lower_is_nearer(noise + 0.15 * tilt, valid) is None
    assert lower_is_nearer(noise + 0.6 * tilt, valid) is True


def test_summary_of_a_set():
    read = [figures(valid=0.9), figures(low=3, valid=0.92, upright=False), figures(low=None, high=None, upright=None)]
    assert describe_set("RW", Truth("negative_disparity"), 3, read) == (
        "RW: 3 pairs, 8 bit, 0..254, 90.7 % valid, negative_disparity; the lower part is nearer in 1 of 2 pictures"
    )
    mixed = [figures("uint16", 300, 9000, upright=None), figures("float32", 0.25, 80, upright=None)]
    unknown = "; no picture tells which part is nearer"
    assert describe_set("P", Truth("depth"), 9, mixed) == (
        f"P: 9 pairs (2 read), 16 bit and float, 0.25..9000, 90 % valid, depth{unknown}"
    )
    assert describe_set("P", Truth("depth"), 9, [figures(low=None, high=None, valid=0, upright=None)]) == (
        f"P: 9 pairs (1 read), 8 bit, no value, 0 % valid, depth{unknown}"
    )
    assert describe_set("P", Truth("depth"), 2, []) == "P: 2 pairs (0 read)"


def warned(kind, invalid, *read):
    return warnings_of_set("A", Truth(kind, invalid), list(read))


@pytest.mark.parametrize(
    ("kind", "dtype", "right"),
    [
        ("inverse_depth", "uint8", "negative_disparity"),
        ("inverse_depth", "uint16", "depth"),
        ("inverse_depth", "float32", "depth"),
        ("negative_disparity", "uint8", "inverse_depth"),
        ("depth", "uint16", "inverse_depth"),
    ],
)
def test_a_set_that_is_upside_down(kind, dtype, right):
    inverted, upright, undecided = (figures(dtype, high=50000, upright=answer) for answer in (False, True, None))
    (line,) = warned(kind, 0, *[inverted] * 7, upright, undecided)
    assert line == (
        "A: in 7 of 8 pictures the upper part is nearer; in most photographs the lower part is;"
        f' probably "kind": {{"A": "{right}"}}'
    )
    assert warned(kind, 0, *[inverted] * 2, *[undecided] * 9) == []  # too few to say
    assert len(warned(kind, 0, *[inverted] * 3, *[upright] * 2)) == 1  # a majority
    assert warned(kind, 0, *[inverted] * 3, *[upright] * 3) == []


def test_16_bit_values_that_look_like_millimetres():
    phone = [figures("uint16", 250, high, upright=None) for high in (1200, 4000, 9000, 60000)]
    (line,) = warned("inverse_depth", None, *phone)
    assert line == (
        'A: 16-bit values that look like depth, for example in millimetres; probably "kind": {"A": "depth"}'
    )
    assert warned("depth", None, *phone) == []
    holes = [one._replace(zeros=0.2) for one in phone]
    assert len(warned("inverse_depth", None, *holes)) == 1  # depth of 0 never counts: nothing to add for it
    upright = [one._replace(upright=True) for one in phone]
    assert warned("inverse_depth", None, *upright) == []  # disparity in small units
    assert len(warned("negative_disparity", None, *upright)) == 1
    scaled = [figures("uint16", 0, 65535, upright=None)] * 4
    assert warned("inverse_depth", None, *scaled) == []
    assert warned("inverse_depth", None, figures("uint8", 1, 200, upright=None)) == []


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65535)])
def test_many_zeros_or_top_values_without_an_invalid_value(dtype, top):
    zeros, tops, plain = figures(dtype, zeros=0.13), figures(dtype, tops=0.08), figures(dtype, 0, 65535)
    (line,) = warned("inverse_depth", None, zeros, zeros, plain)
    assert line == (
        "A: half of the pictures hold 0 on 13 % of their pixels or more; if that means no ground truth:"
        ' "invalid": {"A": 0}'
    )
    (line,) = warned("negative_disparity", None, tops, tops, plain)
    assert line.endswith(
        f'hold {top} on 8 % of their pixels or more; if that means no ground truth: "invalid": {{"A": {top}}}'
    )
    assert warned("depth", None, zeros) == []
    assert warned("inverse_depth", 0, zeros, zeros._replace(tops=0.1)) == []  # what is missing is known
    assert warned("inverse_depth", None, zeros, plain, plain) == []  # a wall far away in one picture


def test_hardly_a_valid_pixel():
    empty, lidar = figures(valid=0.0005), figures("uint16", 600, 20000, valid=0.04, zeros=0.96, upright=None)
    assert warned("depth", None, *[lidar] * 5) == []
    (line,) = warned("inverse_depth", 0, *[empty] * 2, *[figures()] * 8)
    assert line == 'A: 2 of 10 pictures have hardly a valid pixel with "invalid": {"A": 0}'
    (line,) = warned("depth", None, empty)
    assert line == 'A: 1 of 1 pictures have hardly a valid pixel with "kind": {"A": "depth"}'
    assert warned("inverse_depth", 0, empty, *[figures()] * 9) == []
    assert warned("inverse_depth", 0) == []


def test_stray_readings_flatten_the_target():
    """Depths of 1 to 3 m, and four pixels of 4800 at 1 cm: of 1/depth 0.33..100, all others take 0.33..1."""
    depth = np.tile(np.linspace(1000, 3000, 80).astype(np.uint16), (60, 1))
    sound = measure_truth(depth, Truth("depth"))
    assert sound.span == pytest.approx(1, abs=0.01)
    depth[30, 40:44] = 10
    stray = measure_truth(depth, Truth("depth"))
    assert stray.span == pytest.approx((1 - 1 / 3) / (100 - 1 / 3), rel=0.01)
    assert warnings_of_set("A", Truth("depth"), [sound] * 10 + [stray]) == []  # one picture of eleven
    (warning,) = warnings_of_set("A", Truth("depth"), [sound] * 8 + [stray])
    assert warning.startswith("A: in 1 of 9 pictures a few stray values span most of the inverse depth")


def test_value_that_no_pixel_can_hold():
    for invalid in (-1, 256, 0.5):
        (warning,) = warnings_of_set("A", Truth("inverse_depth", invalid), [figures()])
        assert warning == f'A: no pixel can hold "invalid": {{"A": {invalid}}}: they are whole, 0..255'
    assert warnings_of_set("A", Truth("inverse_depth", -1), [figures(dtype="float32", span=1)]) == []
    assert warnings_of_set("A", Truth("inverse_depth", 255), [figures()]) == []
