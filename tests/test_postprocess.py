"""postprocess.py: predictions of any network get the figures that midas_eval.py gives; names, formats, faults."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import midas_eval
import postprocess
from evaluation import CPU, FOLDERS, IMAGES, RedChannel, open_one, true_inverse_depth
from src.common.errors import DataError, UsageError
from src.common.names import DATA_SETS, PROTOCOLS
from src.evaluation.predictions import Predictions
from src.inference.mindspore import MindSporePredictor
from src.util import write_pfm

# As a program without MindSpore and PyTorch would run it.
WITHOUT_FRAMEWORKS = """
import sys
for name in ("mindspore", "torch"):
    sys.modules[name] = None
import postprocess
from src.common.errors import run_script
run_script(postprocess.main)
"""


@pytest.fixture
def score(monkeypatch, tmp_path):
    """Runs postprocess.py in this process, in a folder of its own; returns the status and {set: value}."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["postprocess.py", *map(str, words)])
        status = postprocess.main()
        return status, json.loads((folder / "result_val.json").read_text())

    return run


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    """Runs midas_eval.py in this process; returns its folder and {set: {image: prediction}}, both as it left them."""
    monkeypatch.setattr(midas_eval, "choose_backend", lambda *_, **__: CPU)

    def run(predictor, data, *words):
        outputs = []
        infer = predictor.infer

        def record(prepared):
            outputs.append(infer(prepared))
            return outputs[-1]

        monkeypatch.setattr(predictor, "infer", record)
        monkeypatch.setattr(midas_eval, "load_predictor", lambda *_, **__: predictor)
        folder = tmp_path / "evaluated"
        words = [f"--train_data_dir={data}", "--ckpt_path=", f"--ann_file={folder / 'val.json'}", *words]
        monkeypatch.setattr(sys, "argv", ["midas_eval.py", *words])
        assert midas_eval.main() == 0
        predictions = {}
        for row, output in zip(rows(folder / "val_details.csv")[1:], outputs):
            predictions.setdefault(row[0], {})[row[1]] = output
        return folder, predictions

    return run


def rows(details):
    """Rows of the details without the time that a prediction took."""
    with open(details, newline="") as file:
        table = list(csv.reader(file))
    time = table[0].index("ms")
    return [row[:time] + row[time + 1 :] for row in table]


def write(folder, name, array, form=".npy"):
    path = folder / f"{name}{form}"
    if form == ".bin":
        path = folder / f"{name}_{array.shape[0]}x{array.shape[1]}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == ".npy":
        np.save(path, array)
    elif form == ".pfm":
        write_pfm(path, array)
    else:
        path.write_bytes(array.astype("<f4").tobytes())
    return path


def write_truth(data, folder, name, form=".npy"):
    return [write(folder, sample, array, form) for sample, array in true_inverse_depth(data, name).items()]


def place(data, name):
    return data / FOLDERS.get(name, name)


# ---- the same figures


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_figures_of_a_network_are_those_of_midas_eval(repo, eval_data, net, evaluate, tmp_path, protocol):
    """To the last digit, whatever the format, without MindSpore and PyTorch."""
    words = ["--train_data_dir", str(eval_data), "--eval_protocol", protocol]
    folder, predictions = evaluate(MindSporePredictor(net), eval_data, *words)
    assert list(predictions) == list(DATA_SETS)
    for name, of_set in predictions.items():
        for form, (sample, output) in zip((".npy", ".pfm", ".bin"), of_set.items()):
            assert output.dtype == np.float32
            write(tmp_path / "result_Files" / name, sample, output, form)
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_FRAMEWORKS, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repo)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "result_val.json").read_bytes() == (folder / "val.json").read_bytes()
    assert rows(tmp_path / "result_val_details.csv") == rows(folder / "val_details.csv")
    settings = json.loads((tmp_path / "result_val_settings.json").read_text())
    assert (settings["eval_protocol"], settings["prediction"]) == (protocol, "inverse_depth")
    assert settings["predictions"]["TUM"]["folder"] == str(tmp_path / "result_Files" / "TUM")
    theirs = json.loads((folder / "val_settings.json").read_text())
    assert (settings["sets"], settings["data"]) == (theirs["sets"], theirs["data"])
    assert "MiDaS v2.1 large" in result.stdout
    assert f"Kitti: {IMAGES} predictions for {IMAGES} samples in {tmp_path / 'result_Files' / 'Kitti'}" in result.stdout


