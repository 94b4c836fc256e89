"""loss.csv, sets.csv, val.csv and loss.png of a training run."""

import csv
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Optional, TypeVar

import numpy as np

from src.common.atomic import atomic_path

LOSS_CSV, SETS_CSV, VAL_CSV = "loss.csv", "sets.csv", "val.csv"
WEIGHT = "weight"  # of a set
HELD_BACK = "loss"  # name of the score that is the loss of images held back
_SHORTEST_WINDOW = 5  # values in a running mean


@dataclass(frozen=True)
class LossRow:
    """One training step, a row of loss.csv.

    Attributes:
        epoch: Counted from 1.
        step: Within the epoch, counted from 1.
        loss: Of this step's batch, of all processes; of several sets, the plain mean.
        backbone_lr: Learning rate of the encoder in this step; of a skipped one, what it would have been.
        no_backbone_lr: Learning rate of the decoder, in the same way.
        inverted: How many images of the batch, of all processes, had an inverted prediction: far is large.
        seconds: What the step took, waiting for data included; the mean over the steps that were logged together.
        samples: How many samples the run has taken with this step, of all epochs and processes.
        loss_scale: What the loss was multiplied by before the backward pass; 1 where it is not scaled.
        updated: 1, or 0 for a step that was skipped because its gradients overflowed.
        resumes: How often the run had been resumed before; ``LossLog`` knows.
    """

    epoch: int
    step: int
    loss: float
    backbone_lr: float
    no_backbone_lr: float
    inverted: int
    seconds: float
    samples: int
    loss_scale: float = 1.0
    updated: int = 1
    resumes: int = 0


@dataclass(frozen=True)
class ScoreRow:
    """One score of a validation, a row of val.csv; less is better.

    Attributes:
        epoch: Of the step before the validation.
        step: See ``epoch``.
        samples: How many samples the run had taken by then.
        name: Of the score: ``loss``, or an evaluation set and its metric.
        value: Mean over the images; NaN where there was none to score.
    """

    epoch: int
    step: int
    samples: int
    name: str
    value: float


@dataclass(frozen=True)
class SetRow:
    """One set in one step of a training on several, a row of sets.csv.

    Attributes:
        epoch: Of the step.
        step: See ``epoch``.
        samples: How many samples the run has taken with this step.
        name: Of the set.
        loss: Of its images in this step, before the update.
        weight: Of the set in the update, 0 to 1; those of all sets sum to 1.
    """

    epoch: int
    step: int
    samples: int
    name: str
    loss: float
    weight: float


Row = TypeVar("Row", LossRow, SetRow, ScoreRow)
Points = list[tuple[float, float]]


