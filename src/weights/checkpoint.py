"""Checkpoints: MindSpore's .ckpt written so that damage shows, weights of any origin read, and loaded into a network.

A .ckpt of this project is MindSpore's, with its CRC-32 at the end and one entry more, ``midas_extra``, at the start:
JSON text of what the caller wants to find again. File formats are read in ``formats.py``, the network is found among
the tensors in ``selection.py``, and names of other projects are translated in ``families.py``.
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np

from src.common.atomic import atomic_path
from src.common.errors import CheckpointError
from src.common.names import NETWORK_OPS
from src.weights import families, formats
from src.weights.families import LoadReport, Shape
from src.weights.foreign import describe_network
from src.weights.locate import GET_ENCODER, GET_NETWORK, find_checkpoint
from src.weights.selection import select_network

if TYPE_CHECKING:
    from mindspore import nn

    from src.midas_net import MidasNet

PathLike = Union[str, Path]


@dataclass(frozen=True)
class Weights:
    """Weights of a network, or of its encoder, under our names.

    Attributes:
        path: The file.
        family: ``OURS``, ``SUITE_2021``, ``TORCHVISION`` or ``OFFICIAL`` of ``families.py``.
        sizes: Settings of the network that they are of, see ``families.network_sizes``.
        parameters: Our name -> float32 array.
        extra: What ``save_checkpoint`` was given as ``extra``; empty for other families.
        ignored: Names in the file that are not part of the network (optimizer state, classifier, counters).
        remark: Which of several networks in the file these are; empty if there is one.
    """

    path: Path
    family: str
    sizes: dict[str, Any]
    parameters: dict[str, np.ndarray]
    extra: dict[str, Any]
    ignored: list[str]
    remark: str = ""

    @property
    def whole(self) -> bool:
        """Whether the file promises the whole network; otherwise it is of the encoder alone."""
        return "features" in self.sizes

    @property
    def network_ops(self) -> Optional[str]:
        """The operators that the weights were trained with; None if that is not known."""
        return self._course.get("network_ops", families.USUAL_OPS.get(self.family))

    @property
    def _course(self) -> dict[str, Any]:
        return self.extra.get("course", self.extra)  # earlier versions had no level of its own for it

    def settings(self, network: Mapping[str, Any]) -> dict[str, Any]:
        """Lists the settings that the file decides: key -> value, of the types that a configuration has.

        Args:
            network: The arguments of ``MidasNet`` that are configured. Several ``width_per_group`` may make the same
                network; if the configured one does, it is the one returned.

        Returns:
            The sizes of the network; ``network_ops``, ``nm_img_mean`` and ``nm_img_std`` where they are known.
        """
        settings = {**self.sizes, "layers": tuple(self.sizes["layers"])}
        for width in (network["width_per_group"], self._course.get("width_per_group")):
            if isinstance(width, int) and 0 < width < 2**31:
                as_wide = families.stage_widths({**self.sizes, "width_per_group": width})
                if as_wide == families.stage_widths(self.sizes):
                    settings["width_per_group"] = width
                    break
        if self.network_ops:
            settings["network_ops"] = self.network_ops
        for key in ("nm_img_mean", "nm_img_std"):
            if key in self._course:
                settings[key] = tuple(map(float, self._course[key]))
        return settings


def shapes_of(tensors: Mapping[str, Any]) -> dict[str, Shape]:
    """Returns name -> shape of arrays, tensors or parameters."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


# ---- files


def save_checkpoint(path: PathLike, parameters: Mapping[str, Any], extra: Optional[Mapping[str, Any]] = None) -> None:
    """Writes a .ckpt atomically, readable by ``read_weights``, ``read_ckpt`` and ``mindspore.load_checkpoint``.

    Args:
        path: Ends in ``.ckpt``.
        parameters: Name -> Parameter or array of numbers; each keeps its type.
        extra: Small values that JSON can hold (epoch, step, ...), keys are strings; they come back equal.

    Raises:
        ValueError: If ``path`` does not end in ``.ckpt``, which MindSpore's loader demands.
        TypeError: If a value of ``parameters`` is something else; MindSpore would drop or garble it without a word.
        CheckpointError: If the file cannot be written.
    """
    import mindspore as ms

    path = Path(path)
    if path.suffix != ".ckpt":
        raise ValueError(f"{path}: expected a name that ends in .ckpt")
    for name, value in parameters.items():
        is_numbers = isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.isnative
        if not isinstance(value, ms.Parameter) and not (is_numbers and value.size):
            raise TypeError(f"{name}: expected a Parameter or an array of numbers, found {type(value).__name__}")
    content = {formats.EXTRA: json.dumps(dict(extra or {})), **parameters}
    try:
        with atomic_path(path) as temporary, _quiet_mindspore():
            temporary.touch()
            mode = temporary.stat().st_mode
            try:
                ms.save_checkpoint(content, str(temporary), crc_check=True)
            finally:
                temporary.with_suffix(".tmp").unlink(missing_ok=True)  # what MindSpore leaves when it fails
            temporary.chmod(mode)  # MindSpore leaves a file that its owner alone can read, and nobody can write
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error


