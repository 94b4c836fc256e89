"""The benchmark scripts run; what they measure is for a quiet machine."""

import json
import subprocess
import sys
from collections import defaultdict

import numpy as np
import psutil
import pytest
from mindspore.nn.utils import no_init_parameters

from preprocess.scenes import render_scene
from src.common.errors import MidasError
from src.midas_net import MidasNet
from src.utils.loadImgDepth import LoadImagesDepth
from src.utils.mixdata import list_pairs


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["bench_data.py", "--max_pairs", "2", "--rounds", "1", "--steps", "3"], "2 worker processes, batches of 2: "),
        (["bench_network.py", "--help"], "{forward,train}"),  # the full network takes too long here, and below
        (["bench_infer.py", "--help"], "--runner_model"),
        (["bench_cold.py", "--help"], "--photo"),
        (["bench_mixing.py", "--help"], "--tiny"),
        (["scaling_model.py"], "105.4 M parameters, gradients 421 MB, 206.9 GFLOP forward, 621 GFLOP a training image"),
        (["scaling_model.py", "--measure", "--largest", "65536"], "MindSpore fuses nothing here"),
    ],
)
def test_benchmark(repo, words, expected):
    result = run(repo, *words)
    assert result.returncode == 0, result.stderr
    assert expected in result.stdout


def run(repo, name, *words):
    command = [sys.executable, repo / "benchmarks" / name, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


# What a benchmark needs to see of the training of another checkout, which ours is compared with.
OTHER_TRAIN = """
import pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--train_output_path") + 1])
epochs = int(sys.argv[sys.argv.index("--epoch_size") + 1])
(folder / "loss.csv").write_text("epoch,seconds\\n" + "1,0.5\\n" * (2 * epochs))
print("first step 7.5 s, compilation included")
"""


def test_training_of_two_checkouts(repo, tmp_path):
    (tmp_path / "midas_train.py").write_text(OTHER_TRAIN)
    words = ["--tiny", "--rounds", "1", "--steps", "2", "--loading_steps", "2", "--workers", "1"]
    result = run(repo, "bench_train.py", tmp_path, *words)
    assert result.returncode == 0, result.stderr
    for name in ("the other checkout", "this checkout"):
        lines = [line for line in result.stdout.splitlines() if line.startswith(name)]
        assert len([line for line in lines if "time / first: " in line]) == 3, result.stdout  # and the first step
        assert len([line for line in lines if "images/s" in line]) == 1
    assert "the other checkout: first step 7.5 s (7.5 .. 7.5 s)" in result.stdout


def test_training_of_something_else(repo, tmp_path):
    result = run(repo, "bench_train.py", tmp_path)
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path}: expected a checkout of this project, found no midas_train.py in it\n"


def test_group_that_takes_too_long_is_ended(repo, tmp_path, monkeypatch):
    """With the workers of msrun, which have sessions of their own."""
    monkeypatch.syspath_prepend(repo / "benchmarks")
    import check_scaling

    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os, pathlib, sys, time\npathlib.Path(sys.argv[1], f'{os.getpid()}.pid').touch()\ntime.sleep(500)\n"
    )
    monkeypatch.setattr(check_scaling, "WORKER", worker)
    monkeypatch.setattr(check_scaling, "TIME_LIMIT_S", 25)  # msrun imports MindSpore before it starts them
    with pytest.raises(MidasError, match=r"msrun .*worker.py .*: expected an end within 25 s, found none$"):
        check_scaling.run_group(2, [tmp_path], tmp_path)
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert len(workers) >= 2
    left = [psutil.Process(worker) for worker in workers if psutil.pid_exists(worker)]
    assert not psutil.wait_procs(left, timeout=10)[1]  # a busy machine takes a moment to bury them


@pytest.fixture
def model(repo, monkeypatch):
    monkeypatch.syspath_prepend(repo / "benchmarks")
    import scaling_model

    return scaling_model


def test_modelled_network_has_the_parameters_of_the_real_one(model):
    with no_init_parameters():
        parameters = MidasNet().trainable_params()
    layers = model.network_layers()
    assert sum(layer.parameters for layer in layers) == sum(p.size for p in parameters)
    assert sum(layer.tensors for layer in layers) == len(parameters)


def ring_step_by_step(size, devices, latency, bandwidth):
    """Every device passes a chunk on to the next, 2 (n - 1) times, and waits for that of the one before."""
    clocks = np.zeros(devices)
    for _ in range(2 * (devices - 1)):
        sent = clocks + latency + size / devices / bandwidth
        clocks = np.maximum(sent, np.roll(sent, 1))
    return clocks.max()


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_ring(model, devices):
    link = model.Link(5e-6, 10e9)
    cluster = model.Cluster("", link, link, 1, {}, devices_per_node=8, overhead=1e-6)
    for size in (1e3, 1e8):
        expected = 1e-6 + ring_step_by_step(size, devices, link.latency, link.bandwidth)
        assert model.all_reduce(size, devices, cluster, "ring") == pytest.approx(expected)


