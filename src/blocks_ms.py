"""Blocks of the RefineNet decoder (Lin et al., CVPR 2017, arXiv:1611.06612; without its chained pooling)."""

from mindspore import nn

from src.custom_op import Upsample2x, check_network_ops, conv2d


class Interpolate(Upsample2x):
    """The upsampling inside the output head: half-pixel in ``midas``, asymmetric in ``modelzoo``."""

    def __init__(self, network_ops: str = "midas"):
        check_network_ops(network_ops)
        super().__init__("half_pixel" if network_ops == "midas" else "asymmetric")


class ResidualConvUnit(nn.Cell):
    """Two 3x3 convolutions, each after a ReLU, and a skip connection: (N, C, H, W) -> (N, C, H, W).

    The authors' unit applies its first ReLU in place, so that their skip connection carries ``relu(x)``, not ``x``
    (isl-org/MiDaS, midas/blocks.py); their weights were trained that way. The 2021 suite carries ``x``.

    Args:
        features: Channels C.
        network_ops: ``midas`` or ``modelzoo``.
    """

    def __init__(self, features: int, network_ops: str = "midas"):
        super().__init__()
        check_network_ops(network_ops)
        self.rectified_skip = network_ops == "midas"
        self.conv1 = conv2d(features, features, 3, has_bias=True)
        self.conv2 = conv2d(features, features, 3, has_bias=True)
        self.relu = nn.ReLU()

    def construct(self, x):
        rectified = self.relu(x)
        out = self.conv2(self.relu(self.conv1(rectified)))
        return out + (rectified if self.rectified_skip else x)


class FeatureFusionBlock(nn.Cell):
    """Adds encoder features to the coarser path, refines the sum and doubles its size.

    Args:
        features: Channels C.
        network_ops: ``midas`` (corners aligned) or ``modelzoo`` (asymmetric).
    """

    def __init__(self, features: int, network_ops: str = "midas"):
        super().__init__()
        check_network_ops(network_ops)
        self.resConfUnit1 = ResidualConvUnit(features, network_ops)
        self.resConfUnit2 = ResidualConvUnit(features, network_ops)
        self.upsample = Upsample2x("align_corners" if network_ops == "midas" else "asymmetric")

    def construct(self, path, skip=None):
        """Fuses.

        Args:
            path: (N, C, H, W) from the next coarser block, or the coarsest features themselves.
            skip: (N, C, H, W) encoder features of this scale; None in the coarsest block, whose ``resConfUnit1`` is
                there for the sake of the published weights only.

        Returns:
            (N, C, 2H, 2W).
        """
        if skip is not None:
            path = path + self.resConfUnit1(skip)
        return self.upsample(self.resConfUnit2(path))
