"""Which training sample comes when, on which of several processes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from src.common.errors import DataError


@lru_cache(maxsize=64)
def _orders(size: int, seed: int, number: int) -> Callable[[int], np.ndarray]:
    """Makes what knows the order of a set's turns: of each set the last few, as several workers may be in several."""
    return lru_cache(maxsize=4)(lambda turn: np.random.default_rng([seed, turn, number]).permutation(size))


def turn_order(size: int, seed: int, turn: int, number: int = 0) -> np.ndarray:
    """Returns the order of a set's samples in a turn, in which each of them comes once.

    Args:
        size: Samples in the set.
        seed: Of the run.
        turn: Counted from 0.
        number: Of the set, from 0.

    Returns:
        A permutation of ``range(size)``, int64.
    """
    return _orders(size, seed, number)(turn)


@dataclass(frozen=True)
class Position:
    """How far a run is.

    Attributes:
        epoch: That of the last sample, counted from 1.
        step: Finished steps of that epoch.
        samples: Samples consumed since the run began, of all processes.
        steps: Finished steps since the run began.
    """

    epoch: int = 1
    step: int = 0
    samples: int = 0
    steps: int = 0


@dataclass(frozen=True)
class SampleOrder:
    """The samples of every step of a run, for one process.

    The samples of a set are one stream: its first turn in a random order, then the second in another, and so on. The
    samples of a run are one stream, too, in which the sets take turns: set 0, 1, 2, 0, 1, 2, ... A step takes the next
    ``batch_size * world`` samples, and rank r the r-th ``batch_size`` of these. So the sets have equal shares, whatever
    their sizes, and with one set every sample comes once an epoch, however many processes there are. A step may begin
    in one epoch and end in the next; it counts for the latter. Only the end of the last epoch may be too short for a
    step. The stream depends on ``seed`` alone: a resumed run sees exactly the rest of it, with other processes or
    batches, too.

    Attributes:
        size: Samples in an epoch.
        batch_size: Samples per step and rank.
        seed: Seed of the run, >= 0.
        rank: This process, from 0.
        world: Number of processes.
        sets: Samples in each set. They are numbered from 0, set after set. By default, one set makes an epoch.

    Raises:
        DataError: An epoch has fewer samples than one step takes.
    """

    size: int
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1
    sets: tuple[int, ...] = ()

    def __post_init__(self):
        if self.size < self.images_per_step:
            raise DataError(
                f"training data: expected at least the {self.images_per_step} samples that one step takes "
                f"(batch_size x accumulate_steps {self.batch_size} x devices {self.world}), found {self.size}"
                + (" in an epoch (epoch_images)" if self.sets and sum(self.sets) != self.size else "")
            )

    @property
    def images_per_step(self) -> int:
        """Samples in a step, of all processes."""
        return self.batch_size * self.world

    def _visits(self, start: int, count: int) -> np.ndarray:
        sets = np.array(self.sets or (self.size,))
        firsts = np.cumsum(sets) - sets  # number of the first sample of each set
        rounds, numbers = np.divmod(np.arange(start, start + count), len(sets))
        turns, places = np.divmod(rounds, sets[numbers])
        samples = np.empty(count, np.int64)
        for number, turn in {*zip(numbers.tolist(), turns.tolist())}:
            chosen = (numbers == number) & (turns == turn)
            samples[chosen] = firsts[number] + turn_order(int(sets[number]), self.seed, turn, number)[places[chosen]]
        return np.stack((samples, turns), axis=1)

    def all_samples(self, start: int) -> np.ndarray:
        """Returns the samples of all processes in the step that starts at a place in the stream.

        Args:
            start: Samples of the stream before it.

        Returns:
            Sample numbers, int64 (batch_size * world,).
        """
        return self._visits(start, self.images_per_step)[:, 0]

    def samples(self, start: int) -> np.ndarray:
        """Returns the samples of this process, int64 (batch_size,), see ``all_samples``."""
        return self.visits(start)[:, 0]

    def visits(self, start: int) -> np.ndarray:
        """Returns the samples of this process, and how often the run has been through their sets before.

        Args:
            start: Samples of the stream before the step.

        Returns:
            int64 (batch_size, 2): number of the sample; turn, from 0. No two visits of a run are equal.
        """
        return self._visits(start + self.rank * self.batch_size, self.batch_size)

    def after(self, position: Position) -> Position:
        """Returns where a run is one step further."""
        samples = position.samples + self.images_per_step
        epoch = (samples - 1) // self.size + 1
        step = position.step + 1 if epoch == position.epoch else 1
        return Position(epoch, step, samples, position.steps + 1)

    def before(self, position: Position) -> int:
        """Returns where in the stream the step began that ends at a position."""
        return position.samples - self.images_per_step

    def steps_left(self, position: Position, epochs: int) -> int:
        """Returns how many steps there are from a position to the end of an epoch, counted from 1."""
        return max(0, epochs * self.size - position.samples) // self.images_per_step

    def steps_in_epoch(self, position: Position) -> int:
        """Returns how many steps the epoch of a position has."""
        return position.step + self.steps_left(position, position.epoch)
