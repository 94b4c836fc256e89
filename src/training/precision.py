"""How the network computes while it is trained: mixed precision, its batch normalisation, its last ReLU.

Nothing here adds, removes or renames a parameter: a checkpoint is the same whatever was chosen. Weights, moments,
statistics and gradients are float32 at every level.
"""

from dataclasses import dataclass
from typing import Optional

import mindspore as ms
from mindspore import amp, nn

from src.common.errors import UsageError
from src.custom_op import RevivingReLU, Upsample2x
from src.midas_net import MidasNet


@dataclass(frozen=True)
class Precision:
    """What the network computes with.

    Attributes:
        level: ``O0``, ``O1``, ``O2``, ``O3`` or ``auto``, see ``apply_precision``.
        dtype: ``float16``, ``bfloat16``, or ``float32`` at O0.
        scaling: ``static``, ``dynamic`` or ``off`` scaling of the loss; ``off`` unless ``dtype`` is ``float16``.
    """

    level: str
    dtype: str
    scaling: str

    def describe(self) -> str:
        """Puts it into one phrase."""
        if self.level == "O0":
            return "O0 float32"
        if self.dtype == "bfloat16":
            return f"{self.level} bfloat16, which needs no loss scaling"
        return f"{self.level} {self.dtype}, {'no' if self.scaling == 'off' else self.scaling} loss scaling"


def settle_precision(level: str, dtype: str, scaling: str, target: str) -> Precision:
    """Decides what is left open.

    Args:
        level: One of ``AMP_LEVELS``, or ``by_device``: O2 on Ascend and GPU, O0 on the CPU.
        dtype: One of ``AMP_DTYPES``; O0 does not use it.
        scaling: One of ``LOSS_SCALINGS``. Only float16 is scaled: the others have the range of float32.
        target: ``Ascend``, ``GPU`` or ``CPU``.

    Raises:
        UsageError: If MindSpore has no such type on the device, or for a part of the network.
    """
    if level == "by_device":
        level = "O0" if target == "CPU" else "O2"
    if level == "O0":
        return Precision(level, "float32", "off")
    if dtype == "bfloat16" and target != "Ascend":
        raise UsageError(f"amp_dtype: expected float16 on {target}, found bfloat16, which only Ascend has")
    if dtype == "bfloat16" and level == "O3":
        raise UsageError(
            "amp_level: expected O1, O2 or auto with bfloat16, found O3, whose batch normalisation MindSpore has not"
        )
    return Precision(level, dtype, scaling if dtype == "float16" else "off")


def create_scaler(precision: Precision, scale: float, window: int) -> Optional[amp.LossScaler]:
    """Makes what scales the loss, or None where it is not scaled.

    Args:
        precision: From ``settle_precision``.
        scale: At the start, >= 1.
        window: A dynamic scale is doubled after so many steps without overflow.
    """
    if precision.scaling == "off":
        return None
    return amp.DynamicLossScaler(scale, 2, window) if precision.scaling == "dynamic" else amp.StaticLossScaler(scale)


def apply_precision(net: MidasNet, precision: Precision) -> None:
    """Makes a network compute in mixed precision, in place and before it is compiled first.

    It still takes and returns float32, and every parameter stays a float32 one. What runs in ``precision.dtype``:

    * O0: nothing.
    * O1: convolutions, whose results are float32 again.
    * O2: everything but batch normalisation.
    * O3: batch normalisation too. Its statistics, scale and shift are float32.
    * auto: what MindSpore's lists of operators say: convolutions without the addition of their bias, and a ReLU that
      follows at once.

    Resizes (some devices have none with aligned corners in half precision) and the last ReLU, whose result is the
    network's, are float32 at every level. (For O1 to O3, ``amp.auto_mixed_precision`` makes another network, whose
    resizes are half precision at O2 and O3: only its ``auto`` is taken.)

    Args:
        net: Its batch normalisation must be the one that it is to have, see ``synchronise_normalisation``.
        precision: From ``settle_precision``.
    """
    if precision.level == "O0":
        return
    half = getattr(ms, precision.dtype)
    last = {cell for _, cell in net.decoder.output_conv_scratch[-1].cells_and_names()}
    for _, cell in net.cells_and_names():
        if cell in last or isinstance(cell, Upsample2x):
            cell.to_float(ms.float32)
        elif precision.level == "auto" or cell.cells():
            continue  # a cell that holds others only hands on what they return
        elif isinstance(cell, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            # Without a type of its own it takes its input as it is, and its parameters as they are.
            if precision.level != "O3":
                cell.to_float(ms.float32)
        elif precision.level == "O1" and not isinstance(cell, nn.Conv2d):
            cell.to_float(ms.float32)
        else:
            cell.to_float(half)
    if precision.level == "auto":
        amp.auto_mixed_precision(net, "auto", half)


def freeze_normalisation(net: MidasNet) -> None:
    """Makes the encoder's batch normalisation use the statistics that it has, and keep them, in training too.

    Its scale and shift still learn. To be called before the network is compiled first; ``set_train`` does not undo it.
    """
    for _, cell in net.encoder.cells_and_names():
        if isinstance(cell, nn.BatchNorm2d):
            cell.use_batch_statistics = False


def revive_output(net: MidasNet) -> None:
    """Gives the network a last ReLU that brings dead images back to life, see ``RevivingReLU``.

    To be called before ``apply_precision`` and before the network is compiled first. What it predicts stays the same.
    """
    net.decoder.output_conv_scratch[len(net.decoder.output_conv_scratch) - 1] = RevivingReLU()


def synchronise_normalisation(net: MidasNet, target: str, world: int) -> None:
    """Makes batch normalisation use the batches of all processes, in place; parameters stay.

    Alone, a process has all of the batch already: nothing changes. What ``freeze_normalisation`` has frozen has no
    batch statistics and is left alone.

    Args:
        net: Before ``apply_precision`` and before it is compiled first.
        target: ``Ascend``, ``GPU`` or ``CPU``.
        world: Number of data-parallel processes.

    Raises:
        UsageError: If the device has none.
    """
    if target != "Ascend":
        raise UsageError(f"sync_bn: expected False on {target}, found True, which only Ascend has")
    if world == 1:
        return
    for _, parent in list(net.cells_and_names()):
        for name, old in parent.name_cells().items():
            if not isinstance(old, nn.BatchNorm2d) or old.use_batch_statistics is False:
                continue
            new = nn.SyncBatchNorm(old.num_features, eps=old.eps, momentum=1 - old.momentum)
            setattr(parent, name, new)
            new.gamma, new.beta = old.gamma, old.beta
            new.moving_mean, new.moving_variance = old.moving_mean, old.moving_variance