def test_no_reduction_is_faster_than_its_links(model):
    for cluster in model.CLUSTERS.values():
        for devices in model.DEVICES[1:]:
            for algorithm in model.ALGORITHMS:
                least = 2 * (devices - 1) / devices * 1e8 / cluster.inside.bandwidth
                assert model.all_reduce(1e8, devices, cluster, algorithm) > least
        # all cards of a node at once carry the sum over its devices, in and out
        out = cluster.between.bandwidth * cluster.cards
        assert model.all_reduce(1e8, 16, cluster, "hierarchical") > 1e8 / out


def test_overlap_hides_what_it_can(model):
    layers, cluster = model.network_layers(), model.CLUSTERS["ascend910"]
    for batch in (0.5, 8, 64):
        one, several = (
            model.step(layers, 64, cluster, model.Work(76.8e12, batch, reductions=count)) for count in (1, 8)
        )
        assert several.compute == one.compute
        assert max(one.compute, several.reduce) < several.total < one.total == pytest.approx(one.compute + one.reduce)
    sizes = [size for size, _ in model.pieces(layers, 8)]
    assert sum(sizes) == 4 * sum(layer.parameters for layer in layers)
    assert len(sizes) == 8


def test_fit_finds_the_links_that_made_the_times(model):
    from check_scaling import fit

    link = model.Link(2e-4, 3e8)
    cluster = model.Cluster("", link, link, 1, {}, devices_per_node=2, overhead=0.0)
    found = fit({size: model.all_reduce(size, 2, cluster, "ring") for size in (4096, 10**6, 10**8)}, 2)
    assert (found.inside.latency, found.inside.bandwidth) == pytest.approx((2e-4, 3e8))


@pytest.fixture
def experiment(repo, monkeypatch):
    monkeypatch.syspath_prepend(repo / "benchmarks")
    import mixing_experiment

    return mixing_experiment


def test_training_sets_of_the_experiment_are_what_they_are_said_to_be(experiment, tmp_path):
    size = experiment.Size(images=6, held_out=1)
    experiment.make_training_data(tmp_path, 1, size)
    (tmp_path / "mixdata.json").write_text(experiment.mixdata(list(experiment.SETS), experiment.TRAINING))
    pairs, faults = list_pairs(tmp_path, tmp_path / "mixdata.json")
    assert not faults
    source = LoadImagesDepth(pairs, experiment.WIDTH, experiment.HEIGHT, [0.5] * 3, [0.5] * 3)
    targets, shares = defaultdict(list), defaultdict(list)
    for pair, (_, target, mask) in zip(pairs, source):
        targets[pair.dataset].append(target[mask > 0].astype(np.float64))
        shares[pair.dataset].append(mask.mean())
    assert {name: len(of_set) for name, of_set in targets.items()} == dict.fromkeys(experiment.SETS, 6)
    for of_set in shares.values():
        assert of_set == pytest.approx([1 - experiment.MISSING_SHARE] * 6, abs=1e-3)
    for clean, wrong in zip(targets["scenes"], targets["outliers"]):
        assert np.mean(clean != wrong) == pytest.approx(experiment.OUTLIERS_SHARE, abs=0.06)  # of the valid pixels
    for name, is_linear in (("rooms", True), ("streets", True), ("scenes", True), ("bent", False)):
        number = list(experiment.SOURCES).index(name)
        for index, target in enumerate(targets[name]):
            rng = np.random.default_rng([1, number, 0, index])
            _, depth = render_scene(rng, experiment.HEIGHT, experiment.WIDTH, experiment.SOURCES[name].setting)
            missing = experiment.draw_blobs(rng, experiment.HEIGHT, experiment.WIDTH, experiment.MISSING_SHARE)
            depth = depth[~missing].astype(np.float64)
            assert np.corrcoef(target, 1 / depth if is_linear else -depth)[0, 1] > 0.999
            if not is_linear:
                assert 0.6 < np.corrcoef(target, 1 / depth)[0, 1] < 0.92


def test_experiment_does_what_is_missing(repo, tmp_path):
    words = ["mixing_experiment.py", "--quick", "--only", "rooms", "--output", tmp_path]
    result = run(repo, *words)
    assert result.returncode == 0, result.stderr
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("| rooms |")]
    scores = json.loads((tmp_path / "results.json").read_text())["results"]["rooms"]["1"]
    assert f"| {scores['scores']['Kitti']:.1f} ({scores['scores']['Kitti']:.1f}) |" in row
    assert np.isfinite(list(scores["scores"].values())).all()
    assert len(scores["scores"]) == 3
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    (tmp_path / "seed1" / "rooms" / "train.txt").unlink()
    again = run(repo, *words)
    assert again.stdout == result.stdout
    assert not (tmp_path / "seed1" / "rooms" / "train.txt").exists()  # not trained again


def test_experiment_refuses_unknown_runs(repo, tmp_path):
    result = run(repo, "mixing_experiment.py", "--only", "trimmed", "--output", tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: --only: expected runs of clean ssi_mse, ")
    assert result.stderr.endswith(", found 'trimmed'\n")
