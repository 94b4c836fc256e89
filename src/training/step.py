"""The compiled training step, its optimizer, and the state that a run needs to be resumed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Optional

import mindspore as ms
import numpy as np
from mindspore import amp, nn, ops

from src.common.errors import CheckpointError
from src.loss import count_inverted
from src.training.schedule import LearningRate, Schedule
from src.utils.order import Position
from src.weights.checkpoint import read_ckpt
from src.weights.formats import MINDSPORE, format_of

_half_square = ops.MultitypeFuncGraph("half_square")
_half_square_on_cpu = ops.MultitypeFuncGraph("half_square_on_cpu")
_scaled = ops.MultitypeFuncGraph("scaled")
_zero_where = ops.MultitypeFuncGraph("zero_where")
_adam = ops.MultitypeFuncGraph("adam")
_pick = ops.MultitypeFuncGraph("pick")
_add = ops.MultitypeFuncGraph("add")
_assign = ops.MultitypeFuncGraph("assign")
_copy = ops.MultitypeFuncGraph("copy")
_zero = ops.MultitypeFuncGraph("zero")
_restore_unless = ops.MultitypeFuncGraph("restore_unless")

_LOSS_SCALE = ("loss_scale", "loss_scale_counter")  # names in a checkpoint


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


@_zero_where.register("Tensor", "Tensor", "Tensor")
def _zero_tensor_where(is_unusable, zero, gradient):
    return ops.MaskedFill()(gradient, is_unusable, zero.astype(gradient.dtype))


@_adam.register("Function", *["Tensor"] * 10)
def _adam_of_parameter(
    adam, beta1_power, beta2_power, beta1, beta2, epsilon, rate, gradient, parameter, moment1, moment2
):
    return adam(parameter, moment1, moment2, beta1_power, beta2_power, rate, beta1, beta2, epsilon, gradient)


@_pick.register("Tensor", "Tensor", "Bool")
def _pick_rate(encoder_rate, decoder_rate, is_encoder):
    return encoder_rate if is_encoder else decoder_rate


@_add.register("Tensor", "Tensor")
def _add_to_parameter(total, gradient):
    return ops.assign_add(total, gradient.astype(total.dtype))


@_assign.register("Tensor", "Tensor")
def _assign_parameter(parameter, value):
    return ops.assign(parameter, value)


@_copy.register("Tensor")
def _copy_of_parameter(parameter):
    return parameter * 1


@_zero.register("Tensor")
def _zero_parameter(parameter):
    return ops.assign(parameter, ops.zeros_like(parameter))


@_restore_unless.register("Tensor", "Tensor", "Tensor")
def _restore_parameter_unless(is_good, parameter, noted):
    return ops.assign(parameter, ops.select(is_good, parameter, noted))


def is_device_the_host() -> bool:
    """Whether what computes is the CPU, on which the script runs too."""
    return ms.get_context("device_target") == "CPU"


class _Rate(nn.Cell):
    """Step number, int32 (1,) -> learning rate, float32 scalar."""

    def __init__(self, rate: LearningRate):
        super().__init__()
        self.start, self.end, self.power = float(rate.start), float(rate.end), float(rate.power)
        self.steps, self.offset, self.frozen = rate.steps, float(rate.offset), rate.frozen

    def construct(self, global_step):
        update = global_step.reshape(()).astype(ms.float32)
        left = ops.relu(1 - (update + self.offset) / self.steps)
        rate = (self.start - self.end) * ops.pow(left, self.power) + self.end
        if self.frozen > 0:
            rate = rate * (update >= self.frozen).astype(ms.float32)
        return rate


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
        self.each = ops.HyperMap()

    def construct(self, gradients, is_finite):
        """Updates the parameters, moments and counters, or leaves all of them exactly as they are.

        It has no branch: where ``is_finite`` is false, the rates are 0, and the moments are kept whole (their decay is
        1).

        Args:
            gradients: Of the parameters; zeros where ``is_finite`` is false.
            is_finite: bool scalar.
        """
        factor = is_finite.astype(ms.float32)
        encoder_rate, decoder_rate = self.encoder_rate(self.global_step), self.decoder_rate(self.global_step)
        rates = self.each(ops.partial(_pick, encoder_rate * factor, decoder_rate * factor), self._is_encoder)
        ops.assign_add(self.global_step, is_finite.astype(ms.int32).reshape((1,)))
        beta1, beta2 = 1 + factor * (self.beta1 - 1), 1 + factor * (self.beta2 - 1)
        powers = self.beta1_power * self.beta1, self.beta2_power * self.beta2
        update = ops.partial(_adam, self.opt, powers[0], powers[1], beta1, beta2, self.eps)
        done = self.each(update, rates, gradients, self._parameters, self.moment1, self.moment2)
        ops.assign(self.beta1_power, ops.select(is_finite, powers[0], self.beta1_power))
        ops.assign(self.beta2_power, ops.select(is_finite, powers[1], self.beta2_power))
        return done


def _scaling(scaler: Optional[amp.LossScaler]) -> ms.ParameterTuple:
    """Returns the parameters of a loss scaler, for a cell whose graph uses them.

    A graph from the compile cache finds its parameters among those of the cell, and takes others for them if they are
    not there. A scaler is no cell, nor is a function of which a gradient is taken.
    """
    held = vars(scaler).values() if scaler else ()
    return ms.ParameterTuple(value for value in held if isinstance(value, ms.Parameter))


class _NetworkWithLoss(nn.Cell):
    """(image, target, mask, valid) -> (scaled loss, (loss, how many predictions are inverted))."""

    def __init__(self, net: nn.Cell, loss: nn.Cell, scaler: Optional[amp.LossScaler]):
        super().__init__(auto_prefix=False)
        self.net, self.loss, self.scaler, self.scaling = net, loss, scaler, _scaling(scaler)

    def construct(self, image, target, mask, valid):
        prediction = self.net(image)
        loss = self.loss.share(prediction, target, mask, valid)
        told = ops.stack((loss, count_inverted(prediction, target, mask)))
        if self.scaler is not None:
            loss = loss * self.scaler.scale_value
        return loss, told


class _Begin(nn.Cell):
    """Mask of this process -> ``valid``, which its share of the loss is normalised by (``valid_pixels`` of the loss).

    It is that of all processes, divided by their number, since gradients are averaged over them. Also notes the
    statistics of batch normalisation, for ``_Update``.
    """

    def __init__(self, loss: nn.Cell, world: int, statistics: Sequence[ms.Parameter], noted: Sequence[ms.Parameter]):
        super().__init__(auto_prefix=False)
        self.loss, self.world = loss, world
        self.sum = nn.Identity() if world == 1 else ops.AllReduce(ops.ReduceOp.SUM)
        self.statistics, self.noted = ms.ParameterTuple(statistics), ms.ParameterTuple(noted)
        self.each = ops.HyperMap()

    def construct(self, mask):
        valid = self.sum(self.loss.valid_pixels(mask)) / self.world
        if self.noted:
            valid = ops.depend(valid, self.each(_assign, self.noted, self.statistics))
        return valid


class _Update(nn.Cell):
    """(told by the network, gradients of this process, notes) -> what ``TrainStep`` tells; updates the weights."""

    def __init__(
        self,
        optimizer: nn.Optimizer,
        grad_clip_norm: float,
        world: int,
        scaler: Optional[amp.LossScaler],
        statistics: Sequence[ms.Parameter],
        noted: Sequence[ms.Parameter],
    ):
        super().__init__(auto_prefix=False)
        self.optimizer, self.grad_clip_norm, self.scaler, self.scaling = (
            optimizer,
            grad_clip_norm,
            scaler,
            _scaling(scaler),
        )
        self.average = nn.Identity() if world == 1 else nn.DistributedGradReducer(optimizer.parameters)
        self.sum = nn.Identity() if world == 1 else ops.AllReduce(ops.ReduceOp.SUM)
        self.share = ms.Tensor([1 / world, 1], ms.float32)
        self.statistics, self.noted = ms.ParameterTuple(statistics), ms.ParameterTuple(noted)
        self.each = ops.HyperMap()
        self.is_host = is_device_the_host()
        # The CPU has no fast sum but a fast product; other devices may form products in half precision.
        self.half_square = _half_square_on_cpu if self.is_host else _half_square

    def construct(self, told, gradients, notes):
        gradients = self.average(gradients)
        told = self.sum(ops.concat((told * self.share, notes)))
        scale = ops.ones((), ms.float32)
        if self.scaler is not None:
            scale = scale * self.scaler.scale_value
        norm = ops.sqrt(2 * ops.addn(self.each(self.half_square, gradients))) / scale  # NaN and infinity stay in it
        is_finite = ops.logical_and(ops.isfinite(norm), ops.isfinite(told[0]))
        if self.grad_clip_norm > 0:
            factor = self.grad_clip_norm / ops.maximum(norm, ops.full_like(norm, self.grad_clip_norm))
            gradients = self.each(ops.partial(_scaled, factor / scale), gradients)
        elif self.scaler is not None:
            gradients = self.each(ops.partial(_scaled, 1 / scale), gradients)
        told = ops.concat((told[:1], ops.stack((is_finite.astype(ms.float32), told[1], scale)), told[2:]))
        if self.is_host:  # a branch costs nothing there, and zeros would cost a pass over the gradients, and 1.6 GB
            if is_finite:
                told = ops.depend(told, self.optimizer(gradients, is_finite))
        else:  # the host would wait for the device to take a branch
            zero_unless_finite = ops.partial(_zero_where, ops.logical_not(is_finite), ops.zeros((), ms.float32))
            told = ops.depend(told, self.optimizer(self.each(zero_unless_finite, gradients), is_finite))
        if self.scaler is not None:
            told = ops.depend(told, self.scaler.adjust(is_finite))
            told = ops.depend(told, self.each(ops.partial(_restore_unless, is_finite), self.statistics, self.noted))
        return told


class _WholeStep(nn.Cell):
    """A step in one graph: (image, target, mask, notes) -> what ``TrainStep`` tells."""

    def __init__(self, network: _NetworkWithLoss, begin: _Begin, value_and_grad: Callable, update: _Update):
        super().__init__(auto_prefix=False)
        self.network = network  # see ``_scaling``
        self.begin, self.value_and_grad, self.update = begin, value_and_grad, update

    def construct(self, image, target, mask, notes):
        valid = self.begin(mask)
        told, gradients = self.value_and_grad(image, target, mask, valid)
        return self.update(told[1], gradients, notes)


class _Part(nn.Cell):
    """(image, target, mask, valid, told so far) -> told so far; adds the gradients of a part of a batch to ``sums``."""

    def __init__(self, network: _NetworkWithLoss, value_and_grad: Callable, sums: Sequence[ms.Parameter]):
        super().__init__(auto_prefix=False)
        self.network = network  # see ``_scaling``
        self.value_and_grad, self.sums = value_and_grad, ms.ParameterTuple(sums)
        self.each = ops.HyperMap()

    def construct(self, image, target, mask, valid, so_far):
        told, gradients = self.value_and_grad(image, target, mask, valid)
        return ops.depend(so_far + told[1], self.each(_add, self.sums, gradients))


class _Finish(nn.Cell):
    """(told, notes) -> what ``TrainStep`` tells: updates the weights by ``sums``, which are 0 afterwards."""

    def __init__(self, update: _Update, sums: Sequence[ms.Parameter]):
        super().__init__(auto_prefix=False)
        self.update, self.sums = update, ms.ParameterTuple(sums)
        self.each = ops.HyperMap()

    def construct(self, told, notes):
        told = self.update(told, self.each(_copy, self.sums), notes)
        return ops.depend(told, self.each(_zero, self.sums))


class TrainStep:
    """One optimisation step: (image, target, mask, notes) -> float32 vector.

    The loss is that of the batches of all processes together, see ``valid_pixels`` of the loss: two processes with half
    of a batch each do what one does with the whole. So do ``parts``, whose gradients are added up, one part after the
    other. (Batch normalisation is the exception: it normalises what goes through the network together.)

    Gradients are reduced over the processes first, then looked at, then used: weights, moments and counters stay as
    they are unless the loss and the norm of the gradients, of all processes, are finite, and every process decides
    alike. With ``scaler``, the statistics of batch normalisation stay, too; without, such a step may leave NaN in them,
    and the run has to end. (A norm above 1e19 counts as infinite: its square is beyond float32.)

    The vector holds the loss; 1 if the weights were updated, else 0; how many predictions, of all processes, are
    inverted; the loss scale; and ``notes``, float32 (n,), of whatever the caller wants to know, summed over the
    processes. It is the same in every process. State and loss are those before the update.

    Nothing here waits for the device: the vector is on it until somebody reads it.

    Args:
        net: (N, 3, H, W) -> (N, H, W).
        loss: Of ``src/loss.py``.
        optimizer: Over the parameters of ``net``.
        grad_clip_norm: Largest global norm of the gradients; 0 leaves them alone.
        world: Number of data-parallel processes, whose gradients are averaged.
        scaler: Scales the loss, for networks that compute in float16.
        parts: The batch goes through the network in so many parts of equal size.
    """

    def __init__(
        self,
        net: nn.Cell,
        loss: nn.Cell,
        optimizer: nn.Optimizer,
        grad_clip_norm: float = 0.0,
        world: int = 1,
        scaler: Optional[amp.LossScaler] = None,
        parts: int = 1,
    ):
        self.net, self.loss, self.optimizer, self.scaler, self.parts = net, loss, optimizer, scaler, parts
        network = _NetworkWithLoss(net, loss, scaler)
        network.set_grad()
        value_and_grad = ops.value_and_grad(network, None, optimizer.parameters, has_aux=True)
        statistics = list(self.statistics().values()) if scaler else []
        noted = [ms.Parameter(p.value().copy(), f"noted.{p.name}", requires_grad=False) for p in statistics]
        begin = _Begin(loss, world, statistics, noted)
        update = _Update(optimizer, grad_clip_norm, world, scaler, statistics, noted)
        if parts == 1:
            self._whole = _WholeStep(network, begin, value_and_grad, update)
        else:
            sums = optimizer.parameters.clone(prefix="sum", init="zeros")
            self._begin, self._part, self._finish = begin, _Part(network, value_and_grad, sums), _Finish(update, sums)

    def __call__(self, image: ms.Tensor, target: ms.Tensor, mask: ms.Tensor, notes: ms.Tensor) -> ms.Tensor:
        """Does a step."""
        if self.parts == 1:
            return self._whole(image, target, mask, notes)
        valid, told, size = self._begin(mask), ms.Tensor([0, 0], ms.float32), len(image) // self.parts
        for first in range(0, size * self.parts, size):
            part = slice(first, first + size)
            told = self._part(image[part], target[part], mask[part], valid, told)
        return self._finish(told, notes)

    def state(self) -> dict[str, ms.Parameter]:
        """Collects what a run needs to be resumed: weights, batch statistics, Adam's moments, counters, loss scale.

        Learning rates are left out: they follow from the settings and the count of updates.
        """
        parameters = {p.name: p for p in (*self.net.get_parameters(), *self.optimizer.get_parameters())}
        state = {name: p for name, p in parameters.items() if not name.startswith("learning_rate")}
        if self.is_scale_dynamic:
            state |= dict(zip(_LOSS_SCALE, (self.scaler.scale_value, self.scaler.counter)))
        return state

    def statistics(self) -> dict[str, ms.Parameter]:
        """Collects the statistics of batch normalisation, which each process has of its own batches."""
        return {p.name: p for p in self.net.get_parameters() if p.name.rpartition(".")[2].startswith("moving_")}

    @property
    def is_scale_dynamic(self) -> bool:
        """Whether the loss scale changes."""
        return isinstance(self.scaler, amp.DynamicLossScaler)


@dataclass(frozen=True)
class SavedRun:
    """What a training checkpoint holds.

    Attributes:
        path: The file.
        tensors: Name -> array, as ``TrainStep.state`` has it.
        extra: What ``Trainer.save`` puts beside them.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    extra: dict[str, Any]

    @property
    def position(self) -> Position:
        """Where the run was."""
        return Position(**{field.name: self.extra[field.name] for field in fields(Position)})

    @property
    def schedule(self) -> Schedule:
        """What its learning rates were made of."""
        return Schedule(**self.extra["schedule"])


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
    if not {"course", "schedule", "samples"} <= {*extra}:
        raise CheckpointError(
            f"{path}: expected a checkpoint of this version, found an older one, whose order of samples was another; "
            f"{advice}"
        )
    return SavedRun(path, tensors, extra)


