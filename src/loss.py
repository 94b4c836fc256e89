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


def align_scale_shift(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the scale and shift of each image that bring the prediction closest to the target.

    The closed-form solution of ``min sum(mask * (scale * prediction + shift - target)^2)``, written with centred
    moments: the textbook determinant ``sum(m p^2) sum(m) - sum(m p)^2`` loses all its digits in float32 as soon as
    the prediction varies little around a large mean.

    Args:
        prediction: (N, H, W) float32.
        target: (N, H, W) float32.
        mask: (N, H, W) float32, 0 or 1.

    Returns:
        scale and shift, (N, 1, 1) each; both 0 where the system is singular (constant prediction, fewer than two
        valid pixels).
    """
    count = _image_sum(mask)
    mean_prediction = _divide(_image_sum(mask * prediction), count)
    mean_target = _divide(_image_sum(mask * target), count)
    centred = mask * (prediction - mean_prediction)
    spread = _image_sum(centred * centred)
    noise = count * (CONSTANT_PREDICTION * mean_prediction) ** 2
    regular = spread > noise
    # Not divided by where singular, so that the gradient stays finite there too.
    scale = _image_sum(centred * (target - mean_target)) / ops.select(regular, spread, ops.ones_like(spread))
    zero = ops.zeros_like(scale)
    shift = ops.select(regular, mean_target - scale * mean_prediction, zero)
    return ops.select(regular, scale, zero), shift


def gradient_term(residual: Tensor, mask: Tensor) -> Tensor:
    """Sums |dx| + |dy| of the residual between valid neighbours, per valid pixel of the batch.

    Args:
        residual: (N, H, W) float32.
        mask: (N, H, W) float32, 0 or 1.

    Returns:
        Scalar; 0 for an empty mask.
    """
    dx = ops.abs(residual[:, :, 1:] - residual[:, :, :-1]) * mask[:, :, 1:] * mask[:, :, :-1]
    dy = ops.abs(residual[:, 1:, :] - residual[:, :-1, :]) * mask[:, 1:, :] * mask[:, :-1, :]
    return _divide(_image_sum(dx).sum() + _image_sum(dy).sum(), _image_sum(mask).sum())


class ScaleAndShiftInvariantLoss(nn.Cell):
    """Squared error after alignment plus the multi-scale gradient term (``ssi_mse``).

    ``sum(mask * residual^2) / (2 * sum(mask)) + alpha * sum over scales of gradient_term``, both normalised by the
    valid pixels of the whole batch. A batch without a valid pixel has loss 0 and zero gradients.

    Args:
        alpha: Weight of the gradient term.
        scales: How many scales the gradient term has: residual and mask sub-sampled by 1, 2, 4, ... Images must be
            larger than the last step on both sides.
    """

    def __init__(self, alpha: float = 0.5, scales: int = 4):
        super().__init__()
        self.alpha = alpha
        self.steps = tuple(2**scale for scale in range(scales))

    def construct(self, prediction, target, mask):
        # Half precision, where the network runs in it, does not hold the sums below.
        prediction = prediction.astype(mstype.float32)
        scale, shift = align_scale_shift(prediction, target, mask)
        residual = scale * prediction + shift - target
        loss = _divide(_image_sum(mask * residual * residual).sum(), 2 * _image_sum(mask).sum())
        for step in self.steps:
            loss = loss + self.alpha * gradient_term(residual[:, ::step, ::step], mask[:, ::step, ::step])
        return loss


LOSSES = {"ssi_mse": ScaleAndShiftInvariantLoss}


def create_loss(name: str) -> nn.Cell:
    """Makes the loss called ``name``; ValueError if there is none of that name."""
    if name not in LOSSES:
        raise ValueError(f"loss: expected one of {', '.join(LOSSES)}, found {name!r}")
    return LOSSES[name]()
