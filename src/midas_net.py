"""MidasNet: ResNeXt encoder and RefineNet decoder (Ranftl et al., TPAMI 2020, arXiv:1907.01341)."""

from collections.abc import Sequence

from mindspore import nn, ops
from mindspore.common.initializer import initializer

from src.blocks_ms import FeatureFusionBlock, Interpolate
from src.custom_op import conv2d
from src.resnext import ResNeXt

STRIDE = 32  # image sides must be multiples of it


def check_image_size(height: int, width: int) -> None:
    """Raises ValueError unless both sides, in pixels, are positive multiples of ``STRIDE``."""
    if height < STRIDE or width < STRIDE or height % STRIDE or width % STRIDE:
        raise ValueError(f"image size: expected height and width in multiples of {STRIDE}, found {height}x{width}")


class RefineNetDecoder(nn.Cell):
    """Fuses four encoder stages from coarse to fine and reduces them to one channel.

    Args:
        encoder_channels: Channels of the encoder's stages, fine to coarse.
        features: Channels of the decoder; the head narrows them to 1/2, 1/8 and 1.
        network_ops: ``midas`` or ``modelzoo``, see ``src/custom_op.py``.
    """

    def __init__(self, encoder_channels: Sequence[int], features: int = 256, network_ops: str = "midas"):
        super().__init__()
        self.layer1_rn_scratch = conv2d(encoder_channels[0], features, 3)
        self.layer2_rn_scratch = conv2d(encoder_channels[1], features, 3)
        self.layer3_rn_scratch = conv2d(encoder_channels[2], features, 3)
        self.layer4_rn_scratch = conv2d(encoder_channels[3], features, 3)
        self.refinenet4_scratch = FeatureFusionBlock(features, network_ops)
        self.refinenet3_scratch = FeatureFusionBlock(features, network_ops)
        self.refinenet2_scratch = FeatureFusionBlock(features, network_ops)
        self.refinenet1_scratch = FeatureFusionBlock(features, network_ops)
        self.output_conv_scratch = nn.SequentialCell(
            conv2d(features, features // 2, 3, has_bias=True),
            Interpolate(network_ops),
            conv2d(features // 2, features // 8, 3, has_bias=True),
            nn.ReLU(),
            conv2d(features // 8, 1, 1, has_bias=True),
            nn.ReLU(),
        )
        # Untrained outputs start above zero: where the last ReLU passes nothing, no gradient ever reaches the network.
        last_bias = self.output_conv_scratch[4].bias
        last_bias.set_data(initializer("ones", last_bias.shape, last_bias.dtype))

    def construct(self, stage1, stage2, stage3, stage4):
        """Decodes.

        Args:
            stage1: (N, encoder_channels[0], H/4, W/4).
            stage2: (N, encoder_channels[1], H/8, W/8).
            stage3: (N, encoder_channels[2], H/16, W/16).
            stage4: (N, encoder_channels[3], H/32, W/32).

        Returns:
            (N, 1, H, W), inverse depth, >= 0.
        """
        path = self.refinenet4_scratch(self.layer4_rn_scratch(stage4))  # (N, F, H/16, W/16)
        path = self.refinenet3_scratch(path, self.layer3_rn_scratch(stage3))  # (N, F, H/8, W/8)
        path = self.refinenet2_scratch(path, self.layer2_rn_scratch(stage2))  # (N, F, H/4, W/4)
        path = self.refinenet1_scratch(path, self.layer1_rn_scratch(stage1))  # (N, F, H/2, W/2)
        return self.output_conv_scratch(path)  # (N, 1, H, W)


class MidasNet(nn.Cell):
    """Monocular depth network.

    Parameter names are those of the 2021 MindSpore suite (``backbone_conv.weight``, ``refinenet4_scratch...``):
    parameters of the encoder are those whose name starts with ``backbone``.

    Args:
        layers: Bottlenecks per encoder stage.
        groups: Cardinality of the encoder.
        width_per_group: Width per group of the encoder.
        in_channels: Planes of the encoder's first stage.
        features: Channels of the decoder, a multiple of 8.
        network_ops: ``midas`` (the published network) or ``modelzoo`` (the 2021 suite).

    Raises:
        ValueError: If ``features`` or ``network_ops`` is out of range.
    """

    def __init__(
        self,
        layers: Sequence[int] = (3, 4, 23, 3),
        groups: int = 32,
        width_per_group: int = 8,
        in_channels: int = 64,
        features: int = 256,
        network_ops: str = "midas",
    ):
        # The names have no common prefix "encoder." or "decoder."; see the class docstring.
        super().__init__(auto_prefix=False)
        self.network_ops = network_ops
        if features < 8 or features % 8:
            raise ValueError(f"features: expected a multiple of 8, found {features}")
        self.encoder = ResNeXt(layers, groups, width_per_group, in_channels, network_ops)
        self.encoder.update_parameters_name("backbone_")
        self.decoder = RefineNetDecoder(self.encoder.out_channels, features, network_ops)
        self.squeeze = ops.Squeeze(1)

    @property
    def output_layer(self) -> nn.Conv2d:
        """The last convolution, to one channel; a ReLU follows it."""
        return self.decoder.output_conv_scratch[4]

    def __call__(self, *args, **kwargs):
        # Checked here and not in construct, where a dynamic size would turn the check into a part of the graph.
        if args and len(args[0].shape) == 4:
            check_image_size(*args[0].shape[2:])
        return super().__call__(*args, **kwargs)

    def construct(self, image):
        """Predicts inverse depth.

        Args:
            image: (N, 3, H, W) float32, normalised RGB; H and W are multiples of 32.

        Returns:
            (N, H, W) float32, inverse depth: >= 0, larger is nearer, unbounded, without unit (it has an unknown
            scale and shift).
        """
        return self.squeeze(self.decoder(*self.encoder(image)))  # (N, H, W)
