"""Training on several sets as multi-objective optimisation: no step is to let the loss of a set grow.

That holds for small steps against the gradient that is found. Adam, which rescales every parameter, keeps it roughly.

Sener and Koltun, NeurIPS 2018, arXiv:1810.04650; Ranftl et al., arXiv:1907.01341, section 5, with the sets as tasks.
"""

from collections.abc import Sequence
from typing import Optional, Union

import mindspore as ms
import numpy as np
from mindspore import amp, nn, ops

from src.training.cells import (
    Begin,
    NetworkWithLoss,
    PartByPart,
    Update,
    WholeStep,
    add_tensor,
    assign_tensor,
    averaging,
    is_device_the_host,
    parts_of,
    restore_tensor,
    scaling_of,
    zero_tensor,
)
from src.training.min_norm import min_norm_weights


class _Statistics(nn.Cell):
    """Lets a network run on a batch without a trace in the statistics of its batch normalisation."""

    def __init__(self, statistics: Sequence[ms.Parameter]):
        super().__init__(auto_prefix=False)
        kept = [ms.Parameter(p.value().copy(), f"kept.{p.name}", requires_grad=False) for p in statistics]
        self.statistics, self.kept = ms.ParameterTuple(statistics), ms.ParameterTuple(kept)
        self.each = ops.HyperMap()

    def keep(self, image):
        """Notes the statistics; to be called with the input of the network, which it returns."""
        return ops.depend(image, self.each(assign_tensor, self.kept, self.statistics)) if self.kept else image

    def restore_unless(self, is_counted, result):
        """Puts them back, unless ``is_counted``; to be called with the result of the network, which it returns."""
        if self.kept:
            restore = ops.partial(restore_tensor, is_counted)
            result = ops.depend(result, self.each(restore, self.statistics, self.kept))
        return result


class _GradientsOfSet(nn.Cell):
    """(image, target, mask, valid, chosen, is_first, told so far) -> told so far, gradients of the loss of one set.

    ``chosen`` is 1 for that set and 0 for the others. The images of all sets pass the network together for each of
    them, since batch normalisation makes them depend on each other; the first time counts.
    """

    def __init__(self, network: NetworkWithLoss, parameters: ms.ParameterTuple, statistics: Sequence[ms.Parameter]):
        super().__init__(auto_prefix=False)
        self.network = network  # see ``scaling_of``
        self.value_and_grad = ops.value_and_grad(network, None, parameters, has_aux=True)
        self.statistics = _Statistics(statistics)

    def construct(self, image, target, mask, valid, chosen, is_first, so_far):
        image = self.statistics.keep(image)
        told, gradients = self.value_and_grad(image, target, mask, valid, chosen)
        so_far = so_far + told[1] * is_first.astype(ms.float32)
        return self.statistics.restore_unless(is_first, so_far), gradients


class _AddTo(nn.Cell):
    """Gradients -> 0; adds them to ``sums``."""

    def __init__(self, sums: Sequence[ms.Parameter]):
        super().__init__(auto_prefix=False)
        self.sums = ms.ParameterTuple(sums)
        self.each = ops.HyperMap()

    def construct(self, *gradients):
        return ops.depend(ops.zeros((), ms.float32), self.each(add_tensor, self.sums, gradients))


def _products_of(*tensors):
    products = []
    for row in range(len(tensors)):
        for column in range(len(tensors)):
            first, second = tensors[min(row, column)], tensors[max(row, column)]  # each pair is compiled once
            products.append((first * second).astype(ms.float32).sum())
    return ops.stack(products).reshape((len(tensors), len(tensors)))


def _products_on_cpu_of(*tensors):
    rows = ops.stack([tensor.astype(ms.float32).reshape((-1,)) for tensor in tensors])
    return ops.MatMul(transpose_b=True)(rows, rows)


def _weighted_sum_of(weights, *tensors):
    total = tensors[0] * weights[0]
    for number in range(1, len(tensors)):
        total = total + tensors[number] * weights[number]
    return total


