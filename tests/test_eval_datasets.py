"""Evaluation sets built file by file: what is read, how the protocols differ, and what a lying file leads to."""

import contextlib
import multiprocessing
import os
import pickle
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import scipy.io

from src.common.errors import DataError, UsageError
from src.common.names import DATA_SETS, PROTOCOLS
from src.evaluation.datasets import DATASETS, open_dataset
from src.evaluation.datasets.base import DatasetMissing
from src.evaluation.datasets.tum import FRAMES, SEQUENCE
from src.inference.predictor import Predictor
from src.util import read_image, write_dpt, write_png16

HEIGHT, WIDTH = 6, 8


def picture(seed, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_picture(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = ".jpg" if path.suffix == ".JPG" else ".png"
    path.write_bytes(cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes())


def metres(seed, low=0.5, high=9.5):
    return np.random.default_rng(seed).uniform(low, high, (HEIGHT, WIDTH)).astype(np.float32)


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


def fault(dataset, index):
    """The line that reading a sample raises."""
    with pytest.raises(DataError) as caught:
        dataset[index]
    return one_line(caught)


def build_fault(name, path, protocol="paper", error=DataError):
    """The line that opening a set raises."""
    with pytest.raises(error) as caught:
        open_dataset(name, path, protocol)
    return one_line(caught)


# Names and scoring rules


def test_table_of_the_benchmarks():
    """Metric, cap in metres, resizing and number of images as the paper has them."""
    table = {
        name: (kind.metric, kind.cap_m, kind.resize_method, kind.benchmark_images) for name, kind in DATASETS.items()
    }
    assert table == {
        "Kitti": ("delta>1.25", 80, "lower_bound", 161),
        "Sintel": ("AbsRel", 72, "upper_bound", 1064),
        "TUM": ("delta>1.25", 10, "upper_bound", 1815),
        "NYU": ("delta>1.25", 10, "upper_bound", 654),
        "ETH3D": ("AbsRel", 72, "upper_bound", 454),
        "DIW": ("WHDR", None, "upper_bound", 74441),
    }


def test_names(tmp_path):
    assert tuple(DATASETS) == DATA_SETS
    write_kitti(tmp_path)
    with pytest.raises(UsageError, match="paper or modelzoo, found 'zoo'"):
        open_dataset("Kitti", tmp_path, "zoo")


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("exists", [True, False])
def test_missing_sets_say_where_and_what(tmp_path, name, exists):
    path = tmp_path / "data"
    if exists:
        path.mkdir()
    message = build_fault(name, path, error=DatasetMissing)
    assert message.startswith(str(path))
    assert name in message
    assert DATASETS[name].layout in message


# KITTI


def write_kitti(root):
    """Two drives with frames of the same number; one picture without ground truth."""
    for drive in ("b_sync", "a_sync"):
        for number in (1, 2):
            write_picture(root / drive / "image" / f"000{number}.png", picture(number))
            (root / drive / "depth").mkdir(exist_ok=True)
            units = np.full((HEIGHT, WIDTH), 256 * number, np.uint16)
            units[0, :4] = (0, 1, 80 * 256 - 1, 80 * 256)
            write_png16(root / drive / "depth" / f"000{number}.png", units)
    write_picture(root / "a_sync" / "image" / "0003.png", picture(3))


def test_kitti(tmp_path):
    write_kitti(tmp_path)
    (tmp_path / "a_sync" / "depth" / "._0001.png").write_bytes(b"made by macOS")
    dataset = open_dataset("Kitti", tmp_path)
    names = [dataset[i].name for i in range(len(dataset))]
    assert names == ["a_sync/0001", "a_sync/0002", "b_sync/0001", "b_sync/0002"]
    sample = dataset[1]
    assert sample.name == "a_sync/0002"
    np.testing.assert_array_equal(sample.image, picture(2))
    assert (sample.image.dtype, sample.depth.dtype, sample.valid.dtype) == (np.uint8, np.float64, bool)
    np.testing.assert_array_equal(sample.depth[0, :5], [0, 1 / 256, 80 - 1 / 256, 80, 2])
    np.testing.assert_array_equal(sample.valid[0, :5], [False, True, True, False, True])
    assert sample.valid[1:].all()
    with pytest.raises(IndexError):
        dataset[4]


def test_kitti_faults_stay_with_their_sample(tmp_path):
    write_kitti(tmp_path)
    drive = tmp_path / "a_sync"
    (drive / "image" / "0001.png").unlink()
    (drive / "depth" / "0002.png").write_bytes(cv2.imencode(".png", np.ones((6, 8), np.uint8))[1].tobytes())
    write_picture(tmp_path / "b_sync" / "image" / "0001.png", picture(1, height=5))
    dataset = open_dataset("Kitti", tmp_path)
    assert fault(dataset, 0).startswith(f"{drive / 'image' / '0001.png'}: ")
    assert "16 bits" in fault(dataset, 1)
    message = fault(dataset, 2)
    assert message.startswith(str(tmp_path / "b_sync" / "depth" / "0001.png"))
    assert "expected 5 x 8 pixels" in message
    assert "found 6 x 8" in message
    assert dataset[3].valid.any()


def test_pixels_are_taken_as_stored(tmp_path):
    """An EXIF orientation must not turn the picture away from its ground truth."""
    write_kitti(tmp_path)
    path = tmp_path / "a_sync" / "image" / "0001.png"
    jpeg = cv2.imencode(".jpg", np.zeros((HEIGHT, WIDTH, 3), np.uint8))[1].tobytes()
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    assert open_dataset("Kitti", tmp_path)[0].image.shape == (HEIGHT, WIDTH, 3)


# TUM


def write_tum(root, lines, rgb_folder="rgb"):
    """Two frames; depth in units of 1/5000 m, all bytes different."""
    for number in (1, 2):
        write_picture(root / rgb_folder / f"{number}.5.png", picture(number))
        (root / "depth").mkdir(exist_ok=True)
        write_png16(root / "depth" / f"{number}.6.png", tum_units(number))
    (root / "associate.txt").write_text(lines)


def tum_units(number):
    units = np.random.default_rng(10 + number).integers(300, 49999, (HEIGHT, WIDTH)).astype(np.uint16)
    units[0, :4] = (0, 255, 50000, 49999)
    return units


BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
TWO_COLUMNS = "rgb/1.5.png depth/1.6.png\n\nrgb/2.5.png depth/2.6.png\n"
FOUR_COLUMNS = "# made by associate.py\n1.5 rgb/1.5.png 1.6 depth/1.6.png\n2.5 rgb/2.5.png 2.6 depth/2.6.png\n"


ODD_FORMS = [
    BOM + TWO_COLUMNS.replace("\n\n", f"\n{BOM}"),
    TWO_COLUMNS.replace(" ", ","),
    FOUR_COLUMNS.replace(" ", "\t"),
    FOUR_COLUMNS.replace(" ", ", "),
    "depth/1.6.png rgb/1.5.png\ndepth/2.6.png rgb/2.5.png\n",
    "1.6 depth/1.6.png 1.5 rgb/1.5.png\n2.6 depth/2.6.png 2.5 rgb/2.5.png\n",
    TWO_COLUMNS.replace("/", "\\").replace("\n", "\r\n"),
    "rgb/1.5.png depth/1.6.png 0.1 0.2\nrgb/2.5.png depth/2.6.png nan -1e-3 gt/2.txt\n",
    '"rgb/1.5.png";"depth/1.6.png"\n"rgb/2.5.png";"depth/2.6.png"\n',
]


@pytest.mark.parametrize("lines", [TWO_COLUMNS, FOUR_COLUMNS, *ODD_FORMS])
@pytest.mark.parametrize("rgb_folder", ["rgb", "rgb/rgb"])
@pytest.mark.parametrize("nested", [True, False])
def test_tum_layouts(tmp_path, lines, rgb_folder, nested):
    root = tmp_path / "rgbd_dataset_freiburg2_desk_with_person" if nested else tmp_path
    write_tum(root, lines, rgb_folder)
    dataset = open_dataset("TUM", tmp_path)
    assert [dataset[i].name for i in range(len(dataset))] == ["1.5", "2.5"]
    sample = dataset[1]
    np.testing.assert_array_equal(sample.image, picture(2))
    np.testing.assert_allclose(sample.depth, tum_units(2) / 5000, rtol=1e-6)
    assert sample.valid[0, :4].tolist() == [False, True, False, True]
    assert sample.valid[1:].all()


@pytest.mark.parametrize("order", [("rgb/1.5.png", "depth/1.6.png"), ("depth/1.6.png", "rgb/1.5.png")])
def test_tum_paths_may_be_absolute_and_below_any_folder(tmp_path, order):
    root = tmp_path / "depth_sets"
    write_tum(root, " ".join(str(root / file) for file in order))
    sample = open_dataset("TUM", root)[0]
    np.testing.assert_array_equal(sample.image, picture(1))
    np.testing.assert_allclose(sample.depth, tum_units(1) / 5000, rtol=1e-6)


def test_tum_faults(tmp_path):
    lines = "rgb/1.5.png depth/1.6.png\nrgb/9.png depth/1.6.png\nrgb/1.5.png depth/9.png\n1.5 rgb/1.5.png 1.6\n"
    write_tum(tmp_path, lines)
    dataset = open_dataset("TUM", tmp_path)
    assert len(dataset) == 4
    assert dataset[0].valid.any()
    assert fault(dataset, 1).startswith(f"{tmp_path / 'rgb' / '9.png'}: cannot be read")
    assert fault(dataset, 2).startswith(f"{tmp_path / 'depth' / '9.png'}: cannot be read")
    assert (
        fault(dataset, 3)
        == f"{tmp_path / 'associate.txt'}: line 4: expected a colour and a depth picture, found '1.5 rgb/1.5.png 1.6'"
    )
    gone = [tmp_path / "rgb" / "9.png", tmp_path / "depth" / "9.png"]
    assert dataset.listing_faults() == {
        1: f"{gone[0]}: expected a file for sample 9, found none",
        2: f"{gone[1]}: expected a file for sample 1.5, found none",
        3: fault(dataset, 3),
    }
    (tmp_path / "associate.txt").write_text("# nothing\n")
    assert "found none" in build_fault("TUM", tmp_path)


def write_frame(path, seed, **arrays):
    """A .h5 frame as google/mannequinchallenge has it; returns picture and depth."""
    rng = np.random.default_rng(seed)
    image = rng.random((HEIGHT, WIDTH, 3), np.float32)
    depth = rng.uniform(0.5, 9.5, (HEIGHT, WIDTH)).astype(np.float32)
    depth[0, :5] = (0, 1e-8, 1.1e-8, 9.99, 10)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in ({"img_1": image, "gt_depth": depth, "human_mask": depth > 1} | arrays).items():
            file[f"gt/{key}"] = array
    return image, depth


@pytest.mark.parametrize("folder", ["", "rgbd_dataset_freiburg3_sitting_xyz/"])
def test_tum_frames_with_people(tmp_path, folder):
    image, depth = write_frame(tmp_path / f"{folder}00002.h5", 2)
    write_frame(tmp_path / f"{folder}00001.h5", 1)
    (tmp_path / "._00001.h5").write_bytes(b"made by macOS")
    dataset = open_dataset("TUM", tmp_path)
    assert (len(dataset), dataset.version, dataset.benchmark_images) == (2, FRAMES, 1815)
    sample = dataset[1]
    assert sample.name == f"{folder}00002"
    np.testing.assert_array_equal(sample.image, image)
    np.testing.assert_array_equal(sample.depth, depth)
    np.testing.assert_array_equal(sample.valid[0, :5], [False, False, True, True, False])
    assert sample.valid[1:].all()
    prepared = Predictor.prepare(DummyPredictor(), sample.image)
    as_bytes = Predictor.prepare(DummyPredictor(), np.rint(255 * image).astype(np.uint8))
    np.testing.assert_allclose(prepared, as_bytes, atol=1.5 / 255 / 0.2)  # rounded to 8 bits, cubic, divided by std


class DummyPredictor(Predictor):
    def _run(self, prepared):
        raise NotImplementedError


def test_tum_says_which_version_it_is(tmp_path):
    write_tum(tmp_path, TWO_COLUMNS)
    write_frame(tmp_path / "h5" / "1.h5", 1)
    dataset = open_dataset("TUM", tmp_path)
    assert (dataset.version, len(dataset), dataset.benchmark_images) == (SEQUENCE, 2, 2)
    assert open_dataset("TUM", tmp_path / "h5").version == FRAMES
    assert "for the modelzoo protocol, found 1 .h5 frames" in build_fault("TUM", tmp_path / "h5", "modelzoo")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"img_1": np.ones((6, 8), np.float32)}, "expected /gt/img_1 float (H, W, 3)"),
        (
            {"img_1": np.ones((6, 9, 3), np.float32)},
            "/gt/img_1 float32 (6, 9, 3) and /gt/gt_depth float32 (6, 8)",
        ),
        ({"img_1": np.ones((6, 8, 3), np.uint8)}, "found /gt/img_1 uint8 (6, 8, 3)"),
        ({"gt_depth": np.ones((6, 8), int)}, "and /gt/gt_depth int64 (6, 8)"),
        ({"gt_depth": np.ones((0, 8), np.float32), "img_1": np.ones((0, 8, 3), np.float32)}, "float (H, W), found"),
        ({"img_1": np.full((6, 8, 3), 255.0)}, "expected /gt/img_1 on the scale 0..1, found 255..255"),
        ({"img_1": np.full((6, 8, 3), -1.0)}, "expected /gt/img_1 on the scale 0..1, found -1..-1"),
        ({"img_1": np.full((6, 8, 3), np.nan)}, "expected /gt/img_1 on the scale 0..1, found nan..nan"),
    ],
)
def test_tum_frame_faults(tmp_path, arrays, message):
    write_frame(tmp_path / "1.h5", 1, **arrays)
    assert message in fault(open_dataset("TUM", tmp_path), 0)


