"""What the ground truth of a training set looks like, and what about it suggests a wrong entry in mixdata.json.

Nothing here is an error: a set may look unusual and be right. Thresholds are chosen so that real data with the right
entries (indoor and outdoor photographs, stereo, lidar) gives no warning.
"""

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple, Optional

import numpy as np

from src.utils.truth import (
    BY_VALUE,
    DEPTH,
    INVERSE_DEPTH,
    NEGATIVE_DISPARITY,
    Truth,
    classify,
    inverse,
    inverse_depth_of,
    inverse_depth_range,
    keeps_units,
)

# Orientation of one picture: the upper and the lower third of the valid pixels are compared by their means. (Thirds of
# the picture would not do: a lidar sees next to nothing in the upper one.) A handful of pixels says nothing, nor does a
# difference far below the spread of the picture. Real pictures have 0.3 to 2.2 deviations, the rendered ones 0.3 to 2.
_LEAST_PIXELS = 150
_LEAST_DIFFERENCE = 0.25  # in standard deviations
_ENOUGH_COLUMNS = 160  # to compare rows by; with all of them a check would take 1.7 times as long
# Orientation of a set: a photograph from a high window or of a shelf may be the other way round, a majority is suspect.
_LEAST_DECIDED = 3
# Depth in millimetres ends between 0.3 and 20 m in most pictures. So may 16-bit disparity; its pictures are upright.
_MILLIMETRES = (300, 20000)
# Sensors and stereo leave several per cent of each picture without ground truth. Without such holes the smallest and
# the largest value belong to few pixels in at least every other picture.
_MANY = 0.05
# The sparsest useful ground truth, a projected point cloud, covers several pixels in a thousand, lidar 1 to 5 %.
_FEW = 0.001
# Of a range that a few stray readings set, all the others take a small part. In sound pictures all but 0.2 % of the
# pixels take 0.93 to 0.98 of it.
_STRAY = (0.001, 0.999)
_FLAT = 0.25
_BAD_PICTURES = 0.1  # share of the pictures of a set
Entry = Callable[[str, str, object], str]
_TYPE_NAMES = {"uint8": "8 bit", "uint16": "16 bit", "float32": "float"}


class TruthStatistics(NamedTuple):
    """One ground truth in figures.

    Attributes:
        dtype: ``"uint8"``, ``"uint16"`` or ``"float32"``.
        low: The smallest valid value as stored, sky left out; None if there is none.
        high: The largest.
        valid: Share of the pixels that are valid, sky included, 0..1.
        zeros: Share of the pixels that hold 0 and are neither sky nor masked out.
        tops: Share of those that hold 255 (8 bits) or 65535 (16 bits).
        span: Share of the range of the target that all but 0.2 % of the valid pixels take, sky left out, 0..1; None for
            values that keep their scale, and without a valid pixel.
        upright: Whether the lower part of the picture is nearer than the upper; None: undecided.
        sky: Share of the pixels that are sky, 0..1.
    """

    dtype: str
    low: Optional[float]
    high: Optional[float]
    valid: float
    zeros: float
    tops: float
    span: Optional[float]
    upright: Optional[bool]
    sky: float = 0.0


