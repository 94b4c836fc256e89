"""Losses that do not depend on the scale and shift of the prediction (Ranftl et al., arXiv:1907.01341, section 5).

All of them take ``prediction``, ``target`` and ``mask`` of shape (N, H, W) and return a float32 scalar. ``mask`` is 1
where the ground truth is valid and 0 elsewhere; what the other two hold where it is 0 has no influence, as long as it
is finite. Prediction and target are inverse depths (disparities), each in a unit of its own.

Pixels are counted in float32, which is exact for images of up to 2^24 pixels.
"""

from fractions import Fraction

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

# A prediction whose deviation from its mean (median) is below this share of it is constant as far as float32 can tell.
CONSTANT_PREDICTION = 1e-6

# The smallest power of two that the search for an order statistic knows. Numbers around 2^-126 become 0 on most
# devices; 2^-23 of this one does not.
_TINY = 2.0**-100

# Sums and slices below are primitives, because x.sum() and x[:, 1:] take longer to compile.


def _sum(x: Tensor, axis: int) -> Tensor:
    return ops.ReduceSum(keep_dims=True)(x, axis)


def _image_sum(x: Tensor) -> Tensor:
    """Sums every image, (N, H, W) -> (N, 1, 1); rows first, which keeps float32 rounding small."""
    return _sum(_sum(x, 2), 1)


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


class OrderStatistic(nn.Cell):
    """Finds the value at a given rank among the valid pixels of each image.

    There is no sorting in it, which Ascend has in half precision only or leaves to the host. The value is put together
    bit by bit, as the largest number that at most ``rank`` valid pixels are below: sign, power of two, mantissa; one
    comparison with all pixels and one count each.

    It is constant to automatic differentiation.
    """

    def __init__(self):
        super().__init__()
        self.less, self.not_above, self.cast, self.select = ops.Less(), ops.LessEqual(), ops.Cast(), ops.Select()
        self.multiply, self.add, self.zeros, self.reshape = ops.Mul(), ops.Add(), ops.ZerosLike(), ops.Reshape()

    def construct(self, x, mask, rank):
        """Finds the values.

        Args:
            x: (N, H, W) float32.
            mask: (N, H, W) float32, 0 or 1.
            rank: (N, 1, 1) float32 whole numbers: 0 for the smallest valid pixel, at most their number - 1.

        Returns:
            (N, 1, 1), 0 where the rank is negative. Exact, unless it is closer to 0 than 2^-100; it is then at most
            2^-123 off. Any number for an image with a NaN.
        """
        x, mask, rank = (self.reshape(tensor, (x.shape[0], -1)) for tensor in (x, mask, rank))
        negative = self.cast(self.less(x, self.zeros(x)), mstype.float32)
        negative = self.less(ops.relu(rank), _sum(mask * negative, 1))
        # The value at rank r of x is minus that at rank count - 1 - r of -x.
        sign = 1 - 2 * self.cast(negative, mstype.float32)
        rank = self.select(negative, _sum(mask, 1) - 1 - rank, rank)
        x = self.select(self.cast(mask, mstype.bool_), x * sign, self.zeros(x) + float("inf"))
        power = self.zeros(rank) + _TINY
        for exponent in (100, 64, 32, 16, 8, 4, 2, 1):  # together 227, from 2^-100 to 2^127
            power = self.raised(x, rank, power, self.multiply(power, 2.0**exponent))
        value = self.raised(x, rank, self.zeros(power), power)
        for _ in range(23):
            power = self.multiply(power, 0.5)
            value = self.raised(x, rank, value, self.add(value, power))
        return self.reshape(value * sign, (-1, 1, 1))

    def raised(self, x, rank, value, larger):
        """``larger`` if at most ``rank`` pixels are below it, else ``value``."""
        below = _sum(self.cast(self.less(x, larger), mstype.float32), 1)
        return self.select(self.not_above(below, rank), larger, value)

    def bprop(self, x, mask, rank, out, dout):
        return self.zeros(x), self.zeros(mask), self.zeros(rank)


