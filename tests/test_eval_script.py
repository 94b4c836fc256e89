"""midas_eval.py as a user runs it: values, files, kill and resume, missing sets and broken files."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import mindspore as ms
import numpy as np
import pytest
from conftest import TINY

import midas_eval
from data.make_sample import make_sample
from src.checkpoint import save_checkpoint
from src.config import DATA_SETS, load_config
from src.errors import DataError, UsageError
from src.eval_datasets import Tum, open_dataset
from src.evaluator import score_prediction
from src.midas_net import MidasNet
from src.predictor import MindSporePredictor
from src.util import write_png16

NETWORK = [f"--{key}={value}" for key, value in TINY.items()]


@pytest.fixture(scope="module")
def net():
    ms.set_seed(1)
    return MidasNet(**TINY)


@pytest.fixture(scope="module")
def weights(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.ckpt"
    save_checkpoint(path, {parameter.name: parameter.asnumpy() for parameter in net.get_parameters()})
    return path


@pytest.fixture(scope="module")
def eval_data(tmp_path_factory):
    root = tmp_path_factory.mktemp("eval_data")
    make_sample(root, train=0, eval_count=3, size=(96, 72))
    return root


def arguments(data, weights, ann_file, *more):
    return [*NETWORK, "--train_data_dir", str(data), "--ckpt_path", str(weights), "--ann_file", str(ann_file), *more]


def evaluate(repo, *words):
    return subprocess.run(
        [sys.executable, str(repo / "midas_eval.py"), *words], capture_output=True, text=True, timeout=300
    )


def rows(ann_file):
    """Rows without the time that a prediction took."""
    with open(ann_file.with_name("val_details.csv"), newline="") as file:
        assert file.readline().startswith("# {")
        return [row[:-1] for row in csv.reader(file)]


@pytest.fixture(scope="module")
def uninterrupted(repo, eval_data, weights, tmp_path_factory):
    ann_file = tmp_path_factory.mktemp("uninterrupted") / "val.json"
    return ann_file, evaluate(repo, *arguments(eval_data, weights, ann_file))


def test_all_sets(uninterrupted, eval_data, net):
    ann_file, result = uninterrupted
    assert result.returncode == 0, result.stderr
    values = json.loads(ann_file.read_text())
    assert list(values) == list(DATA_SETS)
    predictor = MindSporePredictor(net)
    for name, folder in (("Kitti", "Kitti_raw_data"), ("ETH3D", "ETH3D"), ("DIW", "DIW")):
        dataset = open_dataset(name, eval_data / folder)
        expected = []
        for sample in map(dataset.__getitem__, range(len(dataset))):
            prediction = predictor.infer(predictor.prepare(sample.image, dataset.resize_method))
            expected.append(score_prediction(dataset, sample, prediction).value)
        assert values[name] == pytest.approx(sum(expected) / len(expected), rel=1e-6)
    assert "graph compilations: 1 " in result.stdout
    assert re.search(r"Kitti: 3/3 images, [0-9.]+ images/s, 00:00 left", result.stderr)
    for name in DATA_SETS:
        assert re.search(rf"^{name} .* {values[name]:.4g} ", result.stdout, re.MULTILINE)
    assert [path.name for path in sorted(ann_file.parent.iterdir())] == ["val.json", "val_details.csv"]


def test_killed_and_resumed_is_bit_equal(repo, eval_data, weights, uninterrupted, tmp_path):
    ann_file = tmp_path / "val.json"
    details = tmp_path / "val_details.csv"
    words = arguments(eval_data, weights, ann_file)
    process = subprocess.Popen(
        [sys.executable, str(repo / "midas_eval.py"), *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not details.is_file() or details.read_bytes().count(b"\n") < 2 + 7:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    left = details.read_bytes()
    expected = rows(uninterrupted[0])
    assert 7 <= len(rows(ann_file)) - 1 < len(expected) - 1
    details.write_bytes(left + b"TUM,3,half a r")

    result = evaluate(repo, *words, "--resume", "True", "--data_name", "kitti,SINTEL, tum,nyu,eth3d,diw")
    assert result.returncode == 0, result.stderr
    assert "Kitti: 3 of 3 images are taken from" in result.stdout
    assert details.read_bytes().startswith(left)
    assert rows(ann_file) == expected
    assert ann_file.read_bytes() == uninterrupted[0].read_bytes()


def test_broken_files_and_missing_sets(repo, eval_data, weights, tmp_path):
    """Through the shell script. A KITTI picture is cut, a TUM depth map empty, the Sintel pictures are gone, one file
    of NYU is none.
    """
    ann_file = tmp_path / "val.json"
    data = shutil.copytree(eval_data, tmp_path / "data", ignore=shutil.ignore_patterns("ETH3D", "DIW", "final_left"))
    splits = data / "NYU" / "splits.mat"
    splits.write_bytes(b"no MATLAB file")
    cut = data / "Kitti_raw_data" / "2011_09_26_drive_0001_sync" / "image" / "0000000001.png"
    cut.write_bytes(cut.read_bytes()[:300])
    pictures, depths = (sorted((data / "TUM" / Tum.sequence / kind).iterdir()) for kind in ("rgb", "depth"))
    write_png16(depths[1], np.zeros((72, 96), np.uint16))

    words = arguments(data, weights, ann_file)
    words = ["0", "all", str(weights), "CPU", *(word for word in words if word not in ("--ckpt_path", str(weights)))]
    result = subprocess.run(
        ["bash", str(repo / "scripts" / "run_eval.sh"), *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert list(json.loads(ann_file.read_text())) == ["Kitti", "TUM"]
    assert f"left out: {cut}" in result.stderr
    assert "error: Kitti: 1 samples could not be evaluated" in result.stderr
    assert "error: Sintel: no image could be scored" in result.stderr
    assert f"error: {splits}: expected a MATLAB file" in result.stderr
    assert f"ETH3D is left out: {data / 'ETH3D'}: expected ETH3D as" in result.stderr
    assert "not evaluated, see above: NYU, ETH3D, DIW" in result.stdout
    assert f"TUM: left out of the mean, no valid pixel: 1 images ({pictures[1].stem})" in result.stdout
    table = rows(ann_file)[1:]
    assert [row[:2] for row in table] == [["Kitti", "1"], ["Kitti", "3"], *(["TUM", number] for number in "123")]
    assert [row[2] for row in table[2:]] == [picture.stem for picture in pictures]
    assert table[3][4:] == ["nan", "nan", "nan", "0"]
    values = [float(row[4]) for row in table]
    assert json.loads(ann_file.read_text())["TUM"] == (values[2] + values[4]) / 2


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--data_name", "ETH3D,gone"], UsageError, "data_name: expected all or a comma-separated list"),
        (["--data_name", "Kitti,NYU"], UsageError, "datapath_NYU: "),
        (["--train_data_dir", "gone"], UsageError, "expected at least one data set"),
        (["--data_name", "TUM"], DataError, "expected pairs of files, found none"),
        (["--resume", "run.ckpt"], UsageError, "resume: expected True or False for an evaluation, found /"),
    ],
)
def test_faults_before_any_work(eval_data, tmp_path, monkeypatch, words, error, message):
    shutil.copytree(eval_data / "Kitti_raw_data", tmp_path / "Kitti_raw_data")
    (tmp_path / "TUM").mkdir()
    (tmp_path / "TUM" / "associate.txt").write_text("# empty\n")
    monkeypatch.setattr(sys, "argv", ["midas_eval.py", "--train_data_dir", str(tmp_path), *words])
    monkeypatch.setattr(midas_eval, "setup_device", lambda *_, **__: pytest.fail("work was started"))
    with pytest.raises(error) as caught:
        midas_eval.main()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "word", ["--eval_protocol=modelzoo", "--network_ops=modelzoo", "--features=24", "--nm_img_mean=[0, 0, 0]"]
)
def test_settings_that_change_figures_forbid_to_resume(weights, word):
    words = [*NETWORK, "--ckpt_path", str(weights)]
    settings = midas_eval.settings_of(load_config("", words), "CPU")
    assert midas_eval.settings_of(load_config("", [*words, word]), "CPU") != settings
    assert midas_eval.settings_of(load_config("", words), "GPU") != settings
    assert (
        midas_eval.settings_of(load_config("", [*words, "--eval_shapes=static", "--data_name=TUM"]), "CPU") == settings
    )


def test_another_checkpoint_forbids_to_resume(weights, tmp_path):
    other = tmp_path / "tiny.ckpt"
    shutil.copyfile(weights, other)
    settings = [midas_eval.settings_of(load_config("", ["--ckpt_path", str(path)]), "CPU") for path in (weights, other)]
    assert settings[0] == settings[1]
    other.write_bytes(other.read_bytes()[:-1] + b"x")
    assert midas_eval.settings_of(load_config("", ["--ckpt_path", str(other)]), "CPU") != settings[0]
