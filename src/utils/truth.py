"""What the pixels of a training set's ground truth mean, and how they become the target: inverse depth.

A data set stores one of three kinds:

* ``inverse_depth``: 1/depth or disparity with any scale and shift; larger is nearer;
* ``negative_disparity``: the same with the sign turned; larger is farther (ReDWeb);
* ``depth``: distance in any unit that starts at 0; larger is farther.

The squared term of the loss grows with the square of the target's range, its gradient term linearly. So targets of all
sets span the same range, that of 8-bit values: otherwise the gradients of a set of 16 bits would silence the others.
"""

from typing import Optional, Union

import numpy as np

INVERSE_DEPTH, NEGATIVE_DISPARITY, DEPTH = KINDS = ("inverse_depth", "negative_disparity", "depth")
TOP = 255  # targets span 0 .. TOP
Invalid = Union[int, float, None]


def valid_pixels(stored: np.ndarray, kind: str, invalid: Invalid) -> np.ndarray:
    """Tells where there is ground truth.

    Args:
        stored: Ground truth as stored, uint8, uint16 or float32, of any shape.
        kind: One of ``KINDS``.
        invalid: The value that means "no ground truth", if there is one.

    Returns:
        bool array of the same shape. NaN and infinity are never valid, and depth is not unless it is above 0.
    """
    valid = np.isfinite(stored) if stored.dtype.kind == "f" else np.ones(stored.shape, bool)
    if invalid is not None:
        valid &= stored != (np.float32(invalid) if stored.dtype.kind == "f" else invalid)
    if kind == DEPTH:
        valid &= stored > 0
    return valid


def _inverse(values: np.ndarray, kind: str) -> np.ndarray:
    """Turns valid values into float64 inverse depth of any scale and shift."""
    values = values.astype(np.float64)  # 1 / depth of the smallest float32 is beyond float32
    if kind == DEPTH:
        return 1 / values
    return -values if kind == NEGATIVE_DISPARITY else values


def inverse_depth_range(stored: np.ndarray, kind: str, invalid: Invalid) -> Optional[tuple[float, float]]:
    """Returns the inverse depths that become 0 and ``TOP``: the smallest and the largest that are valid.

    The arguments are those of ``valid_pixels``. None: no pixel is valid, or the values keep their scale, as those of 8
    bits do unless they are depth.
    """
    if stored.dtype == np.uint8 and kind != DEPTH:
        return None
    values = stored[valid_pixels(stored, kind, invalid)]
    if not values.size:
        return None
    low, high = sorted(_inverse(np.array([values.min(), values.max()]), kind))
    return low, high


def inverse_depth_of(
    stored: np.ndarray, kind: str, invalid: Invalid, limits: Optional[tuple[float, float]] = None
) -> tuple[np.ndarray, np.ndarray]:
    """Turns ground truth as stored into the target of the training.

    8-bit inverse depth stays as it is, an 8-bit negative disparity v becomes 255 - v. Everything else is stretched to
    0..255.

    Args:
        stored: uint8, uint16 or float32 (H, W).
        kind: One of ``KINDS``.
        invalid: The value that means "no ground truth", if there is one.
        limits: ``inverse_depth_range`` of the whole image, where ``stored`` is a part of it; by default that of
            ``stored``.

    Returns:
        float32 (H, W), 0..255, larger is nearer, 0 where there is no ground truth and where all of it is equal; and
        bool (H, W), where there is ground truth.
    """
    valid = valid_pixels(stored, kind, invalid)
    if stored.dtype == np.uint8 and kind != DEPTH:
        values = TOP - stored if kind == NEGATIVE_DISPARITY else stored
        return (values * valid).astype(np.float32), valid  # as long as it is 8 bits, it is cheap
    target = np.zeros(stored.shape, np.float32)
    low, high = limits or inverse_depth_range(stored, kind, invalid) or (0.0, 0.0)
    if high > low:
        target[valid] = (_inverse(stored[valid], kind) - low) * (TOP / (high - low))
    return target, valid
