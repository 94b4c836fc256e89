"""The scores of protocol ``paper`` against a second implementation: other readers, numpy.linalg.lstsq, plain formulas.

Both get the same predictions, at the size of the ground truth: those of a network with random weights, of which some
are inverted.
"""

import contextlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from evaluation import FOLDERS, open_one, run
from src.evaluation.datasets import open_dataset
from src.inference.mindspore import MindSporePredictor
from src.utils.transforms import resize_prediction


def kitti(root):
    for truth in sorted(root.glob("*/depth/*.png")):
        yield np.asarray(Image.open(truth)).astype(float) / 256


def tum(root):
    for line in (next(root.rglob("associate.txt"))).read_text().splitlines():
        depth = next(field for field in line.split() if field.startswith("depth/"))
        yield np.asarray(Image.open(next(root.rglob("associate.txt")).parent / depth)).astype(float) / 5000


def tum_frames(root):
    for path in sorted(root.glob("*.h5")):
        with h5py.File(path) as file:
            depth = file["gt"]["gt_depth"][...].astype(float)
        yield np.where(depth > 1e-8, depth, 0)


def nyu(root):
    tests = scipy.io.loadmat(root / "splits.mat")["testNdxs"].ravel()
    with h5py.File(root / "nyu.mat") as file:
        for index in tests:
            yield file["rawDepths"][int(index) - 1].T.astype(float)


def sintel(root):
    for truth in sorted(root.glob("depth/*/*.dpt")):
        width, height = np.fromfile(truth, "<i4", 2, offset=4)
        yield np.fromfile(truth, "<f4", offset=12).reshape(height, width).astype(float)


def eth3d(root):
    for truth in sorted(root.glob("*/ground_truth_depth/dslr_images/*")):
        picture = truth.parents[2] / "images" / "dslr_images" / truth.name
        depth = np.fromfile(truth, "<f4").reshape(Image.open(picture).size[::-1])
        yield np.where(np.isfinite(depth), depth, 0).astype(float)


READERS = {
    "Kitti": (kitti, 80),
    "TUM": (tum, 10),
    "TUM frames": (tum_frames, 10),
    "NYU": (nyu, 10),
    "Sintel": (sintel, 72),
    "ETH3D": (eth3d, 72),
}


def score(prediction, truth, cap):
    """AbsRel, percent of delta > 1.25, share of delta < 1.25, RMSE, and the scale of one image."""
    valid = (truth > 0) & (truth < cap)
    p, d = prediction[valid].astype(float), truth[valid]
    (scale, shift), *_ = np.linalg.lstsq(np.stack([p, np.ones_like(p)], axis=1), 1 / d, rcond=None)
    disparity = scale * p + shift
    disparity[disparity < 1 / cap] = 1 / cap
    found = 1 / disparity
    delta = np.maximum(found / d, d / found)
    abs_rel, rmse = np.mean(np.abs(found - d) / d), np.sqrt(np.mean((found - d) ** 2))
    return abs_rel, 100 * np.mean(delta > 1.25), np.mean(delta < 1.25), rmse, scale


@pytest.fixture(scope="module")
def predictor(net):
    return MindSporePredictor(net)


def compare(dataset, truths, cap, predictor):
    """Scores a set with both; every second prediction is inverted."""
    predictions = {}
    samples = [dataset[index] for index in range(len(dataset))]
    for number, sample in enumerate(samples):
        small = predictor.infer(predictor.prepare(sample.image, dataset.resize_method))
        assert small.min() < small.max(), "a dead network fits anything"
        full = resize_prediction(small, *sample.image.shape[:2])
        inverted = np.corrcoef(full[sample.valid], 1 / sample.depth[sample.valid])[0, 1] < 0
        if inverted != number % 2:  # whatever the random weights see, every second one is inverted
            full = full.max() - full
        predictions[sample.name] = full
    result, records = run(dataset, lambda sample: predictions[sample.name])
    expected = [score(predictions[sample.name], truth, cap) for sample, truth in zip(samples, truths, strict=True)]
    for record, (abs_rel, bad, good, rmse, scale) in zip(records, expected, strict=True):
        values = (record.abs_rel, record.delta1, record.rmse_m, record.scale)
        assert values == pytest.approx((abs_rel, good, rmse, scale), rel=1e-9, abs=1e-9)
        assert record.value == pytest.approx(abs_rel if dataset.metric == "AbsRel" else bad, rel=1e-9, abs=1e-9)
    column = 0 if dataset.metric == "AbsRel" else 1
    assert result.value == pytest.approx(np.mean([row[column] for row in expected]), rel=1e-9)
    assert result.inverted == sum(row[-1] < 0 for row in expected) == len(samples) // 2


def test_sample_sets(eval_data, predictor):
    for name in ("Kitti", "TUM", "NYU", "Sintel", "ETH3D"):
        reader, cap = READERS[name]
        dataset = open_one(eval_data, name)
        compare(dataset, reader(eval_data / FOLDERS.get(name, name)), cap, predictor)


def test_frames_with_people(eval_data, tmp_path, predictor):
    sequence = open_one(eval_data, "TUM")
    for index in range(len(sequence)):
        sample = sequence[index]
        with h5py.File(tmp_path / f"{index}.h5", "w") as file:
            file["gt/img_1"] = sample.image / np.float32(255)
            file["gt/gt_depth"] = sample.depth
    reader, cap = READERS["TUM frames"]
    compare(open_dataset("TUM", tmp_path), reader(tmp_path), cap, predictor)


@pytest.mark.parametrize("name", ["Kitti", "TUM"])
def test_real_images(realdata, name, predictor):
    reader, cap = READERS[name]
    folder = realdata / FOLDERS.get(name, name)
    compare(open_dataset(name, folder), reader(folder), cap, predictor)


def test_ordered_pairs(eval_data, predictor):
    """WHDR of DIW, by the annotation as its authors define it: ``>`` says that point 1 is farther."""
    root = eval_data / "DIW"
    lines = (root / "DIW_Annotations" / "DIW_test.csv").read_text().split()
    dataset = open_one(eval_data, "DIW")
    predictions, wrong = {}, []
    for index, (path, annotation) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
        y1, x1, y2, x2, relation, *_ = annotation.split(",")
        with contextlib.closing(Image.open(root / Path(path))) as picture:
            small = predictor.infer(predictor.prepare(np.asarray(picture.convert("RGB"))))
        predictions[dataset[index].name] = prediction = resize_prediction(small, *dataset[index].image.shape[:2])
        nearer, farther = ((y2, x2), (y1, x1)) if relation == ">" else ((y1, x1), (y2, x2))
        near, far = (prediction[int(y) - 1, int(x) - 1] for y, x in (nearer, farther))
        wrong.append(not near > far)
    result, _ = run(dataset, lambda sample: predictions[sample.name])
    assert result.value == pytest.approx(np.mean(wrong), abs=1e-12)