def test_real_images(realdata, evaluate, score, tmp_path):
    """Predictions of another network, in a folder without sub-folders, of two sets."""
    words = ["--data_name=TUM,Kitti", "--show_published=False"]
    folder, predictions = evaluate(RedChannel(), realdata, *words)
    for of_set in predictions.values():
        for sample, output in of_set.items():
            write(tmp_path / "theirs", sample.replace("/", "_"), output.astype(np.uint8))
    status, values = score(
        "--train_data_dir", realdata, "--dataset_name", "tum,KITTI", "--result_path", tmp_path / "theirs"
    )
    assert (status, values) == (0, json.loads((folder / "val.json").read_text()))


@pytest.mark.parametrize("name", DATA_SETS)
def test_depth_becomes_inverse_depth(eval_data, score, tmp_path, capsys, name):
    """Depth of any unit scores as its inverse does; infinity is inverse depth 0."""
    for sample, inverse in true_inverse_depth(eval_data, name).items():
        with np.errstate(divide="ignore"):
            write(tmp_path / "depth", sample, 1000 / inverse.astype(np.float64))
    words = ("--dataset_path", place(eval_data, name), "--dataset_name", name, "--result_path", tmp_path / "depth")
    status, values = score(*words, "--prediction", "depth")
    assert (status, values[name]) == (0, pytest.approx(0, abs=1e-5))
    assert "seem to be" not in capsys.readouterr().err
    if name != "DIW":  # whose infinity is no inverse depth
        status, values = score(*words)
        assert (status, values[name] > 0) == (0, True)
        assert f"{name}: these predictions seem to be larger where it is farther" in capsys.readouterr().err


def test_depth_is_inverted_before_it_is_resized(eval_data, score, tmp_path):
    """A plane is linear in inverse depth: half the size loses nothing."""
    dataset = open_one(eval_data, "TUM")
    for number in range(len(dataset)):
        height, width = dataset[number].image.shape[:2]
        plane = 1 + np.add.outer(np.arange(height), 2.0 * np.arange(width))
        small = plane.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
        write(tmp_path / "large" / "TUM", dataset[number].name, plane)
        write(tmp_path / "small" / "TUM", dataset[number].name, 1 / small)
    words = ("--dataset_path", eval_data / "TUM", "--dataset_name", "TUM")
    _, large = score(*words, "--result_path", tmp_path / "large")
    _, small = score(*words, "--result_path", tmp_path / "small", "--prediction", "depth")
    assert small["TUM"] == pytest.approx(large["TUM"], abs=0.2)  # the border alone differs


# ---- names and formats


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (np.float16, (48, 64)), (np.float32, (1, 48, 64)), (np.float64, (1, 1, 48, 64)), (">f4", (48, 64, 1)),
        (np.uint8, (48, 64)), (np.uint16, (1, 48, 64)), (np.int32, (48, 64)), (np.int64, (48, 64)),
    ],
)  # fmt: skip
def test_types_and_shapes_of_npy(eval_data, tmp_path, dtype, shape):
    dataset = open_one(eval_data, "TUM")
    expected = np.arange(48 * 64).reshape(48, 64) % 251
    write(tmp_path, dataset[0].name, expected.reshape(shape).astype(dtype))
    read = Predictions(tmp_path, dataset).read(dataset[0])
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.parametrize("form", [".npy", ".pfm", ".bin"])
@pytest.mark.parametrize("called", ["name", "picture", "flat"])
def test_names(eval_data, tmp_path, name, form, called):
    dataset = open_one(eval_data, name)
    for sample, picture in dataset.pictures():
        stem = {
            "name": sample,
            "picture": os.path.splitext(picture)[0] or sample,
            "flat": sample.removeprefix("./").replace("/", "_"),
        }
        write(tmp_path / name.upper(), stem[called], np.ones((2, 3), np.float32), form)
    found = Predictions(tmp_path, dataset)
    assert (len(found), found.folder, found.strays) == (IMAGES, tmp_path / name.upper(), [])
    for number in range(IMAGES):
        np.testing.assert_array_equal(found.read(dataset[number]), np.ones((2, 3)))


