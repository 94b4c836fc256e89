"""Reading, predicting and scoring as one pipeline."""

import subprocess
import sys
import threading
import time

import mindspore as ms
import numpy as np
import pytest
from conftest import TINY

from evaluation import IMAGES, open_one, run, true_inverse_depth
from src.common.names import PROTOCOLS
from src.evaluation.datasets import DATASETS
from src.evaluation.datasets.tum import SEQUENCE
from src.evaluation.evaluator import Fault, Record, evaluate, summarise
from src.evaluation.metric import BAD_SHARE, score_dense, score_ordinal
from src.inference.mindspore import MindSporePredictor
from src.midas_net import MidasNet
from src.utils.transforms import resize_prediction

NAN = float("nan")


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
def test_depth_and_a_constant_do_not(eval_data, name):
    truth = true_inverse_depth(eval_data, name)
    dataset = open_one(eval_data, name)
    constant, _ = run(dataset, lambda sample: np.ones(sample.image.shape[:2]))
    assert constant.value == constant.constant
    if name == "DIW":
        assert run(dataset, lambda sample: -truth[sample.name])[0].value == constant.value == 1
        return
    assert constant.value > 0.05
    assert constant.inverted == 0
    depth = {sample: 1 / inverse_depth for sample, inverse_depth in truth.items()}
    result, _ = run(dataset, lambda sample: depth[sample.name])
    assert (result.value > 0.05, result.inverted) == (True, IMAGES)


def test_pipeline_equals_a_plain_loop(eval_data, net):
    """Network, resize and score once more, one image after another, the fit by numpy's least squares."""
    predictor = MindSporePredictor(net)
    dataset = open_one(eval_data, "Sintel")
    result, records = run(dataset, predictor.infer, lambda sample: predictor.prepare(sample.image))
    expected = []
    for sample in map(dataset.__getitem__, range(IMAGES)):
        small = predictor.net(ms.Tensor(predictor.prepare(sample.image))).asnumpy()[0]
        assert small.min() < small.max()
        height, width = sample.depth.shape
        rows = np.clip((np.arange(height) + 0.5) * small.shape[0] / height - 0.5, 0, small.shape[0] - 1)
        columns = np.clip((np.arange(width) + 0.5) * small.shape[1] / width - 0.5, 0, small.shape[1] - 1)
        tall = np.stack([np.interp(rows, np.arange(small.shape[0]), column) for column in small.T], axis=1)
        full = np.stack([np.interp(columns, np.arange(small.shape[1]), row) for row in tall])
        flat = np.stack([full.ravel(), np.ones(full.size)], axis=1)
        disparity = 1 / sample.depth.astype(np.float64).ravel()
        fit = np.linalg.lstsq(flat, disparity, rcond=None)[0]
        depth = 1 / np.maximum(flat @ fit, 1 / 72)
        expected.append(np.mean(np.abs(depth / sample.depth.ravel() - 1)))
    assert [record.value for record in records] == pytest.approx(expected, rel=1e-3)
    assert result.value == pytest.approx(np.mean(expected), rel=1e-3)


def test_faulty_samples_are_named_and_the_others_scored(copied_data):
    truth = true_inverse_depth(copied_data, "TUM")
    folder = copied_data / "TUM" / SEQUENCE
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
    assert "associate.txt: line 4: expected a colour and a depth picture" in outcomes[3].text
    assert all("\n" not in outcome.text for outcome in outcomes[1:4])
    assert outcomes[0].image == outcomes[4].image == first.stem
    assert (result.scored, result.faulty) == (2, 3)
    assert result.value == pytest.approx(0, abs=1e-6)


def test_image_without_valid_pixel_is_left_out_of_the_mean():
    def record(number, value):
        return Record(value, 2 * value, 1.0, 0.0, 5, value, 1.0, 0.5, "Kitti", f"a/{number}", BAD_SHARE, 1.0, number)

    dataset = DATASETS["Kitti"].__new__(DATASETS["Kitti"])
    result = summarise(dataset, [record(1, 30.0), record(2, NAN), record(3, 10.0)], faulty=0)
    assert (result.value, result.scored, result.empty) == (20.0, 2, ("a/2",))
    assert (result.constant, result.abs_rel, result.delta1, result.rmse_m) == (40.0, 20.0, 1.0, 0.5)
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


def test_scores_are_handed_over_at_once(eval_data):
    """When the network fails at an image, those before it have been scored and handed over."""
    dataset, seen = open_one(eval_data, "Kitti"), []

    def predict(sample):
        if len(seen) == 2:
            raise RuntimeError("the network fails")
        time.sleep(0.2)  # the scores of earlier images are ready by now
        return np.eye(4, dtype=np.float32)

    records = evaluate(dataset, [1, 2, 3, 1, 2, 3], lambda sample: sample, predict, workers=4)
    with pytest.raises(RuntimeError, match="the network fails"):
        seen.extend(records)
    assert [record.number for record in seen] == [1, 2]


def test_compilations_are_counted(net):
    """Dynamic shapes compile once for all sizes, static ones once for each; the maps are the same."""
    sizes = [(64, 96), (96, 64), (128, 160), (64, 96)]
    images = [np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32) for size in sizes]
    dynamic = MindSporePredictor(net)
    static = MindSporePredictor(MidasNet(**TINY), shapes="static")
    ms.load_param_into_net(static.net, dynamic.net.parameters_dict())
    counts = []
    for image in images:
        np.testing.assert_allclose(dynamic.infer(image), static.infer(image), rtol=1e-5, atol=1e-6)
        counts.append((dynamic.compilations, static.compilations))
    assert counts == [(1, 1), (1, 2), (1, 3), (1, 3)]


def test_needs_no_mindspore(repo):
    code = "import sys, src.evaluation.evaluator, src.evaluation.results; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo, timeout=60).returncode == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ["Kitti", "NYU", "ETH3D"])
def test_inverted_predictions_are_turned_by_the_fit(eval_data, name, protocol):
    truth = true_inverse_depth(eval_data, name)
    result, records = run(open_one(eval_data, name, protocol), lambda sample: -truth[sample.name])
    assert result.value == pytest.approx(0, abs=1e-6)
    assert result.inverted == IMAGES
    assert [record.scale for record in records] == pytest.approx([-1] * IMAGES, rel=1e-5)


def test_prediction_is_resized_by_the_rule_of_the_protocol(eval_data):
    small = np.random.default_rng(0).random((4, 6), np.float32)
    by_protocol = []
    for protocol in ("paper", "modelzoo"):
        dataset = open_one(eval_data, "Kitti", protocol)
        sample = dataset[0]
        resized = resize_prediction(small, *sample.depth.shape, half_pixel=protocol == "paper")
        expected = score_dense(resized, sample.depth, sample.valid, BAD_SHARE, 80)
        found = run(dataset, lambda sample: small)[1][0]
        assert (found.value, found.scale, found.shift) == (expected.value, expected.scale, expected.shift)
        by_protocol.append(found.scale)
    assert by_protocol[0] != by_protocol[1]
