"""Weight families: what other projects call the tensors of this network, and what their names are here.

Weights are recognised by the names of their tensors. The names of this project are those of the 2021 suite. A new
family is a branch of ``recognise`` and of ``to_our_names``. What training code puts around the names, and beside the
network, is for ``selection.py``.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.common.errors import CheckpointError
from src.weights.foreign import describe_network

Shape = tuple[int, ...]

OURS = "this project's .ckpt"
SUITE_2021 = "2021 suite .ckpt"
TORCHVISION = "torchvision ResNeXt"
OFFICIAL = "official MiDaS .pt"

# The operators that a family was trained with, where its names tell (``network_ops``).
USUAL_OPS = {SUITE_2021: "modelzoo", OFFICIAL: "midas"}

# Of the network, but not used: the classifier of ImageNet models and PyTorch's batch counters.
_IGNORED = re.compile(r"fc\.[^.]*|.*\.num_batches_tracked")

# Torch names -> ours, applied in this order. What none of them touches stays as it is and is unexpected later.
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^pretrained\.layer1\.0\.", "conv1."),
        (r"^pretrained\.layer1\.1\.", "bn1."),
        (r"^pretrained\.layer1\.4\.", "layer1."),
        (r"^pretrained\.layer([234])\.", r"layer\1."),
        (r"^scratch\.(layer\d_rn|refinenet\d|output_conv)\.", r"\1_scratch."),
        (r"\.downsample\.0\.", ".down_sample.conv."),
        (r"\.downsample\.1\.", ".down_sample.bn."),
        (r"\b(bn\d?)\.weight$", r"\1.gamma"),
        (r"\b(bn\d?)\.bias$", r"\1.beta"),
        (r"\b(bn\d?)\.running_mean$", r"\1.moving_mean"),
        (r"\b(bn\d?)\.running_var$", r"\1.moving_variance"),
        (r"^conv1\.", "backbone_conv."),
        (r"^bn1\.", "backbone_bn."),
        (r"^(layer[1-4]\.)", r"backbone_\1"),
    )
]


def is_ignored(name: str) -> bool:
    """Whether a tensor of that name, without prefixes, has no use here: a classifier or a counter."""
    return _IGNORED.fullmatch(name) is not None


def is_encoder(name: str) -> bool:
    """Whether our parameter of that name belongs to the encoder."""
    return name.startswith("backbone")


def recognise(names: Mapping[str, Any]) -> str:
    """Returns the family that names of tensors belong to; CheckpointError if none is known."""
    if any(name.startswith("backbone_") for name in names):
        return SUITE_2021 if any(".convs." in name for name in names) else OURS
    if any(name.startswith(("pretrained.", "scratch.")) for name in names):
        return OFFICIAL
    if "conv1.weight" in names and any(name.startswith("layer1.0.") for name in names):
        return TORCHVISION
    raise no_family(list(names))


def no_family(names: list[str]) -> CheckpointError:
    """Returns the error that these tensors are not of this network; it says of which they are, if they tell."""
    found = f"{len(names)} tensors{f' ({first_names(names)})' if names else ''}"
    return CheckpointError(
        f"expected weights of MidasNet ({OURS}, {SUITE_2021}, {OFFICIAL}) or of its encoder ({TORCHVISION}),"
        f" found {found} of {describe_network(names) or 'another network'}"
    )


def to_our_names(family: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the tensors of a family, and joins what the 2021 suite has in pieces.

    Raises:
        CheckpointError: Pieces do not fit together, or two tensors get one name.
    """
    if family == SUITE_2021:
        return _join_groups(tensors)
    if family == OURS:
        return dict(tensors)
    renamed = {}
    for name, array in tensors.items():
        for pattern, replacement in _RENAMES:
            name = pattern.sub(replacement, name)
        if name in renamed:
            raise CheckpointError(f"expected one tensor per parameter, found two names for {name}")
        renamed[name] = array
    return renamed


