"""run_infer_310.sh: build, inference and scoring in order; where it stops, and what it says then."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import runner_is_missing
from test_runner import NOT_HERE

from evaluation import FOLDERS, IMAGES, true_inverse_depth

# In place of the C++ runner: takes its flags and copies predictions that are already there.
RUNNER = """#!{python}
import argparse
import json
import shutil
import sys
from pathlib import Path

parser = argparse.ArgumentParser()
for flag in ("midas_file", "image_path", "dataset_name", "device", "device_id", "result_path", "mean", "std"):
    parser.add_argument(f"--{{flag}}")
flags = vars(parser.parse_args())
print(json.dumps(flags))
if flags["mean"]:
    sys.exit("error: no mean")
for set_name in ("Kitti", "Sintel", "TUM"):
    if set_name.lower() == flags["dataset_name"].lower():
        shutil.copytree({predictions!r} + "/" + set_name, Path(flags["result_path"], set_name))
"""
BUILD = """#!/usr/bin/env bash
set -e
echo built
mkdir -p "$(dirname "$0")/build"
cp "$(dirname "$0")/runner" "$(dirname "$0")/build/main"
chmod +x "$(dirname "$0")/build/main"
"""


@pytest.fixture(scope="module")
def predictions(eval_data, tmp_path_factory):
    """The right inverse depth of each sample, as the runner names and stores it."""
    folder = tmp_path_factory.mktemp("predictions")
    for name in ("Kitti", "Sintel", "TUM"):
        for sample, array in true_inverse_depth(eval_data, name).items():
            height, width = array.shape
            path = folder / name / f"{sample}_{height}x{width}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(array.astype("<f4").tobytes())
    return folder


@pytest.fixture
def tree(repo, predictions, tmp_path):
    """A copy of the repository's scripts, beside stand-ins for what is built."""
    folder = tmp_path / "the répository"
    (folder / "scripts").mkdir(parents=True)
    (folder / "ascend310_infer").mkdir()
    for name in ("common.sh", "run_infer_310.sh"):
        shutil.copy(repo / "scripts" / name, folder / "scripts")
    for name in ("postprocess.py", "config.yaml", "src"):
        (folder / name).symlink_to(repo / name)
    (folder / "ascend310_infer" / "build.sh").write_text(BUILD)
    (folder / "ascend310_infer" / "runner").write_text(
        RUNNER.format(python=sys.executable, predictions=str(predictions))
    )
    return folder


@pytest.fixture
def caller(eval_data, tmp_path):
    """The folder of the caller, with a model and data in it."""
    folder = tmp_path / "où je suis"
    (folder / "a model").mkdir(parents=True)
    (folder / "a model" / "midas ü.mindir").write_bytes(b"")
    (folder / "dätä").symlink_to(eval_data)
    return folder


def run(root, folder, *words, **environment):
    return subprocess.run(
        ["bash", str(root / "scripts" / "run_infer_310.sh"), *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHON": sys.executable, **{key: str(value) for key, value in environment.items()}},
        capture_output=True,
        text=True,
        timeout=250,
    )


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("Kitti", [], {"device": "Ascend", "device_id": "0"}),
        ("TUM", ["3"], {"device": "Ascend", "device_id": "3"}),
        ("Sintel", ["--device", "CPU", "--show_published", "False"], {"device": "CPU", "device_id": "0"}),
        ("Sintel", ["1", "--std=1,1,1", "--device=CPU"], {"device": "CPU", "device_id": "1", "std": "1,1,1"}),
    ],
)
def test_steps_in_order(tree, caller, name, words, expected):
    """All paths are relative to the caller's folder and hold spaces and letters that are not ASCII."""
    data = f"dätä/{FOLDERS.get(name, name)}"
    result = run(tree, caller, "a model/midas ü.mindir", data, name.lower(), *words)
    assert result.returncode == 0, result.stderr
    assert json.loads((caller / "result_val.json").read_text()) == {name: pytest.approx(0, abs=1e-4)}
    logs = caller / "infer_logs"
    assert (logs / "build.log").read_text() == "built\n"
    flags = json.loads((logs / "infer.log").read_text())
    assert flags["midas_file"] == "a model/midas ü.mindir"
    assert flags["image_path"] == data
    assert flags["result_path"] == str(caller / "result_Files")
    assert {key: flags[key] for key in expected} == expected
    assert f"{name}: {IMAGES} predictions for {IMAGES} samples" in (logs / "score.log").read_text()
    assert f"{name}: {IMAGES} predictions for {IMAGES} samples" in result.stdout
    assert ("published" in result.stdout) == ("--show_published" not in words)


def test_wrong_settings_are_told_before_the_build(tree, caller):
    for words, message in (
        (["--foo", "1"], "command line: unknown key 'foo'"),
        (["--prediction", "nothing"], "command line: prediction: expected one of"),
    ):
        result = run(tree, caller, "a model/midas ü.mindir", "dätä/TUM", "TUM", *words)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"error: {message}")
        assert not (caller / "infer_logs").exists()


def test_build_that_fails(tree, caller):
    (tree / "ascend310_infer" / "build.sh").write_text("seq 1 30\necho 'error: no SDK' >&2\nexit 7\n")
    result = run(tree, caller, "a model/midas ü.mindir", "dätä/TUM", "TUM")
    log = caller / "infer_logs" / "build.log"
    assert result.returncode == 7
    first, *rest = result.stderr.splitlines()
    assert first == f"error: build failed with status 7; the end of {log}:"
    assert rest == [*map(str, range(22, 31)), "error: no SDK"]
    assert log.read_text().startswith("1\n2\n")
    assert os.listdir(caller / "infer_logs") == ["build.log"]