class ScaleAndShiftInvariantLoss(nn.Cell):
    """What the losses have in common: a data term plus the multi-scale gradient term.

    ``data_sum / (2 * sum(mask)) + alpha * sum over scales of gradient_sum / sum(mask)``, both normalised by the valid
    pixels of the whole batch, at the scale at hand. A batch without a valid pixel has loss 0 and zero gradients.

    The valid pixels may be those of a larger batch, of which the images are a part (see ``valid_pixels``): the losses
    of the parts then add up to the loss of that batch. And the images may belong to several sets, each with a loss of
    its own, as if its images were a batch for themselves: image i belongs to set i modulo the number of sets.

    Args:
        alpha: Weight of the gradient term.
        scales: How many scales the gradient term has: residual and mask sub-sampled by 1, 2, 4, ... Images must be
            larger than the last step on both sides.
    """

    def __init__(self, alpha: float = 0.5, scales: int = 4):
        super().__init__()
        self.steps = (1,) + (2,) * (scales - 1)
        self.weights = Tensor([0.5] + [alpha] * scales, mstype.float32)
        self.slice, self.strided_slice = ops.Slice(), ops.StridedSlice()

    def residual(self, prediction, target, mask):
        """Difference of prediction and target once they are aligned, (N, H, W), all float32."""
        raise NotImplementedError

    def data_sum(self, residual, mask):
        """Sums what the data term makes of the residual, (N, H, W) -> (N, 1, 1)."""
        raise NotImplementedError

    def valid_pixels(self, mask, sets=1):
        """Counts what the loss of a batch is normalised by.

        Args:
            mask: (N, H, W) float32, 0 or 1.
            sets: How many sets the images belong to. N is a multiple of it.

        Returns:
            float32 (sets, scales), the valid pixels of each set at each scale. Those of parts of a batch add up to
            those of the batch.
        """
        counts = ()
        for step in self.steps:
            mask = self.every(mask, step)
            counts += (_image_sum(mask),)
        return self.set_sum(counts, sets)

    def share(self, prediction, target, mask, valid):
        """Computes what the images contribute to the losses of the sets that ``valid`` counts the pixels of.

        Args:
            prediction: (N, H, W).
            target: (N, H, W) float32.
            mask: (N, H, W) float32, 0 or 1.
            valid: (sets, scales), see ``valid_pixels``.

        Returns:
            float32 (sets,).
        """
        # Half precision, where the network runs in it, does not hold the sums below.
        residual = self.residual(prediction.astype(mstype.float32), target, mask)
        sums = (self.data_sum(residual, mask),)
        for step in self.steps:
            residual, mask = self.every(residual, step), self.every(mask, step)
            sums += (self.gradient_sum(residual, mask),)
        sums = self.set_sum(sums, valid.shape[0])
        terms = _divide(sums, ops.concat((self.slice(valid, (0, 0), (valid.shape[0], 1)), valid), 1))
        return _sum(terms * self.weights, 1).reshape((-1,))

    def construct(self, prediction, target, mask):
        return self.share(prediction, target, mask, self.valid_pixels(mask)).reshape(())

    def every(self, x, step):
        """Takes every ``step``-th row and column."""
        return x if step == 1 else self.strided_slice(x, (0, 0, 0), x.shape, (1, step, step))

    def gradient_sum(self, residual, mask):
        """Sums |dx| + |dy| of the residual between valid neighbours of each image, (N, H, W) -> (N, 1, 1)."""
        n, height, width = residual.shape
        rows, columns = (n, height - 1, width), (n, height, width - 1)
        dx = self.slice(residual, (0, 0, 1), columns) - self.slice(residual, (0, 0, 0), columns)
        dy = self.slice(residual, (0, 1, 0), rows) - self.slice(residual, (0, 0, 0), rows)
        in_x = self.slice(mask, (0, 0, 1), columns) * self.slice(mask, (0, 0, 0), columns)
        in_y = self.slice(mask, (0, 1, 0), rows) * self.slice(mask, (0, 0, 0), rows)
        return _image_sum(ops.abs(dx) * in_x) + _image_sum(ops.abs(dy) * in_y)

    def set_sum(self, values, sets):
        """Sums values of images, a tuple of (N, 1, 1), over those of each set, (sets, number of values)."""
        values = ops.concat(values, 2)
        return ops.ReduceSum()(values.reshape((-1, sets, values.shape[2])), 0)