def test_tum_frames_may_exceed_the_scale_a_little(tmp_path):
    """As resizing with a cubic kernel makes them."""
    image = np.linspace(-0.02, 1.02, HEIGHT * WIDTH * 3, dtype=np.float32).reshape(HEIGHT, WIDTH, 3)
    write_frame(tmp_path / "1.h5", 1, img_1=image)
    np.testing.assert_array_equal(open_dataset("TUM", tmp_path)[0].image, image)


def test_tum_frames_that_lack_an_array_or_are_damaged(tmp_path):
    with h5py.File(tmp_path / "1.h5", "w") as file:
        file["gt/img_1"] = np.ones((6, 8, 3), np.float32)
    (tmp_path / "2.h5").write_bytes(b"no HDF5")
    with h5py.File(tmp_path / "3.h5", "w") as file:  # 4 TB of nothing
        file.create_dataset("gt/img_1", (1 << 19, 1 << 19, 3), np.float32, chunks=True)
        file.create_dataset("gt/gt_depth", (1 << 19, 1 << 19), np.float32, chunks=True)
    dataset = open_dataset("TUM", tmp_path)
    for index in (0, 1):
        expected = "expected an HDF5 file with /gt/img_1 and /gt/gt_depth, found other or damaged data"
        assert fault(dataset, index) == f"{tmp_path / f'{index + 1}.h5'}: {expected}"
    assert "(524288, 524288)" in fault(dataset, 2)


