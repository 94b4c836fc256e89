"""Validation during training: what is scored, and whether the scores still get better.

A validator is called by every process of a run, scores its share of the samples, and returns sums: ``merge`` makes
means of them. All scores are such that less is better. A validator asks now and then whether to stop; what it has been
able to score until then says nothing about the network.
"""

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any, Optional

import mindspore as ms
import numpy as np
from mindspore import nn

from src.common.ahead import run_ahead, thread_pool
from src.training.group import Group
from src.training.loss_log import HELD_BACK


@dataclass(frozen=True)
class Score:
    """What one process has found of one score.

    Attributes:
        name: Of the score; the same in all processes.
        total: Sum over the images that this process has scored.
        count: How many these are, or the sum of their weights.
    """

    name: str
    total: float
    count: float


# (whether to stop) -> this process's share of the scores
Validator = Callable[[Callable[[], bool]], list[Score]]


def merge(scores: Sequence[Score], group: Group) -> dict[str, float]:
    """Averages scores over the images of all processes, all of which must call it with the same names.

    Returns:
        Name -> mean; NaN if no process has scored an image.
    """
    sums = group.sum(np.array([[score.total, score.count] for score in scores], np.float32).ravel()).reshape(-1, 2)
    return {score.name: total / count if count else math.nan for score, (total, count) in zip(scores, sums.tolist())}


@contextmanager
def evaluating(net: nn.Cell) -> Iterator[None]:
    """Inside this block a network that is being trained is in evaluation mode."""
    net.set_train(False)
    try:
        yield
    finally:
        net.set_train(True)


class Apart(nn.Cell):
    """A network as the root of a graph of its own: what is set for that, such as dynamic inputs, leaves it alone.

    Parameters and their names are those of the network.
    """

    def __init__(self, net: nn.Cell):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, image):
        """Passes the image on."""
        return self.net(image)


class HeldBackLoss:
    """The training loss on images that are held back, a validator.

    The loss of an image is that of a batch of this image alone. Images without a valid pixel are left out.

    Args:
        net: The network that is being trained, (N, 3, H, W) -> (N, H, W).
        loss: (prediction, target, mask), each (N, H, W), -> scalar.
        source: The images held back: map-style, of (image, target, mask).
        rank: This process takes every ``world``-th image, from this one on.
        world: Number of processes.
        batch_size: How many images pass the network together; the last batch is filled up.
        workers: Threads that load images.
        weights: How much each image counts; by default all count alike.
    """

    def __init__(
        self,
        net: nn.Cell,
        loss: nn.Cell,
        source: Any,
        rank: int = 0,
        world: int = 1,
        batch_size: int = 1,
        workers: int = 2,
        weights: Optional[Sequence[float]] = None,
    ):
        self.weights = [1.0] * len(source) if weights is None else weights
        self.net, self.loss, self.source = net, loss, source
        self.numbers = range(rank, len(source), world)
        self.batch_size, self.workers = batch_size, workers
        self._apart = Apart(net)

    def __call__(self, is_asked: Callable[[], bool] = lambda: False) -> list[Score]:
        """Returns the score called ``loss``.

        Args:
            is_asked: Whether to stop; looked at before each image.

        Raises:
            DataError: A file cannot be read.
        """
        losses: list[float] = []
        counts: list[float] = []
        with evaluating(self.net), thread_pool(self.workers) as pool:
            numbers = takewhile(lambda _: not is_asked(), self.numbers)
            samples = run_ahead(pool, self.source.__getitem__, numbers, max(self.workers, self.batch_size))
            while batch := list(islice(samples, self.batch_size)):
                weights = self.weights[self.numbers[len(counts)] :: self.numbers.step]
                counts += [weight * mask.any() for weight, (_, _, mask) in zip(weights, batch)]
                losses += self._losses(batch)
        return [Score(HELD_BACK, math.fsum(map(operator.mul, counts, losses)), math.fsum(counts))]

    def _losses(self, batch: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[float]:
        """Returns the loss of every image of a batch, 0 for one without a valid pixel."""
        images = [image for image, _, _ in batch]
        images += [images[-1]] * (self.batch_size - len(images))  # one size: compiled once
        predictions = self._apart(ms.Tensor(np.stack(images))).asnumpy()
        return [
            float(self.loss(*(ms.Tensor(array[None]) for array in (prediction, target, mask))).asnumpy())
            for prediction, (_, target, mask) in zip(predictions, batch)
        ]


class NamedSets:
    """The metrics of evaluation sets, a validator.

    Args:
        net: The network that is being trained.
        make_predictor: Network -> predictor, e.g. ``MindSporePredictor`` with all other arguments given.
        score: (predictor, ``is_asked``) -> name, sum and count of every set, of this process's share of its samples;
            e.g. a ``ShareScorer`` of ``src/evaluation/session.py``.
    """

    def __init__(
        self,
        net: nn.Cell,
        make_predictor: Callable[[nn.Cell], Any],
        score: Callable[[Any, Callable[[], bool]], Iterable[tuple[str, float, int]]],
    ):
        self.net, self.score = net, score
        self._make_predictor = make_predictor
        self._predictor: Any = None

    def __call__(self, is_asked: Callable[[], bool] = lambda: False) -> list[Score]:
        """Returns a score of every set.

        Args:
            is_asked: Whether to stop; looked at before each image.
        """
        with evaluating(self.net):
            if self._predictor is None:
                self._predictor = self._make_predictor(Apart(self.net))
            return [Score(*sums) for sums in self.score(self._predictor, is_asked)]


class Judge:
    """Says which validation was the best so far, and when a run has waited long enough for a better one.

    Args:
        patience: How many validations in a row may pass without a better score; 0: any number.
        name: Of the score that decides,
        best: the best so far, and
        waited: how many validations have passed since, of a run that is resumed (``state``).
    """

    def __init__(self, patience: int, name: str = "", best: Optional[float] = None, waited: int = 0):
        self.patience, self.name, self.best, self.waited = patience, name, best, waited

    def judge(self, values: Mapping[str, float]) -> bool:
        """Takes the values of a validation, the first of which decides; tells whether it is the best so far.

        A value that is not finite is worse than any other. Where another score decides than before, it starts anew.
        """
        name, value = next(iter(values.items()))
        if name != self.name:
            self.name, self.best, self.waited = name, None, 0
        is_best = math.isfinite(value) and (self.best is None or value < self.best)
        if is_best:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return is_best

    @property
    def is_patience_over(self) -> bool:
        """Whether the run should end."""
        return 0 < self.patience <= self.waited

    def state(self) -> dict[str, Any]:
        """Returns ``name``, ``best`` and ``waited``, as JSON has them, for the checkpoint."""
        return {"name": self.name, "best": self.best, "waited": self.waited}
