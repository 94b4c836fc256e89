"""ResNeXt encoder (Xie et al., CVPR 2017, arXiv:1611.05431)."""

from collections.abc import Sequence

from mindspore import nn
from mindspore.common.initializer import HeNormal, initializer

from src.custom_op import StemMaxPool, conv2d

EXPANSION = 4  # a bottleneck's output channels / its planes


class DownSample(nn.Cell):
    """Projection shortcut: 1x1 convolution and batch normalisation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv = conv2d(in_channels, out_channels, 1, stride)
        self.bn = nn.BatchNorm2d(out_channels)

    def construct(self, x):
        return self.bn(self.conv(x))


class Bottleneck(nn.Cell):
    """1x1, grouped 3x3 (which carries the stride) and 1x1 convolution with a shortcut.

    Args:
        in_channels: Channels of the input.
        planes: Output channels / ``EXPANSION``.
        stride: Of the 3x3 convolution.
        groups: Cardinality.
        width_per_group: Inner width is ``int(planes * width_per_group / 64) * groups`` channels.
    """

    def __init__(self, in_channels: int, planes: int, stride: int, groups: int, width_per_group: int):
        super().__init__()
        width = int(planes * width_per_group / 64) * groups
        out_channels = planes * EXPANSION
        self.conv1 = conv2d(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv2d(width, width, 3, stride, group=groups)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv2d(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.has_projection = stride != 1 or in_channels != out_channels
        if self.has_projection:
            self.down_sample = DownSample(in_channels, out_channels, stride)
        self.relu = nn.ReLU()

    def construct(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = self.down_sample(x) if self.has_projection else x
        return self.relu(out + shortcut)


class ResNeXt(nn.Cell):
    """Encoder with four stages at strides 4, 8, 16 and 32.

    Args:
        layers: Bottlenecks per stage; [3, 4, 23, 3] is ResNeXt-101.
        groups: Cardinality of the 3x3 convolutions.
        width_per_group: See ``Bottleneck``.
        in_channels: Planes of the first stage and channels of the stem; the others have 2, 4 and 8 times as many.
        network_ops: ``midas`` or ``modelzoo``, see ``src/custom_op.py``.

    Attributes:
        out_channels: Channels of the four stages' outputs.
    """

    def __init__(
        self,
        layers: Sequence[int] = (3, 4, 23, 3),
        groups: int = 32,
        width_per_group: int = 8,
        in_channels: int = 64,
        network_ops: str = "midas",
    ):
        super().__init__()
        planes = [in_channels * factor for factor in (1, 2, 4, 8)]
        self.out_channels = [channels * EXPANSION for channels in planes]
        self.conv = conv2d(3, in_channels, 7, stride=2)
        self.bn = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU()
        self.maxpool = StemMaxPool(network_ops)
        inputs = [in_channels, *self.out_channels[:3]]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            self._stage(inputs[i], planes[i], layers[i], 1 if i == 0 else 2, groups, width_per_group) for i in range(4)
        )
        for _, cell in self.cells_and_names():
            if isinstance(cell, nn.Conv2d):
                weight = cell.weight
                weight.set_data(initializer(HeNormal(mode="fan_out", nonlinearity="relu"), weight.shape, weight.dtype))

    @staticmethod
    def _stage(
        in_channels: int, planes: int, blocks: int, stride: int, groups: int, width_per_group: int
    ) -> nn.SequentialCell:
        first = Bottleneck(in_channels, planes, stride, groups, width_per_group)
        rest = [Bottleneck(planes * EXPANSION, planes, 1, groups, width_per_group) for _ in range(blocks - 1)]
        return nn.SequentialCell([first, *rest])

    def construct(self, x):
        """Encodes images.

        Args:
            x: (N, 3, H, W), normalised RGB; H and W are multiples of 32.

        Returns:
            Four tensors (N, out_channels[i], H / s, W / s) for s = 4, 8, 16, 32.
        """
        x = self.relu(self.bn(self.conv(x)))  # (N, C, H/2, W/2)
        x = self.maxpool(x)  # (N, C, H/4, W/4)
        stage1 = self.layer1(x)  # (N, 4C, H/4, W/4)
        stage2 = self.layer2(stage1)  # (N, 8C, H/8, W/8)
        stage3 = self.layer3(stage2)  # (N, 16C, H/16, W/16)
        stage4 = self.layer4(stage3)  # (N, 32C, H/32, W/32)
        return stage1, stage2, stage3, stage4
