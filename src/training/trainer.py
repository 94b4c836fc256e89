"""The training loop: steps, log, checkpoints, validation, and what ends a run early."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn, Optional

import mindspore as ms
import numpy as np

from src.common.errors import CheckpointError, DataError, MidasError, end_at_once
from src.common.progress import format_seconds
from src.common.stop import Requests, stop_between_items
from src.training.cells import is_device_the_host
from src.training.group import Group, Meeting
from src.training.loss_log import LossLog, LossRow, SetRow
from src.training.run_folder import RunFolder
from src.training.schedule import LearningRate, LoopSettings, Schedule
from src.training.step import TrainStep
from src.training.validation import Judge, Validator, merge
from src.utils.loadImgDepth import Batches
from src.utils.order import Position, SampleOrder
from src.weights.checkpoint import save_checkpoint

# How long several processes may go on before they look whether one of them was asked to stop.
_LONGEST_DELAY_S = 1.0
_NO_CHECKPOINT = "there is no checkpoint yet"
# So many steps without a finite gradient in a row end a run whose loss is scaled.
_MOST_SKIPPED = 20

_Finish = Callable[[Callable[[], None]], None]  # sees to it that the first process does something


class EndOfRun(MidasError):
    """The run ends before its last epoch; every process raises it after the same step."""


class StoppedRun(EndOfRun):
    """The run was asked to stop; MindSpore makes SIGTERM of SIGINT, so nobody can tell one from the other."""

    exit_status = 143


class Clock:
    """Where the time goes: seconds since the last reset, by what they were spent on.

    Args:
        computes_at_once: Whether a step has been computed when the call returns, as on the CPU, or most of it. On other
            devices the call hands it to a queue, and the device is waited for when a result is read.
    """

    def __init__(self, computes_at_once: bool):
        self._call = "device" if computes_at_once else "host"
        self.reset()

    def reset(self) -> None:
        """Starts anew."""
        self.spent = {"data": 0.0, "device": 0.0, "host": 0.0}
        self._last = time.perf_counter()

    def lap(self, what: str) -> None:
        """Adds the time since the last call to ``data``, ``device``, ``host`` or ``call`` (of a step)."""
        now = time.perf_counter()
        self.spent[self._call if what == "call" else what] += now - self._last
        self._last = now

    def describe(self, steps: int) -> str:
        """Says in plain words where the time of a step has gone, on average, and what to change."""
        seconds = {what: spent / steps for what, spent in self.spent.items()}
        total = sum(seconds.values())
        text = (
            f"of {total * 1000:.0f} ms a step, {seconds['device'] * 1000:.0f} computing, "
            f"{seconds['data'] * 1000:.0f} waiting for training data, {seconds['host'] * 1000:.0f} other"
        )
        if seconds["data"] > 0.2 * total:
            text += "; more num_parallel_workers, or faster storage, would help"
        elif seconds["host"] > 0.2 * total:
            text += "; a larger batch_size, log_interval or save_checkpoint_epochs would help"
        return text


class _Reporter:
    """Times steps and epochs, and prints how far the run is.

    Args:
        order: Of the run.
        settings: Of the run.
        start: Where the run starts.
        is_silent: Print nothing.
        computes_at_once: See ``Clock``.
    """

    def __init__(
        self, order: SampleOrder, settings: LoopSettings, start: Position, is_silent: bool, computes_at_once: bool
    ):
        self.order, self.settings, self.is_silent = order, settings, is_silent
        self.first_step = self.epoch_first_step = start.steps
        self.run_start = self.epoch_start = self.last = time.perf_counter()
        self.clock = Clock(computes_at_once)
        self.clock_first_step = start.steps

    def print(self, line: str) -> None:
        """Prints a line at once."""
        if not self.is_silent:
            print(line, flush=True)

    def lap(self) -> float:
        """Returns the seconds since it was called before."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        return seconds

    def step(self, row: LossRow, position: Position) -> None:
        """Says how far the run is, now and then."""
        if position.steps == self.first_step + 1:
            self.print(f"first step {row.seconds:.1f} s, compilation included")
            self.run_start = self.last
            self.clock.reset()
            self.clock_first_step = position.steps
        elif position.steps % self.settings.log_interval == 0:
            rate = (position.steps - self.first_step - 1) / (self.last - self.run_start)
            left = format_seconds((self.settings.steps - position.steps) / rate)
            self.print(
                f"epoch {row.epoch}/{self.settings.epochs} step {row.step}/{self.order.steps_in_epoch(position)}, "
                f"loss {row.loss:.5g}, {rate * self.order.images_per_step:.2f} images/s, {left} left"
            )

    def epoch(self, row: LossRow, position: Position, skipped: int) -> None:
        """Says what an epoch that has ended took."""
        total_ms = (self.last - self.epoch_start) * 1000
        self.print(f"epoch: {row.epoch} step: {row.step}, loss is {row.loss:.7g}")
        step_ms = total_ms / (position.steps - self.epoch_first_step)
        line = f"epoch time: {total_ms:.3f} ms, per step time: {step_ms:.3f} ms"
        if position.steps > self.clock_first_step:
            line += f"; {self.clock.describe(position.steps - self.clock_first_step)}"
        if skipped:
            line += f"; skipped so far, as gradients overflowed: {skipped}; loss scale {row.loss_scale:g}"
        self.print(line)

    def start_epoch(self, position: Position) -> None:
        """Starts the clocks of the epoch after a position."""
        self.last = self.epoch_start = time.perf_counter()
        self.epoch_first_step = self.clock_first_step = position.steps
        self.clock.reset()