def measure_truth(stored: np.ndarray, truth: Truth, marks: Optional[np.ndarray] = None) -> TruthStatistics:
    """Measures a ground truth, whose first row is taken for the upper edge of the picture.

    Args:
        stored: uint8, uint16 or float32 (H, W), as stored.
        truth: What its values mean.
        marks: What masks say of it, see ``truth.classify``.
    """
    pixels = classify(stored, truth, marks)
    values = stored[pixels.measured]
    low, high = (values.min().item(), values.max().item()) if values.size else (None, None)
    is_open = np.ones(stored.shape, bool) if marks is None else marks == BY_VALUE  # only the value says what it is
    if pixels.sky is not None:
        is_open &= ~pixels.sky
    tops = (stored == np.iinfo(stored.dtype).max) & is_open if stored.dtype.kind == "u" else False
    counts = (np.count_nonzero(array) for array in (pixels.valid, (stored == 0) & is_open, tops))
    shares = [count / stored.size for count in counts]
    columns = np.s_[:, :: max(1, stored.shape[1] // _ENOUGH_COLUMNS)]
    limits = inverse_depth_range(stored, truth, pixels)
    target, valid = inverse_depth_of(stored[columns], truth, limits, None if marks is None else marks[columns])
    span = None
    if values.size and not keeps_units(stored, truth):
        span = _span(stored[columns][pixels.measured[columns]], low, high, truth.kind)
    sky = 0.0 if pixels.sky is None else np.count_nonzero(pixels.sky) / stored.size
    return TruthStatistics(str(stored.dtype), low, high, *shares, span, lower_is_nearer(target, valid), sky)


def _span(values: np.ndarray, low: float, high: float, kind: str) -> Optional[float]:
    """Returns the share of the inverse depths between two stored values that all but a few stray ones take."""
    if not values.size:
        return None
    whole = np.ptp(inverse(np.array([low, high]), kind))
    return float(np.ptp(np.quantile(inverse(values, kind), _STRAY)) / whole) if whole else 0.0


def lower_is_nearer(inverse_depth: np.ndarray, valid: np.ndarray) -> Optional[bool]:
    """Compares the lower third of the valid pixels with the upper: in most photographs it is the nearer one.

    Args:
        inverse_depth: Float (H, W), larger is nearer.
        valid: bool (H, W).

    Returns:
        None if there are too few pixels, or the means are too close to tell.
    """
    above = np.cumsum(valid.sum(axis=1))  # valid pixels down to each row
    if above[-1] < _LEAST_PIXELS:
        return None
    first, last = np.searchsorted(above, (above[-1] / 3, above[-1] * 2 / 3))  # the rows where the thirds meet
    upper, lower = (inverse_depth[rows][valid[rows]] for rows in (slice(first + 1), slice(last, None)))
    difference = lower.mean(dtype=np.float64) - upper.mean(dtype=np.float64)
    if abs(difference) <= _LEAST_DIFFERENCE * inverse_depth[valid].std(dtype=np.float64):
        return None
    return bool(difference > 0)


def mixdata_entry(key: str, name: str, value: object) -> str:
    """Returns an entry of mixdata.json as it is to be written."""
    return f'"{key}": {json.dumps({name: value}, ensure_ascii=False)}'


def option_entry(key: str, name: str, value: object) -> str:
    """Returns the option of the training script that says the same of two folders."""
    return f"--train_{key} {value}"


def describe_set(name: str, truth: Truth, listed: int, read: Sequence[TruthStatistics]) -> str:
    """Returns a line on a set; its range is in the unit after ``scale``.

    Args:
        name: Its name in mixdata.json.
        truth: What its values mean.
        listed: How many pairs it has.
        read: The statistics of those that have been read.
    """
    head = f"{name}: {listed} pairs" + (f" ({len(read)} read)" if len(read) < listed else "")
    if not read:
        return head
    types = " and ".join(sorted({_TYPE_NAMES[one.dtype] for one in read}))
    lows, highs = ([value for value in column if value is not None] for column in zip(*((s.low, s.high) for s in read)))
    span = f"{min(lows) * truth.scale:g}..{max(highs) * truth.scale:g}" if lows else "no value"
    if truth.scale != 1:
        span += f" after scaling by {truth.scale:g}"
    valid = f"{100 * np.mean([one.valid for one in read]):.3g} % valid"
    sky = 100 * np.mean([one.sky for one in read])
    line = f"{head}, {types}, {span}, {valid}{f' ({sky:.3g} % sky)' if sky else ''}, {truth.kind}"
    decided = [one.upright for one in read if one.upright is not None]
    if not decided:
        return f"{line}; no picture tells which part is nearer"
    return f"{line}; the lower part is nearer in {sum(decided)} of {len(decided)} pictures"


def warnings_of_set(
    name: str, truth: Truth, read: Sequence[TruthStatistics], knows_sky: bool = False, entry: Entry = mixdata_entry
) -> list[str]:
    """Returns a line for each thing that suggests a wrong setting, with the setting to write instead.

    Args:
        name: The set's name in mixdata.json.
        truth: What its values are said to mean.
        read: Statistics of its pairs, or of some of them.
        knows_sky: Whether something says what is sky.
        entry: How a setting is written: ``mixdata_entry`` or ``option_entry``.
    """
    if not read:
        return []
    kind, invalid, warnings = truth.kind, truth.invalid, []
    reason, right_kind = _kind_doubt(kind, read)
    if reason:
        warnings.append(f"{name}: {reason}; probably {entry('kind', name, right_kind)}")
    if invalid is None:
        zeros, tops = (np.median(shares) for shares in zip(*((one.zeros, one.tops) for one in read)))
        top = 255 if read[0].dtype == "uint8" else 65535
        for value, share in ((0, zeros), (top, tops)):
            if share > _MANY and not (value == 0 and right_kind == DEPTH):  # depth of 0 never counts
                warnings.append(
                    f"{name}: half of the pictures hold {value} on {100 * share:.0f} % of their pixels or more;"
                    f" if that means no ground truth: {entry('invalid', name, value)}"
                )
    empty = sum(one.valid < _FEW for one in read)
    if empty > _BAD_PICTURES * len(read):
        said = entry("kind", name, kind) if invalid is None else entry("invalid", name, invalid)
        warnings.append(f"{name}: {empty} of {len(read)} pictures have hardly a valid pixel with {said}")
    if knows_sky and not any(one.sky for one in read):
        said = "its masks" if truth.sky is None else entry("sky", name, truth.sky)
        warnings.append(f"{name}: no pixel of {len(read)} pictures is sky, by {said}")
    flat = sum(one.span is not None and one.span < _FLAT for one in read)
    if flat > _BAD_PICTURES * len(read):
        warnings.append(
            f"{name}: in {flat} of {len(read)} pictures a few stray values span most of the inverse depth, so that the"
            " others look alike to the training; remove them, or store a value there that means no ground truth:"
            f" {entry('invalid', name, 0 if invalid is None else invalid)}"
        )
    if invalid is not None and all(one.dtype.startswith("u") for one in read):
        top = max(np.iinfo(one.dtype).max for one in read)
        if invalid != int(invalid) or not 0 <= invalid <= top:
            warnings.append(f"{name}: no pixel can hold {entry('invalid', name, invalid)}: they are whole, 0..{top}")
    return warnings


def _kind_doubt(kind: str, read: Sequence[TruthStatistics]) -> tuple[str, str]:
    """Says why the kind of a set is probably another and which, or returns "" and the kind."""
    decided = [one.upright for one in read if one.upright is not None]
    inverted = decided.count(False)
    is_inverted = len(decided) >= _LEAST_DECIDED and inverted > len(decided) / 2
    is_upright = len(decided) >= _LEAST_DECIDED and not is_inverted
    if kind != DEPTH and _is_in_millimetres(read) and not (kind == INVERSE_DEPTH and is_upright):
        return "16-bit values that look like depth, for example in millimetres", DEPTH
    if not is_inverted:
        return "", kind
    opposite = NEGATIVE_DISPARITY if read[0].dtype == "uint8" else DEPTH
    reason = f"in {inverted} of {len(decided)} pictures the upper part is nearer; in most photographs the lower part is"
    return reason, opposite if kind == INVERSE_DEPTH else INVERSE_DEPTH


def _is_in_millimetres(read: Sequence[TruthStatistics]) -> bool:
    highs = [one.high for one in read if one.high is not None]
    return (
        bool(highs)
        and all(one.dtype == "uint16" for one in read)
        and _MILLIMETRES[0] <= np.median(highs) <= _MILLIMETRES[1]
    )
