"""Alignment of predicted inverse depth with ground truth, and the benchmark metrics.

The protocol is that of Ranftl et al. (TPAMI 2020, arXiv:1907.01341): a prediction is known up to scale and
shift of its inverse depth, which are fitted to each image by plain least squares before it is scored. All sums are
taken in float64.

The metric of a data set is called by what it counts. Less is better in each:

* ``BAD_SHARE``, "delta>1.25": percent (0..100) of the valid pixels with max(d / d*, d* / d) > 1.25;
* ``ABS_REL``, "AbsRel": mean of |d - d*| / d*;
* ``WHDR``: share (0..1) of wrongly ordered pairs of points.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Optional

import numpy as np

from src.common.errors import DataError

DELTA_THRESHOLD = 1.25
BAD_SHARE, ABS_REL, WHDR = "delta>1.25", "AbsRel", "WHDR"
METRIC_UNITS = {BAD_SHARE: f"{BAD_SHARE}, %", ABS_REL: ABS_REL, WHDR: f"{WHDR}, share"}  # as people read them


class Alignment(NamedTuple):
    """Scale and shift that carry a prediction onto its target: ``scale * prediction + shift``."""

    scale: float
    shift: float


@dataclass(frozen=True)
class Score:
    """Score of one image.

    Attributes:
        value: The metric of its data set; NaN if there was nothing to compare.
        constant: The same of a constant prediction, the best of which least squares makes of any.
        scale: Fitted scale of the inverse depth, in 1/m per unit of the prediction; None for ordinal data.
        shift: Fitted shift of the inverse depth, in 1/m; None for ordinal data.
        compared: How many valid pixels, or pairs of points, were compared.
        abs_rel: Mean of |d - d*| / d*; None for ordinal data, as the next two.
        delta1: Share (0..1) of the pixels with max(d / d*, d* / d) < 1.25: more is better.
        rmse_m: Root of the mean of (d - d*)^2, metres.
    """

    value: float
    constant: float
    scale: Optional[float]
    shift: Optional[float]
    compared: int
    abs_rel: Optional[float]
    delta1: Optional[float]
    rmse_m: Optional[float]

    @property
    def inverted(self) -> bool:
        """Whether the fitted scale is below 0: the prediction grows with depth."""
        return self.scale is not None and self.scale < 0


def _check_prediction(inverse_depth: np.ndarray) -> None:
    if inverse_depth.ndim != 2:
        raise ValueError(f"expected a predicted inverse depth map (H, W), found the shape {inverse_depth.shape}")
    bad = inverse_depth.size - int(np.isfinite(inverse_depth).sum())
    if bad:
        raise DataError(f"prediction: expected finite inverse depth, found {bad} NaN or infinite pixels")


def _fit(prediction: np.ndarray, target: np.ndarray) -> tuple[Alignment, float]:
    """Least squares over two flat arrays; ``target`` is float64 and is overwritten. Returns its mean, too."""
    if not prediction.size:
        return Alignment(math.nan, math.nan), math.nan
    target_mean = float(target.mean())
    if prediction.min() == prediction.max():  # exact: the mean of a constant may differ from it by rounding
        return Alignment(0.0, target_mean), target_mean
    prediction_mean = float(prediction.mean(dtype=np.float64))
    centred = np.subtract(prediction, prediction_mean, dtype=np.float64)
    target -= target_mean
    scale = float(centred @ target) / float(centred @ centred)
    return Alignment(scale, target_mean - scale * prediction_mean), target_mean


def align_scale_shift(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> Alignment:
    """Fits scale and shift: the minimum of sum((scale * prediction + shift - target)^2) over ``mask``.

    The minimum is not unique if the prediction is constant over the mask (one valid pixel included): the
    solution with scale 0 is taken, whose shift is the mean of the target. A negative scale is returned as is.

    Args:
        prediction: Array (H, W).
        target: Array (H, W); read where ``mask`` is true only.
        mask: bool array (H, W).

    Returns:
        Scale and shift; NaN both if the mask is empty.
    """
    return _fit(prediction[mask], target[mask].astype(np.float64))[0]


def score_dense(inverse_depth: np.ndarray, depth_m: np.ndarray, valid: np.ndarray, metric: str, cap_m: float) -> Score:
    """Scores one predicted inverse depth map against ground-truth depth.

    The prediction is aligned with 1 / depth over the valid pixels, limited to ``cap_m`` (aligned inverse
    depth at least 1 / cap), inverted to depth d and compared with the true depth d*. A negative scale is used as it
    comes, as the authors' code does; ``Score.inverted`` tells.

    Args:
        inverse_depth: Finite prediction (H, W) of any scale and shift; larger is nearer.
        depth_m: True depth (H, W), metres; > 0 and finite where ``valid``, else not read.
        valid: bool (H, W).
        metric: ``BAD_SHARE`` or ``ABS_REL``: which is the value.
        cap_m: The largest depth that a prediction may take, metres.

    Returns:
        The score. Without valid pixel its numbers are NaN; ``mean_over_images`` leaves it out.

    Raises:
        DataError: The prediction is not finite.
        ValueError: Unknown metric, unequal shapes, or a valid depth that is not above 0.
    """
    if metric not in (BAD_SHARE, ABS_REL):
        raise ValueError(f"expected the metric {BAD_SHARE!r} or {ABS_REL!r}, found {metric!r}")
    if not inverse_depth.shape == depth_m.shape == valid.shape:
        raise ValueError(
            f"expected equal shapes, found prediction {inverse_depth.shape}, depth {depth_m.shape}, valid {valid.shape}"
        )
    _check_prediction(inverse_depth)
    depth = depth_m[valid]
    if not depth.size:
        return Score(*[math.nan] * 4, 0, *[math.nan] * 3)
    if not (depth.min() > 0 and depth.max() < math.inf):  # false for NaN, too
        raise ValueError("expected a finite depth above 0 on every valid pixel")

    # Computed in float64 and in place: pictures of ETH3D have 24 million pixels.
    prediction = inverse_depth[valid]
    (scale, shift), target_mean = _fit(prediction, np.divide(1.0, depth, dtype=np.float64))
    ratio = np.multiply(prediction, scale, dtype=np.float64)
    ratio += shift
    np.maximum(ratio, 1.0 / cap_m, out=ratio)
    np.divide(1.0, ratio, out=ratio)
    ratio /= depth
    constant = np.divide(1.0 / max(target_mean, 1.0 / cap_m), depth, dtype=np.float64)
    larger = _larger(ratio)
    bad, delta1 = _bad_share(larger), np.count_nonzero(larger < DELTA_THRESHOLD) / larger.size
    ratio -= 1.0
    abs_rel = float(np.abs(ratio, out=ratio).mean())
    ratio *= depth
    rmse_m = math.sqrt(float(ratio @ ratio) / ratio.size)
    if metric == BAD_SHARE:
        value, value_of_constant = bad, _bad_share(_larger(constant))
    else:
        constant -= 1.0
        value, value_of_constant = abs_rel, float(np.abs(constant, out=constant).mean())
    return Score(value, value_of_constant, scale, shift, int(depth.size), abs_rel, delta1, rmse_m)


def _larger(ratio: np.ndarray) -> np.ndarray:
    """Returns max(d / d*, d* / d) of d / d*."""
    inverse = np.divide(1.0, ratio)
    return np.maximum(inverse, ratio, out=inverse)


def _bad_share(larger: np.ndarray) -> float:
    return 100.0 * (np.count_nonzero(larger > DELTA_THRESHOLD) / larger.size)


def score_ordinal(inverse_depth: np.ndarray, points: np.ndarray, relation: np.ndarray) -> Score:
    """Scores one predicted inverse depth map by the order of pairs of points (WHDR with equal weights).

    A pair counts as wrong if the predicted order contradicts the annotated one or is a tie: the annotator saw
    a difference there. The order needs no alignment. Chen et al., "Single-Image Depth Perception in the Wild"
    (NeurIPS 2016) define the data and the measure.

    Args:
        inverse_depth: Finite prediction (H, W); larger is nearer.
        points: Integer array (N, 4) of y1, x1, y2, x2, counted from 0.
        relation: (N,) of +1 (point 1 is farther, its inverse depth smaller) or -1 (nearer).

    Returns:
        The score; its value is NaN without a pair.

    Raises:
        DataError: The prediction is not finite.
        ValueError: Wrong shapes, a point outside the map or another relation.
    """
    _check_prediction(inverse_depth)
    if points.shape != (len(relation), 4):
        raise ValueError(f"expected points of shape ({len(relation)}, 4), found {points.shape}")
    if not len(relation):
        return Score(math.nan, math.nan, None, None, 0, None, None, None)
    if not np.isin(relation, (-1, 1)).all():
        raise ValueError("expected relations of +1 (farther) and -1 (nearer) only")
    height, width = inverse_depth.shape
    if points.min() < 0 or (points >= (height, width, height, width)).any():
        raise ValueError(f"expected points within {height} x {width} pixels, found one outside")
    y1, x1, y2, x2 = points.T
    first, second = inverse_depth[y1, x1], inverse_depth[y2, x2]
    right = np.where(relation > 0, first < second, first > second)
    # A constant prediction makes a tie of every pair.
    return Score(1.0 - float(right.mean()), 1.0, None, None, len(relation), None, None, None)


def mean_over_images(values: Iterable[float]) -> float:
    """Averages the values of single images, each with the same weight.

    Args:
        values: One number per image; NaN marks an image without ground truth, which is left out.

    Returns:
        The mean; NaN if there is nothing to average.
    """
    scored = [value for value in values if not math.isnan(value)]
    return math.fsum(scored) / len(scored) if scored else math.nan
