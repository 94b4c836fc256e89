"""The compiled training step, its optimizer, and the state that a run needs to be resumed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.common.errors import CheckpointError
from src.loss import count_inverted
from src.training.schedule import LearningRate, Position
from src.weights.checkpoint import read_ckpt
from src.weights.formats import MINDSPORE, format_of

_half_square = ops.MultitypeFuncGraph("half_square")
_half_square_on_cpu = ops.MultitypeFuncGraph("half_square_on_cpu")
_scaled = ops.MultitypeFuncGraph("scaled")
_pick = ops.MultitypeFuncGraph("pick")


@_half_square.register("Tensor")
def _half_square_of_tensor(gradient):
    return ops.L2Loss()(gradient.astype(ms.float32))


@_half_square_on_cpu.register("Tensor")
def _half_square_of_tensor_on_cpu(gradient):
    row = gradient.astype(ms.float32).reshape((1, -1))
    return ops.MatMul(transpose_b=True)(row, row).reshape(()) / 2


@_scaled.register("Tensor", "Tensor")
def _scaled_tensor(factor, gradient):
    return gradient * factor.astype(gradient.dtype)


@_pick.register("Tensor", "Tensor", "Bool")
def _pick_rate(encoder_rate, decoder_rate, is_encoder):
    return encoder_rate if is_encoder else decoder_rate


class _Rate(nn.Cell):
    """Step number, int32 (1,) -> learning rate, float32 scalar."""

    def __init__(self, rate: LearningRate):
        super().__init__()
        self.start, self.end, self.power, self.steps = float(rate.start), float(rate.end), rate.power, rate.steps

    def construct(self, global_step):
        left = ops.relu(1 - global_step.reshape(()).astype(ms.float32) / self.steps)
        return (self.start - self.end) * ops.pow(left, self.power) + self.end


class TwoRateAdam(nn.Adam):
    """Adam with one learning rate for the encoder and one for the rest, both found from its own count of updates.

    (``nn.Adam`` takes schedules too, but looks the rate up once a parameter: the full network then takes three times as
    long to compile.)

    Args:
        net: Its parameters whose name contains ``backbone`` are the encoder.
        encoder_rate: Learning rate of the encoder.
        decoder_rate: Learning rate of the rest.
    """

    def __init__(self, net: nn.Cell, encoder_rate: LearningRate, decoder_rate: LearningRate):
        parameters = net.trainable_params()
        self._is_encoder = tuple("backbone" in parameter.name for parameter in parameters)
        super().__init__(
            [
                {"params": [p for p, is_encoder in zip(parameters, self._is_encoder) if is_encoder], "lr": 0.0},
                {"params": [p for p, is_encoder in zip(parameters, self._is_encoder) if not is_encoder], "lr": 0.0},
                {"order_params": parameters},
            ]
        )
        self.encoder_rate, self.decoder_rate = _Rate(encoder_rate), _Rate(decoder_rate)
        self.pick = ops.HyperMap()

    def get_lr(self):
        """Returns the learning rate of each parameter for the present update."""
        encoder_rate, decoder_rate = self.encoder_rate(self.global_step), self.decoder_rate(self.global_step)
        return self.pick(ops.partial(_pick, encoder_rate, decoder_rate), self._is_encoder)


class _NetworkWithLoss(nn.Cell):
    """(image, target, mask) -> (loss, how many predictions are inverted)."""

    def __init__(self, net: nn.Cell, loss: nn.Cell):
        super().__init__(auto_prefix=False)
        self.net, self.loss = net, loss

    def construct(self, image, target, mask):
        prediction = self.net(image)
        return self.loss(prediction, target, mask), count_inverted(prediction, target, mask)


class TrainStep(nn.Cell):
    """One optimisation step: (image, target, mask, notes) -> float32 vector.

    Gradients are reduced over the processes first, then looked at, then used: weights, moments and counters stay as
    they are unless the loss and the norm of the gradients, of all processes, are finite, and every process decides
    alike. (The statistics of batch normalisation change in the forward pass, so a step that is refused may leave NaN in
    them. A norm above 1e19 counts as infinite: its square is beyond float32.)

    The vector holds the loss, averaged over the processes; 1 if the weights were updated, else 0; how many predictions,
    of all processes, are inverted; and ``notes``, float32 (n,), of whatever the caller wants to know, summed over the
    processes. It is the same in every process. State and loss are those before the update.

    Args:
        net: (N, 3, H, W) -> (N, H, W).
        loss: (prediction, target, mask) -> scalar.
        optimizer: Over the parameters of ``net``.
        grad_clip_norm: Largest global norm of the gradients; 0 leaves them alone.
        world: Number of data-parallel processes, whose gradients are averaged.
    """

    def __init__(
        self, net: nn.Cell, loss: nn.Cell, optimizer: nn.Optimizer, grad_clip_norm: float = 0.0, world: int = 1
    ):
        super().__init__(auto_prefix=False)
        self.network = _NetworkWithLoss(net, loss)
        self.network.set_grad()
        self.optimizer = optimizer
        self.value_and_grad = ops.value_and_grad(self.network, None, optimizer.parameters, has_aux=True)
        self.average = nn.Identity() if world == 1 else nn.DistributedGradReducer(optimizer.parameters)
        self.sum = nn.Identity() if world == 1 else ops.AllReduce(ops.ReduceOp.SUM)
        self.world = world
        self.grad_clip_norm = grad_clip_norm
        self.each = ops.HyperMap()
        # The CPU has no fast sum but a fast product; other devices may form products in half precision.
        self.half_square = _half_square_on_cpu if ms.get_context("device_target") == "CPU" else _half_square

    def construct(self, image, target, mask, notes):
        (loss, inverted), gradients = self.value_and_grad(image, target, mask)
        gradients = self.average(gradients)
        told = self.sum(ops.concat((ops.stack((loss / self.world, inverted)), notes)))
        norm = ops.sqrt(2 * ops.addn(self.each(self.half_square, gradients)))  # NaN and infinity stay in it
        if self.grad_clip_norm > 0:
            factor = self.grad_clip_norm / ops.maximum(norm, ops.full_like(norm, self.grad_clip_norm))
            gradients = self.each(ops.partial(_scaled, factor), gradients)
        is_finite = ops.logical_and(ops.isfinite(norm), ops.isfinite(told[0]))
        if is_finite:
            self.optimizer(gradients)
        return ops.concat((told[:1], is_finite.astype(ms.float32).reshape((1,)), told[1:]))


def training_state(step: nn.Cell) -> dict[str, ms.Parameter]:
    """Collects what a run needs to be resumed: weights, batch statistics, Adam's moments and its counters.

    Learning rates are left out: they follow from the settings and the step counter.
    """
    return {p.name: p for p in step.get_parameters() if not p.name.startswith("learning_rate")}


@dataclass(frozen=True)
class SavedRun:
    """What a training checkpoint holds.

    Attributes:
        path: The file.
        tensors: Name -> array, as ``training_state`` has it.
        extra: ``course``, and what ``Position`` has.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    extra: dict[str, Any]


