"""The course of a run: how long it is, how far it is, and the learning rate of every step."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Position:
    """How far a run is.

    Attributes:
        epoch: Counted from 1.
        step: Finished steps of that epoch.
    """

    epoch: int = 1
    step: int = 0

    def steps_done(self, steps_per_epoch: int) -> int:
        """Returns how many steps of the whole run are finished."""
        return (self.epoch - 1) * steps_per_epoch + self.step

    def after_step(self, steps_per_epoch: int) -> "Position":
        """Returns the position one step further."""
        if self.step < steps_per_epoch:
            return Position(self.epoch, self.step + 1)
        return Position(self.epoch + 1, 1)


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


@dataclass(frozen=True)
class LearningRate:
    """A learning rate that falls polynomially: ``(start - end) * (1 - i / steps)^power + end`` at update i = 0, 1, ...

    Attributes:
        start: At the first update.
        end: What it falls to.
        power: Of the polynomial.
        steps: Updates of the whole run.
    """

    start: float
    end: float
    power: float
    steps: int

    @classmethod
    def constant(cls, rate: float) -> "LearningRate":
        """Makes a learning rate that stays as it is."""
        return cls(rate, rate, 1.0, 1)

    def at(self, update: int) -> float:
        """Returns the learning rate of an update, counted from 0."""
        return (self.start - self.end) * max(1 - update / self.steps, 0.0) ** self.power + self.end
