"""Reading, predicting and scoring as one pipeline, and the files that it fills."""

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace

import cv2
import h5py
import mindspore as ms
import numpy as np
import pytest
import scipy.io
from conftest import TINY

from preprocess.make_sample import make_sample
from src.common.errors import MidasError, UsageError
from src.evaluation import results as eval_results
from src.evaluation.datasets import DATASETS, Tum, open_dataset
from src.evaluation.evaluator import Fault, Record, SetResult, evaluate, summarise
from src.evaluation.metric import resize_prediction, score_dense, score_ordinal
from src.evaluation.results import REPORTED, ResultFiles, details_path, format_table, settings_path
from src.inference.predictor import MindSporePredictor
from src.midas_net import MidasNet
from src.util import read_gray, write_dpt, write_png16

NAN = float("nan")
IMAGES = 3  # of each set
FOLDERS = {"Kitti": "Kitti_raw_data"}  # the others are named as their sets


@pytest.fixture(scope="module")
def eval_data(tmp_path_factory):
    root = tmp_path_factory.mktemp("eval_data")
    make_sample(root, train=0, eval_count=IMAGES, size=(96, 72))
    return root


@pytest.fixture
def copied_data(eval_data, tmp_path):
    return shutil.copytree(eval_data, tmp_path / "data")


def open_one(root, name, protocol="paper"):
    return open_dataset(name, root / FOLDERS.get(name, name), protocol)


def true_inverse_depth(root, name):
    """Sample name -> the inverse depth that is right everywhere; of DIW, 0 but for the nearer point of the pair."""
    if name == "DIW":
        lines = (root / "DIW" / "DIW_Annotations" / "DIW_test.csv").read_text().splitlines()
        truth = {}
        for picture, annotation in zip(lines[::2], lines[1::2]):
            y1, x1, y2, x2, relation, width, height = annotation.split(",")
            truth[picture] = np.zeros((int(height), int(width)), np.float32)
            nearer = (y2, x2) if relation == ">" else (y1, x1)
            truth[picture][int(nearer[0]) - 1, int(nearer[1]) - 1] = 1
        return truth
    dataset = open_one(root, name)
    samples = [dataset[index] for index in range(len(dataset))]
    return {sample.name: 1 / np.where(sample.valid, sample.depth, 1) for sample in samples}


def run(dataset, predict, prepare=lambda sample: sample):
    outcomes = list(evaluate(dataset, range(1, len(dataset) + 1), prepare, predict))
    records = [outcome for outcome in outcomes if isinstance(outcome, Record)]
    return summarise(dataset, records, len(outcomes) - len(records)), outcomes


@pytest.mark.parametrize("name", DATASETS)
def test_true_inverse_depth_scores_0(eval_data, name):
    truth = true_inverse_depth(eval_data, name)
    result, records = run(open_one(eval_data, name), lambda sample: truth[sample.name])
    assert result.value == pytest.approx(0, abs=1e-6)
    assert (result.scored, result.empty, result.inverted, result.faulty) == (IMAGES, (), 0, 0)
    assert [record.image for record in records] == list(truth)
    assert [record.number for record in records] == [1, 2, 3]
    if name == "DIW":
        assert [(record.scale, record.shift, record.compared) for record in records] == [(None, None, 1)] * 3
    else:
        assert [record.scale for record in records] == pytest.approx([1] * 3, rel=1e-5)
        assert [record.shift for record in records] == pytest.approx([0] * 3, abs=1e-5)


@pytest.mark.parametrize("name", DATASETS)
def test_true_inverse_depth_in_double_precision_scores_0(eval_data, name):
    dataset = open_one(eval_data, name)
    for sample in map(dataset.__getitem__, range(IMAGES)):
        if name == "DIW":
            truth = true_inverse_depth(eval_data, name)[sample.name]
            score = score_ordinal(truth, sample.points, sample.relation)
        else:
            truth = 1 / np.where(sample.valid, sample.depth, 1).astype(np.float64)
            score = score_dense(truth, sample.depth, sample.valid, dataset.metric, dataset.cap_m)
        assert score.value <= 1e-9


