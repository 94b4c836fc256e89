"""Training in two processes against training in one: losses, weights, resuming, mixed precision."""

import json
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import CACHED, TINY_FLAGS
from test_scripts import free_port, run_script, two  # noqa: F401 a fixture

from preprocess.make_sample import make_sample
from src.training.loss_log import read_loss_csv, read_sets_csv
from src.weights.checkpoint import read_ckpt

SIZE = ["--img_width", "64", "--img_height", "64", "--device_target", "CPU", "--num_parallel_workers", "1", *CACHED]


@pytest.fixture(scope="module")
def train(repo, train_data):
    """Returns a function that trains in so many processes: (number, run folder, further settings) -> output."""

    def run(processes, folder, *words):
        words = [*SIZE, "--train_data_dir", train_data, "--train_output_path", folder, "--log_interval", 1, *words]
        if processes > 1:
            variables = {"PYTHON": sys.executable, "LOG_DIR": folder.parent / f"{folder.name} log"}
            script = repo / "scripts" / "run_distribute_train.sh"
            done = run_script(script, processes, "", *words, MASTER_PORT=free_port(), **variables)
        else:
            command = [sys.executable, repo / "midas_train.py", "--model_weights", "", *words]
            done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    """A checkpoint of a network whose statistics of normalisation are those of the pictures."""
    folder = tmp_path_factory.mktemp("distributed") / "first"
    train(1, folder, *TINY_FLAGS, "--batch_size", 2, "--epoch_size", 8, "--no_backbone_params_lr", 1e-3)
    return folder / "Midas_0-8_5.ckpt"


RECIPE = ["--batch_size", 4, "--freeze_backbone_bn", "True", "--max_steps", 10, "--save_checkpoint_steps", 5]


@pytest.fixture(scope="module")
def alone(train, trained):
    """The run folder of ten steps of four images in one process."""
    folder = trained.parents[1] / "alone"
    train(1, folder, *RECIPE, "--keep_checkpoint_max", 9, "--model_weights", trained)
    return folder


def losses_of(folder):
    return [row.loss for row in read_loss_csv(folder / "loss.csv")]


def compare(folder, expected):
    assert losses_of(folder) == pytest.approx(losses_of(expected), rel=1e-5)
    found, wanted = (read_ckpt(path / "Midas_0-4_3.ckpt")[0] for path in (folder, expected))
    start = read_ckpt(expected / "Midas_0-2_3.ckpt")[0]
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        # The last bias is a shift, to which the loss is blind: its gradient is rounding; Adam makes whole steps of it.
        if not name.startswith("moment") and name != "output_conv_scratch.4.bias":
            assert np.linalg.norm(found[name] - tensor) <= 1e-5 * np.linalg.norm(tensor) + 1e-7, name
    assert any(np.linalg.norm(start[name] - tensor) > 1e-4 * np.linalg.norm(tensor) for name, tensor in wanted.items())


def test_two_processes_do_what_one_does_with_the_batches_of_both(train, trained, alone):
    """40 images in ten steps, 2 x 2 or 4 at once; normalisation is frozen, since it is over each batch apart."""
    folder = trained.parents[1] / "two"
    train(2, folder, *RECIPE[2:], "--batch_size", 2, "--model_weights", trained)
    compare(folder, alone)


def back_to_the_middle(alone, folder):
    shutil.copytree(alone, folder)
    for path in (folder / "Midas_0-4_3.ckpt", *folder.glob("Midas_0-[34]_*.ckpt")):
        path.unlink(missing_ok=True)
    return folder


def test_two_processes_resume_what_one_has_begun(train, alone, tmp_path):
    """And one, with parts of a batch: what it ends with is what it would have ended with alone."""
    folder = back_to_the_middle(alone, tmp_path / "run")
    train(2, folder, "--resume", "True", "--batch_size", 2, "--max_steps", 8)
    words = ["--resume", "True", "--batch_size", "2", "--accumulate_steps", "2", "--max_steps", "10"]
    train(1, folder, *words)
    compare(folder, alone)