# Pictures in another format


def as_jpeg(path):
    """Turns a picture into a JPEG file beside it; returns its pixels."""
    image = cv2.imread(str(path))
    jpeg = path.with_suffix(".jpg")
    cv2.imwrite(str(jpeg), image)
    path.unlink()
    return read_image(jpeg)


@pytest.mark.parametrize("name", ["Kitti", "TUM", "Sintel", "ETH3D"])
def test_pictures_may_be_of_another_format(every_set, name):
    before = open_dataset(name, every_set[name])
    picture = before._entries[0].files[0]
    if picture.suffix == ".JPG":
        picture = picture.rename(picture.with_suffix(".png"))
    expected = as_jpeg(picture)
    dataset = open_dataset(name, every_set[name])
    assert len(dataset) == len(before)
    np.testing.assert_array_equal(dataset[0].image, expected)
    assert not dataset.listing_faults()


# Sintel


def write_sintel(root, occlusions=True):
    for scene, frame in (("alley_1", 1), ("alley_1", 2), ("bamboo_2", 1)):
        name = f"{scene}/frame_000{frame}"
        write_picture(root / "final_left" / f"{name}.png", picture(frame))
        depth = metres(frame, 1, 71)
        depth[0, :3] = (0, 72, 71.99)
        write_dpt(root / "depth" / f"{name}.dpt", depth)
        if occlusions:
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[:, 4:] = 255
            mask[1, 0] = 254
            path = root / "occlusions" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", mask)[1].tobytes())