@pytest.mark.parametrize("name", DATASETS)
def test_depth_and_negated_inverse_depth_do_not(eval_data, name):
    truth = true_inverse_depth(eval_data, name)
    dataset = open_one(eval_data, name)
    result, records = run(dataset, lambda sample: -truth[sample.name])
    if name == "DIW":
        assert result.value == 1
        return
    constant, _ = run(dataset, lambda sample: np.ones(sample.depth.shape))
    assert result.value == pytest.approx(constant.value, rel=1e-12)
    assert result.value > 0.05
    assert (result.inverted, constant.inverted) == (IMAGES, 0)
    assert [record.scale for record in records] == [0] * IMAGES
    depth = {sample: 1 / inverse_depth for sample, inverse_depth in truth.items()}
    assert run(dataset, lambda sample: depth[sample.name])[0].value > 0.05


@pytest.mark.parametrize("name", ["Kitti", "NYU", "ETH3D"])
def test_modelzoo_turns_negated_inverse_depth_round(eval_data, name):
    truth = true_inverse_depth(eval_data, name)
    result, records = run(open_one(eval_data, name, "modelzoo"), lambda sample: -truth[sample.name])
    assert result.value == pytest.approx(0, abs=1e-6)
    assert result.inverted == IMAGES
    assert [record.scale for record in records] == pytest.approx([-1] * IMAGES, rel=1e-5)


# Files for the purpose, four pixels each, scored by hand. What predicts is the first channel of the picture.


def channels(red, blue):
    """A 2 x 2 picture, RGB, lossless."""
    return np.stack([np.array(red), np.full((2, 2), 9), np.array(blue)], axis=-1).astype(np.uint8)


def write_channels(path, red, blue):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", channels(red, blue)[..., ::-1])[1].tobytes())  # OpenCV takes BGR


def first_channel_score(dataset):
    result, _ = run(dataset, lambda red: red, lambda sample: sample.image[..., 0].astype(np.float32))
    assert result.faulty == 0
    return result.value


METRES = np.array([[1, 2], [4, 4]], np.float32)
RIGHT = [[200, 100], [50, 50]]  # 200 / METRES
CONSTANT = [[7, 7], [7, 7]]
# of a constant prediction: 1/d = (1 + 1/2 + 1/4 + 1/4) / 4 = 1/2, so d = 2 and |d - d*| / d* = 1, 0, 1/2, 1/2


def test_eth3d_is_bgr_under_modelzoo_by_hand(tmp_path):
    write_channels(tmp_path / "pipes" / "images" / "dslr_images" / "A.JPG", RIGHT, CONSTANT)
    truth = tmp_path / "pipes" / "ground_truth_depth" / "dslr_images" / "A.JPG"
    truth.parent.mkdir(parents=True)
    truth.write_bytes(METRES.astype("<f4").tobytes())
    assert first_channel_score(open_dataset("ETH3D", tmp_path)) == pytest.approx(0, abs=1e-9)
    assert first_channel_score(open_dataset("ETH3D", tmp_path, "modelzoo")) == pytest.approx(0.5)


def write_four_pixels(name, root):
    if name == "Kitti":
        write_channels(root / "a_sync" / "image" / "1.png", RIGHT, CONSTANT)
        write_png16(root / "a_sync" / "depth" / "1.png", (256 * METRES).astype(np.uint16))
    elif name == "Sintel":
        write_channels(root / "final_left" / "alley_1" / "1.png", RIGHT, CONSTANT)
        write_dpt(root / "depth" / "alley_1" / "1.dpt", METRES)
        write_channels(root / "occlusions" / "alley_1" / "1.png", [[255, 255]] * 2, [[255, 255]] * 2)
        mask = root / "occlusions" / "alley_1" / "1.png"
        mask.write_bytes(cv2.imencode(".png", np.full((2, 2), 255, np.uint8))[1].tobytes())
    else:
        with h5py.File(root / "nyu.mat", "w") as file:
            file["images"] = channels(RIGHT, CONSTANT).transpose(2, 1, 0)[None]
            file["rawDepths"] = METRES.T[None]
        scipy.io.savemat(root / "splits.mat", {"testNdxs": [[1]]})


@pytest.mark.parametrize("name", ["Kitti", "Sintel", "NYU"])
@pytest.mark.parametrize("protocol", ["paper", "modelzoo"])
def test_kitti_sintel_and_nyu_are_rgb_in_both_protocols(tmp_path, name, protocol):
    """The constant blue channel would score 0.5 (AbsRel) or 75 % (ratios 2, 1, 2, 2)."""
    write_four_pixels(name, tmp_path)
    assert first_channel_score(open_dataset(name, tmp_path, protocol)) == pytest.approx(0, abs=1e-9)