def _join_groups(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Concatenates ``x.convs.{0, 1, ...}.weight`` on their first axis to ``x.weight``.

    A missing piece shows later, in the shape of the whole.
    """
    joined: dict[str, np.ndarray] = {}
    groups: dict[str, dict[int, np.ndarray]] = {}
    for name, array in tensors.items():
        piece = re.fullmatch(r"(.*)\.convs\.(\d+)(\.weight)", name)
        if piece:
            groups.setdefault(piece[1] + piece[3], {})[int(piece[2])] = array
        else:
            joined[name] = array
    for name, pieces in groups.items():
        if len({piece.shape for piece in pieces.values()}) > 1:
            raise CheckpointError(f"{name}: expected it in pieces of one shape, found several shapes")
        joined[name] = np.concatenate([pieces[index] for index in sorted(pieces)])
    return joined


def network_sizes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Infers the settings of the network that tensors belong to.

    Whether the tensors make a whole network of these sizes is for ``LoadReport`` to tell.

    Args:
        shapes: Our parameter name -> shape.

    Returns:
        ``layers``, ``groups``, ``width_per_group`` (the smallest of those that give the same widths), ``in_channels``
        and, where there is a decoder, ``features``.

    Raises:
        CheckpointError: A tensor that tells a size is missing; the text names it.
    """

    def side(name: str, axis: int) -> int:
        shape = shapes.get(name, ())
        if len(shape) != 4 or shape[axis] < 1:
            raise CheckpointError(f"expected a 4-D tensor {name}, found {list(shape) if name in shapes else 'none'}")
        return shape[axis]

    layers = [
        len({name.split(".")[1] for name in shapes if name.startswith(f"backbone_layer{stage}.")})
        for stage in (1, 2, 3, 4)
    ]
    in_channels = side("backbone_conv.weight", 0)
    widths = [side(f"backbone_layer{stage}.0.conv1.weight", 0) for stage in (1, 2, 3, 4)]
    groups = max(1, widths[3] // side("backbone_layer4.0.conv2.weight", 1))
    sizes = {
        "layers": layers,
        "groups": groups,
        "width_per_group": max(
            math.ceil(width // groups * 64 / (in_channels * 2**stage)) for stage, width in enumerate(widths)
        ),
        "in_channels": in_channels,
    }
    if not all(map(is_encoder, shapes)):
        sizes["features"] = side("layer1_rn_scratch.weight", 0)
    return sizes


def stage_widths(sizes: Mapping[str, Any]) -> list[int]:
    """Returns the inner channels of the bottlenecks of the four stages, which alone depend on ``width_per_group``.

    Args:
        sizes: ``groups``, ``width_per_group`` and ``in_channels``.
    """
    planes = [sizes["in_channels"] * factor for factor in (1, 2, 4, 8)]
    return [int(count * sizes["width_per_group"] / 64) * sizes["groups"] for count in planes]


@dataclass(frozen=True)
class LoadReport:
    """How the weights of a file fit a network.

    Attributes:
        loaded: Names that are in both, with equal shapes.
        missing: Parameters of the network that the file does not have.
        unexpected: Tensors of the file that the network does not have.
        wrong_shape: Texts "name [shape in the file] instead of [shape in the network]".
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    wrong_shape: list[str]

    @classmethod
    def of(cls, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> "LoadReport":
        """Compares the shapes of a file's tensors with those of a network's parameters."""
        common = [name for name in expected if name in found]
        return cls(
            loaded=[name for name in common if found[name] == expected[name]],
            missing=[name for name in expected if name not in found],
            unexpected=[name for name in found if name not in expected],
            wrong_shape=[
                f"{name} {list(found[name])} instead of {list(expected[name])}"
                for name in common
                if found[name] != expected[name]
            ],
        )

    def faults(self, encoder_alone: bool) -> str:
        """Returns counts and first names of what does not match; an empty text if all does.

        Args:
            encoder_alone: The file promises no decoder, so that none is missed.
        """
        missing = [name for name in self.missing if is_encoder(name)] if encoder_alone else self.missing
        lists = ((missing, "missing"), (self.unexpected, "unexpected"), (self.wrong_shape, "of another shape"))
        return ", ".join(f"{len(names)} {fault} ({first_names(names)})" for names, fault in lists if names)

    def summary(self) -> str:
        """Returns one line with counts and first names."""
        loaded = f"loaded {len(self.loaded)} tensors"
        if not self.missing:
            return loaded
        return f"{loaded}; {len(self.missing)} not in the file keep their values ({first_names(self.missing)})"


def first_names(names: list[str]) -> str:
    """Names the first three."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
