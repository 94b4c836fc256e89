"""Alignment of predicted inverse depth with ground truth, and the benchmark metrics.

The protocol is that of Ranftl et al. (TPAMI 2020, arXiv:1907.01341): a prediction is known up to scale and
shift of its inverse depth, which are fitted to each image before it is scored. All sums are taken in float64.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Optional

import numpy as np

from src.common.errors import DataError

DELTA_THRESHOLD = 1.25


class Alignment(NamedTuple):
    """Scale and shift that carry a prediction onto its target: ``scale * prediction + shift``."""

    scale: float
    shift: float


@dataclass(frozen=True)
class Score:
    """Score of one image.

    Attributes:
        value: The metric; NaN if there was nothing to compare.
        scale: Fitted scale of the inverse depth, in 1/m per unit of the prediction. Where the prediction is inverted it
            is below 0, or -0.0 if inverted predictions are not accepted. None for ordinal data.
        shift: Fitted shift of the inverse depth, in 1/m; None for ordinal data.
        compared: How many valid pixels, or pairs of points, were compared.
    """

    value: float
    scale: Optional[float]
    shift: Optional[float]
    compared: int

    @property
    def inverted(self) -> bool:
        """Whether the best scale is below 0: the prediction grows with depth."""
        return self.scale is not None and math.copysign(1.0, self.scale) < 0


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


def score_dense(
    inverse_depth: np.ndarray,
    depth_m: np.ndarray,
    valid: np.ndarray,
    metric: str,
    cap_m: float,
    accept_inverted: bool = False,
) -> Score:
    """Scores one predicted inverse depth map against ground-truth depth.

    The prediction is aligned with 1 / depth over the valid pixels, limited to ``cap_m`` (aligned inverse
    depth at least 1 / cap), inverted to depth d and compared with the true depth d*.

    An inverted prediction has a best scale below 0. Unless ``accept_inverted``, the scale may not be negative: the
    least squares over scale >= 0 are then those of scale 0, whose shift is the mean of 1 / depth, and the prediction
    scores like a constant one. One of the right orientation scores the same either way.

    Args:
        inverse_depth: Finite prediction (H, W) of any scale and shift; larger is nearer.
        depth_m: True depth (H, W), metres; > 0 and finite where ``valid``, else not read.
        valid: bool (H, W).
        metric: ``"delta1"``: percent (0..100) of the valid pixels with max(d / d*, d* / d) > 1.25;
            ``"absrel"``: mean of |d - d*| / d*.
        cap_m: The largest depth that a prediction may take, metres.
        accept_inverted: Whether the scale may be negative.

    Returns:
        The score. Without valid pixel its value, scale and shift are NaN; ``mean_over_images`` leaves it out.

    Raises:
        DataError: The prediction is not finite.
        ValueError: Unknown metric, unequal shapes, or a valid depth that is not above 0.
    """
    if metric not in ("delta1", "absrel"):
        raise ValueError(f"expected the metric 'delta1' or 'absrel', found {metric!r}")
    if not inverse_depth.shape == depth_m.shape == valid.shape:
        raise ValueError(
            f"expected equal shapes, found prediction {inverse_depth.shape}, depth {depth_m.shape}, valid {valid.shape}"
        )
    _check_prediction(inverse_depth)
    depth = depth_m[valid]
    if not depth.size:
        return Score(math.nan, math.nan, math.nan, 0)
    if not (depth.min() > 0 and depth.max() < math.inf):  # false for NaN, too
        raise ValueError("expected a finite depth above 0 on every valid pixel")

    # Computed in float64 and in place: pictures of ETH3D have 24 million pixels.
    prediction = inverse_depth[valid]
    (scale, shift), target_mean = _fit(prediction, np.divide(1.0, depth, dtype=np.float64))
    if scale < 0 and not accept_inverted:
        scale, shift = -0.0, target_mean
    ratio = np.multiply(prediction, scale, dtype=np.float64)
    ratio += shift
    np.maximum(ratio, 1.0 / cap_m, out=ratio)
    np.divide(1.0, ratio, out=ratio)
    ratio /= depth
    if metric == "delta1":
        np.maximum(ratio, 1.0 / ratio, out=ratio)
        value = 100.0 * (np.count_nonzero(ratio > DELTA_THRESHOLD) / ratio.size)
    else:
        ratio -= 1.0
        value = float(np.abs(ratio, out=ratio).mean())
    return Score(value, scale, shift, int(depth.size))


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
        return Score(math.nan, None, None, 0)
    if not np.isin(relation, (-1, 1)).all():
        raise ValueError("expected relations of +1 (farther) and -1 (nearer) only")
    height, width = inverse_depth.shape
    if points.min() < 0 or (points >= (height, width, height, width)).any():
        raise ValueError(f"expected points within {height} x {width} pixels, found one outside")
    y1, x1, y2, x2 = points.T
    first, second = inverse_depth[y1, x1], inverse_depth[y2, x2]
    right = np.where(relation > 0, first < second, first > second)
    return Score(1.0 - float(right.mean()), None, None, len(relation))


def mean_over_images(values: Iterable[float]) -> float:
    """Averages the values of single images, each with the same weight.

    Args:
        values: One number per image; NaN marks an image without ground truth, which is left out.

    Returns:
        The mean; NaN if there is nothing to average.
    """
    scored = [value for value in values if not math.isnan(value)]
    return math.fsum(scored) / len(scored) if scored else math.nan