def test_tum_is_8_bit_and_bgr_under_modelzoo_by_hand(tmp_path):
    # Upper bytes of 511, 511, 511, 512 are 1, 1, 1, 2: as inverse depth 5000, 5000, 5000, 2500, mean 4375. A constant
    # is off by 5000/4375 = 1.14 three times and by 4375/2500 = 1.75 once: 25 %. In 16 bit all four are equal to 0.2 %.
    write_png16(tmp_path / "depth" / "1.png", np.array([[511, 511], [511, 512]], np.uint16))
    (tmp_path / "associate.txt").write_text("rgb/1.png depth/1.png\n")
    write_channels(tmp_path / "rgb" / "1.png", CONSTANT, CONSTANT)
    assert first_channel_score(open_dataset("TUM", tmp_path)) == 0
    assert first_channel_score(open_dataset("TUM", tmp_path, "modelzoo")) == 25
    # The blue channel has the one pixel right: nothing is off.
    write_channels(tmp_path / "rgb" / "1.png", CONSTANT, [[200, 200], [200, 100]])
    assert first_channel_score(open_dataset("TUM", tmp_path, "modelzoo")) == 0


def test_sintel_occlusion_mask_by_hand(tmp_path):
    # p = 200, 100, 100, 100 (mean 125), t = 1, 1/2, 1/4, 1/4 (mean 1/2): sum of products 37.5 + 0 + 6.25 + 6.25 = 50,
    # of squares 5625 + 3 * 625 = 7500; scale 1/150, shift 1/2 - 125/150 = -1/3; aligned 1, 1/3, 1/3, 1/3; d 1, 3, 3, 3
    # AbsRel = (0 + 1/2 + 1/4 + 1/4) / 4 = 1/4. The two pixels of the upper row alone are fitted exactly.
    write_four_pixels("Sintel", tmp_path)
    write_channels(tmp_path / "final_left" / "alley_1" / "1.png", [[200, 100], [100, 100]], CONSTANT)
    mask = tmp_path / "occlusions" / "alley_1" / "1.png"
    mask.write_bytes(cv2.imencode(".png", np.array([[255, 255], [0, 254]], np.uint8))[1].tobytes())
    assert first_channel_score(open_dataset("Sintel", tmp_path)) == pytest.approx(0.25)
    assert first_channel_score(open_dataset("Sintel", tmp_path, "modelzoo")) == pytest.approx(0, abs=1e-9)


def test_diw_order_and_channels_by_hand(tmp_path):
    """``>``: point 1, upper left, is farther, so its prediction must be smaller; modelzoo wants it larger, in blue."""
    (tmp_path / "DIW_Annotations").mkdir()
    (tmp_path / "DIW_Annotations" / "DIW_test.csv").write_text("./DIW_test/a.thumb\n1,1,2,2,>,2,2\n")
    small_first, large_first = [[10, 0], [0, 90]], [[90, 0], [0, 10]]
    for red, blue, paper, modelzoo in (
        (small_first, small_first, 0, 1),
        (small_first, large_first, 0, 0),
        (large_first, small_first, 1, 1),
        (large_first, large_first, 1, 0),
    ):
        write_channels(tmp_path / "DIW_test" / "a.thumb", red, blue)
        assert first_channel_score(open_dataset("DIW", tmp_path)) == paper
        assert first_channel_score(open_dataset("DIW", tmp_path, "modelzoo")) == modelzoo


def test_modelzoo_protocol(eval_data):
    def records(name):
        truth = true_inverse_depth(eval_data, name)
        return run(open_one(eval_data, name, "modelzoo"), lambda sample: truth[sample.name])[1]

    assert [record.value for record in records("DIW")] == [1, 1, 1]  # the order is taken the other way round
    masks = sorted((eval_data / "Sintel" / "occlusions").glob("*/*.png"))
    occluded = [int((read_gray(path) == 255).sum()) for path in masks]
    assert [record.compared for record in records("Sintel")] == occluded
    assert [record.scale for record in records("TUM")] == pytest.approx([256] * 3, rel=0.1)  # the upper byte is left


