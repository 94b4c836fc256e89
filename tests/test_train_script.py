"""midas_train.py as a user runs it: log, files, kill and resume, and what it says of bad input."""

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import CACHED, TINY, TINY_FLAGS
from torch_midas import TorchMidas

from src.utils import pth2ckpt
from src.weights.checkpoint import read_ckpt

SETTINGS = [
    *TINY_FLAGS, *CACHED, "--model_weights", "", "--img_width", "64", "--img_height", "64", "--batch_size", "2",
    "--epoch_size", "4", "--save_checkpoint_steps", "3", "--keep_checkpoint_max", "3", "--log_interval", "1",
    "--lr_decay", "True", "--no_backbone_params_lr", "1e-3",
]  # fmt: skip
ENDLESS = [
    "--save_checkpoint_steps", "0", "--save_checkpoint_epochs", "1000", "--epoch_size", "5000",
    "--lr_decay", "False",  # a compiled graph holds the number of steps otherwise
]  # fmt: skip


def command(repo, data, output, *arguments):
    return [
        sys.executable, str(repo / "midas_train.py"), *SETTINGS, "--train_data_dir", str(data),
        "--train_output_path", str(output), *arguments,
    ]  # fmt: skip


def train(repo, data, output, *arguments):
    return subprocess.run(command(repo, data, output, *arguments), capture_output=True, text=True, timeout=300)


