"""The training loop: steps, log, checkpoints, and what ends a run early."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, Optional

import mindspore as ms
from mindspore import nn

from src.common.errors import CheckpointError, DataError, MidasError, end_at_once
from src.common.progress import format_seconds
from src.common.stop import Requests, stop_between_items
from src.training.group import Group
from src.training.loss_log import LossLog, LossRow
from src.training.run_folder import RunFolder
from src.training.schedule import LearningRate, LoopSettings, Position
from src.training.step import training_state
from src.utils.loadImgDepth import Batches
from src.utils.order import SampleOrder
from src.weights.checkpoint import save_checkpoint

# How long several processes may go on before they look whether one of them was asked to stop.
_LONGEST_DELAY_S = 1.0
_NO_CHECKPOINT = "there is no checkpoint yet"


class EndOfRun(MidasError):
    """The run ends before its last epoch; every process raises it after the same step."""


class _Reporter:
    """Times steps and epochs, and prints how far the run is.

    Args:
        order: Of the run.
        settings: Of the run.
        start: Where the run starts.
        is_silent: Print nothing.
    """

    def __init__(self, order: SampleOrder, settings: LoopSettings, start: Position, is_silent: bool):
        self.order, self.settings, self.is_silent = order, settings, is_silent
        self.run_steps = settings.epochs * order.steps_per_epoch
        self.first_step = start.steps_done(order.steps_per_epoch)
        self.epoch_first_step = start.step % order.steps_per_epoch
        self.run_start = self.epoch_start = self.last = time.perf_counter()

    def print(self, line: str) -> None:
        """Prints a line at once."""
        if not self.is_silent:
            print(line, flush=True)

    def lap(self) -> float:
        """Returns the seconds since it was called before."""
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
                f"epoch {row.epoch}/{self.settings.epochs} step {row.step}/{self.order.steps_per_epoch}, "
                f"loss {row.loss:.5g}, {rate * self.order.images_per_step:.2f} images/s, {left} left"
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

    What a step tells stays on the device until it is wanted: at ``log_interval``, at the end of an epoch, before a
    checkpoint. A step that is not finite does not touch the weights, so nothing is lost by looking later.

    Args:
        step: ``TrainStep``.
        order: Of the samples.
        settings: Of the loop.
        rates: Learning rates of encoder and decoder, for the log.
        course: What decides the course of the run; stays in the checkpoints.
        folder: Run folder; the first process alone writes to it.
        image_paths: Maps sample numbers to file names, for messages.
        group: The processes that train together.
        last_checkpoint: What the run has been resumed from.
    """

    def __init__(
        self,
        step: nn.Cell,
        order: SampleOrder,
        settings: LoopSettings,
        rates: tuple[LearningRate, LearningRate],
        course: Mapping[str, Any],
        folder: RunFolder,
        image_paths: Callable[[Sequence[int]], list[str]],
        group: Group,
        last_checkpoint: Optional[Path] = None,
    ):
        self.step, self.order, self.settings, self.rates = step, order, settings, rates
        self.course, self.folder, self.image_paths, self.group = course, folder, image_paths, group
        self.last_checkpoint = last_checkpoint
        self._log: Optional[LossLog] = None
        self._pending: list[tuple[Position, ms.Tensor]] = []
        self._unsaved: Optional[Position] = None
        self._requests = Requests()

    def run(self, dataset: Any, start: Position) -> None:
        """Trains from ``start`` to the end of the last epoch.

        SIGINT and SIGTERM, to any of the processes, end the run after the step at hand, with a checkpoint; a second one
        ends the process at once.

        Args:
            dataset: MindSpore data set of (image, target, mask) batches for all remaining steps.
            start: Where the run starts.

        Raises:
            EndOfRun: A loss or gradient is not finite, or the run was asked to stop.
            DataError: A file has become unreadable, or a loader has died; what had been learnt is saved before.
        """
        if self.group.rank == 0:
            self._log = LossLog(self.folder.path, self.order.steps_per_epoch, start.epoch, start.step)
        reporter = _Reporter(self.order, self.settings, start, is_silent=self.group.rank != 0)
        announcement = "asked to stop: the run ends after this step, with a checkpoint"
        with Batches(dataset, self._give_up) as source, stop_between_items(announcement) as self._requests:
            ending = None
            try:
                self._loop(source, start, reporter, self._requests)
            except DataError as error:
                raise self._keep(str(error)) from error
            except EndOfRun as end:
                ending = end
            finally:
                self._draw()
            if ending:
                self.group.wait_for_all()  # the launcher kills the others as soon as one has ended
                raise ending

    def _keep(self, fault: str) -> DataError:
        """Saves what has been learnt so far, and returns the error that says what has happened and how to go on."""
        self._read(0.0)
        if self._unsaved and self.group.rank == 0:  # no other process has a checkpoint to write, or to name
            self.save(self._unsaved)
        return DataError(f"{fault}; {self._how_to_go_on()}")

    def _give_up(self, fault: str) -> None:
        """Ends the process, in which the training waits for a dead loader."""
        try:
            # A request to the whole group of processes ends the loaders at once.
            error = self._keep("stopped on request" if self._requests else fault)
        except Exception as another:
            error = another
        end_at_once(error)

    def _draw(self) -> None:
        if self._log:
            with suppress(OSError):  # a full disk has been reported by what it stopped
                self._log.draw()

    def _loop(self, source: Batches, position: Position, reporter: _Reporter, requests: Requests) -> None:
        steps = self.order.steps_per_epoch
        first = done = position.steps_done(steps)
        next_look, step_s = first + 1, 0.0
        for batch in source:
            notes = ms.Tensor([float(bool(requests)), step_s], ms.float32)
            told = self.step(*batch, notes)
            position, done = position.after_step(steps), done + 1
            self._pending.append((position, told))
            is_epoch_end, is_save_due = position.step == steps, self._is_save_due(position)
            # Once, as a signal may come at any time; with several processes, what all of them have been told counts.
            is_asked = self.group.world == 1 and bool(requests)
            is_look_due = done >= next_look or done % self.settings.log_interval == 0
            if not (is_asked or is_look_due or is_epoch_end or is_save_due):
                continue
            told.asnumpy()  # the device may be behind: what it has yet to do belongs to the time of these steps
            step_s = reporter.lap() / len(self._pending)
            row, stopped, mean_s = self._read(step_s)
            next_look = done + self.settings.log_interval
            if self.group.world > 1:
                is_asked = stopped > 0
                next_look = done + max(1, int(_LONGEST_DELAY_S / mean_s) if mean_s else 1)
            reporter.step(row, done)
            if is_epoch_end:
                reporter.epoch(row)
                if self._log:
                    self._log.draw_now_and_then()
            if is_asked or is_save_due:
                self.save(position)
            if is_asked and done < reporter.run_steps:
                where = f"after epoch {position.epoch} step {position.step}"
                raise EndOfRun(f"stopped on request {where}; {self._how_to_go_on()}")
            if is_epoch_end:
                reporter.start_epoch()

    def _read(self, step_s: float) -> tuple[Optional[LossRow], float, float]:
        """Reads what the steps since the last call have told, and logs it.

        Args:
            step_s: Seconds that each of them took, on average.

        Returns:
            The last of the steps, how many processes had been asked to stop before it, and the mean over the processes
            of the seconds that a step took before.

        Raises:
            EndOfRun: One of the steps was not finite; those before it are logged.
        """
        rows: list[LossRow] = []
        pending, self._pending = self._pending, []
        stopped = seconds = 0.0
        try:
            for position, told in pending:  # in the order of the steps
                loss, is_updated, inverted, stopped, seconds = told.asnumpy().tolist()
                if not is_updated:
                    self._raise_not_finite(position, loss)
                update = position.steps_done(self.order.steps_per_epoch) - 1
                rates = (rate.at(update) for rate in self.rates)
                rows.append(LossRow(position.epoch, position.step, loss, *rates, int(inverted), step_s))
                self._unsaved = position
        finally:
            if self._log:
                self._log.append(rows)
        return (rows or [None])[-1], stopped, seconds / self.group.world

    def _is_save_due(self, position: Position) -> bool:
        steps = self.order.steps_per_epoch
        if self.settings.save_steps and position.steps_done(steps) % self.settings.save_steps == 0:
            return True
        is_epoch_due = position.epoch % self.settings.save_epochs == 0 or position.epoch == self.settings.epochs
        return position.step == steps and is_epoch_due

    def save(self, position: Position) -> None:
        """Writes a checkpoint of network and optimizer and deletes those that are too old."""
        path = self.folder.checkpoint_path(position.epoch, position.step)
        if self.group.rank == 0:
            extra = {**asdict(position), "course": dict(self.course)}
            try:
                save_checkpoint(path, training_state(self.step), extra)
            except CheckpointError as error:  # a full disk
                raise CheckpointError(f"{error}; {self._how_to_go_on()}") from error
        self.last_checkpoint, self._unsaved = path, None
        if self.group.rank == 0:
            self.folder.prune(self.settings.keep_checkpoints)

    def _raise_not_finite(self, position: Position, loss: float) -> NoReturn:
        what = "gradients: expected finite numbers, found NaN or infinity"
        if not math.isfinite(loss):
            what = f"loss: expected a finite number, found {loss}"
        samples = self.order.all_samples(position.steps_done(self.order.steps_per_epoch) - 1)
        files = ", ".join(self.image_paths(samples.tolist()))
        where = f"epoch {position.epoch} step {position.step}"
        good = f"the last good checkpoint is {self.last_checkpoint}" if self.last_checkpoint else _NO_CHECKPOINT
        raise EndOfRun(f"{what} at {where}, batch {files}; {good}")

    def _how_to_go_on(self) -> str:
        if self.last_checkpoint is None:
            return _NO_CHECKPOINT
        return f"the last checkpoint is {self.last_checkpoint}; --resume True resumes the run"