def test_prediction_is_resized_by_the_rule_of_the_protocol(eval_data):
    small = np.random.default_rng(0).random((4, 6), np.float32)
    by_protocol = []
    for protocol in ("paper", "modelzoo"):
        dataset = open_one(eval_data, "Kitti", protocol)
        sample = dataset[0]
        resized = resize_prediction(small, *sample.depth.shape, half_pixel=protocol == "paper")
        expected = score_dense(resized, sample.depth, sample.valid, "delta1", 80, turn_round=protocol == "modelzoo")
        found = run(dataset, lambda sample: small)[1][0]
        assert (found.value, found.scale, found.shift) == (expected.value, expected.scale, expected.shift)
        by_protocol.append(found.scale)
    assert by_protocol[0] != by_protocol[1]


def test_pipeline_equals_a_plain_loop(eval_data):
    """Network, resize and score once more, one image after another, the fit by numpy's least squares."""
    predictor = MindSporePredictor(MidasNet(**TINY))
    dataset = open_one(eval_data, "Sintel")
    result, records = run(dataset, predictor.infer, lambda sample: predictor.prepare(sample.image))
    expected = []
    for sample in map(dataset.__getitem__, range(IMAGES)):
        small = predictor.net(ms.Tensor(predictor.prepare(sample.image))).asnumpy()[0]
        height, width = sample.depth.shape
        rows = np.clip((np.arange(height) + 0.5) * small.shape[0] / height - 0.5, 0, small.shape[0] - 1)
        columns = np.clip((np.arange(width) + 0.5) * small.shape[1] / width - 0.5, 0, small.shape[1] - 1)
        tall = np.stack([np.interp(rows, np.arange(small.shape[0]), column) for column in small.T], axis=1)
        full = np.stack([np.interp(columns, np.arange(small.shape[1]), row) for row in tall])
        flat = np.stack([full.ravel(), np.ones(full.size)], axis=1)
        disparity = 1 / sample.depth.astype(np.float64).ravel()
        fit = np.linalg.lstsq(flat, disparity, rcond=None)[0]
        if fit[0] < 0:
            fit = np.array([0, disparity.mean()])
        depth = 1 / np.maximum(flat @ fit, 1 / 72)
        expected.append(np.mean(np.abs(depth / sample.depth.ravel() - 1)))
    assert [record.value for record in records] == pytest.approx(expected, rel=1e-3)
    assert result.value == pytest.approx(np.mean(expected), rel=1e-3)


def test_faulty_samples_are_named_and_the_others_scored(copied_data):
    truth = true_inverse_depth(copied_data, "TUM")
    folder = copied_data / "TUM" / Tum.sequence
    first, second, third = sorted((folder / "rgb").iterdir())
    second.write_bytes(second.read_bytes()[:200])
    lines = (folder / "associate.txt").read_text().splitlines()
    (folder / "associate.txt").write_text("\n".join([*lines, "rgb/alone.png", lines[0]]))
    truth[third.stem][3, 4] = np.inf

    result, outcomes = run(open_one(copied_data, "TUM"), lambda sample: truth[sample.name])
    assert [type(outcome) for outcome in outcomes] == [Record, Fault, Fault, Fault, Record]
    assert [outcome.number for outcome in outcomes] == [1, 2, 3, 4, 5]
    assert str(second) in outcomes[1].text
    expected = "prediction: expected finite inverse depth, found 1 NaN or infinite pixels"
    assert outcomes[2].text == f"TUM {third.stem}: {expected}"
    assert "associate.txt: line 4: expected 2 or 4 columns" in outcomes[3].text
    assert all("\n" not in outcome.text for outcome in outcomes[1:4])
    assert outcomes[0].image == outcomes[4].image == first.stem
    assert (result.scored, result.faulty) == (2, 3)
    assert result.value == pytest.approx(0, abs=1e-6)


def test_image_without_valid_pixel_is_left_out_of_the_mean():
    def record(number, value):
        return Record("Kitti", number, f"a/{number}", "delta1", value, 1.0, 0.0, 5, 1.0)

    dataset = DATASETS["Kitti"].__new__(DATASETS["Kitti"])
    result = summarise(dataset, [record(1, 30.0), record(2, NAN), record(3, 10.0)], faulty=0)
    assert (result.value, result.scored, result.empty) == (20.0, 2, ("a/2",))
    assert np.isnan(summarise(dataset, [record(2, NAN)], faulty=0).value)


