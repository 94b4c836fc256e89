"""Which training sample comes when, on which of several processes."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from src.common.errors import DataError


@lru_cache(maxsize=2)  # steps come in order, but two workers may be in two epochs
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of the samples in an epoch: a permutation of ``range(size)``, int64."""
    return np.random.default_rng([seed, epoch]).permutation(size)


@dataclass(frozen=True)
class SampleOrder:
    """The samples of every step of a run, for one process.

    Every epoch has ``size // (batch_size * world)`` steps; samples that do not fill a step are left out of that epoch.
    Rank r takes the r-th ``batch_size`` samples of every global batch. The order depends on ``seed`` and the epoch
    alone, so a resumed run sees exactly the rest of what the uninterrupted one would have seen.

    Attributes:
        size: Number of samples in the training set.
        batch_size: Samples per step and rank.
        seed: Seed of the run, >= 0.
        rank: This process, from 0.
        world: Number of processes.

    Raises:
        DataError: There are fewer samples than one global batch takes.
    """

    size: int
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1

    def __post_init__(self):
        if self.steps_per_epoch == 0:
            raise DataError(
                f"training data: {self.size} samples are fewer than one step takes "
                f"(batch size {self.batch_size} x {self.world} devices)"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full steps in an epoch."""
        return self.size // self.images_per_step

    @property
    def images_per_step(self) -> int:
        """Samples in a step, of all processes."""
        return self.batch_size * self.world

    def all_samples(self, step: int) -> np.ndarray:
        """Returns the sample numbers of all processes, int64 (batch_size * world,), of a step counted from 0."""
        epoch, step = divmod(step, self.steps_per_epoch)
        first = step * self.images_per_step
        return epoch_order(self.size, self.seed, epoch)[first : first + self.images_per_step]

    def samples(self, step: int) -> np.ndarray:
        """Returns the sample numbers of this process, int64 (batch_size,), of a step counted from 0."""
        return self.all_samples(step)[self.rank * self.batch_size :][: self.batch_size]
