"""What the graphs of a training step are made of."""

from collections.abc import Iterator, Sequence
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import amp, nn, ops

from src.loss import count_inverted

_half_square = ops.MultitypeFuncGraph("half_square")
_half_square_on_cpu = ops.MultitypeFuncGraph("half_square_on_cpu")
_scaled = ops.MultitypeFuncGraph("scaled")
_zero_where = ops.MultitypeFuncGraph("zero_where")
add_tensor = ops.MultitypeFuncGraph("add")
assign_tensor = ops.MultitypeFuncGraph("assign")
copy_tensor = ops.MultitypeFuncGraph("copy")
zero_tensor = ops.MultitypeFuncGraph("zero")
restore_tensor = ops.MultitypeFuncGraph("restore_unless")


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


@add_tensor.register("Tensor", "Tensor")
def _add_to_parameter(total, gradient):
    return ops.assign_add(total, gradient.astype(total.dtype))


@assign_tensor.register("Tensor", "Tensor")
def _assign_parameter(parameter, value):
    return ops.assign(parameter, value)


@copy_tensor.register("Tensor")
def _copy_of_parameter(parameter):
    return parameter * 1


@zero_tensor.register("Tensor")
def _zero_parameter(parameter):
    return ops.assign(parameter, ops.zeros_like(parameter))


@restore_tensor.register("Tensor", "Tensor", "Tensor")
def _restore_parameter_unless(is_good, parameter, noted):
    return ops.assign(parameter, ops.select(is_good, parameter, noted))


def is_device_the_host() -> bool:
    """Whether what computes is the CPU, on which the script runs too."""
    return ms.get_context("device_target") == "CPU"


def scaling_of(scaler: Optional[amp.LossScaler]) -> ms.ParameterTuple:
    """Returns the parameters of a loss scaler, for a cell whose graph uses them.

    A graph from the compile cache finds its parameters among those of the cell, and takes others for them if they are
    not there. A scaler is no cell, nor is a function of which a gradient is taken.
    """
    held = vars(scaler).values() if scaler else ()
    return ms.ParameterTuple(value for value in held if isinstance(value, ms.Parameter))


def averaging(optimizer: nn.Optimizer, world: int) -> nn.Cell:
    """Returns what averages the gradients of an optimizer's parameters over the processes."""
    return nn.Identity() if world == 1 else nn.DistributedGradReducer(optimizer.parameters)


class NetworkWithLoss(nn.Cell):
    """(image, target, mask, valid, weights) -> (scaled loss, (losses, how many predictions are inverted)).

    ``losses`` are those of the sets, ``weights`` theirs, both (sets,); the loss is the weighted sum.
    """

    def __init__(self, net: nn.Cell, loss: nn.Cell, scaler: Optional[amp.LossScaler]):
        super().__init__(auto_prefix=False)
        self.net, self.loss, self.scaler, self.scaling = net, loss, scaler, scaling_of(scaler)

    def construct(self, image, target, mask, valid, weights):
        prediction = self.net(image)
        losses = self.loss.share(prediction, target, mask, valid)
        told = ops.concat((losses, count_inverted(prediction, target, mask).reshape((1,))))
        loss = (losses * weights).sum()
        if self.scaler is not None:
            loss = loss * self.scaler.scale_value
        return loss, told


class Begin(nn.Cell):
    """Mask of this process -> ``valid``, which its shares of the losses are normalised by (see the loss).

    It is that of all processes, divided by their number, since gradients are averaged over them. Also notes the
    statistics of batch normalisation, for ``Update``.
    """

    def __init__(
        self,
        loss: nn.Cell,
        sets: int,
        world: int,
        statistics: Sequence[ms.Parameter],
        noted: Sequence[ms.Parameter],
    ):
        super().__init__(auto_prefix=False)
        self.loss, self.sets, self.world = loss, sets, world
        self.sum = nn.Identity() if world == 1 else ops.AllReduce(ops.ReduceOp.SUM)
        self.statistics, self.noted = ms.ParameterTuple(statistics), ms.ParameterTuple(noted)
        self.each = ops.HyperMap()

    def construct(self, mask):
        valid = self.sum(self.loss.valid_pixels(mask, self.sets)) / self.world
        if self.noted:
            valid = ops.depend(valid, self.each(assign_tensor, self.noted, self.statistics))
        return valid