def test_results_of_midas_run_are_found(eval_data, tmp_path):
    """Beside each .pfm file there are pictures; hidden files and what is linked in a circle do no harm."""
    truth = true_inverse_depth(eval_data, "Kitti")
    for sample, array in truth.items():
        drive, frame = sample.split("/")
        path = write(tmp_path / "maps", f"{drive}/image/{frame}", array, ".pfm")
        for name in (f"{frame}.png", f"{frame}_color.png", f".{frame}.npy"):
            (path.parent / name).write_bytes(b"")
        if not (path.parent / "circle").exists():
            (path.parent / "circle").symlink_to(tmp_path / "maps")
    dataset = open_one(eval_data, "Kitti")
    found = Predictions(tmp_path / "maps", dataset)
    np.testing.assert_array_equal(found.read(dataset[1]), truth[dataset[1].name].astype(np.float32))
    assert found.strays == []


def test_a_name_that_fits_two_samples_is_that_of_neither(eval_data, tmp_path):
    some = min((eval_data / "Kitti_raw_data").iterdir())
    for name in ("a/b_c", "a_b/c", "d/e"):
        drive, frame = name.split("/", 1)
        for kind in ("image", "depth"):
            path = tmp_path / "Kitti_raw_data" / drive / kind / f"{frame}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(min((some / kind).iterdir()), path)
    dataset = open_one(tmp_path, "Kitti")
    write(tmp_path / "flat", "a_b_c", np.ones((2, 3)))
    write(tmp_path / "flat", "d_e", np.ones((2, 3)))
    found = Predictions(tmp_path / "flat", dataset)
    assert (len(found), [path.name for path in found.strays]) == (1, ["a_b_c.npy"])


# ---- faults


def fault(function, *arguments):
    with pytest.raises((DataError, UsageError)) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


NAN, HOLE = np.ones((48, 64), np.float32), np.ones((48, 64), np.float32)
NAN[3, 4] = np.nan
HOLE[:2, 4] = 0, -1


