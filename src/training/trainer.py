"""Training: learning rates, the compiled step, and the loop with its log, checkpoints and resume."""

import math
import signal
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable, Optional

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.common.errors import CheckpointError, DataError, MidasError
from src.common.progress import format_seconds
from src.loss import align_scale_shift
from src.training.run_folder import LossLog, LossRow, RunFolder
from src.utils.loadImgDepth import batches
from src.weights.checkpoint import read_ckpt, save_checkpoint


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


def create_optimizer(net: nn.Cell) -> nn.Adam:
    """Makes Adam with a learning rate of its own for the encoder; ``set_learning_rates`` says which.

    (Adam also takes the rates of all steps as lists, but then it looks them up once a parameter, and the full network
    takes three times as long to compile.)

    Args:
        net: Its parameters whose name contains ``backbone`` are the encoder.
    """
    parameters = net.trainable_params()
    groups = [
        {"params": [p for p in parameters if "backbone" in p.name], "lr": 0.0},
        {"params": [p for p in parameters if "backbone" not in p.name], "lr": 0.0},
        {"order_params": parameters},
    ]
    return nn.Adam(groups)


def set_learning_rates(optimizer: nn.Adam, backbone_lr: float, no_backbone_lr: float) -> None:
    """Sets the learning rates of an optimizer of ``create_optimizer`` from its next step on."""
    parameters = {parameter.name: parameter for parameter in optimizer.learning_rate}
    if len(parameters) != 2:
        raise RuntimeError(f"expected one learning rate parameter a group, found {sorted(parameters)}")
    for name, rate in zip(sorted(parameters), (backbone_lr, no_backbone_lr)):  # learning_rate_group_0, ..._1
        parameters[name].set_data(ms.Tensor(rate, ms.float32))


class _NetworkWithLoss(nn.Cell):
    """(image, mask, target) -> (loss, how many images are predicted upside down, largest prediction)."""

    def __init__(self, net: nn.Cell, loss: nn.Cell):
        super().__init__(auto_prefix=False)
        self.net, self.loss = net, loss

    def construct(self, image, mask, target):
        prediction = self.net(image)
        scale, _ = align_scale_shift(prediction.astype(ms.float32), mask, target)
        inverted = (scale < 0).astype(ms.float32).sum()
        return self.loss(prediction, mask, target), inverted, prediction.max()


class TrainStep(nn.Cell):
    """One optimisation step: (image, mask, target) -> four scalars, the state being that before the step.

    * the loss;
    * whether the gradients of this process are finite: the loss may hide it, since a ReLU turns the NaN of ruined
      weights into 0;
    * how many of the images, of all processes, a negative scale would fit best, see ``turn_output``;
    * the largest prediction, averaged over the processes.

    Args:
        net: (N, 3, H, W) -> (N, H, W).
        loss: (prediction, mask, target) -> scalar.
        optimizer: Over the parameters of ``net``.
        grad_clip_norm: Largest global norm of the gradients; 0 leaves them alone.
        world: Number of data-parallel processes, whose gradients are averaged.
    """

    def __init__(
        self, net: nn.Cell, loss: nn.Cell, optimizer: nn.Optimizer, grad_clip_norm: float = 0.0, world: int = 1
    ):
        super().__init__(auto_prefix=False)
        self.network = _NetworkWithLoss(net, loss)
        self.network.set_grad()
        self.optimizer = optimizer
        self.value_and_grad = ops.value_and_grad(self.network, None, optimizer.parameters, has_aux=True)
        is_alone = world == 1
        self.average = nn.Identity() if is_alone else nn.DistributedGradReducer(optimizer.parameters)
        self.sum = nn.Identity() if is_alone else ops.AllReduce(ops.ReduceOp.SUM)
        self.world = world
        # NaN and infinity in what a layer gets, or gets back, show in the gradients of its bias, scale or shift. These
        # are a thousandth of all: to look at every gradient would take longer than to update the weights.
        self.vectors = tuple(i for i, parameter in enumerate(optimizer.parameters) if parameter.ndim == 1)
        self.grad_clip_norm = grad_clip_norm

    def construct(self, image, mask, target):
        (loss, inverted, peak), gradients = self.value_and_grad(image, mask, target)
        vector_sum = ops.zeros((), ms.float32)
        for index in self.vectors:
            vector_sum = vector_sum + gradients[index].astype(ms.float32).sum()
        finite = ops.isfinite(vector_sum)
        gradients = self.average(gradients)
        if self.grad_clip_norm > 0:
            gradients = ops.clip_by_global_norm(gradients, self.grad_clip_norm)
        mean_peak = self.sum(peak) / self.world  # not the largest: on the CPU AllReduce can only add
        return ops.depend(loss, self.optimizer(gradients)), finite, self.sum(inverted), mean_peak