class _OnSums(nn.Cell):
    """Works on the gradients of all sets.

    Args:
        sums: The gradients of each set.
    """

    def __init__(self, sums: Sequence[ms.ParameterTuple]):
        super().__init__(auto_prefix=False)
        # In one tuple, as a graph from the compile cache finds parameters on the cell alone.
        self.sums, self.sets, self.count = ms.ParameterTuple(sum(map(tuple, sums), ())), len(sums), len(sums[0])
        self.each = ops.HyperMap()

    def of_set(self, number):
        """Returns the gradients of a set."""
        return self.sums[number * self.count : (number + 1) * self.count]


class _Gram(_OnSums):
    """() -> (sets, sets), the products of the sets' gradients; averages them over the processes before.

    Args:
        sums: The gradients of each set.
        average: Gradients of a process -> those of all.
    """

    def __init__(self, sums: Sequence[ms.ParameterTuple], average: nn.Cell):
        super().__init__(sums)
        self.average = average
        self.is_local = isinstance(average, nn.Identity)
        self.sum = nn.Identity() if self.is_local else ops.AllReduce(ops.ReduceOp.SUM)
        # The CPU has no fast sum but a fast product; other devices may form products in half precision.
        self.products_of = _products_on_cpu_of if is_device_the_host() else _products_of

    def construct(self):
        gradients = ()
        for number in range(self.sets):
            mine = self.of_set(number)
            if not self.is_local:
                mean = self.average(mine)
                mine = ops.depend(mean, self.each(assign_tensor, mine, mean))
            gradients += (mine,)
        # Each process rounds in its own way, but all must find the same weights. Their sum is in any unit.
        return self.sum(ops.addn(self.each(self.products_of, *gradients)))


class _FinishWeighted(_OnSums):
    """(told, notes, weights) -> what ``TrainStep`` tells: updates the network by the weighted mean of ``sums``.

    The sums of all sets are 0 afterwards.
    """

    def __init__(self, update: Update, sums: Sequence[ms.ParameterTuple]):
        super().__init__(sums)
        self.update = update

    def construct(self, told, notes, weights):
        gradients = ()
        for number in range(self.sets):
            gradients += (self.of_set(number),)
        gradients = self.each(ops.partial(_weighted_sum_of, weights), *gradients)
        told = self.update(told, gradients, notes, weights)
        return ops.depend(told, self.each(zero_tensor, self.sums))


class ExactDescent:
    """A step with the weights of the shortest weighted mean of the sets' gradients, over all parameters.

    The network runs forwards and backwards once for each set, and the gradients of each are held at once. The weights
    are found on the host, which waits for the device.

    Args:
        network: Of the step.
        begin: See ``Begin``.
        update: See ``Update``, with gradients that are averaged over the processes already.
        optimizer: Of the step.
        statistics: Of batch normalisation.
        parts: The batch goes through the network in so many parts.
    """

    def __init__(
        self,
        network: NetworkWithLoss,
        begin: Begin,
        update: Update,
        optimizer: nn.Optimizer,
        statistics: Sequence[ms.Parameter],
        parts: int,
    ):
        sets = begin.sets
        self._begin, self._parts = begin, parts
        self._gradients = _GradientsOfSet(network, optimizer.parameters, statistics)
        sums = [optimizer.parameters.clone(prefix=f"sum{number}", init="zeros") for number in range(sets)]
        self._add = [_AddTo(mine) for mine in sums]
        self._gram, self._finish = _Gram(sums, averaging(optimizer, begin.world)), _FinishWeighted(update, sums)
        self._chosen = [ms.Tensor(row) for row in np.eye(sets, dtype=np.float32)]
        self._is_first = [ms.Tensor(number == 0) for number in range(sets)]
        self._nothing = ms.Tensor(np.zeros(sets + 1, np.float32))

    def __call__(self, image: ms.Tensor, target: ms.Tensor, mask: ms.Tensor, notes: ms.Tensor) -> ms.Tensor:
        """Does a step."""
        valid, told = self._begin(mask), self._nothing
        for part in parts_of((image, target, mask), self._parts):
            for chosen, is_first, add in zip(self._chosen, self._is_first, self._add):
                told, gradients = self._gradients(*part, valid, chosen, is_first, told)
                add(*gradients)  # not as one tuple, which would be taken for a constant
        weights = min_norm_weights(self._gram().asnumpy())
        return self._finish(told, notes, ms.Tensor(weights, ms.float32))


