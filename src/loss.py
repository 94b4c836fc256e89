"""Losses that do not depend on the scale and shift of the prediction (Ranftl et al., arXiv:1907.01341, section 5).

All of them take ``prediction``, ``target`` and ``mask`` of shape (N, H, W) and return a float32 scalar. ``mask`` is 1
where the ground truth is valid and 0 elsewhere; what the other two hold where it is 0 has no influence, as long as it
is finite. Prediction and target are inverse depths (disparities), each in a unit of its own.
"""

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

# A prediction whose standard deviation is below this share of its mean is constant as far as float32 can tell.
CONSTANT_PREDICTION = 1e-6


def _image_sum(x: Tensor) -> Tensor:
    """Sums every image, (N, H, W) -> (N, 1, 1); rows first, which keeps float32 rounding small."""
    return x.sum(axis=2, keepdims=True).sum(axis=1, keepdims=True)


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, and 0 with zero gradient where the denominator is 0."""
    is_zero = denominator == 0
    quotient = numerator / ops.select(is_zero, ops.ones_like(denominator), denominator)
    return ops.select(is_zero, ops.zeros_like(quotient), quotient)


def _moments(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Collects what the alignment of each image needs, (N, 1, 1) each.

    Moments about the mean, because the textbook determinant ``sum(m p^2) sum(m) - sum(m p)^2`` loses all its digits in
    float32 as soon as the prediction varies little around a large mean.

    Returns:
        Whether the prediction varies over the mask, the means of prediction and target, and the sums of p^2, t^2 and
        p * t about them. Where the prediction is constant, these are 1, t^2 and 0.
    """
    count = _image_sum(mask)
    mean_prediction = _divide(_image_sum(mask * prediction), count)
    mean_target = _divide(_image_sum(mask * target), count)
    p, t = mask * (prediction - mean_prediction), mask * (target - mean_target)
    spread, covariance = _image_sum(p * p), _image_sum(p * t)
    varies = spread > count * (CONSTANT_PREDICTION * mean_prediction) ** 2
    # Not divided by where it is constant, so that the gradient stays finite there too.
    spread = ops.select(varies, spread, ops.ones_like(spread))
    covariance = ops.select(varies, covariance, ops.zeros_like(covariance))
    return varies, mean_prediction, mean_target, spread, _image_sum(t * t), covariance


def align_scale_shift(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the scale and shift of each image that bring the prediction close to the target, the scale not negative.

    They are the closed-form solution of ``min sum(mask * (scale * prediction + shift - target)^2)``. Where its scale is
    negative, the prediction is inverted: far is large. The scale is then ``std(target) / std(prediction)`` instead: the
    loss is large, and its gradient turns the prediction round. (With the negative scale the loss would be as content
    with inverted predictions as with others, see issue 28 of isl-org/MiDaS.)

    Args:
        prediction: (N, H, W) float32.
        target: (N, H, W) float32.
        mask: (N, H, W) float32, 0 or 1.

    Returns:
        scale (>= 0) and shift, (N, 1, 1) each; both 0 where the system is singular (constant prediction, fewer than two
        valid pixels).
    """
    varies, mean_prediction, mean_target, spread, target_spread, covariance = _moments(prediction, target, mask)
    inverted = covariance < 0
    # The root has no gradient at 0, where it is not taken either.
    target_spread = ops.select(inverted, target_spread, ops.ones_like(target_spread))
    scale = ops.select(inverted, ops.sqrt(target_spread / spread), covariance / spread)
    shift = mean_target - scale * mean_prediction
    return scale, ops.select(varies, shift, ops.zeros_like(shift))


def count_inverted(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Counts the images whose prediction is inverted (it falls where the target rises), float32 scalar.

    Args:
        prediction: (N, H, W).
        target: (N, H, W) float32.
        mask: (N, H, W) float32, 0 or 1.
    """
    *_, covariance = _moments(prediction.astype(mstype.float32), target, mask)
    return (covariance < 0).astype(mstype.float32).sum()


def gradient_sum(residual: Tensor, mask: Tensor) -> Tensor:
    """Sums |dx| + |dy| of the residual between valid neighbours, over the batch.

    Args:
        residual: (N, H, W) float32.
        mask: (N, H, W) float32, 0 or 1.

    Returns:
        Scalar; 0 for an empty mask.
    """
    dx = ops.abs(residual[:, :, 1:] - residual[:, :, :-1]) * mask[:, :, 1:] * mask[:, :, :-1]
    dy = ops.abs(residual[:, 1:, :] - residual[:, :-1, :]) * mask[:, 1:, :] * mask[:, :-1, :]
    return _image_sum(dx).sum() + _image_sum(dy).sum()


class ScaleAndShiftInvariantLoss(nn.Cell):
    """Squared error after alignment plus the multi-scale gradient term (``ssi_mse``).

    ``sum(mask * residual^2) / (2 * sum(mask)) + alpha * sum over scales of gradient_sum / sum(mask)``, both normalised
    by the valid pixels of the whole batch, at the scale at hand. A batch without a valid pixel has loss 0 and zero
    gradients.

    The valid pixels may be those of a larger batch, of which the images are a part (see ``valid_pixels``): the losses
    of the parts then add up to the loss of that batch.

    Args:
        alpha: Weight of the gradient term.
        scales: How many scales the gradient term has: residual and mask sub-sampled by 1, 2, 4, ... Images must be
            larger than the last step on both sides.
    """

    def __init__(self, alpha: float = 0.5, scales: int = 4):
        super().__init__()
        self.alpha = alpha
        self.strides = tuple(2**scale for scale in range(scales))

    def valid_pixels(self, mask):
        """Counts what the loss of a batch is normalised by.

        Args:
            mask: (N, H, W) float32, 0 or 1.

        Returns:
            float32 (scales,), the valid pixels at each scale. Those of parts of a batch add up to those of the batch.
        """
        return ops.stack([_image_sum(mask[:, ::stride, ::stride]).sum() for stride in self.strides])

    def share(self, prediction, target, mask, valid):
        """Computes what the images contribute to the loss of the batch that ``valid`` counts the pixels of."""
        # Half precision, where the network runs in it, does not hold the sums below.
        prediction = prediction.astype(mstype.float32)
        scale, shift = align_scale_shift(prediction, target, mask)
        residual = scale * prediction + shift - target
        loss = _divide(_image_sum(mask * residual * residual).sum(), 2 * valid[0])
        for index, stride in enumerate(self.strides):
            term = gradient_sum(residual[:, ::stride, ::stride], mask[:, ::stride, ::stride])
            loss = loss + self.alpha * _divide(term, valid[index])
        return loss

    def construct(self, prediction, target, mask):
        return self.share(prediction, target, mask, self.valid_pixels(mask))


LOSSES = {"ssi_mse": ScaleAndShiftInvariantLoss}


def create_loss(name: str) -> nn.Cell:
    """Makes the loss called ``name``; ValueError if there is none of that name."""
    if name not in LOSSES:
        raise ValueError(f"loss: expected one of {', '.join(LOSSES)}, found {name!r}")
    return LOSSES[name]()