def read_run(path: Path) -> SavedRun:
    """Reads a training checkpoint; CheckpointError if the file is something else, such as weights alone."""
    advice = f"start a new run with them: --model_weights {path}"
    found = format_of(path)
    if found != MINDSPORE:
        raise CheckpointError(
            f"{path}: expected a training checkpoint with optimizer state, found a {found}; if it has weights, {advice}"
        )
    tensors, extra = read_ckpt(path)
    if not {"epoch", "step"} <= {*extra}:
        raise CheckpointError(
            f"{path}: expected a training checkpoint with optimizer state, found weights alone; {advice}"
        )
    if "course" not in extra:
        raise CheckpointError(
            f"{path}: expected a checkpoint of this version, found an older one, whose loss was another; {advice}"
        )
    return SavedRun(path, tensors, extra)


def restore(step: nn.Cell, saved: SavedRun, course: Mapping[str, Any]) -> Position:
    """Loads a training checkpoint into a step's network and optimizer.

    Args:
        step: A ``TrainStep`` built as in the run that wrote the checkpoint.
        saved: The checkpoint.
        course: What decides the course of the resumed run, as JSON has it.

    Returns:
        Where that run was.

    Raises:
        CheckpointError: If the checkpoint is not one of this network, or is of a run of another course.
    """
    path, tensors, extra = saved.path, saved.tensors, saved.extra
    changed = differences(extra["course"], course)
    if changed:
        raise CheckpointError(
            f"{path}: expected a run of the same course, found {', '.join(changed)}; give the settings that it had, or "
            f"start a new run with its weights: --model_weights {path}"
        )
    parameters = training_state(step)
    wrong = [name for name, p in parameters.items() if name not in tensors or tensors[name].shape != tuple(p.shape)]
    if wrong:
        raise CheckpointError(
            f"{path}: expected the network of the configuration and its optimizer state, found {len(wrong)} tensors "
            f"missing or of another shape, first {wrong[0]}"
        )
    for name, parameter in parameters.items():
        parameter.set_data(ms.Tensor(tensors[name]))
    return Position(**{key: extra[key] for key in asdict(Position())})


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[str]:
    """Names what two courses do not have in common, one phrase each; ``files`` is a checksum."""
    return [
        "other training images (files, kind or invalid)"
        if key == "files"
        else f"{key} {then.get(key)} then and {now.get(key)} now"
        for key in {**then, **now}
        if then.get(key) != now.get(key)
    ]
