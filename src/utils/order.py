"""Which training sample comes when, on which of several processes."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from src.common.errors import DataError


@lru_cache(maxsize=4)  # steps come in order, but several workers may be in several epochs
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of the samples in an epoch, counted from 0: a permutation of ``range(size)``, int64."""
    return np.random.default_rng([seed, epoch]).permutation(size)


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

    The samples of a run are one stream: those of the first epoch in a random order, then those of the second in
    another, and so on. A step takes the next ``batch_size * world`` of them, and rank r the r-th ``batch_size`` of
    these. So every sample comes once an epoch, however many processes there are, and a step may begin in one epoch and
    end in the next; it counts for the latter. Only the end of the last epoch may be too short for a step. The stream
    depends on ``seed`` alone: a resumed run sees exactly the rest of it, with other processes or batches, too.

    Attributes:
        size: Number of samples in the training set.
        batch_size: Samples per step and rank.
        seed: Seed of the run, >= 0.
        rank: This process, from 0.
        world: Number of processes.

    Raises:
        DataError: There are fewer samples than one step takes.
    """

    size: int
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1

    def __post_init__(self):
        if self.size < self.images_per_step:
            raise DataError(
                f"training data: expected at least the {self.images_per_step} samples that one step takes "
                f"(batch_size x accumulate_steps {self.batch_size} x devices {self.world}), found {self.size}"
            )

    @property
    def images_per_step(self) -> int:
        """Samples in a step, of all processes."""
        return self.batch_size * self.world

    def all_samples(self, start: int) -> np.ndarray:
        """Returns the samples of all processes in the step that starts at a place in the stream.

        Args:
            start: Samples of the stream before it.

        Returns:
            Sample numbers, int64 (batch_size * world,).
        """
        epoch, first = divmod(start, self.size)
        last = first + self.images_per_step
        samples = epoch_order(self.size, self.seed, epoch)[first:last]
        if last <= self.size:
            return samples
        return np.concatenate((samples, epoch_order(self.size, self.seed, epoch + 1)[: last - self.size]))

    def samples(self, start: int) -> np.ndarray:
        """Returns the samples of this process, int64 (batch_size,), see ``all_samples``."""
        return self.all_samples(start)[self.rank * self.batch_size :][: self.batch_size]

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
