"""The course of a run: what decides it, how long it is, how far it is, and the learning rate of every step."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plan:
    """What decides the course of a run; a resumed run must have the same.

    Attributes:
        samples: Training images.
        files: CRC-32 of their names, in order.
        batch_size: Per process.
        world: Data-parallel processes.
        seed: Of the data order.
        img_width: Of the network's input, pixels.
        img_height: The same.
        network_ops: See ``src/custom_op.py``.
        loss: Its name.
    """

    samples: int
    files: int
    batch_size: int
    world: int
    seed: int
    img_width: int
    img_height: int
    network_ops: str
    loss: str

    @property
    def images_per_step(self) -> int:
        """Images in a step, of all processes."""
        return self.batch_size * self.world

    @property
    def steps_per_epoch(self) -> int:
        """Full steps in an epoch."""
        return self.samples // self.images_per_step


@dataclass(frozen=True)
class Position:
    """How far a run is.

    Attributes:
        epoch: Counted from 1.
        step: Finished steps of that epoch.
        inverted: How many images of these steps had an inverted prediction.
    """

    epoch: int = 1
    step: int = 0
    inverted: int = 0

    def steps_done(self, steps_per_epoch: int) -> int:
        """Returns how many steps of the whole run are finished."""
        return (self.epoch - 1) * steps_per_epoch + self.step

    def after_step(self, inverted: int) -> "Position":
        """Returns the position one step further, in which so many predictions were inverted."""
        return Position(self.epoch, self.step + 1, self.inverted + inverted)

    def or_next_epoch(self, steps_per_epoch: int) -> "Position":
        """Returns the start of the next epoch if this is the end of one."""
        return self if self.step < steps_per_epoch else Position(self.epoch + 1)


@dataclass(frozen=True)
class LoopSettings:
    """How long a run is and what it leaves behind.

    Attributes:
        epochs: Of the whole run.
        save_epochs: Epochs between checkpoints.
        save_steps: Additional checkpoints every so many steps of the run; 0 for none.
        keep_checkpoints: How many checkpoints to keep.
        log_interval: Steps between progress lines.
    """

    epochs: int
    save_epochs: int = 1
    save_steps: int = 0
    keep_checkpoints: int = 2
    log_interval: int = 10


def learning_rates(lr: float, end_lr: float, power: float, steps: int, decay: bool) -> np.ndarray:
    """Returns the learning rate of every step of a run.

    ``(lr - end_lr) * (1 - i / steps)^power + end_lr`` at step i = 0, 1, ... with ``decay``, else ``lr``.

    Args:
        lr: At the first step.
        end_lr: What the decay leads to.
        power: Of the polynomial.
        steps: Of the whole run.
        decay: Polynomial decay, or a constant rate.

    Returns:
        (steps,) float32.
    """
    if not decay:
        return np.full(steps, lr, np.float32)
    return ((lr - end_lr) * (1 - np.arange(steps) / steps) ** power + end_lr).astype(np.float32)