def read_ckpt(path: PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads every tensor of a MindSpore .ckpt, optimizer state included, under the names of the file.

    Args:
        path: A .ckpt of any MindSpore program.

    Returns:
        Name -> array of the stored type (bfloat16 becomes float32), and the ``extra`` of ``save_checkpoint``.

    Raises:
        CheckpointError: If the file is missing, damaged, cut short or something else.
    """
    path = Path(path)
    found = formats.format_of(path)
    if found != formats.MINDSPORE:
        raise CheckpointError(f"{path}: expected a {formats.MINDSPORE} of this project, found a {found}")
    arrays, _, extra = formats.mindspore_arrays(path)
    return {
        name: formats.to_float32(array, kind) if kind == "bfloat16" else array for name, (array, kind) in arrays.items()
    }, extra


def read_weights(path: PathLike) -> Weights:
    """Reads the weights of a network or of its encoder; ``build_network`` tells whether they are complete.

    Files are untrusted input: nothing in them is run.

    Args:
        path: A checkpoint of any name, told by its content: MindSpore's, PyTorch's or safetensors, of any family of
            ``families.py``.

    Raises:
        CheckpointError: If the file is missing, damaged or cut short, would run code, is not a MidasNet's or its
            encoder's, or has weights that are not finite.
    """
    path = Path(path)
    content = formats.read_content(path)

    def read(name: str) -> np.ndarray:
        try:
            return content.tensors[name].read()
        except ValueError as error:
            raise CheckpointError(f"{name}: {error}") from error

    try:
        selection = select_network(shapes_of(content.tensors), read)
        tensors = {name: read(full) for name, full in selection.names.items()}
        family = families.recognise(tensors)
        parameters = families.to_our_names(family, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    try:
        sizes = families.network_sizes(shapes_of(parameters))
    except CheckpointError as error:
        names = list(tensors)
        if describe_network(names):
            raise CheckpointError(f"{path}: {families.no_family(names)}") from error
        raise CheckpointError(f"{path}: not a MidasNet ({family}; {families.first_names(names)}): {error}") from error
    if family in (families.TORCHVISION, families.OFFICIAL) and sizes["groups"] == 1:
        raise CheckpointError(
            f"{path}: expected a ResNeXt (grouped convolutions), found a plain ResNet with {sizes['layers']} blocks"
        )
    wrong = [name for name, array in parameters.items() if not _is_finite(array)]
    if wrong:
        raise CheckpointError(
            f"{path}: expected finite numbers, found NaN or infinity in {len(wrong)} of {len(parameters)} tensors"
            f" ({families.first_names(wrong)}); the training that wrote them had failed: take an earlier checkpoint"
        )
    ignored = [*content.others, *selection.ignored]
    weights = Weights(path, family, sizes, parameters, content.extra, ignored, selection.remark)
    check_course(path, weights.extra.get("course", weights.extra))
    return weights


def _is_finite(array: np.ndarray) -> bool:
    """Whether all numbers are; makes no copy, since there may be 100 million of them."""
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite((array.min(initial=0), array.max(initial=0))).all())


def check_course(path: Path, course: Any) -> None:
    """Raises CheckpointError if what a file of this project says of its network and its images makes no sense."""

    def are_numbers(value: Any, low: float) -> bool:
        return (
            isinstance(value, (list, tuple))
            and len(value) == 3
            and all(type(item) in (int, float) and low < item < math.inf for item in value)
        )

    def is_count(value: Any) -> bool:
        return type(value) is int and 0 < value < 2**31

    rules = {
        "network_ops": lambda value: value in NETWORK_OPS,
        "layers": lambda value: isinstance(value, (list, tuple)) and len(value) == 4 and all(map(is_count, value)),
        **dict.fromkeys(("groups", "in_channels", "features"), is_count),
        "nm_img_mean": lambda value: are_numbers(value, -math.inf),
        "nm_img_std": lambda value: are_numbers(value, 0),
    }
    for key, holds in rules.items():
        if not isinstance(course, dict) or (key in course and not holds(course[key])):
            raise CheckpointError(
                f"{path}: expected {key} that a network can have in what the file says of itself, found {course!r:.200}"
            )


@contextmanager
def _quiet_mindspore() -> Iterator[None]:
    """Keeps MindSpore's own lines about a file off stderr: the fault is reported once, by its exception."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def open_weights(path: PathLike, key: str = "model_weights", whole: bool = False) -> Optional[Weights]:
    """Reads the weights that a setting names.

    Args:
        path: A file or a run folder, whose newest checkpoint is taken; empty for random weights.
        key: The setting, for messages.
        whole: Whether the decoder must be there too: an encoder alone is a start for training and no more.

    Returns:
        The weights, None if ``path`` is empty.

    Raises:
        UsageError: If there is no such file.
        CheckpointError: As ``read_weights``, or for an encoder alone if ``whole``.
    """
    if not str(path):
        return None
    how = f"{GET_NETWORK if whole else GET_ENCODER}; '' selects random weights"
    weights = read_weights(find_checkpoint(path, key, how))
    if whole and not weights.whole:
        raise CheckpointError(
            f"{key}: expected weights of the whole network, found the encoder alone in {weights.path}; "
            f"it is a start for training; {GET_NETWORK}"
        )
    return weights


# ---- into a network


def load_into(net: "nn.Cell", weights: Weights) -> LoadReport:
    """Gives ``net`` the weights of a file: all that the file promises, or none.

    Args:
        net: A ``MidasNet``.
        weights: Of the whole network, or of its encoder; the decoder then keeps its values.

    Returns:
        What matched. Only a file of the encoder alone leaves names in ``missing``; the other two lists are empty.

    Raises:
        CheckpointError: If the file is incomplete or its sizes differ from those of the network; ``net`` is then
            unchanged.
    """
    from mindspore import Tensor

    targets = {parameter.name: parameter for parameter in net.get_parameters()}
    report = check_fit(weights, shapes_of(targets))
    for name in report.loaded:
        parameter = targets[name]
        parameter.set_data(Tensor(weights.parameters[name], dtype=parameter.dtype))
    return report


def check_fit(weights: Weights, expected: Mapping[str, Shape]) -> LoadReport:
    """Compares weights with the parameters of a network.

    Args:
        weights: Of the whole network, or of its encoder.
        expected: Name -> shape of the network's parameters.

    Raises:
        CheckpointError: As ``load_into``.
    """
    report = LoadReport.of(shapes_of(weights.parameters), expected)
    faults = report.faults(encoder_alone=not weights.whole)
    if not faults:
        return report
    network = families.network_sizes(expected)
    differences = [
        f"{key}: {value} (now {network[key]})" for key, value in weights.sizes.items() if value != network[key]
    ]
    if not differences:
        raise CheckpointError(f"{weights.path}: not a complete MidasNet or encoder ({weights.family}): {faults}")
    raise CheckpointError(
        f"{weights.path}: expected weights of the configured network, found {faults};"
        f" the file needs {', '.join(differences)}"
    )


def check_complete(weights: Weights, network: Optional[Mapping[str, Any]] = None) -> "MidasNet":
    """Returns a network for weights, without values.

    Args:
        weights: Of the whole network, or of its encoder.
        network: Arguments of ``MidasNet``; those that the file tells are its own if None.

    Raises:
        CheckpointError: If the file does not hold all of the network, or of the encoder, that its sizes tell of.
    """
    from mindspore.nn.utils import no_init_parameters

    from src.midas_net import MidasNet

    try:
        with no_init_parameters():
            net = MidasNet(**(weights.sizes if network is None else network))
    except ValueError as error:
        sizes = ", ".join(f"{key} {value}" for key, value in weights.sizes.items())
        raise CheckpointError(f"{weights.path}: not a MidasNet ({weights.family}): no network has {sizes}") from error
    check_fit(weights, shapes_of({parameter.name: parameter for parameter in net.get_parameters()}))
    return net


def build_network(weights: Optional[Weights], network: Mapping[str, Any], key: str) -> tuple["MidasNet", list[str]]:
    """Builds a network with the weights of a file, or with random ones.

    Args:
        weights: Of the whole network or of its encoder; the rest is random. Their arrays move into the network:
            ``weights.parameters`` is empty afterwards.
        network: Arguments of ``MidasNet``, which agree with the weights.
        key: The setting that names the weights, for the text.

    Returns:
        The network, and lines that say what was built and loaded.

    Raises:
        CheckpointError: As ``check_complete``.
    """
    from src.midas_net import MidasNet

    if weights is None:
        net = MidasNet(**network)
        said, source = f"{key} is empty: random initialisation", "the settings"
    else:
        net = check_complete(weights, network)
        if not weights.whole:
            net = MidasNet(**network)
        said = f"{weights.path} ({weights.family}): {load_into(net, weights).summary()}"
        weights.parameters.clear()
        if weights.remark:
            said += f"; {weights.remark}"
        if weights.ignored:
            said += (
                f"; {len(weights.ignored)} entries of other things left out ({families.first_names(weights.ignored)})"
            )
        source = "the weights" if weights.whole else "the weights, but features from the settings"
    sizes = ", ".join(f"{name} {list(value) if isinstance(value, tuple) else value}" for name, value in network.items())
    return net, [said, f"network: {sizes} (from {source})"]