@pytest.mark.parametrize(
    ("array", "kind", "message"),
    [
        (NAN, "inverse_depth", "expected finite inverse depth at every pixel, found 1 of 3072 pixels that are NaN or"),
        (np.full((4, 5), 1e300), "inverse_depth", "found 20 of 20 pixels that are NaN or infinite"),
        (np.full((4, 5), 1e-45, np.float32), "depth", "found 20 of 20 pixels that are NaN or infinite"),
        (NAN, "depth", "expected depth above 0 at every pixel, infinity where there is no end, found 1 of 3072"),
        (HOLE, "depth", "found 2 of 3072 pixels that are 0, below 0 or NaN; fill them"),
        (np.ones((3, 48, 64)), "inverse_depth", "expected numbers (H, W), found float64 (3, 48, 64)"),
        (np.ones((3, 1, 48, 64)), "inverse_depth", "expected numbers (H, W), found float64 (3, 1, 48, 64)"),
        (np.ones(48), "inverse_depth", "expected numbers (H, W), found float64 (48,)"),
        (np.ones((0, 5)), "inverse_depth", "expected numbers (H, W), found float64 (0, 5)"),
        (np.ones((4, 5), complex), "inverse_depth", "expected numbers (H, W), found complex128 (4, 5)"),
        (np.full((4, 5), {}), "inverse_depth", "expected a NumPy array of numbers, found"),
        (np.ones((96, 72)), "inverse_depth", "expected rows and columns of a picture of 72 x 96 pixels, found 96 x 72"),
    ],
)
def test_arrays_that_are_no_prediction(eval_data, tmp_path, array, kind, message):
    dataset = open_one(eval_data, "TUM")
    path = write(tmp_path, dataset[0].name, array)
    text = fault(Predictions(tmp_path, dataset, kind).read, dataset[0])
    assert text.startswith(f"{path}: {message}") or (text.startswith(f"{path}: ") and message in text)


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        ("_4x5.bin", bytes(79), "expected 80 bytes of float32 pixels for 4 x 5, found 79"),
        ("_4x5.bin", bytes(84), "expected 80 bytes of float32 pixels for 4 x 5, found 84"),
        ("_0x5.bin", b"", "expected some bytes of float32 pixels for 0 x 5, found 0"),
        ("_999999999x999999999.bin", bytes(4), "bytes of float32 pixels for 999999999 x 999999999, found 4"),
        (".bin", bytes(80), "expected the size in the name, NAME_HEIGHTxWIDTH.bin, found none"),
        (".npy", b"\x93NUMPY\x01\x00", "expected a NumPy array of numbers, found 8 bytes: truncated"),
        (".npy", b"", "expected an image, found 0 bytes"),
        (".pfm", b"Pf\n5 4\n-1.0\n" + bytes(79), "expected 80 bytes of float32 pixels for 4 x 5, found 79"),
    ],
)
def test_files_that_are_no_prediction(eval_data, tmp_path, ending, content, message):
    dataset = open_one(eval_data, "TUM")
    path = tmp_path / f"{dataset[0].name}{ending}"
    path.write_bytes(content)
    text = fault(Predictions(tmp_path, dataset).read, dataset[0])
    assert text.startswith(f"{path}: ")
    assert message in text


def test_one_bad_prediction_does_not_stop_the_others(eval_data, score, tmp_path, capsys):
    """One is missing, one is cut, one is sound; one belongs to no sample. Earlier results are kept."""
    paths = write_truth(eval_data, tmp_path / "r", "Sintel", ".bin")
    words = ("--dataset_path", eval_data / "Sintel", "--dataset_name", "sintel", "--result_path", tmp_path / "r")
    assert score(*words) == (0, {"Sintel": pytest.approx(0, abs=1e-6)})
    capsys.readouterr()
    paths[0].rename(paths[0].with_name("frame_7777_72x96.bin"))
    paths[1].write_bytes(paths[1].read_bytes()[:-4])
    status, values = score(*words)
    said = capsys.readouterr()
    assert (status, values) == (1, {"Sintel": pytest.approx(0, abs=1e-6)})
    assert (
        "left out: Sintel scene_1/frame_0001: expected its prediction as NAME.npy, NAME.pfm or NAME_HxW.bin in "
        f"{tmp_path / 'r'}, NAME scene_1/frame_0001 or final_left/scene_1/frame_0001 or scene_1_frame_0001, found none"
    ) in said.err
    assert re.search(f"left out: {re.escape(str(paths[1]))}: expected \\d+ bytes of float32 pixels", said.err)
    assert (
        f"warning: {tmp_path / 'r'}: 1 of 3 predictions belong to no sample and are not scored, such as "
        "scene_1/frame_7777_72x96.bin"
    ) in said.err
    assert "error: Sintel: 2 samples could not be evaluated, see above" in said.err
    assert "earlier results are kept as result_val.1.json, result_val_details.1.csv" in said.out
    assert "result_val.json and result_val_details.csv written" in said.out