def test_another_number_of_images_goes_on_with_the_same_order(train, alone, tmp_path):
    folder = back_to_the_middle(alone, tmp_path / "run")
    said = train(1, folder, "--resume", "True", "--batch_size", 3, "--max_steps", 9)
    assert "3 images make a step now, not 4; the order of the samples goes on as it was\n" in said
    rows = list(read_loss_csv(folder / "loss.csv"))
    assert [row.samples for row in rows] == [4, 8, 12, 16, 20, 23, 26, 29, 32]
    assert [(row.epoch, row.step) for row in rows[5:]] == [(3, 1), (3, 2), (3, 3), (4, 1)]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A data folder with two sets of five pairs, the second without the lower half of its ground truth."""
    folder = tmp_path_factory.mktemp("mixture")
    make_sample(folder, train=10, eval_count=0, size=(96, 72))
    for index in range(5, 10):
        for kind, name in (("Imgs", f"sample_{index:05d}.jpg"), ("RDs", f"sample_{index:05d}.png")):
            path = folder / "half" / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            (folder / "ReDWeb_V1" / kind / name).rename(path)
        truth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        truth[36:] = 255
        cv2.imwrite(str(path), truth)
    tables = json.loads((folder / "mixdata.json").read_text())
    for table in tables.values():
        table["half"] = table["RW"].replace("ReDWeb_V1", "half") if isinstance(table["RW"], str) else table["RW"]
    (folder / "mixdata.json").write_text(json.dumps(tables))
    return folder


def test_mixtures_in_two_processes_and_resumed(train, trained, mixture, tmp_path):
    """Robust loss, augmentation, weights: ten steps in one process are five, and then five in two processes."""
    words = ["--train_data_dir", mixture, "--mixing", "multi_objective"]
    words += ["--loss", "ssi_trim", "--target_range", 1, "--random_flip", 0.5, "--random_crop", 0.5]
    train(1, tmp_path / "alone", *RECIPE, "--keep_checkpoint_max", 9, "--model_weights", trained, *words)
    folder = back_to_the_middle(tmp_path / "alone", tmp_path / "run")
    train(2, folder, "--resume", "True", "--batch_size", 2, "--train_data_dir", mixture)
    compare(folder, tmp_path / "alone")
    found, expected = (list(read_sets_csv(path / "sets.csv")) for path in (folder, tmp_path / "alone"))
    assert len(found) == 20
    assert {row.name for row in found} == {"RW", "half"}
    assert [row.weight for row in found] == pytest.approx([row.weight for row in expected], rel=1e-3)
    assert [row.loss for row in found] == pytest.approx([row.loss for row in expected], rel=1e-4)
    assert len({round(row.weight, 3) for row in found}) > 5


def test_overflow_in_one_process_skips_the_step_in_both(train_data, trained, two, tmp_path):  # noqa: F811
    """The second process alone meets a picture that is not finite, in its third step."""
    script, words, variables = two("run_distribute_train.sh", "2", "", "--max_steps", 6, "--log_interval", 1)
    words += ["--train_data_dir", train_data, "--amp_level", "O2", "--loss_scale", 8, "--model_weights", trained]
    result = run_script(script, *words, SPOIL=5, **variables)
    assert result.returncode == 0, result.stdout + result.stderr
    (folder,) = (path.parent for path in tmp_path.rglob("loss.csv"))
    rows = list(read_loss_csv(folder / "loss.csv"))
    assert [row.updated for row in rows] == [1, 1, 0, 1, 1, 1]
    assert [row.loss_scale for row in rows] == [8, 8, 8, 4, 4, 4]
    logs = [path.read_text() for path in sorted(tmp_path.rglob("worker_*.log"))]
    crcs = [re.search(r"weights of process \d: CRC-32 (\w+)", log)[1] for log in logs]
    assert len(crcs) == 2
    assert crcs[0] == crcs[1]
    tensors, extra = read_ckpt(next(folder.glob("Midas_0-*.ckpt")))
    assert extra["schedule"]["updates"] == 5
    assert tensors["loss_scale"] == 4
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