def test_sintel(tmp_path):
    write_sintel(tmp_path)
    dataset = open_dataset("Sintel", tmp_path)
    names = [dataset[i].name for i in range(len(dataset))]
    assert names == ["alley_1/frame_0001", "alley_1/frame_0002", "bamboo_2/frame_0001"]
    sample = dataset[1]
    np.testing.assert_array_equal(sample.image, picture(2))
    np.testing.assert_array_equal(sample.depth[1:], metres(2, 1, 71)[1:])
    assert sample.valid[0, :4].tolist() == [False, False, True, True]
    assert sample.valid[1:].all()


def test_sintel_faults(tmp_path):
    write_sintel(tmp_path, occlusions=False)
    assert open_dataset("Sintel", tmp_path)[0].valid.any()
    message = f"{tmp_path}: expected occlusions/SCENE/FRAME.png for the modelzoo protocol, found none"
    assert build_fault("Sintel", tmp_path, "modelzoo", DatasetMissing) == message
    absent = build_fault("Sintel", tmp_path / "gone", "modelzoo", DatasetMissing)
    assert absent == build_fault("Sintel", tmp_path / "gone", "paper", DatasetMissing)
    write_sintel(tmp_path)
    depth = tmp_path / "depth" / "alley_1" / "frame_0001.dpt"
    depth.write_bytes(depth.read_bytes()[:-1])
    mask = tmp_path / "occlusions" / "alley_1" / "frame_0002.png"
    mask.write_bytes(cv2.imencode(".png", np.ones((5, 8), np.uint8))[1].tobytes())
    (tmp_path / "occlusions" / "bamboo_2" / "frame_0001.png").unlink()
    dataset = open_dataset("Sintel", tmp_path, "modelzoo")
    assert fault(dataset, 0).startswith(f"{depth}: expected 192 bytes")
    assert fault(dataset, 1).startswith(f"{mask}: expected 6 x 8 pixels")
    assert "frame_0001.png: cannot be read" in fault(dataset, 2)