def losses(folder):
    with open(folder / "loss.csv", newline="") as file:
        return [(int(row["epoch"]), int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def uninterrupted(repo, train_data, tmp_path_factory):
    """The whole run, started as on one GPU: run_train_gpu.sh hands over to run_standalone_train.sh."""
    output = tmp_path_factory.mktemp("uninterrupted")
    words = command(repo, train_data, output, "--device_target", "CPU")[2:]
    result = subprocess.run(
        ["bash", str(repo / "scripts" / "run_train_gpu.sh"), "1", "0", "", *words],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return output, result


def test_log_and_files(uninterrupted):
    output, result = uninterrupted
    assert result.returncode == 0, result.stderr
    assert "random initialisation" in result.stdout
    rows = losses(output)
    assert [row[:2] for row in rows] == [(epoch, step) for epoch in range(1, 5) for step in range(1, 6)]
    last = rows[-1][2]
    assert f"epoch: 4 step: 5, loss is {last:.7g}" in result.stdout
    assert "images/s" in result.stdout
    assert "per step time:" in result.stdout
    # every third step and every epoch, the newest three: steps 18 and 20, before them 15
    assert sorted(path.name for path in output.glob("*.ckpt")) == [
        "Midas_0-3_5.ckpt", "Midas_0-4_3.ckpt", "Midas_0-4_5.ckpt"
    ]  # fmt: skip
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "epoch_size: 4" in (output / "config.yaml").read_text()


def test_killed_five_times_gives_the_same_losses(repo, train_data, uninterrupted, tmp_path):
    for kill_after in (1, 4, 7, 11, 14):
        resume = ["--resume", "True"] if list(tmp_path.glob("Midas_*.ckpt")) else []
        process = subprocess.Popen(
            command(repo, train_data, tmp_path, *resume), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        wait_for_rows(process, tmp_path, kill_after)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        process.stderr.close()
        for path in tmp_path.glob("Midas_*.ckpt"):
            read_ckpt(path)  # raises for a file cut short
    result = train(repo, train_data, tmp_path, "--resume", "True")
    assert result.returncode == 0, result.stderr
    expected = losses(uninterrupted[0])
    found = losses(tmp_path)
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in expected], rel=1e-6)
    assert not list(tmp_path.glob(".*"))


def wait_for_rows(process, folder, count):
    """Waits until a training has logged so many steps; a training that ends before is a failure."""
    deadline = time.monotonic() + 120
    while not (folder / "loss.csv").is_file() or len(losses_so_far(folder)) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def losses_so_far(folder):
    """Complete lines of a loss.csv that is being written, without the header."""
    return (folder / "loss.csv").read_text().split("\n")[1:-1]


def test_finished_run_has_nothing_to_resume(repo, train_data, uninterrupted):
    result = train(repo, train_data, uninterrupted[0], "--resume", "True")
    assert result.returncode == 0
    assert "nothing to do" in result.stdout


def test_new_run_does_not_mix_with_an_old_one(repo, train_data, uninterrupted):
    result = train(repo, train_data, uninterrupted[0])
    assert result.returncode == 2
    assert "--resume True" in result.stderr


def test_numbers_that_are_not_finite(repo, train_data, tmp_path):
    result = train(repo, train_data, tmp_path, "--no_backbone_params_lr", "1e30", "--save_checkpoint_steps", "1")
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert re.search(
        r"expected (a )?finite number.* at epoch 1 step [23], batch .*/Imgs/\S+\.jpg, .*/Imgs/\S+\.jpg;", line
    )
    assert re.search(r"the last good checkpoint is \S+/Midas_0-1_[12]\.ckpt$", line)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_weights", "gone.ckpt"], "model_weights: expected a checkpoint file or a run folder, found none at"),
        (["--train_data_dir", "gone"], "train_data_dir: expected a folder, found nothing at"),
        (["--mixdata", "gone.json"], "mixdata: expected a file"),
        (["--keep_aspect_ratio", "True"], "keep_aspect_ratio: expected False"),
        (["--epoch_szie", "1"], "did you mean epoch_size"),
        (["--resume", "True"], "resume: expected Midas_*.ckpt"),
        (["--resume", "gone.ckpt"], "resume: expected a checkpoint file or a run folder, found none at"),
        (["--device_target", "Ascend"], "device_target Ascend"),
    ],
)
def test_wrong_settings(repo, train_data, tmp_path, arguments, message):
    result = train(repo, train_data, tmp_path, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_going_back_does_not_mix_with_what_came_after(repo, train_data, uninterrupted):
    output = uninterrupted[0]
    before = sorted(path.name for path in output.iterdir())
    result = train(repo, train_data, output, "--resume", str(output / "Midas_0-3_5.ckpt"))
    assert result.returncode == 2
    assert (
        "expected no checkpoints after epoch 3 step 5, where this run starts, found Midas_0-4_5.ckpt" in result.stderr
    )
    assert sorted(path.name for path in output.iterdir()) == before


def test_checkpoint_of_another_folder_does_not_mix_with_a_run(repo, train_data, uninterrupted, tmp_path):
    (tmp_path / "loss.csv").write_text("epoch,step,loss,backbone_lr,no_backbone_lr,seconds\n")
    result = train(repo, train_data, tmp_path, "--resume", str(uninterrupted[0] / "Midas_0-3_5.ckpt"))
    assert result.returncode == 2
    assert "found the files of another run" in result.stderr


def test_stopped_run_saves_and_so_does_one_whose_picture_vanishes(repo, train_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(train_data, data)

    def start(output):
        process = subprocess.Popen(
            command(repo, data, output, *ENDLESS), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        wait_for_rows(process, output, 3)
        return process

    process = start(tmp_path / "stopped")
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "stopped on request" in errors
    assert len(list((tmp_path / "stopped").glob("*.ckpt"))) == 1

    process = start(tmp_path / "robbed")
    next((data / "ReDWeb_V1" / "Imgs").iterdir()).unlink()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "cannot be read" in errors
    assert "Traceback" not in errors
    (saved,) = (tmp_path / "robbed").glob("*.ckpt")
    epoch, step, _ = losses(tmp_path / "robbed")[-1]
    assert saved.name == f"Midas_0-{epoch}_{step}.ckpt"


def test_resumed_run_keeps_its_recipe(repo, train_data, uninterrupted, tmp_path):
    """What the run folder says holds, whatever config.yaml says; the command line may change what is not its course."""
    run = shutil.copytree(uninterrupted[0], tmp_path / "run")
    for path in run.glob("Midas_0-4_*.ckpt"):
        path.unlink()
    settings = (run / "config.yaml").read_bytes()
    words = [sys.executable, str(repo / "midas_train.py"), "--train_output_path", str(run), "--resume", "True"]

    def resume(*arguments):
        return subprocess.run([*words, *arguments], capture_output=True, text=True, timeout=300)

    other_file = tmp_path / "other.yaml"
    other_file.write_text("no_backbone_params_lr: 0.002\nbatch_size: 2\n")
    refused = resume("--grad_clip_norm", "0.5", "--config_path", str(other_file), "--epoch_size", "9")
    assert refused.returncode == 2
    line = refused.stderr.splitlines()[-1]
    assert f"{other_file}:1: no_backbone_params_lr: expected 0.001, found 0.002" in line
    assert "command line: grad_clip_norm: expected 0.0, found 0.5" in line
    assert "epoch_size: expected 4, found 9" in line  # with lr_decay, it decides the learning rates
    assert "batch_size" not in line
    assert line.endswith(f"(a resumed run keeps the settings of {run / 'config.yaml'})")

    # No setting of the run is given but these, which it may change.
    moved = shutil.copytree(train_data, tmp_path / "moved")
    result = resume("--log_interval", "7", "--num_parallel_workers", "1", "--train_data_dir", str(moved))
    assert result.returncode == 0, result.stderr
    assert losses(run) == losses(uninterrupted[0])
    assert (run / "config.yaml").read_bytes() == settings

    picture = next((moved / "ReDWeb_V1" / "Imgs").iterdir())
    truth = moved / "ReDWeb_V1" / "RDs" / f"{picture.stem}.png"
    for path in (picture, truth):
        path.rename(path.with_stem("renamed"))
    result = resume("--train_data_dir", str(moved))
    assert result.returncode == 1
    assert (
        "expected a run of the same course, found other training images (their files, or what mixdata says"
        in result.stderr
    )


def test_a_run_folder_goes_on_where_it_is(repo, train_data, uninterrupted, tmp_path):
    """``--resume FOLDER`` alone: no setting of the run is given, and nothing goes to the default train_output_path."""
    run = shutil.copytree(uninterrupted[0], tmp_path / "run")
    (run / "Midas_0-4_5.ckpt").unlink()
    words = [sys.executable, str(repo / "midas_train.py"), "--resume", str(run), "--train_data_dir", str(train_data)]
    # Checked against the settings of the run, not against defaults.
    words += ["--lr_decay", "True", "--no_backbone_params_lr", "1e-3"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert f"resume: {run / 'Midas_0-4_3.ckpt'}, after epoch 4 step 3\n" in result.stdout
    assert losses(run) == losses(uninterrupted[0])


def test_weights_bring_their_sizes_and_a_run_folder_is_its_newest_checkpoint(
    repo, train_data, eval_data, uninterrupted, tmp_path
):
    run = uninterrupted[0]
    newest = run / "Midas_0-4_5.ckpt"

    def start(script, *words):
        command = [sys.executable, str(repo / script), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    images = ["--input_path", train_data / "ReDWeb_V1" / "Imgs", "--output_path", tmp_path / "maps"]
    images += ["--img_width", 64, "--img_height", 64]
    found = start("midas_run.py", "--model_weights", run, *images)
    assert found.returncode == 0, found.stderr
    assert f"{newest} (this project's .ckpt): loaded " in found.stdout
    assert (
        "network: layers [1, 2, 1, 1], groups 4, width_per_group 32, in_channels 8, features 16, network_ops midas "
        "(from the weights)\n"
    ) in found.stdout
    assert len(list((tmp_path / "maps").glob("*.pfm"))) == 10

    sets = ["--data_name", "TUM", "--train_data_dir", eval_data, "--ann_file", tmp_path / "val.json"]
    found = start("midas_eval.py", "--ckpt_path", run, *sets)
    assert found.returncode == 0, found.stderr
    settings = json.loads((tmp_path / "val_settings.json").read_text())
    assert settings["ckpt_sha256"] == hashlib.sha256(newest.read_bytes()).hexdigest()
    assert (settings["layers"], settings["features"]) == ([1, 2, 1, 1], 16)
    before = (tmp_path / "val.json").read_bytes()
    found = start("midas_eval.py", "--ckpt_path", newest, *sets, "--resume", "True")  # is the same
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "val.json").read_bytes() == before

    settings = tmp_path / "mine.yaml"
    settings.write_text("features: 32\n")
    found = start("midas_run.py", "--model_weights", run, *images, "--groups", "8", "--config_path", settings)
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1] == (
        f"error: command line: groups: expected 4, found 8; {settings}:1: features: expected 16, found 32 "
        f"(so it is in {newest}; leave the key out)"
    )

    words = ["--train_data_dir", train_data, "--img_width", "64", "--img_height", "64", "--epoch_size", "1"]
    words += [*CACHED, "--batch_size", "2", "--no_backbone_params_lr", "1e-3"]
    found = start("midas_train.py", "--model_weights", run, *words, "--train_output_path", tmp_path / "next")
    assert found.returncode == 0, found.stderr
    assert "layers: [1, 2, 1, 1]\n" in (tmp_path / "next" / "config.yaml").read_text()


@pytest.mark.parametrize("kind", ["torch", "converted"])
def test_weights_alone_cannot_be_resumed(repo, train_data, uninterrupted, tmp_path, kind):
    """It is said before the data are looked at, of which there are none here."""
    shutil.copy(train_data / "mixdata.json", tmp_path)
    path = tmp_path / "weights.ckpt"
    if kind == "torch":
        torch.save({"model": TorchMidas(**TINY).state_dict()}, path)
    else:
        pth2ckpt.convert(uninterrupted[0] / "Midas_0-4_5.ckpt", path)
    result = train(repo, tmp_path, tmp_path / "run", "--resume", str(path))
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert f"{path}: expected a training checkpoint with optimizer state, found " in line
    assert line.endswith(f"start a new run with them: --model_weights {path}")


def test_a_file_of_the_user_is_not_overwritten(repo, train_data, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    result = train(repo, train_data, tmp_path)
    assert result.returncode == 2
    assert "found a config.yaml that is not of a run and would be overwritten" in result.stderr
    assert (tmp_path / "config.yaml").read_text() == "seed: 3\n"


def test_longer_run_without_decay(repo, train_data, tmp_path):
    words = ["--lr_decay", "False", "--epoch_size", "1"]
    assert train(repo, train_data, tmp_path, *words).returncode == 0
    result = train(repo, train_data, tmp_path, *words, "--epoch_size", "2", "--resume", "True")
    assert result.returncode == 0, result.stderr
    assert len(losses(tmp_path)) == 10


def test_second_training_in_a_folder_is_refused(repo, train_data, tmp_path):
    process = subprocess.Popen(
        command(repo, train_data, tmp_path, *ENDLESS), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for_rows(process, tmp_path, 1)
    second = train(repo, train_data, tmp_path)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert second.returncode == 2
    assert f"expected a folder in which nobody trains, found a run of process {process.pid} on" in second.stderr
    assert "asked to stop: the run ends after this step, with a checkpoint\n" in errors
    assert re.search(
        r"stopped on request .*; the last checkpoint is \S+\.ckpt; --resume True resumes the run\n$", errors
    )


def test_folder_that_cannot_be_written(repo, train_data, tmp_path):
    (tmp_path / "file").write_text("")
    result = train(repo, train_data, tmp_path / "file" / "run")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'file'}")
    assert "Traceback" not in result.stderr


def test_compile_cache_does_not_outlive_a_setting(repo, train_data, tmp_path, monkeypatch):
    monkeypatch.setenv("MS_COMPILER_CACHE_PATH", str(tmp_path / "graphs"))
    one_epoch = [*CACHED, "--epoch_size", "1", "--lr_decay", "False"]
    found = []
    for number, clip in enumerate(("0.0", "0.01", "0.0")):
        result = train(repo, train_data, tmp_path / str(number), *one_epoch, "--grad_clip_norm", clip)
        assert result.returncode == 0, result.stderr
        found.append(losses(tmp_path / str(number)))
    assert found[0] == found[2]
    assert found[0][0] == found[1][0]  # the first loss comes before any gradient
    assert found[0][-1] != found[1][-1]
    assert_equal_checkpoints(tmp_path / "0", tmp_path / "2")  # statistics of normalisation, too
    assert len(list((tmp_path / "graphs").iterdir())) == 2


def assert_equal_checkpoints(one, other):
    tensors, others = (read_ckpt(next(folder.glob("*-1_*.ckpt")))[0] for folder in (one, other))
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert np.array_equal(tensor, others[name]), name


def test_compile_cache_keeps_graphs_of_several_parts_and_a_loss_scale(repo, train_data, tmp_path, monkeypatch):
    """A kept graph must find the parameters of this process: sums of gradients, the scale, the network."""
    monkeypatch.setenv("MS_COMPILER_CACHE_PATH", str(tmp_path / "graphs"))
    words = [*CACHED, "--max_steps", "4", "--accumulate_steps", "2", "--batch_size", "1"]
    for name in ("first", "second"):
        result = train(repo, train_data, tmp_path / name, *words, "--amp_level", "O1", "--loss_scale", "4")
        assert result.returncode == 0, result.stderr
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    assert_equal_checkpoints(tmp_path / "first", tmp_path / "second")
