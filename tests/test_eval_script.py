"""midas_eval.py as a user runs it: values, files, kill and resume, missing sets and broken files."""

import csv
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import replace

import cv2
import h5py
import mindspore as ms
import numpy as np
import pytest
import scipy.io
import slow_script
from conftest import CACHED, TINY_FLAGS

import midas_eval
from evaluation import CPU, RedChannel, true_inverse_depth
from preprocess.make_sample import make_sample
from src.common.errors import DataError, UsageError
from src.common.names import DATA_SETS
from src.config import load_config
from src.evaluation.datasets import open_dataset
from src.evaluation.datasets.tum import SEQUENCE
from src.evaluation.evaluator import score_prediction
from src.inference.mindspore import MindSporePredictor
from src.inference.predictor import Predictor
from src.util import write_png16


def arguments(data, weights, ann_file, *more):
    return [*TINY_FLAGS, "--train_data_dir", str(data), "--ckpt_path", str(weights), "--ann_file", str(ann_file), *more]


def evaluate(repo, *words):
    return subprocess.run(
        [sys.executable, str(repo / "midas_eval.py"), *CACHED, *words], capture_output=True, text=True, timeout=300
    )


def rows(ann_file):
    """Rows without the time that a prediction took."""
    with open(ann_file.with_name("val_details.csv"), newline="") as file:
        table = list(csv.reader(file))
    time = table[0].index("ms")
    return [row[:time] + row[time + 1 :] for row in table]


@pytest.fixture(scope="module")
def uninterrupted(repo, eval_data, weights, tmp_path_factory):
    ann_file = tmp_path_factory.mktemp("uninterrupted") / "val.json"
    return ann_file, evaluate(repo, *arguments(eval_data, weights, ann_file))


def test_all_sets(uninterrupted, eval_data, net, weights):
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
    table = {
        line[: line.index("  ")]: line.split("  ", 1)[1].split() for line in result.stdout.splitlines() if "  " in line
    }
    assert table["this run"] == [f"{values[name]:.4g}" for name in DATA_SETS]
    assert table["images"] == [word for size in (161, 1064, 3, 654, 454, 74441) for word in ("3", "of", str(size))]
    assert table["paper, MIX 5"] == ["(23.9)", "(0.327)", "(14.29)", "(9.55)", "(0.129)", "(0.1246)"]
    settings = json.loads(ann_file.with_name("val_settings.json").read_text())
    assert (settings["eval_protocol"], settings["checkpoint"]) == ("paper", str(weights))
    assert {name: found["value"] for name, found in settings["sets"].items()} == values
    assert [settings["sets"]["Kitti"][key] for key in ("metric", "scored", "benchmark_images")] == [
        "delta>1.25, %", 3, 161
    ]  # fmt: skip
    inverted = settings["sets"]["Kitti"]["inverted"]
    assert (f"warning: Kitti: {inverted} of 3 predictions are inverted" in result.stderr) == (inverted > 0)
    names = [path.name for path in sorted(ann_file.parent.iterdir())]
    assert names == ["val.json", "val_details.csv", "val_settings.json"]


KILLED_AT_ROW_7 = """
import os, signal
import midas_eval

append = midas_eval.ResultFiles.append

def append_and_die(files, record, count=[]):
    append(files, record)
    count.append(record)
    if len(count) == 7:
        os.kill(os.getpid(), signal.SIGKILL)

midas_eval.ResultFiles.append = append_and_die
midas_eval.main()
"""


