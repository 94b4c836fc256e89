"""loss.csv, val.csv and loss.png: what they hold after any number of stops and resumes."""

import csv
import math

import cv2
import numpy as np
import pytest

from src.training import loss_log
from src.training.loss_log import (
    LossLog,
    LossRow,
    ScoreRow,
    SetRow,
    draw_curves,
    read_loss_csv,
    read_sets_csv,
    read_val_csv,
    running_mean,
)


def row(epoch, step, samples, loss=1.0, **values):
    return LossRow(epoch, step, loss, 1e-5, 1e-4, 0, 0.5, samples, **values)


def test_log_drops_what_a_killed_run_wrote_after_its_checkpoint(tmp_path):
    rows = [row(epoch, step, 4 * epoch + 2 * step - 4, 0.1 * epoch) for epoch in (1, 2) for step in (1, 2)]
    log = LossLog(tmp_path, 4)
    log.append(rows[:1])
    log.append(rows[1:])
    with open(tmp_path / "loss.csv", "a") as file:
        file.write("3,1,0.")  # killed here
    assert list(read_loss_csv(tmp_path / "loss.csv")) == rows
    LossLog(tmp_path, 4, 2, 1)
    assert list(read_loss_csv(tmp_path / "loss.csv")) == rows[:3]
    LossLog(tmp_path, 4, 1, 0)  # a new run
    assert (tmp_path / "loss.csv").read_text().splitlines() == [
        "epoch,step,loss,backbone_lr,no_backbone_lr,inverted,seconds,samples,loss_scale,updated,resumes"
    ]


def test_scores_are_logged_and_dropped_in_the_same_way(tmp_path):
    log = LossLog(tmp_path, 4)
    assert not (tmp_path / "val.csv").exists()
    for epoch in (1, 2):
        log.append([row(epoch, 1, 4 * epoch)])
        log.append_scores(epoch, 1, 4 * epoch, {"loss": 0.5 / epoch, "TUM delta>1.25": math.nan})
    with open(tmp_path / "val.csv", "a") as file:
        file.write("3,1,12,lo")  # killed here
    with open(tmp_path / "val.csv", newline="") as file:
        assert next(csv.reader(file)) == ["epoch", "step", "samples", "name", "value"]
    rows = list(read_val_csv(tmp_path / "val.csv"))
    assert rows[::2] == [ScoreRow(1, 1, 4, "loss", 0.5), ScoreRow(2, 1, 8, "loss", 0.25)]
    assert [row.name for row in rows[1::2]] == ["TUM delta>1.25"] * 2
    assert all(math.isnan(row.value) for row in rows[1::2])
    log = LossLog(tmp_path, 4, 1, 1)
    log.append_scores(2, 1, 8, {"loss": 0.125})
    assert [row.value for row in read_val_csv(tmp_path / "val.csv") if row.name == "loss"] == [0.5, 0.125]
    LossLog(tmp_path, 4)
    assert not list(read_val_csv(tmp_path / "val.csv"))


def test_sets_are_logged_dropped_and_drawn_in_the_same_way(tmp_path, monkeypatch):
    log = LossLog(tmp_path, 4)
    log.append([row(1, 1, 2)])
    assert not (tmp_path / "sets.csv").exists()
    for epoch in (1, 2):
        of_sets = [SetRow(epoch, 1, 4 * epoch, name, epoch / size, 1 / size) for name, size in (("a", 2), ("b", 4))]
        log.append([row(epoch, 1, 4 * epoch)], of_sets)
    log.append([row(2, 2, 10)], [SetRow(2, 2, 10, "a", math.inf, math.nan)])  # a step that was skipped
    with open(tmp_path / "sets.csv", newline="") as file:
        assert next(csv.reader(file)) == ["epoch", "step", "samples", "name", "loss", "weight"]
    expected = {
        "loss of a set": {"a": [(1, 0.5), (2, 1)], "b": [(1, 0.25), (2, 0.5)]},
        "weight": {"a": [(1, 0.5), (2, 0.5)], "b": [(1, 0.25), (2, 0.25)]},
    }
    assert drawn(log, monkeypatch)[4] == expected
    assert drawn(LossLog(tmp_path, 4, 2, 2), monkeypatch)[4] == expected
    LossLog(tmp_path, 4, 1, 1)
    assert [(row.epoch, row.name, row.weight) for row in read_sets_csv(tmp_path / "sets.csv")] == [
        (1, "a", 0.5),
        (1, "b", 0.25),
    ]


