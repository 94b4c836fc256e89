"""The training samples and the pipeline that loads them."""

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from src.common.errors import DataError
from src.utils.loadImgDepth import LoadImagesDepth, batches, create_dataset
from src.utils.mixdata import list_pairs, training_pairs
from src.utils.order import SampleOrder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_samples(two_sets):
    root, mixdata = two_sets
    pairs, _ = list_pairs(root, mixdata)
    source = pickle.loads(pickle.dumps(LoadImagesDepth(pairs, 32, 64, MEAN, STD)))
    assert len(source) == 6
    for i, pair in enumerate(pairs):
        image, target, mask, index = source[i]
        assert (image.dtype, mask.dtype, target.dtype, index.dtype) == (*[np.float32] * 3, np.int32)
        assert (image.shape, mask.shape, target.shape, index.shape) == ((3, 64, 32), (64, 32), (64, 32), ())
        assert index == i
        stored = cv2.imread(pair.depth_path, cv2.IMREAD_UNCHANGED)
        rows, columns = np.arange(64) * 25 // 64, np.arange(32) * 30 // 32  # the nearest pixel of each
        np.testing.assert_array_equal(target, stored[np.ix_(rows, columns)])
        valid = np.repeat(rows[:, None] >= 5, 32, axis=1)  # the first five rows hold 0
        np.testing.assert_array_equal(mask, valid if pair.dataset == "B" else np.ones((64, 32)))
        bgr = cv2.imread(pair.image_path) / 255.0
        expected = (cv2.resize(bgr, (32, 64), interpolation=cv2.INTER_CUBIC)[..., ::-1] - MEAN) / STD
        np.testing.assert_allclose(image, expected.transpose(2, 0, 1), rtol=0, atol=5e-5)
    assert source[5][1].max() > 255  # 16 bits survive


def test_real_samples(realdata):
    pairs, faults = training_pairs(realdata, realdata / "mixdata.json", skip_bad=False)
    assert (len(pairs), faults) == (10, [])
    source = LoadImagesDepth([dataclasses.replace(pair, invalid=0) for pair in pairs], 384, 384, MEAN, STD)
    missing = {Path(pair.image_path).stem: 100 - 100 * source[i][2].mean(dtype=float) for i, pair in enumerate(pairs)}
    assert missing["redwood_00000"] == pytest.approx(13.04, abs=0.3)  # percent, of the data's own description
    assert missing["middlebury_tsukuba"] == pytest.approx(20.70, abs=0.3)
    assert missing["middlebury_venus"] == pytest.approx(0.0, abs=0.01)


class Numbers:
    """A source whose samples tell their number; number 13 is bad."""

    def __getitem__(self, index):
        if index == 13:
            raise DataError("/data/13.jpg: expected an image, found 0 bytes")
        plane = np.full((4, 6), index, np.float32)
        return np.stack([plane] * 3), plane, plane, np.int32(index)


@pytest.mark.parametrize("workers", [1, 2, 1000])
def test_dataset_keeps_the_order_of_the_steps(workers):
    pytest.importorskip("mindspore")
    order = SampleOrder(11, batch_size=4, seed=2)
    dataset = create_dataset(Numbers(), order, 1, 3, workers)  # the second step of the first epoch, and one epoch more
    expected = np.concatenate([order.samples(step) for step in (1, 2, 3)])
    assert dataset.get_dataset_size() == 3
    assert dataset.get_col_names() == ["image", "target", "mask", "index"]
    seen = [[column.asnumpy() for column in batch] for batch in batches(dataset)]
    assert [column.shape for column in seen[0]] == [(4, 3, 4, 6), (4, 4, 6), (4, 4, 6), (4,)]
    np.testing.assert_array_equal(np.concatenate([batch[3] for batch in seen]), expected)
    for image, target, mask, index in seen:
        assert (image == index[:, None, None, None]).all()
        assert (mask == index[:, None, None]).all()
        assert (target == index[:, None, None]).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_file_in_a_loader_is_one_line_with_its_name(workers):
    pytest.importorskip("mindspore")
    dataset = create_dataset(Numbers(), SampleOrder(16, batch_size=4, seed=0), 0, 4, workers)
    with pytest.raises(DataError, match=r"^/data/13\.jpg: expected an image, found 0 bytes$"):
        list(batches(dataset))


def test_module_needs_no_mindspore(repo):
    code = "import sys, src.utils.loadImgDepth; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo, check=False, timeout=60).returncode == 0