# ETH3D


def write_eth3d(root):
    for scene in ("pipes", "courtyard"):
        write_picture(root / scene / "images" / "dslr_images" / "DSC_1.JPG", picture(1))
        depth = metres(1, 1, 71)
        depth[0, :4] = (np.inf, 72, 71.99, np.nan)
        path = root / scene / "ground_truth_depth" / "dslr_images" / "DSC_1.JPG"
        path.parent.mkdir(parents=True)
        path.write_bytes(depth.astype("<f4").tobytes())


def test_eth3d(tmp_path):
    write_eth3d(tmp_path)
    dataset = open_dataset("ETH3D", tmp_path)
    assert [dataset[i].name for i in range(len(dataset))] == ["courtyard/DSC_1", "pipes/DSC_1"]
    sample = dataset[0]
    np.testing.assert_array_equal(sample.depth[1:], metres(1, 1, 71)[1:])
    assert sample.valid[0, :5].tolist() == [False, False, True, False, True]
    assert sample.valid[1:].all()
    assert (
        np.abs(sample.image - picture(1).astype(float)).mean()
        < np.abs(sample.image[..., ::-1] - picture(1).astype(float)).mean()
    )


def test_eth3d_faults(tmp_path):
    write_eth3d(tmp_path)
    depth = tmp_path / "courtyard" / "ground_truth_depth" / "dslr_images" / "DSC_1.JPG"
    depth.write_bytes(depth.read_bytes() + bytes(4))
    image = tmp_path / "pipes" / "images" / "dslr_images" / "DSC_1.JPG"
    image.write_bytes(image.read_bytes()[:300])
    dataset = open_dataset("ETH3D", tmp_path)
    assert fault(dataset, 0).startswith(f"{depth}: expected 192 bytes of float32 pixels for 6 x 8, found 196")
    assert fault(dataset, 1).startswith(f"{image}: expected an image")


# NYU


def write_nyu(root, indices, **replaced):
    """nyu.mat with three pictures and splits.mat; returns both paths."""
    depth = np.stack([metres(i) for i in range(3)])
    depth[:, 0, :3] = (0, 10, 9.99)
    arrays = {
        "images": np.stack([picture(i) for i in range(3)]).transpose(0, 3, 2, 1),  # (N, 3, W, H)
        "rawDepths": depth.transpose(0, 2, 1),
        **replaced,
    }
    with h5py.File(root / "nyu.mat", "w") as file:
        for key, array in arrays.items():
            if array is not None:
                file.create_dataset(key, data=array, chunks=(1, *array.shape[1:]), compression="gzip")
    indices = np.array(indices, np.uint16).reshape(-1, 1)
    scipy.io.savemat(root / "splits.mat", {"testNdxs": indices, "trainNdxs": [[2]]})
    return [str(root / "nyu.mat"), str(root / "splits.mat")]


def test_nyu(tmp_path):
    paths = write_nyu(tmp_path, [1, 3])
    for path in (paths, tmp_path):
        dataset = open_dataset("NYU", path)
        assert [dataset[i].name for i in range(len(dataset))] == ["0001", "0003"]
        sample = dataset[1]
        np.testing.assert_array_equal(sample.image, picture(2))
        np.testing.assert_array_equal(sample.depth[1:], metres(2)[1:])
        assert sample.valid[0, :4].tolist() == [False, False, True, True]
        assert sample.valid[1:].all()


def test_nyu_faults(tmp_path):
    paths = write_nyu(tmp_path, [0, 1, 4])
    dataset = open_dataset("NYU", paths)
    assert dataset[1].name == "0001"
    for index, found in ((0, 0), (2, 4)):
        assert fault(dataset, index) == f"{paths[1]}: expected testNdxs from 1 to 3, each once, found {found}"
    with pytest.raises(UsageError, match="expected two paths"):
        open_dataset("NYU", paths[:1])


