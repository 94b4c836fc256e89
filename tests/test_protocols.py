"""The two evaluation protocols on files made for the purpose, four pixels each, scored by hand.

What predicts is the first channel of the picture.
"""

import cv2
import h5py
import numpy as np
import pytest
import scipy.io

from evaluation import run
from src.evaluation.datasets import open_dataset
from src.util import write_dpt, write_png16


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
    # An upper byte of 0 is no reading, though the whole number is one.
    write_png16(tmp_path / "depth" / "2.png", np.array([[255, 256], [0, 49999]], np.uint16))
    write_channels(tmp_path / "rgb" / "2.png", CONSTANT, CONSTANT)
    (tmp_path / "associate.txt").write_text("rgb/2.png depth/2.png\n")
    assert open_dataset("TUM", tmp_path)[0].valid.tolist() == [[True, True], [False, True]]
    assert open_dataset("TUM", tmp_path, "modelzoo")[0].valid.tolist() == [[False, True], [False, True]]
    (tmp_path / "associate.txt").write_text("rgb/1.png depth/1.png\n")
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