def turn_output(step: TrainStep, peak: float) -> None:
    """Turns the network's output round, near for far: p becomes 1.5 peak - p.

    A loss that fits a scale to each image is as happy with a negative one. A decoder that starts from random weights
    therefore learns inverse depth or its negative, whichever is closer, and stays with it. Changing the sign of the
    last layer, and of its first moments in Adam, leads from one to the other in mid-training at the price of a shift,
    which the loss does not see; only pixels that the last ReLU had cut off are new to it.

    Args:
        step: Its network is a ``MidasNet``.
        peak: About the largest prediction; the half above it keeps the turned output clear of the ReLU.
    """
    last = step.network.net.output_layer
    moments = {parameter.name: parameter for parameter in step.optimizer.get_parameters()}
    for parameter in (last.weight, last.bias):
        moment = moments[f"moment1.{parameter.name}"]
        moment.set_data(-moment)
    last.weight.set_data(-last.weight)
    last.bias.set_data(1.5 * peak - last.bias)


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
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch."""
        return self.samples // (self.batch_size * self.world)


@dataclass(frozen=True)
class Position:
    """How far a run is.

    Attributes:
        epoch: Counted from 1.
        step: Finished steps of that epoch.
        inverted: How many images of these steps were predicted upside down.
    """

    epoch: int = 1
    step: int = 0
    inverted: int = 0

    def or_next_epoch(self, steps_per_epoch: int) -> "Position":
        """Returns the start of the next epoch if this is the end of one."""
        return self if self.step < steps_per_epoch else Position(self.epoch + 1)


class Trainer:
    """Runs training steps over batches and keeps the run folder up to date.

    Args:
        step: ``TrainStep``.
        plan: Of the run.
        epochs: Of the run.
        backbone_lr: (epochs * steps_per_epoch,), learning rate of the encoder at every step.
        no_backbone_lr: The same for the decoder.
        folder: Run folder; None in all but the first of several data-parallel processes.
        batch_files: Maps the sample indices of a batch to file names, for messages.
        save_epochs: Epochs between checkpoints.
        save_steps: Additional checkpoints every so many steps of the run; 0 for none.
        keep_checkpoints: How many checkpoints to keep.
        log_interval: Steps between progress lines.
    """

    def __init__(
        self,
        step: nn.Cell,
        plan: Plan,
        epochs: int,
        backbone_lr: np.ndarray,
        no_backbone_lr: np.ndarray,
        folder: Optional[RunFolder],
        batch_files: Callable[[Sequence[int]], list[str]],
        save_epochs: int = 1,
        save_steps: int = 0,
        keep_checkpoints: int = 2,
        log_interval: int = 10,
    ):
        self.step, self.plan, self.epochs = step, plan, epochs
        self.backbone_lr, self.no_backbone_lr = backbone_lr, no_backbone_lr
        self.folder, self.batch_files = folder, batch_files
        self.save_epochs, self.save_steps, self.keep_checkpoints = save_epochs, save_steps, keep_checkpoints
        self.log_interval = log_interval
        self._stop_requested = False
        self._unsaved: Optional[Position] = None

    def run(self, dataset, start: Position) -> None:
        """Trains from ``start`` to the end of the last epoch.

        SIGINT and SIGTERM end the run after the step at hand, with a checkpoint; a second one ends it at once. (Of
        several processes none may leave the others waiting: there the signals keep their usual meaning.)

        Args:
            dataset: MindSpore data set of (image, mask, target, index) batches for all remaining steps.
            start: Where the run goes on.

        Raises:
            MidasError: A loss is not finite, or the run was asked to stop.
            DataError: A file has become unreadable; what had been learnt is saved before.
        """
        log = LossLog(self.folder.path, start.epoch, start.step) if self.folder else None
        numbers = (signal.SIGINT, signal.SIGTERM) if self.plan.world == 1 else ()
        handlers = {number: signal.signal(number, self._request_stop) for number in numbers}
        try:
            self._loop(dataset, start.or_next_epoch(self.plan.steps_per_epoch), log)
        except DataError:
            if self._unsaved:
                self.save(self._unsaved)
            raise
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if log:
                with suppress(OSError):  # a full disk has been reported by what it stopped
                    log.draw(now=True)

    def _request_stop(self, number: int, _frame: object) -> None:
        self._stop_requested = True
        signal.signal(number, signal.SIG_DFL)

    def _loop(self, dataset, position: Position, log: Optional[LossLog]) -> None:
        steps = self.plan.steps_per_epoch
        first = (position.epoch - 1) * steps + position.step
        epoch_first_step, last_rates = position.step, None
        run_start = epoch_start = last = time.perf_counter()
        for done, (image, mask, target, index) in enumerate(batches(dataset), first):
            rates = float(self.backbone_lr[done]), float(self.no_backbone_lr[done])
            if rates != last_rates:
                set_learning_rates(self.step.optimizer, *rates)
                last_rates = rates
            loss, is_finite, inverted, peak = (float(output.asnumpy()) for output in self.step(image, mask, target))
            now = time.perf_counter()
            position = Position(position.epoch, position.step + 1, position.inverted + int(inverted))
            row = LossRow(position.epoch, position.step, loss, *rates, now - last)
            if not (math.isfinite(loss) and is_finite):
                raise MidasError(self._not_finite(row, index.asnumpy().tolist()))
            self._unsaved = position
            if log:
                log.append(row)
            if done == first:
                self._print(f"first step {now - last:.1f} s, compilation included")
                run_start = now
            elif (done + 1) % self.log_interval == 0:
                self._progress(row, done, now - run_start, done - first)
            last = now
            is_save_due = self._stop_requested or (self.save_steps and (done + 1) % self.save_steps == 0)
            if position.step == steps:
                total_ms = (now - epoch_start) * 1000
                step_ms = total_ms / (steps - epoch_first_step)
                self._print(f"epoch: {position.epoch} step: {steps}, loss is {loss:.7g}")
                self._print(f"epoch time: {total_ms:.3f} ms, per step time: {step_ms:.3f} ms")
                if self.is_upside_down(position):
                    self._print(f"near and far were confused in {position.inverted} images: the output is turned round")
                    turn_output(self.step, peak)
                is_save_due = is_save_due or position.epoch % self.save_epochs == 0 or position.epoch == self.epochs
                if log:
                    log.draw()
            if is_save_due:
                self.save(position)
            if self._stop_requested:
                raise MidasError(
                    f"stopped on request after epoch {position.epoch} step {position.step}; --resume True goes on"
                )
            if position.step == steps:
                position, epoch_first_step = position.or_next_epoch(steps), 0
                last = epoch_start = time.perf_counter()

    def is_upside_down(self, position: Position) -> bool:
        """Whether at the end of an epoch the output should be turned round.

        Three quarters of the epoch's images must say so: no trained network comes near that, and chance does not turn
        the output to and fro. Not after the last epoch, since nothing would be learnt after it.
        """
        images = self.plan.steps_per_epoch * self.plan.batch_size * self.plan.world
        return position.epoch < self.epochs and position.inverted >= 0.75 * images

    def save(self, position: Position) -> None:
        """Writes a checkpoint of network and optimizer and deletes those that are too old."""
        if not self.folder:
            return
        path = self.folder.checkpoint_path(position.epoch, position.step)
        save_checkpoint(path, training_state(self.step), {**asdict(position), **asdict(self.plan)})
        self._unsaved = None
        self.folder.prune(self.keep_checkpoints)

    def _progress(self, row: LossRow, done: int, elapsed_s: float, steps_done: int) -> None:
        rate = steps_done / elapsed_s
        images = rate * self.plan.batch_size * self.plan.world
        left = format_seconds((self.epochs * self.plan.steps_per_epoch - done - 1) / rate)
        self._print(
            f"epoch {row.epoch}/{self.epochs} step {row.step}/{self.plan.steps_per_epoch}, loss {row.loss:.5g}, "
            f"{images:.2f} images/s, {left} left"
        )

    def _print(self, line: str) -> None:
        if self.folder:
            print(line, flush=True)

    def _not_finite(self, row: LossRow, indices: list[int]) -> str:
        latest = self.folder.latest() if self.folder else None
        good = f"the last good checkpoint is {latest.path}" if latest else "there is no checkpoint yet"
        what = "gradients: expected finite numbers, found NaN or infinity"
        if not math.isfinite(row.loss):
            what = f"loss: expected a finite number, found {row.loss}"
        files = ", ".join(self.batch_files(indices))
        return f"{what} at epoch {row.epoch} step {row.step}, batch {files}; {good}"


def weights_crc(net: nn.Cell) -> int:
    """Returns a CRC-32 of all trainable parameters."""
    crc = 0
    for parameter in net.trainable_params():
        crc = zlib.crc32(parameter.asnumpy().tobytes(), crc)
    return crc


def training_state(step: nn.Cell) -> dict:
    """Collects what a run needs to go on: weights, batch statistics, Adam's moments and its counters.

    Learning rates are left out: they follow from the configuration and the step counter.
    """
    return {p.name: p for p in step.get_parameters() if not p.name.startswith("learning_rate")}


def restore(step: nn.Cell, path: Path, plan: Plan) -> Position:
    """Loads a training checkpoint into a step's network and optimizer.

    Args:
        step: A ``TrainStep`` built as in the run that wrote the checkpoint.
        path: The checkpoint.
        plan: Of the run that goes on.

    Returns:
        Where that run was.

    Raises:
        CheckpointError: If the file is not a training checkpoint of this network, or of a run with another plan.
    """
    tensors, extra = read_ckpt(path)
    if not {"epoch", "step", "inverted"} <= extra.keys():
        raise CheckpointError(f"{path}: expected a training checkpoint with optimizer state, found weights alone")
    changed = [
        "other training images" if key == "files" else f"{key} {extra.get(key)} then and {value} now"
        for key, value in asdict(plan).items()
        if extra.get(key) != value
    ]
    if changed:
        raise CheckpointError(f"{path}: expected a run of the same course, found {', '.join(changed)}")
    parameters = training_state(step)
    wrong = [name for name, p in parameters.items() if name not in tensors or tensors[name].shape != tuple(p.shape)]
    if wrong:
        raise CheckpointError(
            f"{path}: expected the network of the configuration and its optimizer state, found {len(wrong)} tensors "
            f"missing or of another shape, first {wrong[0]}"
        )
    for name, parameter in parameters.items():
        parameter.set_data(ms.Tensor(tensors[name]))
    return Position(extra["epoch"], extra["step"], extra["inverted"])