def test_nyu_is_refused_as_a_whole(tmp_path):
    paths = write_nyu(tmp_path, [1], rawDepths=None)
    assert build_fault("NYU", paths) == f"{paths[0]}: expected the array rawDepths, found images"
    write_nyu(tmp_path, [1], images=None, rawDepths=None)
    assert build_fault("NYU", paths) == f"{paths[0]}: expected the array images, found none"
    expected = f"{paths[0]}: expected images uint8 (N, 3, W, H) and rawDepths float32 (N, W, H), found "
    write_nyu(tmp_path, [1], rawDepths=np.zeros((3, 5, 6), np.float32))
    assert build_fault("NYU", paths) == expected + "images uint8 (3, 3, 8, 6) and rawDepths float32 (3, 5, 6)"
    write_nyu(tmp_path, [1], rawDepths=np.zeros((3, 8, 6), np.uint16))
    assert build_fault("NYU", paths).endswith("and rawDepths uint16 (3, 8, 6)")
    write_nyu(tmp_path, [1], images=np.zeros((3, 3, 8, 6), np.float32))
    assert build_fault("NYU", paths).startswith(expected + "images float32")
    write_nyu(tmp_path, [1])
    no_indices = f"{paths[1]}: expected a MATLAB file (before 7.3) with the array testNdxs, found other or damaged data"
    for arrays in ({"trainNdxs": [1]}, {"testNdxs": "words"}):
        scipy.io.savemat(paths[1], arrays)
        assert build_fault("NYU", paths) == no_indices
    Path(paths[1]).write_bytes(b"MATLAB 5.0 MAT-file, or so it says" * 9)
    assert build_fault("NYU", paths) == no_indices
    scipy.io.savemat(paths[1], {"testNdxs": np.zeros((0, 1))})
    assert build_fault("NYU", paths) == no_indices
    data = Path(paths[0]).read_bytes()
    Path(paths[0]).write_bytes(data[: len(data) // 2])
    assert build_fault("NYU", paths).startswith(f"{paths[0]}: expected a MATLAB 7.3 (HDF5) file")


@pytest.mark.parametrize("error", [RuntimeError, TypeError, ValueError, KeyError, OSError])
def test_nyu_damage_is_one_line_whatever_h5py_raises(tmp_path, monkeypatch, error):
    paths = write_nyu(tmp_path, [1])
    dataset = open_dataset("NYU", paths)

    def fail(*_):
        raise error("damaged\nin the middle")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", fail)
    assert fault(dataset, 0) == f"{paths[0]}: expected picture 0001, found other or damaged data"
    monkeypatch.setattr(h5py, "File", fail)
    assert build_fault("NYU", paths).startswith(f"{paths[0]}: expected a MATLAB 7.3 (HDF5) file")


def test_nyu_bytes_flipped_anywhere_end_in_one_line(tmp_path):
    paths = write_nyu(tmp_path, [1, 2])
    data = bytearray(Path(paths[0]).read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = data.copy()
        for position in rng.integers(0, len(data), 30):
            damaged[position] ^= 0xFF
        Path(paths[0]).write_bytes(damaged)
        with contextlib.suppress(DataError):
            dataset = open_dataset("NYU", paths)
            dataset[0]


def test_nyu_indices_that_are_no_whole_numbers_are_faulty_samples(tmp_path):
    paths = write_nyu(tmp_path, [1])
    scipy.io.savemat(paths[1], {"testNdxs": np.array([[1, np.nan, 1.5, np.inf, -np.inf, 2]])})
    dataset = open_dataset("NYU", paths)
    for index, found in enumerate(["nan", "1.5", "inf", "-inf"], start=1):
        assert fault(dataset, index) == f"{paths[1]}: expected testNdxs from 1 to 3, each once, found {found}"
    assert [dataset[index].name for index in (0, 5)] == ["0001", "0002"]


def test_nyu_repeated_index_is_one_faulty_sample(tmp_path):
    paths = write_nyu(tmp_path, [3, 1, 3])
    dataset = open_dataset("NYU", paths)
    assert [dataset[0].name, dataset[1].name] == ["0003", "0001"]
    assert fault(dataset, 2) == f"{paths[1]}: expected testNdxs from 1 to 3, each once, found 3"


def test_nyu_damaged_picture_is_one_sample(tmp_path):
    paths = write_nyu(tmp_path, [1, 2])
    with h5py.File(paths[0], "r") as file:
        chunk = file["images"].id.get_chunk_info(0)
    with open(paths[0], "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * chunk.size)
    dataset = open_dataset("NYU", paths)
    assert fault(dataset, 0) == f"{paths[0]}: expected picture 0001, found other or damaged data"
    np.testing.assert_array_equal(dataset[1].image, picture(1))


# DIW


def write_diw(root, table, names=("a", "b")):
    for seed, name in enumerate(names):
        write_picture(root / "DIW_test" / f"{name}.thumb", picture(seed))
    (root / "DIW_Annotations").mkdir(exist_ok=True)
    (root / "DIW_Annotations" / "DIW_test.csv").write_text(table)


TABLE = "./DIW_test/a.thumb\n1,2,6,8,>,8,6\n./DIW_test/b.thumb\n3,1,1,4,<,8,6\n"


def test_diw(tmp_path):
    write_diw(tmp_path, TABLE)
    dataset = open_dataset("DIW", tmp_path)
    assert [dataset[i].name for i in range(len(dataset))] == ["./DIW_test/a.thumb", "./DIW_test/b.thumb"]
    first, second = dataset[0], dataset[1]
    np.testing.assert_array_equal(first.image, picture(0))
    assert first.points.tolist() == [[0, 1, 5, 7]]
    assert second.points.tolist() == [[2, 0, 0, 3]]
    assert first.points.dtype.kind == first.relation.dtype.kind == "i"
    assert (first.relation.tolist(), second.relation.tolist()) == ([1], [-1])


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("0,2,6,8,>,8,6", "points within 6 x 8"),
        ("1,2,7,8,>,8,6", "points within 6 x 8"),
        ("1,2,6,9,>,8,6", "points within 6 x 8"),
        ("1,2,6,8,=,8,6", "< or >"),
        ("1,2,6,8,>,8", "< or >"),
        ("1,2,6,8", "< or >"),
        ("1,2,six,8,>,8,6", "< or >"),
        ("1,2,6,8,>,9,6", "expected 6 x 9 pixels"),
    ],
)
def test_diw_annotation_faults(tmp_path, line, word):
    write_diw(tmp_path, TABLE.replace("1,2,6,8,>,8,6", line))
    dataset = open_dataset("DIW", tmp_path)
    message = fault(dataset, 0)
    assert word in message
    assert "DIW_test.csv: line 2" in message
    assert dataset[1].relation.tolist() == [-1]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace(",", " , "),
        lambda text: text.replace("/", "\\").replace("\n", "\r\n"),
        lambda text: text.replace("\n", f"\n{BOM}"),
        lambda text: "\n".join(line if "/" in line else line + ",0.9,worker" for line in text.splitlines()),
        lambda text: text.replace(".thumb", ".thumb,,,,,,"),
    ],
)
def test_diw_tables_of_other_programs(tmp_path, change):
    write_diw(tmp_path, TABLE)
    expected = [open_dataset("DIW", tmp_path)[index] for index in range(2)]
    table = tmp_path / "DIW_Annotations" / "DIW_test.csv"
    table.write_text(change(TABLE))
    found = open_dataset("DIW", tmp_path)
    assert len(found) == 2
    for index in range(2):
        assert found[index].name == expected[index].name
        for field in ("image", "points", "relation"):
            np.testing.assert_array_equal(getattr(found[index], field), getattr(expected[index], field))