def test_two_predictions_of_one_sample(eval_data, tmp_path):
    dataset = open_one(eval_data, "Kitti")
    name = dataset[0].name
    first = write(tmp_path, name, np.ones((2, 3)), ".bin")
    for other, form in (
        (name, ".bin"),
        (name, ".npy"),
        (name.replace("/", "_"), ".pfm"),
        (name.replace("/", "/image/"), ".npy"),
    ):
        second = write(tmp_path, other, np.ones((4, 3)), form)
        text = fault(Predictions, tmp_path, dataset)
        assert text.startswith("result_path: expected one prediction for each sample, found ")
        assert str(first) in text
        assert str(second) in text
        assert f"for Kitti {name}" in text
        second.unlink()
    assert len(Predictions(tmp_path, dataset)) == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "expected a folder with predictions of Kitti, found No such file or directory"),
        (
            [],
            "NAME for instance 2011_09_26_drive_0001_sync/0000000000 or 2011_09_26_drive_0001_sync/image/0000000000 or",
        ),
        ([], "found no files"),
        (["a.png", "b.png", "c.txt"], "found 2 .png, 1 .txt"),
        (["0000000000.npy", "a.png"], "found 1 files of other names, such as 0000000000.npy"),
    ],
)
def test_no_prediction_at_all(eval_data, score, tmp_path, files, message):
    folder = tmp_path / "r"
    for name in files or []:
        write(folder, name, np.ones((2, 3)), "")
    if files == []:
        folder.mkdir()
    words = ("--dataset_path", place(eval_data, "Kitti"), "--dataset_name", "Kitti", "--result_path", folder)
    text = fault(score, *words)
    assert text.startswith(f"result_path: {folder}: expected ")
    assert message in text


def test_all_without_any_prediction(eval_data, score, tmp_path, capsys):
    text = fault(score, "--train_data_dir", eval_data)
    assert text == "dataset_name all: expected at least one data set, found none to evaluate, see above"
    missing = f"TUM is left out: {tmp_path / 'here' / 'result_Files'}: expected a folder with predictions of TUM"
    assert missing in capsys.readouterr().err
    text = fault(score, "--train_data_dir", tmp_path)
    assert text.endswith("see above; preprocess/readme.md says how to get the data")


def test_all_takes_what_is_there(eval_data, score, tmp_path, capsys):
    """Of all sets, those without predictions are left out; a set that is named must have some."""
    write_truth(eval_data, tmp_path / "here" / "result_Files", "NYU")
    write(tmp_path / "here" / "result_Files", "tum/nothing", np.ones((2, 3)))
    assert score("--train_data_dir", eval_data) == (0, {"NYU": pytest.approx(0, abs=1e-6)})
    said = capsys.readouterr()
    assert "not evaluated, see above: Kitti, Sintel, TUM, ETH3D, DIW" in said.out
    assert "belong to no sample" not in said.err
    text = fault(score, "--train_data_dir", eval_data, "--dataset_name", "NYU,TUM")
    assert text.startswith(f"result_path: {tmp_path / 'here' / 'result_Files' / 'tum'}: expected predictions of TUM")
    assert "found 1 files of other names, such as nothing.npy" in text


def test_wrong_settings(eval_data, score, tmp_path):
    several = ("--dataset_path", eval_data, "--dataset_name", "Kitti,TUM")
    assert fault(score, *several).startswith("dataset_path: expected none with several data sets")
    one = ("--dataset_path", tmp_path / "gone", "--dataset_name", "Kitti")
    assert fault(score, *one).startswith(f"dataset_path: {tmp_path / 'gone'}: expected Kitti as ")
    named = ("--train_data_dir", tmp_path / "gone", "--dataset_name", "Kitti")
    assert fault(score, *named).startswith(f"datapath_Kitti: {tmp_path / 'gone'}/Kitti_raw_data: expected Kitti as ")
    assert "dataset_name: expected all or a comma-separated list of" in fault(score, "--dataset_name", "Make3D")
    assert "prediction: expected one of inverse_depth, depth" in fault(score, "--prediction", "disparity")