def test_reading_runs_ahead_and_not_too_far(eval_data):
    """Image 1 is predicted once image 2 has been read; however long that takes, no more than 3 are read by then."""
    dataset = open_one(eval_data, "Kitti")
    second_is_read, read, predicted = threading.Event(), [], []

    def prepare(sample):
        read.append(sample.name)
        if len(read) == 2:
            second_is_read.set()
        return sample

    def predict(sample):
        assert second_is_read.wait(10), "nothing is read while the network works"
        if not predicted:
            time.sleep(0.3)
            assert len(read) <= 3
        predicted.append(sample.name)
        return np.eye(4, dtype=np.float32)

    numbers = [1, 2, 3] * 10
    records = list(evaluate(dataset, numbers, prepare, predict, workers=2))
    assert [record.number for record in records] == numbers
    assert predicted == [record.image for record in records]


def test_compilations_are_counted():
    """Dynamic shapes compile once for all sizes, static ones once for each; the maps are the same."""
    sizes = [(64, 96), (96, 64), (128, 160), (64, 96)]
    images = [np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32) for size in sizes]
    dynamic = MindSporePredictor(MidasNet(**TINY))
    static = MindSporePredictor(MidasNet(**TINY), dynamic_shape=False)
    ms.load_param_into_net(static.net, dynamic.net.parameters_dict())
    counts = []
    for image in images:
        np.testing.assert_allclose(dynamic.infer(image), static.infer(image), rtol=1e-5, atol=1e-6)
        counts.append((dynamic.compilations, static.compilations))
    assert counts == [(1, 1), (1, 2), (1, 3), (1, 3)]


def test_needs_no_mindspore(repo):
    code = "import sys, src.evaluation.evaluator, src.evaluation.results; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo).returncode == 0


# Files


SETTINGS = {"eval_protocol": "paper", "layers": (1, 2), "ckpt_sha256": "ab"}
RECORDS = [
    Record("Kitti", 1, "2011_09_26_drive_0001_sync/0000000000", "delta1", 1 / 3, -2 / 3, 1e-17, 7, 12.5),
    Record("Kitti", 2, "2011_09_26_drive_0001_sync/0000000001", "delta1", NAN, NAN, NAN, 0, 3.0),
    Record("Kitti", 3, "2011_09_26_drive_0002_sync/0000000000", "delta1", 0.1 + 0.2, 1.0, 0.0, 9, 3.0),
]


@pytest.fixture(scope="module")
def kitti(eval_data):
    return open_one(eval_data, "Kitti")


@pytest.fixture
def ann_file(tmp_path, kitti):
    """What is left of an evaluation killed in the third image of KITTI; Sintel was finished before."""
    path = tmp_path / "results" / "val.json"
    with ResultFiles(path, SETTINGS, [kitti]) as files:
        files.finish(SetResult("Sintel", "absrel", 0.3, 5, (), 0, 0))
        files.append(RECORDS[0])
        files.append(RECORDS[1])
    with open(details_path(path), "a") as file:
        file.write("Kitti,3,2011_09_26_dri")
    return path


def contents(ann_file):
    paths = (ann_file, details_path(ann_file), settings_path(ann_file))
    return [path.read_bytes() for path in paths if path.exists()]


def test_resumed_files_are_bit_equal(tmp_path, ann_file, kitti):
    with ResultFiles(ann_file, SETTINGS, [kitti], resume=True) as files:
        assert repr(files.records_of(kitti)) == repr(RECORDS[:2])  # repr: NaN is not equal to itself
        files.append(RECORDS[2])
        files.finish(summarise(kitti, [*files.records_of(kitti), RECORDS[2]], 0))
    other = tmp_path / "other" / "val.json"
    with ResultFiles(other, SETTINGS, [kitti]) as files:
        files.finish(SetResult("Sintel", "absrel", 0.3, 5, (), 0, 0))
        for record in RECORDS:
            files.append(record)
        files.finish(summarise(kitti, RECORDS, 0))
    assert contents(ann_file) == contents(other)
    assert json.loads(ann_file.read_text()) == {"Kitti": (1 / 3 + (0.1 + 0.2)) / 2, "Sintel": 0.3}
    assert list(json.loads(ann_file.read_text())) == ["Kitti", "Sintel"]
    assert (details_path(ann_file).name, settings_path(ann_file).name) == ("val_details.csv", "val_settings.json")


