"""The files of one training run: resolved settings, checkpoints, loss.csv and loss.png."""

import csv
import re
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Optional, Union

from src.common.atomic import atomic_path, remove_leftovers, write_text
from src.common.errors import UsageError

CONFIG_FILE, LOSS_CSV = "config.yaml", "loss.csv"
_CHECKPOINT = re.compile(r"Midas_(\d+)-(\d+)_(\d+)\.ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file and its place in the run, as its name says it.

    Attributes:
        epoch: Counted from 1.
        step: Finished steps of that epoch.
        path: The file.
    """

    epoch: int
    step: int
    path: Path


@dataclass(frozen=True)
class LossRow:
    """One training step, a row of loss.csv.

    Attributes:
        epoch: Counted from 1.
        step: Within the epoch, counted from 1.
        loss: Of this step's batch (of this process in a distributed run).
        backbone_lr: Learning rate of the encoder in this step.
        no_backbone_lr: Learning rate of the decoder in this step.
        seconds: What the step took, waiting for data included.
    """

    epoch: int
    step: int
    loss: float
    backbone_lr: float
    no_backbone_lr: float
    seconds: float


_COLUMNS = [field.name for field in fields(LossRow)]


class RunFolder:
    """A folder that holds one training run.

    Args:
        path: The folder; made by ``start``.
        device_id: Number of the device, part of the documented checkpoint name.
    """

    def __init__(self, path: Union[str, Path], device_id: int = 0):
        self.path = Path(path)
        self.device_id = device_id

    def start(self, settings: str, epoch: int, step: int) -> None:
        """Makes the folder and writes the resolved settings.

        Args:
            settings: YAML text.
            epoch: The run goes on after ``step`` of this epoch; 1 and 0 for a new one.
            step: See ``epoch``.

        Raises:
            UsageError: If the folder holds checkpoints from beyond that point, of another run: the present one's would
                be taken for older than those, and deleted first.
        """
        latest = self.latest()
        if latest and (latest.epoch, latest.step) > (epoch, step):
            raise UsageError(
                f"train_output_path {self.path}: expected no checkpoints after epoch {epoch} step {step}, where this "
                f"run starts, found {latest.path.name}; go on from it with --resume True, or name another folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        write_text(self.path / CONFIG_FILE, settings)

    def checkpoint_path(self, epoch: int, step: int) -> Path:
        """Returns the documented name ``Midas_{device_id}-{epoch}_{step}.ckpt`` in this folder."""
        return self.path / f"Midas_{self.device_id}-{epoch}_{step}.ckpt"

    def checkpoints(self) -> list[Checkpoint]:
        """Lists the checkpoints of the run, whichever device wrote them, oldest first."""
        found = []
        for path in self.path.glob("*.ckpt"):
            match = _CHECKPOINT.fullmatch(path.name)
            if match:
                found.append(Checkpoint(int(match[2]), int(match[3]), path))
        return sorted(found, key=lambda checkpoint: (checkpoint.epoch, checkpoint.step))

    def latest(self) -> Optional[Checkpoint]:
        """Returns the checkpoint that is furthest in the run, or None."""
        return (self.checkpoints() or [None])[-1]

    def prune(self, keep: int) -> None:
        """Deletes all but the ``keep`` newest checkpoints."""
        for checkpoint in self.checkpoints()[:-keep]:
            checkpoint.path.unlink(missing_ok=True)


class LossLog:
    """loss.csv, a row a step, and loss.png, drawn from it.

    Args:
        folder: Where the two files are.
        epoch: A resumed run goes on after ``step`` of this epoch: later rows, and a row that a killed run wrote half,
            are dropped. 0 starts an empty log.
        step: See ``epoch``.

    Attributes:
        rows: What loss.csv holds.
    """

    REDRAW_S = 10.0  # drawing takes a third of a second: epochs may be shorter than that

    def __init__(self, folder: Path, epoch: int = 0, step: int = 0):
        self.csv_path, self.png_path = folder / LOSS_CSV, folder / "loss.png"
        self.rows = [row for row in read_loss_csv(self.csv_path) if (row.epoch, row.step) <= (epoch, step)]
        with atomic_path(self.csv_path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            writer.writerows(map(astuple, self.rows))
        self._drawn = -self.REDRAW_S

    def append(self, row: LossRow) -> None:
        """Adds a row; it is on disk when this returns."""
        self.rows.append(row)
        with open(self.csv_path, "a", newline="") as file:
            csv.writer(file).writerow(astuple(row))

    def draw(self, now: bool = False) -> None:
        """Draws loss.png, unless it was drawn in the last ten seconds and ``now`` is false."""
        if not self.rows or (not now and time.monotonic() - self._drawn < self.REDRAW_S):
            return
        from matplotlib.figure import Figure

        steps_per_epoch = max(row.step for row in self.rows)
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        axes.plot(
            [row.epoch - 1 + row.step / steps_per_epoch for row in self.rows], [row.loss for row in self.rows], lw=1
        )
        axes.set(xlabel="epoch", ylabel="training loss", yscale="log")
        axes.grid(alpha=0.3, which="both")
        with atomic_path(self.png_path) as temporary:
            figure.savefig(temporary, dpi=100)
        self._drawn = time.monotonic()


def read_loss_csv(path: Path) -> list[LossRow]:
    """Reads the sound rows of a loss.csv; an absent file has none."""
    rows = []
    if path.is_file():
        with open(path, newline="") as file:
            for cells in csv.reader(file):
                try:
                    epoch, step, *numbers = cells
                    rows.append(LossRow(int(epoch), int(step), *map(float, numbers)))
                except (ValueError, TypeError):
                    continue  # the header, or the last line of a killed run
    return rows