class _Curve:
    """A curve of at most so many points, whatever is added: each is the mean of equally many values in a row."""

    MAX_POINTS = 2000  # more than loss.png has columns

    def __init__(self):
        self._whole: Points = []
        self._begun: Points = []
        self._stride = 1

    @property
    def points(self) -> Points:
        """The points (x, y); the last may stand for fewer values."""
        return [*self._whole, _mean(self._begun)] if self._begun else self._whole

    def add(self, x: float, y: float) -> None:
        """Adds a value; one that is not finite has no place in a curve."""
        if not math.isfinite(y):
            return
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
    """loss.csv, a row a step; val.csv, a row a score, once there is one; sets.csv, a row a step and set, with several.

    loss.png is drawn from them.

    Args:
        folder: Where the files are.
        size: Number of samples in the training set.
        epoch: A resumed run starts after ``step`` of this epoch: later rows, and a row that a killed run wrote half,
            are dropped. 0 starts empty logs.
        step: See ``epoch``.
    """

    REDRAW_S = 10.0  # drawing takes a third of a second: epochs may be shorter than that

    def __init__(self, folder: Path, size: int, epoch: int = 0, step: int = 0):
        self.csv_path, self.val_path, self.sets_path = folder / LOSS_CSV, folder / VAL_CSV, folder / SETS_CSV
        self.png_path = folder / "loss.png"
        self._size = size
        self._curve = _Curve()
        self._set_losses: dict[str, _Curve] = defaultdict(_Curve)
        self._set_weights: dict[str, _Curve] = defaultdict(_Curve)
        self._scores: dict[str, Points] = defaultdict(list)
        self._resumed_at: list[float] = []  # epochs
        self._epochs = 0.0  # how far the run is
        self._resumes = 0  # of the last row
        with atomic_path(self.csv_path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_columns(LossRow))
            for row in read_loss_csv(self.csv_path):
                if (row.epoch, row.step) <= (epoch, step):
                    self._add_loss(row)
                    writer.writerow(astuple(row))
        self._resumes_now = self._resumes + ((epoch, step) > (1, 0))
        for path, kind, add in ((self.val_path, ScoreRow, self._add_scores), (self.sets_path, SetRow, self._add_sets)):
            if path.is_file():
                rows = [row for row in _read(path, kind) if (row.epoch, row.step) <= (epoch, step)]
                with atomic_path(path) as temporary:
                    _append(temporary, rows, kind)
                add(rows)
        self._drawn = -self.REDRAW_S

    def append(self, rows: Sequence[LossRow], of_sets: Sequence[SetRow] = ()) -> None:
        """Adds rows; they survive the end of this process from here on."""
        rows = [replace(row, resumes=self._resumes_now) for row in rows]
        _append(self.csv_path, rows, LossRow)
        for row in rows:
            self._add_loss(row)
        if of_sets:
            _append(self.sets_path, of_sets, SetRow)
            self._add_sets(of_sets)

    def append_scores(self, epoch: int, step: int, samples: int, values: Mapping[str, float]) -> None:
        """Adds the scores of a validation after a step, by name; see ``ScoreRow``."""
        rows = [ScoreRow(epoch, step, samples, name, value) for name, value in values.items()]
        _append(self.val_path, rows, ScoreRow)
        self._add_scores(rows)

    def _add_loss(self, row: LossRow) -> None:
        epochs = row.samples / self._size
        if row.resumes != self._resumes:
            self._resumed_at.append(self._epochs or epochs)  # the rows before may be in another folder
        self._epochs, self._resumes = epochs, row.resumes
        self._curve.add(epochs, row.loss)

    def _add_sets(self, rows: Iterable[SetRow]) -> None:
        for row in rows:
            epochs = row.samples / self._size
            self._set_losses[row.name].add(epochs, row.loss)
            self._set_weights[row.name].add(epochs, row.weight)

    def _add_scores(self, rows: Iterable[ScoreRow]) -> None:
        for row in rows:
            self._scores[row.name].append((row.samples / self._size, row.value))

    def draw_now_and_then(self) -> None:
        """Draws loss.png, unless it was drawn in the last ten seconds."""
        if time.monotonic() - self._drawn >= self.REDRAW_S:
            self.draw()

    def draw(self) -> None:
        """Draws loss.png."""
        if self._curve.points:
            curves = {"loss of a set": self._set_losses, WEIGHT: self._set_weights} if self._set_losses else {}
            of_sets = {  # steps that were skipped may be all there is
                what: {name: curve.points for name, curve in sets.items() if curve.points}
                for what, sets in curves.items()
            }
            draw_curves(self.png_path, self._curve.points, self._scores, self._resumed_at, of_sets)
            self._drawn = time.monotonic()