def test_details_are_plain_csv_and_settings_are_beside_them(ann_file, kitti):
    with open(details_path(ann_file), newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["set", "image", "metric", "value", "scale", "shift", "valid_pixels", "ms", "number"]
    assert list(rows[0].values()) == [
        "Kitti", RECORDS[0].image, "delta1", repr(1 / 3), repr(-2 / 3), "1e-17", "7", "12.5", "1"
    ]  # fmt: skip
    settings = json.loads(settings_path(ann_file).read_text())
    expected = {"eval_protocol": "paper", "layers": [1, 2], "ckpt_sha256": "ab", "data": {"Kitti": kitti.fingerprint()}}
    assert settings == expected


def test_new_evaluation_sets_the_files_of_the_last_one_aside(ann_file, kitti):
    before = contents(ann_file)
    with ResultFiles(ann_file, SETTINGS, [kitti]) as files:
        assert files.records_of(kitti) == []
        assert not ann_file.exists()
        files.finish(SetResult("Kitti", "delta1", NAN, 0, (), 0, 3))
    assert ann_file.read_text() == "{}\n"  # no value is no number
    assert len(details_path(ann_file).read_text().splitlines()) == 1
    assert [path.name for path in files.set_aside] == [
        "val.previous.json", "val_details.previous.csv", "val_settings.previous.json"
    ]  # fmt: skip
    assert [path.read_bytes() for path in files.set_aside] == before


def test_inverted_predictions_are_counted_after_a_resume(tmp_path, kitti):
    scales = [-0.0, 0.0, -2.0]
    records = [replace(RECORDS[0], number=number, scale=scale) for number, scale in enumerate(scales, start=1)]
    samples = [kitti.sample_name(index) for index in range(3)]
    with ResultFiles(tmp_path / "val.json", SETTINGS, [kitti]) as files:
        for record, sample in zip(records, samples):
            files.append(replace(record, image=sample))
    with ResultFiles(tmp_path / "val.json", SETTINGS, [kitti], resume=True) as files:
        assert summarise(kitti, files.records_of(kitti), 0).inverted == 2


@pytest.mark.parametrize("change", ["touch", "add"])
def test_rows_are_not_used_for_other_data(copied_data, tmp_path, change):
    path = tmp_path / "val.json"
    with ResultFiles(path, SETTINGS, [open_one(copied_data, "Kitti")]) as files:
        files.append(replace(RECORDS[0], image=open_one(copied_data, "Kitti").sample_name(0)))
    before = contents(path)
    picture = sorted((copied_data / "Kitti_raw_data").glob("*/image/*.png"))[-1]
    if change == "touch":
        os.utime(picture, ns=(0, 0))
    else:
        for kind in ("image", "depth"):
            other = picture.parents[1] / kind / picture.name
            shutil.copyfile(other, other.with_name("0000009999.png"))
    kitti, tum = open_one(copied_data, "Kitti"), open_one(copied_data, "TUM")
    with pytest.raises(UsageError, match="expected the files of Kitti as they were"):
        ResultFiles(path, SETTINGS, [kitti], resume=True)
    assert contents(path) == before
    with ResultFiles(path, SETTINGS, [tum], resume=True) as files:  # which has no rows yet
        assert files.records_of(tum) == []
    data = json.loads(settings_path(path).read_text())["data"]
    assert list(data) == ["Kitti", "TUM"]
    assert data["Kitti"] != kitti.fingerprint()


def test_a_full_disk_is_one_line(tmp_path, kitti, monkeypatch):
    def refuse(path, text):
        raise OSError(30, "Read-only file system")

    result = SetResult("Kitti", "delta1", 1.0, 1, (), 0, 0)
    with ResultFiles(tmp_path / "val.json", SETTINGS, [kitti]) as files, open("/dev/full", "a") as full:
        files._file.close()
        files._file, files._writer = full, csv.writer(full)
        with pytest.raises(MidasError, match=r"val_details\.csv: cannot be written: No space left on device$"):
            files.append(RECORDS[0])
        with suppress(OSError):
            full.close()
        monkeypatch.setattr(eval_results, "write_text", refuse)
        with pytest.raises(MidasError, match=r"val\.json: cannot be written: Read-only file system$"):
            files.finish(result)


def test_nothing_to_resume_is_a_new_evaluation(tmp_path, kitti):
    with ResultFiles(tmp_path / "val.json", SETTINGS, [kitti], resume=True) as files:
        assert files.records_of(kitti) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eval_protocol": "modelzoo"}, "found eval_protocol paper (now modelzoo)"),
        ({"ckpt_sha256": "cd"}, "found ckpt_sha256 ab (now cd)"),
        ({"layers": (1, 3)}, "found layers [1, 2] (now [1, 3])"),
        ({"added": 1}, "found added None (now 1)"),
    ],
)
def test_resume_of_another_evaluation_is_refused(ann_file, kitti, change, message):
    before = contents(ann_file)
    with pytest.raises(UsageError) as caught:
        ResultFiles(ann_file, {**SETTINGS, **change}, [kitti], resume=True)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(ann_file) == before