@pytest.mark.parametrize("name", ["a, b", "a b", "it's", "a;b"])
def test_diw_pictures_may_have_any_name(tmp_path, name):
    write_diw(tmp_path, TABLE.replace("a.thumb", f"{name}.thumb"), names=(name, "b"))
    dataset = open_dataset("DIW", tmp_path)
    assert [dataset[index].name for index in range(2)] == [f"./DIW_test/{name}.thumb", "./DIW_test/b.thumb"]


def test_diw_odd_lines_cost_one_sample_each(tmp_path):
    # the annotation of a is missing, b is whole, an annotation belongs to nobody, the last one is missing
    table = "./DIW_test/a.thumb\n./DIW_test/b.thumb\n3,1,1,4,<,8,6\n1,1,2,2,<,8,6\n\n./DIW_test/a.thumb\n"
    write_diw(tmp_path, table)
    dataset = open_dataset("DIW", tmp_path)
    path = tmp_path / "DIW_Annotations" / "DIW_test.csv"
    assert len(dataset) == 4
    found = "found './DIW_test/b.thumb'"
    assert fault(dataset, 0) == f"{path}: line 2: expected the annotation of ./DIW_test/a.thumb, {found}"
    assert dataset[1].points.tolist() == [[2, 0, 0, 3]]
    assert fault(dataset, 2) == f"{path}: line 4: expected the path of a picture, found '1,1,2,2,<,8,6'"
    assert fault(dataset, 3) == f"{path}: expected the annotation of ./DIW_test/a.thumb, found the end"
    write_diw(tmp_path, "\n\n")
    assert "found none" in build_fault("DIW", tmp_path)