def restore(step: TrainStep, saved: SavedRun, course: Mapping[str, Any]) -> None:
    """Loads a training checkpoint into a step's network, optimizer and loss scale.

    Args:
        step: Built as in the run that wrote the checkpoint.
        saved: The checkpoint.
        course: What decides the course of the resumed run, as JSON has it.

    Raises:
        CheckpointError: If the checkpoint is not one of this network, or is of a run of another course.
    """
    path, tensors = saved.path, saved.tensors
    changed = differences(saved.extra["course"], course)
    if changed:
        raise CheckpointError(
            f"{path}: expected a run of the same course, found {', '.join(changed)}; give the settings that it had, or "
            f"start a new run with its weights: --model_weights {path}"
        )
    parameters = step.state()
    for name in _LOSS_SCALE:  # of a run that had none, on another kind of device
        if name not in tensors:
            parameters.pop(name, None)
    wrong = [name for name, p in parameters.items() if name not in tensors or tensors[name].shape != tuple(p.shape)]
    if wrong:
        raise CheckpointError(
            f"{path}: expected the network of the configuration and its optimizer state, found {len(wrong)} tensors "
            f"missing or of another shape, first {wrong[0]}"
        )
    for name, parameter in parameters.items():
        parameter.set_data(ms.Tensor(tensors[name]))


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[str]:
    """Names what two courses do not have in common, one phrase each; ``files`` is a checksum."""
    return [
        "other training images (files, kind or invalid)"
        if key == "files"
        else f"{key} {then.get(key)} then and {now.get(key)} now"
        for key in {**then, **now}
        if then.get(key) != now.get(key)
    ]