def damage_values(ann_file):
    ann_file.write_text('{"Kity": 1}')


def damage_settings(ann_file):
    settings_path(ann_file).write_text('{"eval_protocol": "paper"}')


def damage_header(ann_file):
    details_path(ann_file).write_text(details_path(ann_file).read_text().replace("set,", "dataset,"))


def damage_row(ann_file):
    details_path(ann_file).write_text(details_path(ann_file).read_text().replace("12.5", "quick"))


def remove_details(ann_file):
    details_path(ann_file).unlink()


def remove_settings(ann_file):
    settings_path(ann_file).unlink()


def change_data(ann_file):
    details_path(ann_file).write_text(details_path(ann_file).read_text().replace("drive_0001", "drive_0007"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_values, "val.json: expected names of data sets and numbers, found 'Kity': 1"),
        (damage_settings, "val_settings.json: expected settings and data, found others"),
        (damage_header, "val_details.csv: line 1: expected the header set,image"),
        (damage_row, "val_details.csv: line 2: expected set,image"),
        (remove_details, "val_details.csv beside"),
        (remove_settings, "val_settings.json beside"),
        (change_data, "image 1 of Kitti was 2011_09_26_drive_0007_sync/0000000000, found others"),
    ],
)
def test_damaged_files_are_refused(ann_file, kitti, damage, message):
    damage(ann_file)
    before = contents(ann_file)
    with pytest.raises(UsageError) as caught:
        ResultFiles(ann_file, SETTINGS, [kitti], resume=True)
    assert message in str(caught.value)
    assert contents(ann_file) == before


def test_folder_that_cannot_be_written(tmp_path, kitti):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="ann_file: cannot write"):
        ResultFiles(tmp_path / "file" / "val.json", SETTINGS, [kitti])


# Table


def test_table():
    results = [
        SetResult("Kitti", "delta1", 25.1234, 650, (), 0, 0),
        SetResult("DIW", "whdr", 0.131, 70000, (), 0, 4),
        SetResult("NYU", "delta1", NAN, 0, (), 0, 1),
    ]
    lines = format_table(results, "paper").splitlines()
    assert lines[0].split("  ")[0] == "set"
    assert [line.split()[0] for line in lines[2:5]] == ["Kitti", "DIW", "NYU"]
    assert lines[2].split()[-4:] == ["25.12", "24.222", "23.87", "23.9"]
    assert lines[3].split()[-4:] == ["0.131", "-", "-", "0.1246"]
    assert lines[4].split()[-4:] == ["-", "-", "-", "9.55"]
    assert "not reproduced here" in lines[5]
    assert "its columns do not compare" in lines[6]
    assert "images without a valid pixel as 0" in lines[7]
    assert "compare with its columns alone" in format_table(results, "modelzoo").splitlines()[6]
    assert set(REPORTED["paper, MIX 5"]) == set(DATASETS)


def test_records_keep_every_bit(ann_file, kitti):
    tiny = replace(RECORDS[2], value=5e-324, scale=-1.7976931348623157e308)
    with ResultFiles(ann_file, SETTINGS, [kitti], resume=True) as files:
        files.append(tiny)
    with ResultFiles(ann_file, SETTINGS, [kitti], resume=True) as files:
        assert files.records_of(kitti)[2] == tiny
