"""loss.csv and loss.png of a training run."""

import csv
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from src.common.atomic import atomic_path

LOSS_CSV = "loss.csv"


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


class LossLog:
    """loss.csv, a row a step, and loss.png, drawn from it.

    Args:
        folder: Where the two files are.
        epoch: A resumed run starts after ``step`` of this epoch: later rows, and a row that a killed run wrote half,
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