def test_inference_that_fails(tree, caller):
    result = run(tree, caller, "a model/midas ü.mindir", "dätä/TUM", "TUM", "0", "--mean", "1,1,1")
    assert result.returncode == 1
    first, *rest = result.stderr.splitlines()
    assert first == f"error: infer failed with status 1; the end of {caller / 'infer_logs' / 'infer.log'}:"
    assert rest[-1] == "error: no mean"
    assert not (caller / "infer_logs" / "score.log").exists()


def test_scoring_that_fails(tree, caller):
    runner = tree / "ascend310_infer" / "runner"
    runner.write_text(runner.read_text().split("for set_name in")[0])  # it predicts nothing
    result = run(tree, caller, "a model/midas ü.mindir", "dätä/TUM", "TUM")
    assert result.returncode == 2
    assert "error: score failed with status 2" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: result_path: ")
    assert not (caller / "result_val.json").exists()


MODEL, DATA = "a model/midas ü.mindir", "dätä/TUM"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage: bash scripts/run_infer_310.sh MODEL_PATH DATA_PATH DATASET_NAME [DEVICE_ID]"),
        ([MODEL, DATA, "--device"], "usage: bash scripts/run_infer_310.sh"),
        (["gone.mindir", DATA, "TUM"], "MODEL_PATH: expected a MINDIR file, found none: gone.mindir"),
        ([MODEL, "gone", "TUM"], "DATA_PATH: expected the folder of the data set, found none: gone"),
        ([MODEL, DATA, "NYU"], "DATASET_NAME: expected Kitti, TUM or Sintel, found NYU"),
        ([MODEL, DATA, "TUM", "one"], "DEVICE_ID: expected a number, found one"),
        ([MODEL, DATA, "TUM", "0", "CPU"], "expected --key value, found 'CPU'"),
        ([MODEL, DATA, "TUM", "--device"], "--device: expected a value after it, found none"),
        ([MODEL, DATA, "TUM", "--result_path=x"], "--result_path=x: this script sets it"),
    ],
)
def test_wrong_usage(tree, caller, words, message):
    result = run(tree, caller, *words)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert not (caller / "infer_logs").exists()


# ---- the real runner, on the CPU

MINDIR, ONNX = "tests/fixtures/midas_tiny_64x96.mindir", "tests/fixtures/midas_tiny.onnx"
HEIGHT, WIDTH = 64, 96  # of the network input


def run_or_skip(root, folder, lite, *words):
    result = run(root, folder, *words, MINDSPORE_LITE_HOME=lite)
    if any(text in result.stderr for text in NOT_HERE):
        runner_is_missing(result.stderr.splitlines()[-1])
    return result


def scores_of_python(repo, data, name, ann_file):
    """What midas_eval.py scores with the same network, every picture resized to exactly its size."""
    words = ["--ckpt_path", repo / ONNX, "--backend", "onnxruntime", "--eval_shapes", "fixed", "--img_height", HEIGHT]
    words += ["--img_width", WIDTH, "--train_data_dir", data, "--data_name", name, "--ann_file", ann_file]
    subprocess.run([sys.executable, repo / "midas_eval.py", *map(str, words)], check=True, capture_output=True)
    return json.loads(ann_file.read_text())


@pytest.mark.parametrize("name", ["Kitti", "TUM", "Sintel"])
def test_runner_from_build_to_score(infer_home, repo, eval_data, lite, tmp_path, name):
    folder = tmp_path / "hier und dört"
    folder.mkdir()
    model = shutil.copy(repo / MINDIR, folder / "midas ü.mindir")
    words = (model, eval_data / FOLDERS.get(name, name), name, "0", "--device", "CPU", "--show_published", "False")
    result = run_or_skip(infer_home, folder, lite, *words)
    assert result.returncode == 0, result.stdout + result.stderr
    values = json.loads((folder / "result_val.json").read_text())
    expected = scores_of_python(repo, eval_data, name, tmp_path / "val.json")
    assert values == pytest.approx(expected, rel=2e-4)  # a few pixels beyond or within the threshold
    assert list(values) == [name]
    assert len(list((folder / "result_Files" / name).rglob("*_64x96.bin"))) == IMAGES
    assert "average inference time" in (folder / "time_Result" / "test_perform_static.txt").read_text()
    assert sorted(os.listdir(folder / "infer_logs")) == ["build.log", "infer.log", "score.log"]


def test_folder_that_cannot_be_written(infer_home, repo, eval_data, tmp_path):
    (tmp_path / "infer_logs").touch()
    result = run(infer_home, tmp_path, repo / MINDIR, eval_data / "TUM", "TUM")
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path / 'infer_logs'}: expected a folder that can be written to\n"


def test_runner_that_cannot_read_a_model(infer_home, eval_data, lite, tmp_path):
    model = tmp_path / "broken.mindir"
    model.write_bytes(b"no model")
    result = run_or_skip(infer_home, tmp_path, lite, model, eval_data / "TUM", "TUM", "--device=CPU")
    assert result.returncode == 1
    first, *rest = result.stderr.splitlines()
    assert first.startswith("error: infer failed with status 1")
    assert rest[-1].startswith("error: ")
    assert str(model) in rest[-1]
    assert not (tmp_path / "result_val.json").exists()


def test_build_without_an_sdk(infer_home, repo, eval_data, tmp_path):
    model = shutil.copy(repo / MINDIR, tmp_path)
    result = run_or_skip(infer_home, tmp_path, tmp_path / "gone", model, eval_data / "TUM", "TUM")
    assert result.returncode == 1
    first, *rest = result.stderr.splitlines()
    assert first.startswith("error: build failed with status 1")
    assert "MINDSPORE_LITE_HOME: expected a folder of MindSpore Lite" in rest[-1]
