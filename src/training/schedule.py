"""The course of a run: how long it is, what it leaves behind, and the learning rate of every update."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LoopSettings:
    """How long a run is and what it leaves behind.

    Attributes:
        epochs: Of the whole run.
        steps: Of the whole run, when it ends: with the last epoch or before.
        save_epochs: Epochs between checkpoints.
        save_steps: Additional checkpoints every so many steps of the run; 0 for none.
        save_minutes: Additional checkpoints every so many minutes; 0 for none.
        keep_checkpoints: How many checkpoints to keep.
        log_interval: Steps between progress lines.
        eval_epochs: Epochs between validations.
    """

    epochs: int
    steps: int
    save_epochs: int = 1
    save_steps: int = 0
    save_minutes: float = 0.0
    keep_checkpoints: int = 2
    log_interval: int = 10
    eval_epochs: int = 1


@dataclass(frozen=True)
class LearningRate:
    """A learning rate that falls polynomially: ``(start - end) * (1 - i / steps)^power + end`` at update i = 0, 1, ...

    Attributes:
        start: At the first update.
        end: What it falls to.
        power: Of the polynomial.
        steps: Updates of the whole run.
        offset: Added to i: a run that was resumed with another number of images per step goes on where it was.
        frozen: Before this update, the rate is 0.
    """

    start: float
    end: float
    power: float
    steps: float
    offset: float = 0.0
    frozen: int = 0

    @classmethod
    def constant(cls, rate: float) -> "LearningRate":
        """Makes a learning rate that stays as it is."""
        return cls(rate, rate, 1.0, 1)

    def at(self, update: int) -> float:
        """Returns the learning rate of an update, counted from 0."""
        if update < self.frozen:
            return 0.0
        left = max(1 - (update + self.offset) / self.steps, 0.0)
        return (self.start - self.end) * left**self.power + self.end


@dataclass(frozen=True)
class Schedule:
    """What the learning rates of a run have in common; part of its checkpoints.

    Attributes:
        steps: Of the whole run, had it always had as many images per step as now; not whole after a change of that.
        offset: See ``LearningRate``.
        frozen: Updates before which the encoder's rate is 0.
        images_per_step: Of all processes.
        updates: Done so far.
    """

    steps: float
    offset: float
    frozen: int
    images_per_step: int
    updates: int = 0

    def resumed(self, left: int, frozen: int, images_per_step: int) -> "Schedule":
        """Returns the schedule of the run from here on.

        Args:
            left: Steps to be done, with ``images_per_step``.
            frozen: As an attribute, for that number of images.
            images_per_step: From here on.
        """
        if images_per_step == self.images_per_step:
            return self  # a step that was skipped is no update: what was planned at the start holds
        done = (self.updates + self.offset) / self.steps
        # What is left of the fall takes what is left of the run.
        steps = left / (1 - done) if done < 1 else self.steps
        return Schedule(steps, done * steps - self.updates, frozen, images_per_step, self.updates)

    def rate(self, start: float, end: float, power: float, is_encoder: bool) -> LearningRate:
        """Makes a learning rate; one that does not fall has ``end`` equal to ``start``."""
        return LearningRate(start, end, power, self.steps, self.offset, self.frozen if is_encoder else 0)