class SsiMse(ScaleAndShiftInvariantLoss):
    """Squared error after the prediction has been aligned with the target by least squares (``ssi_mse``)."""

    def residual(self, prediction, target, mask):
        scale, shift = align_scale_shift(prediction, target, mask)
        return scale * prediction + shift - target

    def data_sum(self, residual, mask):
        return _image_sum(mask * residual * residual)


class SsiMae(ScaleAndShiftInvariantLoss):
    """Absolute error between prediction and target, each brought to median 0 and mean deviation 1 (``ssi_mae``).

    Median and mean absolute deviation from it are those of the valid pixels of each image. A constant one becomes 0.
    An inverted prediction costs more than one that is not.
    """

    def __init__(self, alpha: float = 0.5, scales: int = 4):
        super().__init__(alpha, scales)
        self.order_statistic = OrderStatistic()

    def residual(self, prediction, target, mask):
        both = self.normalised(ops.concat((prediction, target)), ops.concat((mask, mask)))
        return self.slice(both, (0, 0, 0), prediction.shape) - self.slice(both, (len(target), 0, 0), target.shape)

    def data_sum(self, residual, mask):
        return _image_sum(ops.abs(residual))

    def normalised(self, x, mask):
        """Brings every image to median 0 and mean absolute deviation 1, and invalid pixels to 0; (N, H, W)."""
        count = _image_sum(mask)
        value = self.order_statistic(x, mask, ops.floor((count - 1) / 2))  # of two middle values the lower
        # The gradient through the median is shared by the pixels that hold it. The sum is 0.
        middle = mask * ops.equal(x, value).astype(mstype.float32)
        median = value + _divide(_image_sum(middle * (x - value)), _image_sum(middle))
        x = mask * (x - median)
        deviation = _divide(_image_sum(ops.abs(x)), count)
        constant = deviation <= CONSTANT_PREDICTION * ops.abs(median)
        factor = 1 / ops.select(constant, ops.ones_like(deviation), deviation)
        # A product, because 0 * NaN is NaN: a prediction that is not finite has to show.
        return x * ops.select(constant, ops.zeros_like(factor), factor)


class SsiTrim(SsiMae):
    """``SsiMae`` whose data term leaves out the largest residuals of each image (``ssi_trim``).

    It is divided by all valid pixels nevertheless, and the gradient term has all of them.

    Args:
        alpha: Weight of the gradient term.
        scales: How many scales the gradient term has.
        trim: Share of the valid pixels of each image that is left out, rounded down to whole pixels; below 1.
    """

    def __init__(self, alpha: float = 0.5, scales: int = 4, trim: float = 0.2):
        super().__init__(alpha, scales)
        share = Fraction(trim).limit_denominator(10_000)  # float32 has no 0.2, of 5 pixels one is to go
        self.numerator, self.denominator = float(share.numerator), float(share.denominator)

    def data_sum(self, residual, mask):
        size = ops.abs(residual)
        kept = _image_sum(mask)
        kept = kept - ops.floor(kept * self.numerator / self.denominator)
        largest = self.order_statistic(size, mask, kept - 1)
        below = mask * ops.less(size, largest).astype(mstype.float32)
        level = mask * ops.equal(size, largest).astype(mstype.float32)  # these share what is left to keep
        weights = below + level * _divide(kept - _image_sum(below), _image_sum(level))
        return _image_sum(weights * size)


LOSSES = {"ssi_mse": SsiMse, "ssi_mae": SsiMae, "ssi_trim": SsiTrim}


def create_loss(name: str, alpha: float = 0.5, scales: int = 4, trim: float = 0.2) -> ScaleAndShiftInvariantLoss:
    """Makes the loss called ``name``; ValueError if there is none of that name.

    Args:
        name: One of ``LOSSES``.
        alpha: Weight of the gradient term.
        scales: How many scales the gradient term has.
        trim: Share of the pixels of each image that ``ssi_trim`` leaves out; the others have no use for it.
    """
    if name not in LOSSES:
        raise ValueError(f"loss: expected one of {', '.join(LOSSES)}, found {name!r}")
    own = {"trim": trim} if name == "ssi_trim" else {}
    return LOSSES[name](alpha, scales, **own)
