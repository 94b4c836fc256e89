"""loss.csv and loss.png of a training run."""

import csv
import time
from collections.abc import Iterator, Sequence
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
        loss: Of this step's batch, averaged over the processes of a distributed run.
        backbone_lr: Learning rate of the encoder in this step.
        no_backbone_lr: Learning rate of the decoder in this step.
        inverted: How many images of the batch, of all processes, had an inverted prediction: far is large.
        seconds: What the step took, waiting for data included; the mean over the steps that were logged together.
    """

    epoch: int
    step: int
    loss: float
    backbone_lr: float
    no_backbone_lr: float
    inverted: int
    seconds: float


_COLUMNS = [field.name for field in fields(LossRow)]


class _Curve:
    """A curve of at most so many points, whatever is added: each is the mean of equally many values in a row."""

    MAX_POINTS = 2000  # more than loss.png has columns

    def __init__(self):
        self._whole: list[tuple[float, float]] = []
        self._begun: list[tuple[float, float]] = []
        self._stride = 1

    @property
    def points(self) -> list[tuple[float, float]]:
        """The points (x, y); the last may stand for fewer values."""
        return [*self._whole, _mean(self._begun)] if self._begun else self._whole

    def add(self, x: float, y: float) -> None:
        """Adds a value."""
        self._begun.append((x, y))
        if len(self._begun) == self._stride:
            self._whole.append(_mean(self._begun))
            self._begun = []
        if len(self._whole) == self.MAX_POINTS:
            self._whole = [_mean(pair) for pair in zip(self._whole[::2], self._whole[1::2])]
            self._stride *= 2


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


class LossLog:
    """loss.csv, a row a step, and loss.png, drawn from it.

    Args:
        folder: Where the two files are.
        steps_per_epoch: Of the run.
        epoch: A resumed run starts after ``step`` of this epoch: later rows, and a row that a killed run wrote half,
            are dropped. 0 starts an empty log.
        step: See ``epoch``.
    """

    REDRAW_S = 10.0  # drawing takes a third of a second: epochs may be shorter than that

    def __init__(self, folder: Path, steps_per_epoch: int, epoch: int = 0, step: int = 0):
        self.csv_path, self.png_path = folder / LOSS_CSV, folder / "loss.png"
        self._steps_per_epoch = steps_per_epoch
        self._curve = _Curve()
        with atomic_path(self.csv_path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for row in read_loss_csv(self.csv_path):
                if (row.epoch, row.step) <= (epoch, step):
                    self._add_to_curve(row)
                    writer.writerow(astuple(row))
        self._drawn = -self.REDRAW_S

    def append(self, rows: Sequence[LossRow]) -> None:
        """Adds rows; they survive the end of this process from here on."""
        for row in rows:
            self._add_to_curve(row)
        with open(self.csv_path, "a", newline="") as file:
            csv.writer(file).writerows(map(astuple, rows))

    def _add_to_curve(self, row: LossRow) -> None:
        self._curve.add(row.epoch - 1 + row.step / self._steps_per_epoch, row.loss)

    def draw_now_and_then(self) -> None:
        """Draws loss.png, unless it was drawn in the last ten seconds."""
        if time.monotonic() - self._drawn >= self.REDRAW_S:
            self.draw()

    def draw(self) -> None:
        """Draws loss.png."""
        points = self._curve.points
        if not points:
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        axes.plot(*zip(*points), lw=1)
        axes.set(xlabel="epoch", ylabel="training loss", yscale="log")
        axes.grid(alpha=0.3, which="both")
        with atomic_path(self.png_path) as temporary:
            figure.savefig(temporary, dpi=100)
        self._drawn = time.monotonic()


def read_loss_csv(path: Path) -> Iterator[LossRow]:
    """Reads the sound rows of a loss.csv, one at a time; an absent file has none."""
    if not path.is_file():
        return
    with open(path, newline="") as file:
        for cells in csv.reader(file):
            try:
                epoch, step, loss, backbone_lr, no_backbone_lr, inverted, seconds = cells
                row = LossRow(
                    int(epoch), int(step), float(loss), float(backbone_lr), float(no_backbone_lr), int(inverted),
                    float(seconds),
                )  # fmt: skip
            except ValueError:
                continue  # the header, or the last line of a killed run
            yield row