def test_killed_and_resumed_is_bit_equal(repo, eval_data, weights, uninterrupted, tmp_path):
    ann_file = tmp_path / "val.json"
    details = tmp_path / "val_details.csv"
    words = arguments(eval_data, weights, ann_file)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT_ROW_7, *words], cwd=repo, capture_output=True, text=True, timeout=300
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = details.read_bytes()
    expected = rows(uninterrupted[0])
    assert rows(ann_file) == expected[: 1 + 7]
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
    pictures, depths = (sorted((data / "TUM" / SEQUENCE / kind).iterdir()) for kind in ("rgb", "depth"))
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
    assert f"NYU is left out: {splits}: expected a MATLAB file" in result.stderr
    assert result.stderr.count(str(splits)) == 1
    assert "error: NYU: damaged and left out, see above" in result.stderr
    assert f"ETH3D is left out: {data / 'ETH3D'}: expected ETH3D as" in result.stderr
    assert "not evaluated, see above: NYU, ETH3D, DIW" in result.stdout
    assert f"TUM: left out of the mean, no valid pixel: 1 images ({pictures[1].stem})" in result.stdout
    table = rows(ann_file)[1:]
    assert [[row[0], row[-1]] for row in table] == [
        ["Kitti", "1"], ["Kitti", "3"], *(["TUM", number] for number in "123")
    ]  # fmt: skip
    assert [row[1] for row in table[2:]] == [picture.stem for picture in pictures]
    assert table[3][3:] == ["nan", "nan", "nan", "nan", "0", "nan", "nan", "nan", "2"]
    values = [float(row[3]) for row in table]
    assert json.loads(ann_file.read_text())["TUM"] == (values[2] + values[4]) / 2


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--data_name", "ETH3D,gone"], UsageError, "data_name: expected all or a comma-separated list"),
        (["--data_name", "Kitti,NYU"], UsageError, "datapath_NYU: "),
        (["--train_data_dir", "gone"], UsageError, "expected at least one data set"),
        (["--data_name", "NYU,all"], UsageError, "datapath_NYU: "),
        (["--data_name", "all, nyu"], UsageError, "datapath_NYU: "),
        (["--data_name", "TUM"], DataError, "data_name TUM: expected at least one data set, found none to evaluate"),
        (["--resume", "run.ckpt"], UsageError, "resume: expected True or False for an evaluation, found /"),
    ],
)
def test_faults_before_any_work(eval_data, tmp_path, monkeypatch, words, error, message):
    shutil.copytree(eval_data / "Kitti_raw_data", tmp_path / "Kitti_raw_data")
    (tmp_path / "TUM").mkdir()
    (tmp_path / "TUM" / "associate.txt").write_text("# empty\n")
    monkeypatch.setattr(sys, "argv", ["midas_eval.py", "--train_data_dir", str(tmp_path), *words])
    monkeypatch.setattr(midas_eval, "choose_backend", lambda *_, **__: pytest.fail("work was started"))
    with pytest.raises(error) as caught:
        midas_eval.main()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_on_request_and_resumed(repo, eval_data, weights, uninterrupted, tmp_path, number):
    ann_file, details = tmp_path / "val.json", tmp_path / "val_details.csv"
    words = arguments(eval_data, weights, ann_file)

    def is_time():
        return details.exists() and details.read_bytes().count(b"\n") > 4  # the header and four images

    stderr = slow_script.stop(repo, "midas_eval", 0.3, words, is_time, number)
    left = rows(ann_file)[1:]
    assert 4 <= len(left) < 18
    name = left[-1][0]
    count = sum(row[0] == name for row in left)
    assert stderr.splitlines()[-1] == (
        f"stopped on request: {count} of 3 images of {name} are kept in {details}; --resume True resumes"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["val.json", "val_details.csv", "val_settings.json"]

    result = evaluate(repo, *words, "--resume", "True")
    assert result.returncode == 0, result.stderr
    assert rows(ann_file) == rows(uninterrupted[0])
    assert ann_file.read_bytes() == uninterrupted[0].read_bytes()


@pytest.mark.parametrize(
    "word",
    [
        "--ensure_multiple_of=64",
        "--img_width=64",
        "--invert_output=True",
        "--eval_protocol=modelzoo",
        "--eval_shapes=static",
        "--network_ops=modelzoo",
        "--features=24",
        "--nm_img_mean=[0, 0, 0]",
    ],
)
def test_settings_that_change_figures_forbid_to_resume(weights, word):
    words = [*TINY_FLAGS, "--ckpt_path", str(weights)]
    settings = midas_eval.settings_of(load_config("", words), CPU)
    assert midas_eval.settings_of(load_config("", [*words, word]), CPU) != settings
    for other in (replace(CPU, device_target="GPU"), replace(CPU, precision="bf16"), replace(CPU, name="openvino")):
        assert midas_eval.settings_of(load_config("", words), other) != settings
    for other in ("--data_name=TUM", "--resize_method=minimal", "--seed=3"):
        assert midas_eval.settings_of(load_config("", [*words, other]), CPU) == settings
    assert not {*midas_eval.FIGURE_KEYS} & {*midas_eval.OTHER_KEYS}
    assert settings["backend"] == f"MindSpore {ms.__version__}"


@pytest.fixture
def run_stub(monkeypatch, tmp_path):
    """Runs midas_eval.py in this process without a network; returns its status."""
    monkeypatch.setattr(midas_eval, "load_predictor", lambda *_, **__: RedChannel())
    monkeypatch.setattr(midas_eval, "choose_backend", lambda *_, **__: CPU)

    def run(*words):
        words = [f"--train_data_dir={tmp_path / 'data'}", "--ckpt_path=", f"--ann_file={tmp_path / 'val.json'}", *words]
        monkeypatch.setattr(sys, "argv", ["midas_eval.py", *words])
        return midas_eval.main()

    return run


def encoded(array):
    return cv2.imencode(".png", array)[1].tobytes()


def test_files_that_lie(run_stub, tmp_path, capfd):
    data = tmp_path / "data"
    make_sample(data, train=0, eval_count=5, size=(64, 48))
    lies = []  # the start of each line that is expected

    pictures = sorted(data.glob("Kitti_raw_data/*/image/*.png"))
    pictures[0].write_bytes(pictures[0].read_bytes()[:-20])
    depth = pictures[1].parents[1] / "depth" / pictures[1].name
    depth.write_bytes(encoded(np.ones((48, 64), np.uint8)))
    lies += [f"{pictures[0]}: expected an image, found", f"{depth}: expected a depth image of 16 bits, found 8"]

    tag, huge, short, *_ = sorted(data.glob("Sintel/depth/*/*.dpt"))
    tag.write_bytes(b"HIEP" + tag.read_bytes()[4:])
    huge.write_bytes(huge.read_bytes()[:4] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + huge.read_bytes()[12:])
    short.write_bytes(short.read_bytes()[:-7])
    lies += [f"{tag}: expected a Sintel depth file", f"{huge}: expected 18446744", f"{short}: expected "]

    truth = min(data.glob("ETH3D/*/ground_truth_depth/dslr_images/*.JPG"))
    truth.write_bytes(truth.read_bytes() + bytes(4))
    lies += [f"{truth}: expected "]

    table = data / "DIW" / "DIW_Annotations" / "DIW_test.csv"
    lines = table.read_text().splitlines()
    lines[1] = ",".join(["999", *lines[1].split(",")[1:]])
    table.write_text("\n".join(lines[:-1]))
    lies += [f"{table}: line 2: expected points within", f"{table}: expected the annotation of {lines[-2]}"]

    associations = data / "TUM" / SEQUENCE / "associate.txt"
    associations.write_text(f"rgb/gone.png depth/gone.png\n{associations.read_text()}")
    lies += [f"{associations.parent / 'depth' / 'gone.png'}: cannot be read"]

    splits = data / "NYU" / "splits.mat"
    indices = np.append(scipy.io.loadmat(splits)["testNdxs"].ravel(), 4321)
    scipy.io.savemat(splits, {"testNdxs": indices.reshape(-1, 1)})
    lies += [f"{splits}: expected testNdxs from 1 to "]

    assert run_stub() == 1
    stderr = capfd.readouterr().err
    assert "Traceback" not in stderr
    for lie in lies:
        assert stderr.count(f"left out: {lie}") == stderr.count(lie) == 1, lie
    assert stderr.count("left out: ") == len(lies)
    kept = {"Kitti": "345", "Sintel": "45", "TUM": "23456", "NYU": "12345", "ETH3D": "2345", "DIW": "234"}
    written = rows(tmp_path / "val.json")[1:]
    assert {name: "".join(row[-1] for row in written if row[0] == name) for name in kept} == kept
    assert list(json.loads((tmp_path / "val.json").read_text())) == list(DATA_SETS)

    # A damaged set that is asked for by its name does not stop the others.
    (data / "NYU" / "nyu.mat").unlink()
    with h5py.File(data / "NYU" / "nyu.mat", "w") as file:
        file["images"] = np.zeros((5, 3, 64, 48), np.uint8)
    assert run_stub("--data_name=nyu,TUM") == 1
    out, stderr = capfd.readouterr()
    assert stderr.count(f"{data / 'NYU' / 'nyu.mat'}: expected the array rawDepths, found ") == 1
    assert stderr.count("nyu.mat") == 1
    assert list(json.loads((tmp_path / "val.json").read_text())) == ["TUM"]
    assert [row[-1] for row in rows(tmp_path / "val.json")[1:]] == list("23456")
    assert "earlier results are kept as" in out
    assert list(json.loads((tmp_path / "val.1.json").read_text())) == list(DATA_SETS)


def test_refused_weights_leave_earlier_results_alone(run_stub, eval_data, tmp_path, monkeypatch):
    shutil.copytree(eval_data / "TUM", tmp_path / "data" / "TUM")
    assert run_stub() == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("val*")}

    def refuse(*_, **__):
        raise UsageError("ckpt_path: no such file")

    monkeypatch.setattr(midas_eval, "load_predictor", refuse)
    with pytest.raises(UsageError, match="ckpt_path"):
        run_stub()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("val*")} == before
    assert sorted(before) == ["val.json", "val_details.csv", "val_settings.json"]


