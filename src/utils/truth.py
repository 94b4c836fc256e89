"""What the pixels of a training set's ground truth mean, and how they become the target: inverse depth.

A data set stores one of three kinds:

* ``inverse_depth``: 1/depth or disparity with any scale and shift; larger is nearer;
* ``negative_disparity``: the same with the sign turned; larger is farther (ReDWeb);
* ``depth``: distance in any unit that starts at 0; larger is farther.

The squared term of the loss grows with the square of the target's range, its gradient term linearly. So targets of all
sets span the same range: otherwise the gradients of a set of 16 bits would silence the others. It is that of 8-bit
values, or 0..1 as in the paper.

What a pixel is, is decided in this order, so that what a file of masks says goes before the pixel's own value, and sky
before "missing":

1. The mask of the sky marks it: sky.
2. The mask of the ground truth leaves it out: missing.
3. It holds the value ``sky``: sky.
4. It holds the value ``invalid``, NaN or infinity; or it is depth and not above 0, or beyond ``max_depth``: missing.
5. Everything else is ground truth.
"""

from dataclasses import dataclass
from typing import NamedTuple, Optional, Union

import numpy as np

from src.common.names import TRUTH_KINDS

INVERSE_DEPTH, NEGATIVE_DISPARITY, DEPTH = KINDS = TRUTH_KINDS
TOP = 255  # targets span 0 .. TOP, unless they are to span 0 .. 1
Number = Union[int, float, None]
Range = tuple[float, float]
# What masks say of a pixel.
BY_MASK_MISSING, BY_VALUE, BY_MASK_SKY = 0, 1, 2


@dataclass(frozen=True)
class Truth:
    """What the stored values of a set mean.

    Attributes:
        kind: One of ``KINDS``.
        invalid: The value that means "no ground truth", if there is one.
        sky: The value that means sky, if there is one; it may be infinite.
        scale: What a stored value is to be multiplied by for the unit of the set, such as metres. The target does not
            depend on it.
        max_depth: Depth beyond it is missing, in that unit; for ``depth`` alone.
    """

    kind: str = INVERSE_DEPTH
    invalid: Number = None
    sky: Number = None
    scale: float = 1.0
    max_depth: Optional[float] = None


PLAIN = Truth()


class Pixels(NamedTuple):
    """What the pixels of a ground truth are.

    Attributes:
        valid: bool (H, W), where there is ground truth, sky included.
        sky: bool (H, W), where there is sky; None where the set knows of none.
    """

    valid: np.ndarray
    sky: Optional[np.ndarray] = None

    @property
    def measured(self) -> np.ndarray:
        """Where the stored value counts, bool (H, W)."""
        return self.valid if self.sky is None else self.valid & ~self.sky


def _is_value(stored: np.ndarray, value: Union[int, float]) -> np.ndarray:
    return stored == (np.float32(value) if stored.dtype.kind == "f" else value)


def classify(stored: np.ndarray, truth: Truth, marks: Optional[np.ndarray] = None) -> Pixels:
    """Tells what the pixels of a ground truth are.

    Args:
        stored: Ground truth as stored, uint8, uint16 or float32, of any shape.
        truth: What its values mean.
        marks: What masks say of it, uint8 of the same shape: ``BY_MASK_MISSING``, ``BY_VALUE`` or ``BY_MASK_SKY``;
            None: there are none.
    """
    valid = np.isfinite(stored) if stored.dtype.kind == "f" else np.ones(stored.shape, bool)
    if truth.invalid is not None:
        valid &= ~_is_value(stored, truth.invalid)
    if truth.kind == DEPTH:
        valid &= stored > 0
    if truth.max_depth is not None:
        valid &= stored <= np.float32(min(truth.max_depth / truth.scale, np.finfo(np.float32).max))
    sky = None if truth.sky is None else _is_value(stored, truth.sky)
    if marks is not None:
        sky = marks == BY_MASK_SKY if sky is None else (marks == BY_MASK_SKY) | (sky & (marks == BY_VALUE))
        valid &= marks == BY_VALUE
    return Pixels(valid, None) if sky is None else Pixels(valid | sky, sky)


def inverse(values: np.ndarray, kind: str) -> np.ndarray:
    """Turns stored values that are ground truth into float64 inverse depth of any scale and shift."""
    values = values.astype(np.float64)  # 1 / depth of the smallest float32 is beyond float32
    if kind == DEPTH:
        return 1 / values
    return -values if kind == NEGATIVE_DISPARITY else values


def _keeps_units(stored: np.ndarray, truth: Truth, top: int) -> bool:
    return stored.dtype == np.uint8 and truth.kind != DEPTH and top == TOP


def inverse_depth_range(
    stored: np.ndarray, truth: Truth, marks: Optional[np.ndarray] = None, top: int = TOP
) -> Optional[Range]:
    """Returns the inverse depths that become 0 and ``top``: the smallest and the largest that are valid.

    Sky is the smallest: 0, or the smallest value where some are below 0 or nobody knows what 0 would be, as of negative
    disparity.

    Args:
        stored: As for ``classify``.
        truth: As for ``classify``.
        marks: As for ``classify``.
        top: 1 or ``TOP``.

    Returns:
        None: no pixel is valid; or the values keep their scale, as those of 8 bits do unless they are depth or ``top``
        is 1.
    """
    may_have_sky = truth.sky is not None or marks is not None
    # Where values keep their scale, the sky of negative disparity needs the smallest all the same.
    if _keeps_units(stored, truth, top) and not (may_have_sky and truth.kind == NEGATIVE_DISPARITY):
        return None
    pixels = classify(stored, truth, marks)
    values = stored[pixels.measured]
    if not values.size:
        return None
    low, high = sorted(inverse(np.array([values.min(), values.max()]), truth.kind).tolist())
    if truth.kind != NEGATIVE_DISPARITY and pixels.sky is not None and pixels.sky.any():
        low = min(low, 0.0)
    return low, high


def inverse_depth_of(
    stored: np.ndarray,
    truth: Truth,
    limits: Optional[Range] = None,
    marks: Optional[np.ndarray] = None,
    top: int = TOP,
) -> tuple[np.ndarray, np.ndarray]:
    """Turns ground truth as stored into the target of the training.

    Where targets span 0..255, 8-bit inverse depth stays as it is, and an 8-bit negative disparity v becomes 255 - v.
    Everything else is stretched to 0..``top``.

    Args:
        stored: uint8, uint16 or float32 (H, W).
        truth: What its values mean.
        limits: ``inverse_depth_range`` of the whole image, where ``stored`` is a part of it; by default that of
            ``stored``.
        marks: As for ``classify``.
        top: 1 or ``TOP``.

    Returns:
        float32 (H, W), 0..``top``, larger is nearer, 0 where there is no ground truth and where all of it is equal; and
        bool (H, W), where there is ground truth.
    """
    pixels = classify(stored, truth, marks)
    limits = limits or inverse_depth_range(stored, truth, marks, top)
    if _keeps_units(stored, truth, top):
        values = TOP - stored if truth.kind == NEGATIVE_DISPARITY else stored
        target = (values * pixels.valid).astype(np.float32)  # as long as it is 8 bits, it is cheap
        if pixels.sky is not None:
            target[pixels.sky] = TOP + limits[0] if limits else 0  # limits: those of negative disparity
        return target, pixels.valid
    target = np.zeros(stored.shape, np.float32)  # sky is the smallest
    low, high = limits or (0.0, 0.0)
    if high > low:
        measured = pixels.measured
        target[measured] = (inverse(stored[measured], truth.kind) - low) * (top / (high - low))
    return target, pixels.valid