def test_sets_without_a_finite_value_are_not_drawn(tmp_path):
    log = LossLog(tmp_path, 4)
    log.append([row(1, 1, 4)], [SetRow(1, 1, 4, "a", math.inf, math.nan), SetRow(1, 1, 4, "b", 1.0, math.nan)])
    log.draw()
    assert log.png_path.is_file()


def drawn(log, monkeypatch):
    """The arguments with which a log is drawn."""
    calls = []
    monkeypatch.setattr(loss_log, "draw_curves", lambda *arguments: calls.append(arguments))
    log.draw()
    return calls[-1]


def test_resumes_stay_marked_where_they_were(tmp_path, monkeypatch):
    LossLog(tmp_path, 4).append([row(1, 1, 2), row(1, 2, 4), row(2, 1, 6)])
    LossLog(tmp_path, 4, 1, 2)  # stopped again before its first step
    LossLog(tmp_path, 4, 1, 2).append([row(2, 1, 6), row(2, 2, 8)])
    log = LossLog(tmp_path, 4, 2, 1)
    log.append([row(2, 2, 7, loss=math.inf, updated=0, loss_scale=2.0)])  # one sample a step from here on
    log.append_scores(2, 2, 7, {"loss": 3.0})
    expected = [(0.5, 1.0), (1.0, 1.0), (1.5, 1.0)], {"loss": [(1.75, 3.0)]}, [1.0, 1.5], {}
    assert drawn(log, monkeypatch)[1:] == expected
    assert drawn(LossLog(tmp_path, 4, 2, 2), monkeypatch)[1:] == expected
    rows = list(read_loss_csv(tmp_path / "loss.csv"))
    assert [each.resumes for each in rows] == [0, 0, 1, 2]
    assert (rows[-1].loss, rows[-1].updated, rows[-1].loss_scale) == (math.inf, 0, 2.0)
    assert drawn(LossLog(tmp_path, 4, 1, 1), monkeypatch)[3] == []  # from before all of them


def test_run_that_goes_on_in_another_folder_is_marked_at_its_start(tmp_path, monkeypatch):
    log = LossLog(tmp_path, 4, 1, 2)
    log.append([row(2, 1, 6)])
    assert drawn(log, monkeypatch)[3] == [1.5]


def test_curve_has_few_points_that_stand_for_all_values():
    curve = loss_log._Curve()
    for number in range(10_001):
        curve.add(number, 2 * number + 1)
    points = curve.points
    assert 1000 <= len(points) <= 2001
    assert all(y == pytest.approx(2 * x + 1) for x, y in points)
    assert points[0][0] == pytest.approx(3.5)  # the mean of the first eight
    assert points[-1][0] > 9992
    short = loss_log._Curve()
    for number in range(3):
        short.add(number, 1)
    short.add(3, math.nan)
    assert short.points == [(0, 1), (1, 1), (2, 1)]


@pytest.mark.parametrize("window", [1, 2, 5, 40])
def test_running_mean(window):
    values = np.random.default_rng(0).random(23)
    expected = []
    for place in range(23):
        first = place - window // 2
        expected.append(np.mean(values[max(first, 0) : first + window]))
    np.testing.assert_allclose(running_mean(values, window), expected, rtol=1e-12)
    assert np.allclose(running_mean(np.full(9, 3.0), window), 3.0)


@pytest.mark.parametrize("steps", [1, 400])
def test_picture_has_a_panel_for_each_metric(tmp_path, steps):
    x = np.linspace(0, 20, steps)
    losses = list(zip(x, 100 * np.exp(-x / 8) * np.random.default_rng(0).lognormal(0, 0.3, steps)))
    heights = []
    for names in (
        [],
        ["loss"],
        ["loss", "TUM delta>1.25", "Kitti delta>1.25"],
        ["loss", "TUM delta>1.25", "Sintel AbsRel"],
    ):
        scores = {name: [(epoch, 50 - epoch if epoch != 3 else math.nan) for epoch in range(1, 21)] for name in names}
        draw_curves(tmp_path / "loss.png", losses, scores, [5.2, 11.0])
        heights.append(cv2.imread(str(tmp_path / "loss.png")).shape[0])
    of_sets = {"loss of a set": {"a": losses, "b": losses}, "weight": {"a": losses}}
    draw_curves(tmp_path / "loss.png", losses, scores, [5.2, 11.0], of_sets)
    heights.append(cv2.imread(str(tmp_path / "loss.png")).shape[0])
    assert heights == [450, 450, 650, 850, 1250]