def draw_curves(
    path: Path,
    losses: Points,
    scores: Mapping[str, Points],
    resumed_at: Sequence[float],
    of_sets: Optional[Mapping[str, Mapping[str, Points]]] = None,
) -> None:
    """Draws the course of a run.

    Args:
        path: The picture.
        losses: (epochs, training loss), the losses of single steps or their means.
        scores: Name of a score -> its values. ``loss`` is drawn beside the training loss; the others have a panel for
            each metric, which is what follows the first blank of their names.
        resumed_at: Where the run was resumed, epochs.
        of_sets: What is known of each training set in each step -> set -> values; each has a panel.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    of_sets = of_sets or {}
    panels = defaultdict(dict)
    for name, points in scores.items():
        set_name, _, metric = name.partition(" ")
        if metric:
            panels[metric][set_name] = points
    count = len(of_sets) + len(panels)
    figure = Figure(figsize=(8, 4.5 + 2 * count), layout="constrained")
    axes, *others = figure.subplots(
        1 + count, sharex=True, squeeze=False, gridspec_kw={"height_ratios": [4.5, *[2] * count]}
    )[:, 0]
    epochs, values = np.array(losses).T
    smooth = _smooth(values)
    if smooth is values:
        axes.plot(epochs, values, lw=1, label="training loss")
    else:
        axes.plot(epochs, values, lw=0.5, alpha=0.4, color="C0", label="training loss")
        axes.plot(epochs, smooth, lw=1.5, color="C0", label="its running mean")
    if HELD_BACK in scores:
        axes.plot(*zip(*scores[HELD_BACK]), lw=1.5, marker="o", ms=3, color="C1", label="loss of the images held back")
    axes.set(ylabel="loss", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")  # 20 rather than 2 x 10^1
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
    for panel, (what, sets) in zip(others, of_sets.items()):
        for number, (name, points) in enumerate(sets.items(), start=2):
            epochs, values = np.array(points).T
            panel.plot(epochs, _smooth(values), lw=1.5, color=f"C{number}", label=name)
        panel.set(ylabel=what, ylim=(0, 1) if what == WEIGHT else None)
    for panel, (metric, sets) in zip(others[len(of_sets) :], panels.items()):
        for number, (name, points) in enumerate(sets.items(), start=2):
            panel.plot(*zip(*points), lw=1.5, marker="o", ms=3, color=f"C{number}", label=name)
        panel.set(ylabel=metric)
    for panel in (axes, *others):
        for number, place in enumerate(resumed_at):
            panel.axvline(place, lw=1, ls=":", color="0.4", label="resumed" if number == 0 and panel is axes else None)
        panel.grid(alpha=0.3, which="both")
        panel.legend(fontsize="small")
    figure.supxlabel("epoch", fontsize="medium")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Returns the running mean of a curve, or the curve itself if it is too short for one."""
    window = max(_SHORTEST_WINDOW, len(values) // 25)
    return values if len(values) < 2 * window else running_mean(values, window)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Averages every value with its neighbours, ``window`` in all; at both ends with fewer.

    Args:
        values: (N,).
        window: Odd or even; the middle of an even one is the later of two.

    Returns:
        (N,).
    """
    sums = np.concatenate(([0.0], np.cumsum(values)))
    places = np.arange(len(values))
    first = np.maximum(places - window // 2, 0)
    end = np.minimum(places - window // 2 + window, len(values))
    return (sums[end] - sums[first]) / (end - first)


def read_loss_csv(path: Path) -> Iterator[LossRow]:
    """Reads the sound rows of a loss.csv, one at a time; an absent file has none."""
    return _read(path, LossRow)


def read_sets_csv(path: Path) -> Iterator[SetRow]:
    """Reads the sound rows of a sets.csv, one at a time; an absent file has none."""
    return _read(path, SetRow)


def read_val_csv(path: Path) -> Iterator[ScoreRow]:
    """Reads the sound rows of a val.csv, one at a time; an absent file has none."""
    return _read(path, ScoreRow)


def _columns(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def _read(path: Path, kind: type[Row]) -> Iterator[Row]:
    if not path.is_file():
        return
    types = [field.type for field in fields(kind)]
    with open(path, newline="") as file:
        for cells in csv.reader(file):
            if len(cells) != len(types):
                continue  # the last line of a killed run
            try:
                yield kind(*(of(cell) for of, cell in zip(types, cells)))
            except ValueError:
                continue  # the header, or such a line


def _append(path: Path, rows: Sequence[Row], kind: type[Row]) -> None:
    """Adds rows to a CSV file; a new one gets a header."""
    with open(path, "a", newline="") as file:
        writer = csv.writer(file)
        if not file.tell():
            writer.writerow(_columns(kind))
        writer.writerows(map(astuple, rows))
