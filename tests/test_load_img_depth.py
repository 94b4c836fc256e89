"""The training samples and the pipeline that loads them."""

import dataclasses
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from training_data import write_image

from src.common.errors import DataError
from src.utils.loadImgDepth import Batches, LoadImagesDepth, create_dataset
from src.utils.mixdata import Pair, check_pairs, list_pairs
from src.utils.order import SampleOrder
from src.utils.truth import Truth

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_samples(two_sets):
    root, mixdata = two_sets
    pairs, _ = list_pairs(root, mixdata)
    source = pickle.loads(pickle.dumps(LoadImagesDepth(pairs, 32, 64, MEAN, STD)))
    assert len(source) == 6
    for i, pair in enumerate(pairs):
        image, target, mask = source[i]
        assert (image.dtype, mask.dtype, target.dtype) == (np.float32,) * 3
        assert (image.shape, mask.shape, target.shape) == ((3, 64, 32), (64, 32), (64, 32))
        stored = cv2.imread(pair.depth_path, cv2.IMREAD_UNCHANGED)
        # The nearest pixel of each.
        rows, columns = (np.arange(1, 2 * new, 2) * old // (2 * new) for new, old in ((64, 25), (32, 30)))
        nearest = stored[np.ix_(rows, columns)].astype(float)
        if pair.dataset == "A":  # 8-bit inverse depth
            np.testing.assert_array_equal(target, nearest)
            np.testing.assert_array_equal(mask, np.ones((64, 32)))
        else:  # 16-bit depth; the first five rows hold 0, which is none
            near, far = stored[5:].min(), stored.max()
            valid = np.repeat(rows[:, None] >= 5, 32, axis=1)
            np.testing.assert_array_equal(mask, valid)
            expected = 255 * (1 / nearest[valid] - 1 / far) / (1 / near - 1 / far)
            np.testing.assert_allclose(target[valid], expected, rtol=1e-5, atol=1e-4)
            assert not target[~valid].any()
        bgr = cv2.imread(pair.image_path) / 255.0
        expected = (cv2.resize(bgr, (32, 64), interpolation=cv2.INTER_CUBIC)[..., ::-1] - MEAN) / STD
        np.testing.assert_allclose(image, expected.transpose(2, 0, 1), rtol=0, atol=5e-5)


@pytest.mark.parametrize(("kind", "expected"), [("inverse_depth", [85, 255]), ("negative_disparity", [170, 0])])
def test_range_is_that_of_the_whole_image(tmp_path, kind, expected):
    """The smallest value, 1000, is on a pixel that resizing leaves out: 85 = 255 * (2000 - 1000) / (4000 - 1000)."""
    truth = np.full((8, 8), 2000, np.uint16)
    truth[:, 4:] = 4000
    truth[0, 0] = 1000
    truth[6] = 9000  # none
    write_image(tmp_path / "i/1.png", np.zeros((8, 8, 3), np.uint8))
    write_image(tmp_path / "d/1.png", truth)
    pair = Pair("A", "1", str(tmp_path / "i/1.png"), str(tmp_path / "d/1.png"), Truth(kind, 9000))
    _, target, mask = LoadImagesDepth([pair], 4, 4, MEAN, STD, ensure_multiple_of=4)[0]
    np.testing.assert_array_equal(target, np.repeat([expected], 2, axis=1).repeat(4, axis=0))
    assert mask.all()


def test_two_sets_of_other_types_span_the_same_range(two_sets):
    """The loss of a set of 16 bits would be thousands of times that of the other: the other would not be learnt."""
    source = LoadImagesDepth(list_pairs(*two_sets)[0], 32, 64, MEAN, STD)
    steepness = [np.abs(np.diff(source[i][1][8:], axis=0)).mean() for i in range(6)]
    assert max(source[i][1].max() for i in range(6)) <= 255
    assert np.mean(steepness[:3]) == pytest.approx(np.mean(steepness[3:]), rel=0.5)


@pytest.mark.parametrize(("orientation", "size"), [(1, (40, 56)), (2, (40, 56)), (3, (40, 56)), (6, (48, 48))])
def test_picture_and_ground_truth_come_as_stored(tmp_path, orientation, size):
    """What the EXIF tag says would tear them apart: the ground truth has no such tag."""
    truth = np.random.default_rng(0).integers(0, 255, (5, 7), dtype=np.uint8)
    truth = cv2.resize(truth, size[::-1], interpolation=cv2.INTER_NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.stack([truth] * 3, axis=2)).save(tmp_path / "1.jpg", quality=95, exif=exif)
    write_image(tmp_path / "1.png", truth)
    pair = Pair("A", "1", str(tmp_path / "1.jpg"), str(tmp_path / "1.png"))
    image, target, _ = LoadImagesDepth([pair], 64, 64, MEAN, STD)[0]
    assert np.corrcoef(image[1].ravel(), target.ravel())[0, 1] > 0.95


def test_case_of_turned_pictures(cases, tmp_path):
    """Edges of the picture lie where those of the ground truth are, as in the same picture without its tag."""

    def agreement(pair):
        image, target, _ = LoadImagesDepth([pair], 320, 224, MEAN, STD)[0]
        edges = [cv2.morphologyEx(x, cv2.MORPH_GRADIENT, np.ones((3, 3))) for x in (image[1], target)]
        return np.corrcoef(*(np.minimum(x, np.quantile(x, 0.98)).ravel() for x in edges))[0, 1]

    folder = cases / "training_orientation"
    for pair in list_pairs(folder, folder / "mixdata.json")[0]:
        untagged = tmp_path / Path(pair.image_path).with_suffix(".png").name
        write_image(untagged, cv2.imread(pair.image_path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION))
        turned = tmp_path / "turned.png"
        write_image(turned, cv2.imread(pair.image_path, cv2.IMREAD_COLOR))
        tagged, without, wrong = (
            agreement(dataclasses.replace(pair, image_path=str(path))) for path in (pair.image_path, untagged, turned)
        )
        assert tagged == pytest.approx(without, abs=1e-6)
        assert tagged > wrong + 0.2


def test_real_samples(realdata):
    pairs, unpaired = list_pairs(realdata, realdata / "mixdata.json")
    assert (len(pairs), unpaired, check_pairs(pairs, workers=2).faults) == (10, [], [])
    source = LoadImagesDepth(pairs, 384, 384, MEAN, STD)
    missing = {Path(pair.image_path).stem: 100 - 100 * source[i][2].mean(dtype=float) for i, pair in enumerate(pairs)}
    assert missing["redwood_00000"] == pytest.approx(13.04, abs=0.3)  # percent, of the data's own description
    assert missing["middlebury_tsukuba"] == pytest.approx(20.70, abs=0.3)
    assert missing["middlebury_venus"] == pytest.approx(0.0, abs=0.01)


class Numbers:
    """A source whose samples tell their number; number 13 is bad, number 14 kills the process that loads it."""

    def load(self, number, turn):
        if number == 13:
            raise DataError("/data/13.jpg: expected an image, found 0 bytes")
        if number == 14:
            os.kill(os.getpid(), signal.SIGKILL)
        plane = np.full((4, 6), number, np.float32)
        return np.stack([plane] * 3), plane, plane


@pytest.mark.parametrize("workers", [1, 2, 1000])
def test_dataset_keeps_the_order_of_the_steps(workers):
    pytest.importorskip("mindspore")
    order = SampleOrder(11, batch_size=4, seed=2)
    dataset = create_dataset(Numbers(), order, 4, 3, workers)  # the second step, and two more
    expected = np.stack([order.samples(start) for start in (4, 8, 12)])
    assert dataset.get_dataset_size() == 3
    assert dataset.get_col_names() == ["image", "target", "mask"]
    with Batches(dataset, pytest.fail) as source:
        seen = [[column.asnumpy() for column in batch] for batch in source]
    assert [column.shape for column in seen[0]] == [(4, 3, 4, 6), (4, 4, 6), (4, 4, 6)]
    np.testing.assert_array_equal(np.stack([target[:, 0, 0] for _, target, _ in seen]), expected)
    for image, target, mask in seen:
        assert (image == target[:, None]).all()
        assert (mask == target).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_file_in_a_loader_is_one_line_with_its_name(workers):
    pytest.importorskip("mindspore")
    dataset = create_dataset(Numbers(), SampleOrder(14, batch_size=2, seed=0), 0, 7, workers)
    with (
        Batches(dataset, pytest.fail) as source,
        pytest.raises(DataError, match=r"^/data/13\.jpg: expected an image, found 0 bytes$"),
    ):
        list(source)


def test_leaving_early_waits_for_no_loader():
    pytest.importorskip("mindspore")
    with Batches(create_dataset(Numbers(), SampleOrder(13, batch_size=1, seed=0), 0, 13, 2), pytest.fail) as source:
        next(iter(source))
        assert source.find_dead_loader() == ""
        loaders = [child for child in multiprocessing.active_children() if "Worker" in child.name]
        assert len(loaders) == 2
    for loader in loaders:
        assert not loader.is_alive()


def test_leaving_while_a_loader_is_at_work(repo):
    """Its batch will never come. In a process of its own, as MindSpore has waited for it for ever."""
    code = """
import sys, time
sys.path.insert(0, "tests")
from test_load_img_depth import Batches, Numbers, SampleOrder, create_dataset
from src.utils.order import turn_order

class Slow(Numbers):
    def load(self, number, turn):
        if number != turn_order(13, 0, 0)[0]:
            time.sleep(1000)
        return super().load(number, turn)

with Batches(create_dataset(Slow(), SampleOrder(13, batch_size=1, seed=0), 0, 13, 2), print) as source:
    next(iter(source))
print("left")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, timeout=120)
    assert result.stdout == "left\n", result.stderr
    assert result.returncode == 0


def test_nothing_goes_on_while_the_training_is_given_up():
    """The batch of another loader may still come: a step with it would change the weights that are being saved."""
    begun, events = threading.Event(), []

    class LateIterator:
        num_parallel_workers, python_multiprocessing = 1, False

        def create_tuple_iterator(self, num_epochs):
            return self

        def __next__(self):
            assert begun.wait(30)
            return ("batch",)

        def stop(self):
            pass

    def give_up(fault):
        begun.set()
        time.sleep(0.3)  # saves
        events.append(fault)

    source = Batches(LateIterator(), give_up)
    source.find_dead_loader = lambda: "dead"
    with source:
        events += next(iter(source))
    assert events == ["dead", "batch"]


def test_dead_loader_is_named(repo):
    """In a process of its own, since MindSpore cannot be used after that."""
    code = """
import signal, sys
sys.path.insert(0, "tests")
from test_load_img_depth import Batches, Numbers, SampleOrder, create_dataset
from src.common.errors import run_script

def main():
    dataset = create_dataset(Numbers(), SampleOrder(15, batch_size=1, seed=0), 0, 15, 2)
    with Batches(dataset) as source:
        list(source)

run_script(main)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert re.search(
        r"^error: loader process \d+ died of SIGKILL: memory may have run out", result.stderr, re.MULTILINE
    )


def test_module_needs_no_mindspore(repo):
    code = "import sys, src.utils.loadImgDepth; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo, check=False, timeout=60).returncode == 0
