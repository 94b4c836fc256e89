"""Reading, predicting and scoring as one pipeline, and the files that it fills."""

import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from conftest import TINY

from data.make_sample import make_sample
from src.errors import UsageError
from src.eval_datasets import DATASETS, Tum, open_dataset
from src.eval_results import REPORTED, ResultFiles, details_path, format_table
from src.evaluator import Fault, Record, SetResult, evaluate, summarise
from src.metric import resize_prediction, score_dense
from src.midas_net import MidasNet
from src.predictor import MindSporePredictor
from src.util import read_gray

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
def test_depth_and_negated_inverse_depth_do_not(eval_data, name):
    """The fit forgives a sign, as the protocol has it, and the summary tells; a pair of points forgives nothing."""
    truth = true_inverse_depth(eval_data, name)
    result, _ = run(open_one(eval_data, name), lambda sample: -truth[sample.name])
    if name == "DIW":
        assert result.value == 1
    else:
        assert result.inverted == IMAGES
        depth = {sample: 1 / inverse_depth for sample, inverse_depth in truth.items()}
        assert run(open_one(eval_data, name), lambda sample: depth[sample.name])[0].value > 0.05


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
        expected = score_dense(resized, sample.depth, sample.valid, "delta1", 80)
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
        fit = np.linalg.lstsq(flat, 1 / sample.depth.astype(np.float64).ravel(), rcond=None)[0]
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
    code = "import sys, src.evaluator, src.eval_results; sys.exit('mindspore' in sys.modules)"
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
    return [path.read_bytes() for path in (ann_file, details_path(ann_file)) if path.exists()]


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
    assert details_path(ann_file).name == "val_details.csv"


def test_new_evaluation_replaces_the_files(ann_file, kitti):
    with ResultFiles(ann_file, SETTINGS, [kitti]) as files:
        assert files.records_of(kitti) == []
        assert not ann_file.exists()
        files.finish(SetResult("Kitti", "delta1", NAN, 0, (), 0, 3))
    assert ann_file.read_text() == "{}\n"  # no value is no number
    assert len(details_path(ann_file).read_text().splitlines()) == 2


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


def damage_first_line(ann_file):
    details_path(ann_file).write_text("Kitti,1\n")


def damage_header(ann_file):
    details_path(ann_file).write_text(details_path(ann_file).read_text().replace("dataset,", "set,"))


def damage_row(ann_file):
    details_path(ann_file).write_text(details_path(ann_file).read_text().replace("12.5", "quick"))


def remove_details(ann_file):
    details_path(ann_file).unlink()


def change_data(ann_file):
    details_path(ann_file).write_text(details_path(ann_file).read_text().replace("drive_0001", "drive_0007"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_values, "val.json: expected names of data sets and numbers, found 'Kity': 1"),
        (damage_first_line, "val_details.csv: expected a comment with settings as its first line"),
        (damage_header, "val_details.csv: line 2: expected the header dataset,number"),
        (damage_row, "val_details.csv: line 3: expected dataset,number"),
        (remove_details, "resume: expected"),
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
    assert "not reproduced here" in lines[-1]
    assert "2021 suite" in format_table(results, "modelzoo").splitlines()[-1]
    assert set(REPORTED["paper, MIX 5"]) == set(DATASETS)


def test_records_keep_every_bit(ann_file, kitti):
    tiny = replace(RECORDS[2], value=5e-324, scale=-1.7976931348623157e308)
    with ResultFiles(ann_file, SETTINGS, [kitti], resume=True) as files:
        files.append(tiny)
    with ResultFiles(ann_file, SETTINGS, [kitti], resume=True) as files:
        assert files.records_of(kitti)[2] == tiny