def test_another_checkpoint_forbids_to_resume(weights, tmp_path):
    other = tmp_path / "tiny.ckpt"
    shutil.copyfile(weights, other)
    settings = [midas_eval.settings_of(load_config("", ["--ckpt_path", str(path)]), CPU) for path in (weights, other)]
    assert [found.pop("checkpoint") for found in settings] == [str(weights), str(other)]
    assert settings[0] == settings[1]
    other.write_bytes(other.read_bytes()[:-1] + b"x")
    changed = midas_eval.settings_of(load_config("", ["--ckpt_path", str(other)]), CPU)
    assert {key for key, value in settings[0].items() if changed[key] != value} == {"ckpt_sha256"}


def test_resume_names_the_setting_that_differs(run_stub, eval_data, tmp_path):
    shutil.copytree(eval_data / "TUM", tmp_path / "data" / "TUM")
    assert run_stub() == 0
    with pytest.raises(UsageError, match=r"expected the same evaluation, found ensure_multiple_of 32 \(now 64\)$"):
        run_stub("--resume=True", "--ensure_multiple_of=64")
    assert run_stub("--resume=True") == 0


def test_network_that_predicts_far_as_large(run_stub, tmp_path, monkeypatch, capsys):
    """The fit turns it round, a warning says so; with its output turned round, there is none."""
    make_sample(tmp_path / "data", train=0, eval_count=3, size=(64, 48))
    truth = true_inverse_depth(tmp_path / "data", "TUM")
    order = iter(())

    class Inverted(Predictor):
        def prepare(self, image, resize_method):
            return image

        def _run(self, prepared):
            return next(order)

    def load(_model, _key, _backend, _network, invert_output, **_):
        return Inverted(invert_output=invert_output)

    monkeypatch.setattr(Inverted, "compilations", 0, raising=False)
    monkeypatch.setattr(midas_eval, "load_predictor", load)
    words = ("--data_name=TUM", "--show_published=False")
    advice = "warning: TUM: this network seems to predict far as large; --invert_output True turns it round"
    order = iter([array.max() - array for array in truth.values()])
    assert run_stub(*words) == 0
    assert advice in capsys.readouterr().err
    assert json.loads((tmp_path / "val.json").read_text())["TUM"] == pytest.approx(0, abs=1e-6)
    order = iter([array.max() - array for array in truth.values()])
    assert run_stub(*words, "--invert_output=True") == 0
    assert "seems to predict" not in capsys.readouterr().err
    assert json.loads((tmp_path / "val.json").read_text())["TUM"] == pytest.approx(0, abs=1e-6)
    order = iter(list(truth.values()))
    assert run_stub(*words, "--invert_output=True") == 0
    assert "--invert_output False turns it round" in capsys.readouterr().err