class Update(nn.Cell):
    """(told by the network, gradients of this process, notes, weights) -> what ``TrainStep`` tells.

    Updates the network. ``weights`` (sets,) are those that the gradients were found with. The gradients may be averaged
    over the processes already.
    """

    def __init__(
        self,
        optimizer: nn.Optimizer,
        grad_clip_norm: float,
        sets: int,
        world: int,
        scaler: Optional[amp.LossScaler],
        statistics: Sequence[ms.Parameter],
        noted: Sequence[ms.Parameter],
        is_averaged: bool = False,
    ):
        super().__init__(auto_prefix=False)
        self.optimizer, self.grad_clip_norm, self.scaler, self.scaling = (
            optimizer,
            grad_clip_norm,
            scaler,
            scaling_of(scaler),
        )
        self.average = nn.Identity() if is_averaged else averaging(optimizer, world)
        self.sum = nn.Identity() if world == 1 else ops.AllReduce(ops.ReduceOp.SUM)
        self.sets, self.share = sets, ms.Tensor([1 / world] * sets + [1], ms.float32)
        self.statistics, self.noted = ms.ParameterTuple(statistics), ms.ParameterTuple(noted)
        self.each = ops.HyperMap()
        self.is_host = is_device_the_host()
        # The CPU has no fast sum but a fast product; other devices may form products in half precision.
        self.half_square = _half_square_on_cpu if self.is_host else _half_square

    def construct(self, told, gradients, notes, weights):
        gradients = self.average(gradients)
        told = self.sum(ops.concat((told * self.share, notes)))
        losses, inverted, notes = told[: self.sets], told[self.sets : self.sets + 1], told[self.sets + 1 :]
        loss = losses.mean()
        scale = ops.ones((), ms.float32)
        if self.scaler is not None:
            scale = scale * self.scaler.scale_value
        norm = ops.sqrt(2 * ops.addn(self.each(self.half_square, gradients))) / scale  # NaN and infinity stay in it
        is_finite = ops.logical_and(ops.isfinite(norm), ops.isfinite(loss))
        if self.grad_clip_norm > 0:
            factor = self.grad_clip_norm / ops.maximum(norm, ops.full_like(norm, self.grad_clip_norm))
            gradients = self.each(ops.partial(_scaled, factor / scale), gradients)
        elif self.scaler is not None:
            gradients = self.each(ops.partial(_scaled, 1 / scale), gradients)
        told = ops.concat((ops.stack((loss, is_finite.astype(ms.float32))), inverted, scale.reshape((1,)), notes))
        if self.sets > 1:
            told = ops.concat((told, losses, weights))
        if self.is_host:  # a branch costs nothing there, and zeros would cost a pass over the gradients, and 1.6 GB
            if is_finite:
                told = ops.depend(told, self.optimizer(gradients, is_finite))
        else:  # the host would wait for the device to take a branch
            zero_unless_finite = ops.partial(_zero_where, ops.logical_not(is_finite), ops.zeros((), ms.float32))
            told = ops.depend(told, self.optimizer(self.each(zero_unless_finite, gradients), is_finite))
        if self.scaler is not None:
            told = ops.depend(told, self.scaler.adjust(is_finite))
            told = ops.depend(told, self.each(ops.partial(restore_tensor, is_finite), self.statistics, self.noted))
        return told


class _Part(nn.Cell):
    """(image, target, mask, valid, weights, told so far) -> told so far; adds the gradients of a part to ``sums``."""

    def __init__(self, network: NetworkWithLoss, parameters: ms.ParameterTuple, sums: Sequence[ms.Parameter]):
        super().__init__(auto_prefix=False)
        self.network = network  # see ``scaling_of``
        self.value_and_grad = ops.value_and_grad(network, None, parameters, has_aux=True)
        self.sums = ms.ParameterTuple(sums)
        self.each = ops.HyperMap()

    def construct(self, image, target, mask, valid, weights, so_far):
        told, gradients = self.value_and_grad(image, target, mask, valid, weights)
        return ops.depend(so_far + told[1], self.each(add_tensor, self.sums, gradients))


class _Finish(nn.Cell):
    """(told, notes, weights) -> what ``TrainStep`` tells: updates the network by ``sums``, which are 0 afterwards."""

    def __init__(self, update: Update, sums: Sequence[ms.Parameter]):
        super().__init__(auto_prefix=False)
        self.update, self.sums = update, ms.ParameterTuple(sums)
        self.each = ops.HyperMap()

    def construct(self, told, notes, weights):
        told = self.update(told, self.each(copy_tensor, self.sums), notes, weights)
        return ops.depend(told, self.each(zero_tensor, self.sums))


def parts_of(batch: Sequence[ms.Tensor], parts: int) -> Iterator[tuple[ms.Tensor, ...]]:
    """Cuts the tensors of a batch into parts of equal size."""
    size = len(batch[0]) // parts
    for first in range(0, size * parts, size):
        yield tuple(tensor[first : first + size] for tensor in batch)


class PartByPart:
    """A step whose batch goes through the network in parts: (image, target, mask, notes, weights) -> what it tells.

    Args:
        network: Of the step.
        begin: See ``Begin``.
        update: See ``Update``.
        optimizer: Of the step.
        parts: Number of parts.
    """

    def __init__(self, network: NetworkWithLoss, begin: Begin, update: Update, optimizer: nn.Optimizer, parts: int):
        sums = optimizer.parameters.clone(prefix="sum", init="zeros")
        self._begin, self._parts = begin, parts
        self._part, self._finish = _Part(network, optimizer.parameters, sums), _Finish(update, sums)
        self._nothing = ms.Tensor(np.zeros(begin.sets + 1, np.float32))

    def __call__(
        self, image: ms.Tensor, target: ms.Tensor, mask: ms.Tensor, notes: ms.Tensor, weights: ms.Tensor
    ) -> ms.Tensor:
        """Does a step."""
        valid, told = self._begin(mask), self._nothing
        for part in parts_of((image, target, mask), self._parts):
            told = self._part(*part, valid, weights, told)
        return self._finish(told, notes, weights)


class WholeStep(nn.Cell):
    """A step in one graph: (image, target, mask, notes, weights) -> what ``TrainStep`` tells."""

    def __init__(self, network: NetworkWithLoss, begin: Begin, update: Update, parameters: ms.ParameterTuple):
        super().__init__(auto_prefix=False)
        self.network = network  # see ``scaling_of``
        self.begin, self.update = begin, update
        self.value_and_grad = ops.value_and_grad(network, None, parameters, has_aux=True)

    def construct(self, image, target, mask, notes, weights):
        valid = self.begin(mask)
        told, gradients = self.value_and_grad(image, target, mask, valid, weights)
        return self.update(told[1], gradients, notes, weights)
