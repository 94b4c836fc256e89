"""The training loop: steps, log, checkpoints, and what ends a run early."""

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, Callable, Optional

import numpy as np
from mindspore import nn

from src.common.errors import DataError, MidasError
from src.common.progress import format_seconds
from src.training.loss_log import LossLog, LossRow
from src.training.run_folder import RunFolder
from src.training.schedule import LoopSettings, Plan, Position
from src.training.step import invert_output, set_learning_rates, training_state
from src.utils.loadImgDepth import batches
from src.weights.checkpoint import save_checkpoint

# An epoch is inverted when this share of its images is. No trained network comes near it, and chance does not invert
# the output to and fro.
INVERTED_SHARE = 0.75


class _Reporter:
    """Times steps and epochs, and prints how far the run is.

    Args:
        plan: Of the run.
        settings: Of the run.
        start: Where the run starts.
        is_silent: Print nothing.
    """

    def __init__(self, plan: Plan, settings: LoopSettings, start: Position, is_silent: bool):
        self.plan, self.settings, self.is_silent = plan, settings, is_silent
        self.run_steps = settings.epochs * plan.steps_per_epoch
        self.first_step, self.epoch_first_step = start.steps_done(plan.steps_per_epoch), start.step
        self.run_start = self.epoch_start = self.last = time.perf_counter()

    def print(self, line: str) -> None:
        """Prints a line at once."""
        if not self.is_silent:
            print(line, flush=True)

    def lap(self) -> float:
        """Returns the seconds since the last step ended."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        return seconds

    def step(self, row: LossRow, done: int) -> None:
        """Says how far the run is after ``done`` steps, now and then."""
        if done == self.first_step + 1:
            self.print(f"first step {row.seconds:.1f} s, compilation included")
            self.run_start = self.last
        elif done % self.settings.log_interval == 0:
            rate = (done - self.first_step - 1) / (self.last - self.run_start)
            left = format_seconds((self.run_steps - done) / rate)
            self.print(
                f"epoch {row.epoch}/{self.settings.epochs} step {row.step}/{self.plan.steps_per_epoch}, "
                f"loss {row.loss:.5g}, {rate * self.plan.images_per_step:.2f} images/s, {left} left"
            )

    def epoch(self, row: LossRow) -> None:
        """Says what an epoch that has ended took."""
        total_ms = (self.last - self.epoch_start) * 1000
        self.print(f"epoch: {row.epoch} step: {row.step}, loss is {row.loss:.7g}")
        step_ms = total_ms / (row.step - self.epoch_first_step)
        self.print(f"epoch time: {total_ms:.3f} ms, per step time: {step_ms:.3f} ms")

    def start_epoch(self) -> None:
        """Starts the clock of the next epoch."""
        self.last = self.epoch_start = time.perf_counter()
        self.epoch_first_step = 0


class Trainer:
    """Runs training steps over batches and keeps the run folder up to date.

    Args:
        step: ``TrainStep``.
        plan: Of the run.
        settings: Of the run.
        rates: (2, epochs * steps_per_epoch), learning rates of encoder and decoder at every step.
        folder: Run folder; None in all but the first of several data-parallel processes.
        batch_files: Maps the sample indices of a batch to file names, for messages.
    """

    def __init__(
        self,
        step: nn.Cell,
        plan: Plan,
        settings: LoopSettings,
        rates: np.ndarray,
        folder: Optional[RunFolder],
        batch_files: Callable[[Sequence[int]], list[str]],
    ):
        self.step, self.plan, self.settings, self.rates = step, plan, settings, rates
        self.folder, self.batch_files = folder, batch_files
        self._stop_requested = False
        self._last_rates: tuple[float, ...] = ()
        self._unsaved: Optional[Position] = None

    def run(self, dataset: Any, start: Position) -> None:
        """Trains from ``start`` to the end of the last epoch.

        SIGINT and SIGTERM end the run after the step at hand, with a checkpoint; a second one ends it at once. (Of
        several processes none may leave the others waiting: there the signals keep their usual meaning.)

        Args:
            dataset: MindSpore data set of (image, target, mask, index) batches for all remaining steps.
            start: Where the run starts.

        Raises:
            MidasError: A loss is not finite, or the run was asked to stop.
            DataError: A file has become unreadable; what had been learnt is saved before.
        """
        log = LossLog(self.folder.path, start.epoch, start.step) if self.folder else None
        with self._stop_on_signals():
            try:
                self._loop(dataset, start.or_next_epoch(self.plan.steps_per_epoch), log)
            except DataError:
                if self._unsaved:
                    self.save(self._unsaved)
                raise
            finally:
                if log:
                    with suppress(OSError):  # a full disk has been reported by what it stopped
                        log.draw(now=True)

    @contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        def request_stop(number: int, _frame: object) -> None:
            self._stop_requested = True
            signal.signal(number, signal.SIG_DFL)

        numbers = (signal.SIGINT, signal.SIGTERM) if self.plan.world == 1 else ()
        handlers = {number: signal.signal(number, request_stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _loop(self, dataset: Any, position: Position, log: Optional[LossLog]) -> None:
        steps = self.plan.steps_per_epoch
        reporter = _Reporter(self.plan, self.settings, position, is_silent=self.folder is None)
        for *batch, index in batches(dataset):
            rates = self._set_rates(position)
            loss, is_finite, inverted, peak = (float(output.asnumpy()) for output in self.step(*batch))
            position = position.after_step(int(inverted))
            row = LossRow(position.epoch, position.step, loss, *rates, reporter.lap())
            if not (math.isfinite(loss) and is_finite):
                raise MidasError(self._not_finite(row, index.asnumpy().tolist()))
            self._unsaved = position
            if log:
                log.append(row)
            reporter.step(row, position.steps_done(steps))
            if position.step == steps:
                reporter.epoch(row)
                self._mend_orientation(position, peak, reporter)
                if log:
                    log.draw()
            is_last_step = self._stop_requested  # read once: a signal may come at any time
            if is_last_step or self._is_save_due(position):
                self.save(position)
            if is_last_step:
                raise MidasError(
                    f"stopped on request after epoch {position.epoch} step {position.step}; "
                    "--resume True resumes the run"
                )
            if position.step == steps:
                position = position.or_next_epoch(steps)
                reporter.start_epoch()

    def _set_rates(self, position: Position) -> tuple[float, ...]:
        """Sets and returns the learning rates of the step after ``position``."""
        rates = tuple(float(rate) for rate in self.rates[:, position.steps_done(self.plan.steps_per_epoch)])
        if rates != self._last_rates:
            set_learning_rates(self.step.optimizer, *rates)
            self._last_rates = rates
        return rates

    def is_inverted(self, position: Position) -> bool:
        """Whether the output should be inverted at the end of an epoch; not after the last: nothing would be learnt."""
        images = self.plan.steps_per_epoch * self.plan.images_per_step
        return position.epoch < self.settings.epochs and position.inverted >= INVERTED_SHARE * images

    def _mend_orientation(self, position: Position, peak: float, reporter: _Reporter) -> None:
        if self.is_inverted(position):
            reporter.print(f"{position.inverted} images of this epoch were inverted: the output is inverted")
            invert_output(self.step, peak)

    def _is_save_due(self, position: Position) -> bool:
        steps = self.plan.steps_per_epoch
        if self.settings.save_steps and position.steps_done(steps) % self.settings.save_steps == 0:
            return True
        is_epoch_due = position.epoch % self.settings.save_epochs == 0 or position.epoch == self.settings.epochs
        return position.step == steps and is_epoch_due

    def save(self, position: Position) -> None:
        """Writes a checkpoint of network and optimizer and deletes those that are too old."""
        if not self.folder:
            return
        path = self.folder.checkpoint_path(position.epoch, position.step)
        save_checkpoint(path, training_state(self.step), {**asdict(position), **asdict(self.plan)})
        self._unsaved = None
        self.folder.prune(self.settings.keep_checkpoints)

    def _not_finite(self, row: LossRow, indices: list[int]) -> str:
        latest = self.folder.latest() if self.folder else None
        good = f"the last good checkpoint is {latest.path}" if latest else "there is no checkpoint yet"
        what = "gradients: expected finite numbers, found NaN or infinity"
        if not math.isfinite(row.loss):
            what = f"loss: expected a finite number, found {row.loss}"
        files = ", ".join(self.batch_files(indices))
        return f"{what} at epoch {row.epoch} step {row.step}, batch {files}; {good}"