@pytest.mark.parametrize("name", ["\0", "a\0b", "x" * 5000])
def test_names_that_no_file_can_have_cost_one_sample(tmp_path, name):
    write_diw(tmp_path, TABLE.replace("a.thumb", name))
    write_tum(tmp_path, f"rgb/{name}.png depth/1.6.png\nrgb/1.5.png depth/{name}.png\n{TWO_COLUMNS}")
    for kind, first_sound in (("DIW", 1), ("TUM", 2)):
        dataset = open_dataset(kind, tmp_path)
        assert ": cannot be read: " in fault(dataset, 0)
        assert list(dataset.listing_faults()) == list(range(first_sound))
        assert dataset[first_sound].image.size
        assert len(dataset.fingerprint()) == 64


def test_diw_table_in_a_folder_of_the_same_name(tmp_path):
    write_diw(tmp_path, TABLE)
    folder = tmp_path / "DIW_Annotations"
    (folder / folder.name).mkdir()
    (folder / "DIW_test.csv").rename(folder / folder.name / "DIW_test.csv")
    dataset = open_dataset("DIW", tmp_path)
    assert dataset[1].relation.tolist() == [-1]


# Everywhere


@pytest.fixture
def every_set(tmp_path):
    """Name -> path of a small sound set of each kind."""
    paths = {name: tmp_path / name for name in DATASETS}
    for path in paths.values():
        path.mkdir()
    write_kitti(paths["Kitti"])
    write_sintel(paths["Sintel"])
    write_tum(paths["TUM"], TWO_COLUMNS)
    write_eth3d(paths["ETH3D"])
    write_diw(paths["DIW"], TABLE)
    write_nyu(paths["NYU"], [1, 3])
    return paths


def image_sum(job):
    dataset, index = job
    return int(dataset[index].image.sum())


def test_pickling_threads_and_processes(every_set):
    datasets = [open_dataset(name, path) for name, path in every_set.items()]
    jobs = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    expected = [image_sum(job) for job in jobs]
    assert [image_sum((pickle.loads(pickle.dumps(dataset)), index)) for dataset, index in jobs] == expected
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(image_sum, jobs * 5)) == expected * 5
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(image_sum, jobs) == expected


def test_fingerprint_is_that_of_the_same_data_in_another_folder(every_set, tmp_path, monkeypatch):
    for name, path in every_set.items():
        before = open_dataset(name, path).fingerprint()
        moved = shutil.copytree(path, tmp_path / "moved" / name)  # with the times of the files
        monkeypatch.chdir(moved.parent)
        assert open_dataset(name, moved).fingerprint() == open_dataset(name, name).fingerprint() == before


def test_fingerprint_tells_other_data(every_set):
    for name, path in every_set.items():
        before = open_dataset(name, path).fingerprint()
        assert open_dataset(name, path).fingerprint() == before
        file = next(file for file in sorted(path.rglob("*")) if file.suffix in (".png", ".JPG", ".thumb", ".mat"))
        os.utime(file, ns=(0, 1))
        assert open_dataset(name, path).fingerprint() != before, file
    mask = next((every_set["Sintel"] / "occlusions").rglob("*.png"))
    prints = []
    for _ in range(2):
        prints.append([open_dataset("Sintel", every_set["Sintel"], kind).fingerprint() for kind in PROTOCOLS])
        os.utime(mask, ns=(0, 1))
    assert prints[0][0] == prints[1][0]
    assert prints[0][1] != prints[1][1]


def test_construction_decodes_nothing(every_set, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", None)
    monkeypatch.setattr(np, "frombuffer", None)
    datasets = [open_dataset(name, path) for name, path in every_set.items()]
    assert [len(dataset) for dataset in datasets] == [4, 3, 2, 2, 2, 2]
    assert not any(dataset.listing_faults() for dataset in datasets)


@pytest.mark.parametrize(
    ("name", "folder", "shares"),
    [("Kitti", "Kitti_raw_data", (0.03, 0.06)), ("TUM", "TUM", (0.80, 0.89))],
)
def test_real_files(realdata, name, folder, shares):
    """Valid shares as the notes of those files give them: about 4 % for one lidar scan, 81.8 % and 87.6 %."""
    dataset = open_dataset(name, realdata / folder)
    assert len(dataset) in (2, 3)
    for index in range(len(dataset)):
        sample = dataset[index]
        assert shares[0] < sample.valid.mean() < shares[1]
        assert 1 < np.median(sample.depth[sample.valid]) < dataset.cap_m