class Trainer:
    """Runs training steps over batches and keeps the run folder up to date.

    What a step tells stays on the device until it is wanted: at ``log_interval``, at the end of an epoch, before a
    checkpoint. A step that is not finite does not touch the weights, so nothing is lost by looking later.

    Args:
        step: One step.
        order: Of the samples.
        settings: Of the loop.
        rates: Learning rates of encoder and decoder, for the log.
        schedule: What they are made of; stays in the checkpoints.
        course: What decides the course of the run; stays in the checkpoints.
        folder: Run folder; the first process alone writes to it.
        image_paths: Maps sample numbers to file names, for messages.
        group: The processes that train together.
        last_checkpoint: What the run has been resumed from.
        validators: They score the network; every process does its share.
        judge: Which of the networks so far is the best, by the first score.
        on_saved: Called in the first process when there is a new checkpoint.
        sets: Names of the training sets whose losses and weights the step tells.
    """

    def __init__(
        self,
        step: TrainStep,
        order: SampleOrder,
        settings: LoopSettings,
        rates: tuple[LearningRate, LearningRate],
        schedule: Schedule,
        course: Mapping[str, Any],
        folder: RunFolder,
        image_paths: Callable[[Sequence[int]], list[str]],
        group: Group,
        last_checkpoint: Optional[Path] = None,
        validators: Sequence[Validator] = (),
        judge: Optional[Judge] = None,
        on_saved: Optional[Callable[[], None]] = None,
        sets: Sequence[str] = (),
    ):
        self.step, self.order, self.settings, self.rates, self.schedule = step, order, settings, rates, schedule
        self.course, self.folder, self.image_paths, self.group = course, folder, image_paths, group
        self.last_checkpoint, self.validators, self.judge = last_checkpoint, validators, judge or Judge(0)
        self.on_saved, self.sets = on_saved or (lambda: None), sets
        self._log: Optional[LossLog] = None
        self._pending: list[tuple[Position, ms.Tensor]] = []
        self._unsaved: Optional[Position] = None
        self._requests = Requests()
        self._updates = schedule.updates
        self._skipped_in_a_row = 0
        self._saved_at = time.monotonic()

    def run(self, dataset: Any, start: Position, is_validation_due: bool = False) -> None:
        """Trains from ``start`` to the end of the last epoch.

        SIGINT and SIGTERM, to any of the processes, end the run after the step at hand, with a checkpoint; a second one
        ends the process at once.

        Args:
            dataset: MindSpore data set of (image, target, mask) batches for all remaining steps; None without any.
            start: Where the run starts.
            is_validation_due: Whether the run was stopped in the validation after ``start``.

        Raises:
            StoppedRun: The run was asked to stop.
            EndOfRun: A loss or gradient is not finite.
            DataError: A file has become unreadable, or a loader has died; what had been learnt is saved before, if it
                happened in the first process.
        """
        if self.group.rank == 0:
            self._log = LossLog(self.folder.path, self.order.size, start.epoch, start.step)
        computes_at_once = is_device_the_host() or self.step.waits
        reporter = _Reporter(self.order, self.settings, start, self.group.rank != 0, computes_at_once)
        announcement = "asked to stop: the run ends after this step, with a checkpoint"
        with stop_between_items(announcement) as self._requests:
            try:
                if is_validation_due and self.validators:
                    is_over, is_cut_short = self._validate(start, reporter)
                    if is_cut_short:
                        raise self._stopped(start)
                    self.save(start)
                    if is_over:
                        return
                if dataset is not None:
                    with Batches(dataset, self._give_up) as source:
                        self._loop(source, start, reporter, self._requests)
            except DataError as error:
                raise self._keep(str(error)) from error
            finally:
                self._draw()

    def _keep(self, fault: str) -> DataError:
        """Saves what has been learnt so far, and returns the error that says what has happened and how to go on."""
        self._read(0.0)
        if self._unsaved and self.group.rank == 0:  # no other process has a checkpoint to write, or to name
            self._save_run(self._unsaved, is_validation_due=False, finish=lambda write: write())
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
        next_look, step_s = position.steps + 1, 0.0
        clock = reporter.clock
        for batch in source:
            clock.lap("data")
            notes = ms.Tensor([float(bool(requests)), float(self._is_time_to_save()), step_s], ms.float32)
            told = self.step(*batch, notes)
            clock.lap("call")
            position = self.order.after(position)
            self._pending.append((position, told))
            done, is_run_end = position.steps, position.steps == self.settings.steps
            is_epoch_end = is_run_end or self.order.steps_left(position, position.epoch) == 0
            is_save_due = self._is_save_due(position, is_epoch_end)
            # Once, as a signal may come at any time; with several processes, what all of them have been told counts.
            is_asked = self.group.world == 1 and bool(requests)
            is_look_due = done >= next_look or done % self.settings.log_interval == 0
            is_look_due = is_look_due or (self.group.world == 1 and self._is_time_to_save())
            if not (is_asked or is_look_due or is_epoch_end or is_save_due):
                continue
            clock.lap("host")
            told.asnumpy()  # the device may be behind: what it has yet to do belongs to the time of these steps
            clock.lap("device")
            step_s = reporter.lap() / len(self._pending)
            row, stopped, is_time_up, mean_s = self._read(step_s)
            next_look = done + self.settings.log_interval
            if self.group.world > 1:
                is_asked = stopped > 0
                next_look = done + max(1, int(_LONGEST_DELAY_S / mean_s) if mean_s else 1)
            reporter.step(row, position)
            if is_epoch_end:
                clock.lap("host")
                reporter.epoch(row, position, position.steps - self._updates)
                if self._log:
                    self._log.draw_now_and_then()
            is_over = is_cut_short = False
            if is_epoch_end and self._is_validation_due(position):
                is_over, is_cut_short = self._validate(position, reporter)
            if is_asked or is_save_due or is_time_up or is_over or is_cut_short:
                self.save(position, is_cut_short)
            if is_cut_short or (is_asked and not is_run_end):
                raise self._stopped(position)
            if is_over:
                return
            if is_epoch_end:
                reporter.start_epoch(position)

    def _read(self, step_s: float) -> tuple[Optional[LossRow], float, bool, float]:
        """Reads what the steps since the last call have told, and logs it.

        Args:
            step_s: Seconds that each of them took, on average.

        Returns:
            The last of the steps, how many processes had been asked to stop before it, whether it was time to save
            before one of the steps, and the mean over the processes of the seconds that a step took before.

        Raises:
            EndOfRun: One of the steps was not finite and the loss is not scaled, or too many in a row were not; those
                before it are logged.
        """
        rows: list[LossRow] = []
        of_sets: list[SetRow] = []
        pending, self._pending = self._pending, []
        stopped = seconds = 0.0
        is_time_up = False
        try:
            for position, told in pending:  # in the order of the steps
                loss, is_updated, inverted, scale, stopped, time_up, seconds, *of_each = told.asnumpy().tolist()
                if not is_updated:
                    self._count_skipped(position, loss, scale)
                rates = (rate.at(self._updates) for rate in self.rates)
                rows.append(
                    LossRow(
                        epoch=position.epoch,
                        step=position.step,
                        samples=position.samples,
                        loss=loss,
                        backbone_lr=next(rates),
                        no_backbone_lr=next(rates),
                        inverted=int(inverted),
                        loss_scale=scale,
                        updated=int(is_updated),
                        seconds=step_s,
                    )
                )
                figures = zip(self.sets, of_each, of_each[len(self.sets) :])
                of_sets += [SetRow(position.epoch, position.step, position.samples, *figure) for figure in figures]
                if is_updated:
                    self._updates += 1
                    self._skipped_in_a_row = 0
                self._unsaved = position
                is_time_up = is_time_up or time_up > 0
        finally:
            if self._log:
                self._log.append(rows, of_sets)
        return (rows or [None])[-1], stopped, is_time_up, seconds / self.group.world

    def _count_skipped(self, position: Position, loss: float, scale: float) -> None:
        """Counts a step that was not finite; raises EndOfRun if that is no overflow that a smaller scale cures."""
        if self.step.scaler is None:
            self._raise_not_finite(position, loss, scale)
        self._skipped_in_a_row += 1
        is_lowest = scale <= 1 or not self.step.is_scale_dynamic
        if is_lowest and self._skipped_in_a_row >= _MOST_SKIPPED:
            self._raise_not_finite(position, loss, scale)

    def _is_time_to_save(self) -> bool:
        """Whether the first process finds that it is time for a checkpoint; the others hear of it."""
        minutes = self.settings.save_minutes
        return self.group.rank == 0 and 0 < minutes * 60 <= time.monotonic() - self._saved_at

    def _is_save_due(self, position: Position, is_epoch_end: bool) -> bool:
        if self.settings.save_steps and position.steps % self.settings.save_steps == 0:
            return True
        is_epoch_due = position.epoch % self.settings.save_epochs == 0
        return position.steps == self.settings.steps or (is_epoch_end and is_epoch_due)

    def _is_validation_due(self, position: Position) -> bool:
        if not self.validators:
            return False
        is_last = position.steps == self.settings.steps
        return is_last or position.epoch % self.settings.eval_epochs == 0

    def _validate(self, position: Position, reporter: _Reporter) -> tuple[bool, bool]:
        """Scores the network and keeps it if it is the best so far.

        Returns:
            Whether patience is over, and whether a process was asked to stop: the scores then say nothing.
        """
        start = time.perf_counter()
        self._average_statistics()
        meeting = Meeting(self.group, lambda: bool(self._requests))
        scores = [score for validator in self.validators for score in validator(meeting.is_asked)]
        if meeting.finish():
            return False, True
        values = merge(scores, self.group)
        is_best = self.judge.judge(values)
        shown = ", ".join(f"{name} {value:.5g}" for name, value in values.items())
        best = ", the best so far" if is_best else ""
        reporter.print(f"validation: {shown}{best} ({time.perf_counter() - start:.1f} s)")
        if self._log:
            self._log.append_scores(position.epoch, position.step, position.samples, values)
        if is_best:
            weights = {p.name: p for p in self.step.net.get_parameters()}
            extra = {"course": dict(self.course), "scores": values}
            self._save_file(self.folder.best_path, weights, extra, self.group.first_finishes)
            if self.group.rank == 0:
                self.on_saved()
        if self.judge.is_patience_over:
            reporter.print(f"no better score in {self.judge.waited} validations (patience): the run ends here")
        return self.judge.is_patience_over, False

    def _average_statistics(self) -> None:
        """Gives all processes the mean of their statistics of batch normalisation.

        They are running means, so the mean over the processes is what one process would have that saw the batches of
        all, and to take it now and then is to take it always.
        """
        statistics = self.step.statistics()
        if self.group.world == 1 or not statistics:
            return
        arrays = [parameter.asnumpy() for parameter in statistics.values()]
        mean = self.group.sum(np.concatenate([array.ravel() for array in arrays]) / self.group.world)
        parts = np.split(mean, np.cumsum([array.size for array in arrays])[:-1])
        for parameter, array, part in zip(statistics.values(), arrays, parts):
            parameter.set_data(ms.Tensor(part.reshape(array.shape)))

    def save(self, position: Position, is_validation_due: bool = False) -> None:
        """Writes a checkpoint and deletes those that are too old; every process must call it.

        Args:
            position: Of the run.
            is_validation_due: Whether the validation there was cut short: a resumed run starts with it.
        """
        self._average_statistics()
        self._save_run(position, is_validation_due, self.group.first_finishes)

    def _save_run(self, position: Position, is_validation_due: bool, finish: _Finish) -> None:
        path = self.folder.checkpoint_path(position.epoch, position.step)
        extra = {
            **asdict(position),
            "schedule": asdict(replace(self.schedule, updates=self._updates)),
            "course": dict(self.course),
            "judge": self.judge.state(),
            "is_validation_due": is_validation_due,
        }
        self._save_file(path, self.step.state(), extra, finish)
        self.last_checkpoint, self._unsaved, self._saved_at = path, None, time.monotonic()
        if self.group.rank == 0:
            self.folder.prune(self.settings.keep_checkpoints)
            self.on_saved()

    def _save_file(
        self, path: Path, parameters: Mapping[str, ms.Parameter], extra: Mapping[str, Any], finish: _Finish
    ) -> None:
        """Writes a file in the first process; ``finish`` decides what the others do meanwhile."""
        arrays = {}
        if self.group.rank == 0:  # read here, since the file may be written in a thread
            arrays = {name: parameter.asnumpy() for name, parameter in parameters.items()}

        def write() -> None:
            try:
                save_checkpoint(path, arrays, extra)
            except CheckpointError as error:  # a full disk
                raise CheckpointError(f"{error}; {self._how_to_go_on()}") from error

        finish(write)

    def _stopped(self, position: Position) -> StoppedRun:
        where = f"after epoch {position.epoch} step {position.step}"
        return StoppedRun(f"stopped on request {where}; {self._how_to_go_on()}")

    def _raise_not_finite(self, position: Position, loss: float, scale: float) -> NoReturn:
        often = advice = ""
        if self.step.scaler is not None:
            often = f" in {self._skipped_in_a_row} steps in a row, loss scale {scale:g}"
            advice = "; smaller learning rates may help, or amp_dtype bfloat16, or amp_level O0"
        what = f"gradients: expected finite numbers, found NaN or infinity{often}"
        if not math.isfinite(loss):
            what = f"loss: expected a finite number, found {loss}{often}"
        samples = self.order.all_samples(self.order.before(position))
        files = ", ".join(self.image_paths(samples.tolist()))
        where = f"epoch {position.epoch} step {position.step}"
        good = f"the last good checkpoint is {self.last_checkpoint}" if self.last_checkpoint else _NO_CHECKPOINT
        raise EndOfRun(f"{what} at {where}, batch {files}; {good}{advice}")

    def _how_to_go_on(self) -> str:
        if self.last_checkpoint is None:
            return _NO_CHECKPOINT
        return f"the last checkpoint is {self.last_checkpoint}; --resume True resumes the run"
