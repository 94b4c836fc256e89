"""Operators whose semantics are a choice, in one place.

Two families of networks exist under the name MiDaS (``network_ops`` in the configuration):

* ``midas``: what the authors published (PyTorch), and what their weights expect;
* ``modelzoo``: what the 2021 MindSpore suite computed, and what checkpoints trained with it expect.

They share every parameter and differ in the three operators made here and in the skip connection of
``src/blocks_ms.py``.
"""

from mindspore import nn, ops

from src.common.names import NETWORK_OPS

# (align_corners, half_pixel_centers) of a bilinear resize; "asymmetric" maps pixel i to i * in / out.
BILINEAR_MODES = {"align_corners": (True, False), "half_pixel": (False, True), "asymmetric": (False, False)}


def check_network_ops(network_ops: str) -> None:
    """Raises ValueError unless ``network_ops`` is one of ``NETWORK_OPS``."""
    if network_ops not in NETWORK_OPS:
        raise ValueError(f"network_ops: expected one of {', '.join(NETWORK_OPS)}, found {network_ops!r}")


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    group: int = 1,
    has_bias: bool = False,
) -> nn.Conv2d:
    """Makes a convolution with zero padding ``kernel_size // 2``, i.e. output size ``ceil(input / stride)``.

    ``group > 1`` is one grouped convolution: the 2021 suite split it into ``group`` small ones, which takes six
    times as long to compile and nearly twice the memory.
    """
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        pad_mode="pad",
        padding=kernel_size // 2,
        group=group,
        has_bias=has_bias,
    )


class _Revive(nn.Cell):
    """The forward and backward pass of ``RevivingReLU``."""

    def __init__(self):
        super().__init__()
        self.mean = ops.ReduceMean(keep_dims=True)

    def construct(self, x):
        return ops.relu(x)

    def bprop(self, x, out, dout):
        is_alive = ops.cast(ops.greater(x, 0), dout.dtype)
        is_dead = ops.less(self.mean(is_alive, (1, 2, 3)), 0.5)
        is_raised = ops.cast(ops.logical_and(ops.less(dout, 0), is_dead), dout.dtype)
        return (dout * ops.maximum(is_alive, is_raised),)


class RevivingReLU(nn.Cell):
    """A ReLU that brings images back to life of which it has set most pixels to 0: (N, C, H, W).

    It is a ReLU, but for the gradient of such images: where a step against it would raise a pixel from 0, it passes. A
    plain ReLU passes no gradient to what is below 0; as the last layer of a network whose loss is blind to shifts, it
    may shut pixel after pixel off, until nothing is left that learns.
    """

    def __init__(self):
        super().__init__()
        # Of its own, since what a cell casts its input to is unknown to a backward pass that is written out.
        self.revive = _Revive()

    def construct(self, x):
        return self.revive(x)


class StemMaxPool(nn.Cell):
    """3x3 max-pool with stride 2 on non-negative input: (N, C, H, W) -> (N, C, H/2, W/2).

    Args:
        network_ops: ``midas`` pads one pixel on each side; ``modelzoo`` uses SAME padding, which for even sizes pads
            one pixel on the right and at the bottom only.
    """

    def __init__(self, network_ops: str = "midas"):
        super().__init__()
        check_network_ops(network_ops)
        if network_ops == "midas":
            # Zero padding equals the usual minus infinity here, since the input comes from a ReLU. MaxPool2d with
            # pad_mode="pad" would become a 3-D max-pool, which no exporter takes.
            self.pad = ops.Pad(((0, 0), (0, 0), (1, 1), (1, 1)))
            self.pool = nn.MaxPool2d(kernel_size=3, stride=2, pad_mode="valid")
        else:
            self.pad = ops.Identity()
            self.pool = nn.MaxPool2d(kernel_size=3, stride=2, pad_mode="same")

    def construct(self, x):
        return self.pool(self.pad(x))


class Upsample2x(nn.Cell):
    """Bilinear resize to twice the size: (N, C, H, W) -> (N, C, 2H, 2W).

    Args:
        mode: A key of ``BILINEAR_MODES``.
    """

    def __init__(self, mode: str):
        super().__init__()
        align_corners, half_pixel_centers = BILINEAR_MODES[mode]
        self.resize = ops.ResizeBilinearV2(align_corners, half_pixel_centers)

    def construct(self, x):
        shape = ops.shape(x)
        return self.resize(x, (shape[2] * 2, shape[3] * 2))