class _DecoderWithLoss(nn.Cell):
    """(four stages of the encoder, target, mask, valid) -> scaled sum of the losses of all sets."""

    def __init__(self, net: nn.Cell, loss: nn.Cell, scaler: Optional[amp.LossScaler]):
        super().__init__(auto_prefix=False)
        self.net, self.loss, self.scaler, self.scaling = net, loss, scaler, scaling_of(scaler)

    def construct(self, stage1, stage2, stage3, stage4, target, mask, valid):
        prediction = self.net.squeeze(self.net.decoder(stage1, stage2, stage3, stage4))
        loss = self.loss.share(prediction, target, mask, valid).sum()
        return loss * self.scaler.scale_value if self.scaler is not None else loss


class _SquaresOnFeatures(nn.Cell):
    """(image, target, mask, valid, so far) -> so far, (sets,) squared norms of the gradients on the encoder's features.

    A sample's features reach its own loss alone (the decoder has no batch normalisation), so one pass through the
    decoder finds the gradients of all sets. The statistics of batch normalisation stay.
    """

    def __init__(
        self,
        net: nn.Cell,
        loss: nn.Cell,
        scaler: Optional[amp.LossScaler],
        statistics: Sequence[ms.Parameter],
        sets: int,
    ):
        super().__init__(auto_prefix=False)
        self.encoder, self.sets, self.statistics = net.encoder, sets, _Statistics(statistics)
        self.decoder = _DecoderWithLoss(net, loss, scaler)
        self.gradients = ops.grad(self.decoder, (0, 1, 2, 3))

    def construct(self, image, target, mask, valid, so_far):
        stage1, stage2, stage3, stage4 = self.encoder(self.statistics.keep(image))
        for gradient in self.gradients(stage1, stage2, stage3, stage4, target, mask, valid):
            rows = gradient.astype(ms.float32).reshape((image.shape[0] // self.sets, self.sets, -1))
            so_far = so_far + (rows * rows).sum(axis=2).sum(axis=0)
        return self.statistics.restore_unless(ms.Tensor(False), so_far)


class UpperBoundDescent:
    """A step with weights that are found on the encoder's features: MGDA-UB of Sener and Koltun.

    The squared norm of the weighted mean of gradients on the features bounds that of the gradients on the encoder's
    parameters, up to a factor. In a batch of several sets each feature belongs to a sample of one of them. So the
    gradients of two sets on the features stand at right angles to each other, and the weights are inversely
    proportional to their squared norms: sets with large gradients count less, and a conflict between two sets is not
    seen.

    It costs one more pass forwards, and one backwards through the decoder, whatever the number of sets.

    Args:
        network: Of the step.
        begin: See ``Begin``.
        step: The step with given weights.
        statistics: Of batch normalisation.
        parts: The batch goes through the network in so many parts.
    """

    def __init__(
        self,
        network: NetworkWithLoss,
        begin: Begin,
        step: Union[WholeStep, PartByPart],
        statistics: Sequence[ms.Parameter],
        parts: int,
    ):
        self._begin, self._step, self._parts = begin, step, parts
        self._squares = _SquaresOnFeatures(network.net, network.loss, network.scaler, statistics, begin.sets)
        self._sum = None if begin.world == 1 else ops.AllReduce(ops.ReduceOp.SUM)
        self._nothing = ms.Tensor(np.zeros(begin.sets, np.float32))

    def __call__(self, image: ms.Tensor, target: ms.Tensor, mask: ms.Tensor, notes: ms.Tensor) -> ms.Tensor:
        """Does a step."""
        valid, squares = self._begin(mask), self._nothing
        for part in parts_of((image, target, mask), self._parts):
            squares = self._squares(*part, valid, squares)
        squares = (self._sum(squares) if self._sum else squares).asnumpy()
        weights = min_norm_weights(np.diag(squares))
        return self._step(image, target, mask, notes, ms.Tensor(weights, ms.float32))
