import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from src.common.errors import DataError
from src.utils import loadImgDepth
from src.utils.loadImgDepth import (
    LoadImagesDepth,
    Pair,
    batches,
    check_pairs,
    create_dataset,
    epoch_order,
    index_sequence,
    list_pairs,
    read_mixdata,
    training_pairs,
)

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared/realdata"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_image(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


def write_mixdata(folder, content):
    path = folder / "mixdata.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def data(tmp_path):
    """Two sets of three pairs; sizes and extensions differ. Returns (data root, mixdata.json)."""
    root = tmp_path / "data [1]"  # brackets mean something to glob
    rng = np.random.default_rng(0)
    for name, suffix, low in (("A", ".jpg", 0), ("B", ".PNG", 300)):
        for i in range(3):
            image = cv2.resize(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8), (60 + i, 50))
            depth = rng.integers(low, low + 200, (25, 30)).astype(np.uint8 if name == "A" else np.uint16)
            depth[:5] = 0
            write_image(root / name / "Imgs" / f"{2 - i}.x{suffix}", image)
            write_image(root / name / "RDs" / f"{2 - i}.x.png", depth)
    tables = {
        "img": {"B": "/B/Imgs/*", "A": "/A/Imgs/*"},
        "depth": {"A": "/A/RDs/*", "B": "/B/RDs/*.png"},
        "invalid": {"B": 0},
    }
    return root, write_mixdata(tmp_path, tables)


def expect_data_error(text):
    return pytest.raises(DataError, match=text)


def test_pairs_are_sorted_and_matched_by_stem(data):
    root, mixdata = data
    pairs, faults = list_pairs(root, mixdata)
    assert faults == []
    assert pairs == [
        Pair(
            dataset=name,
            image_path=f"{root}/{name}/Imgs/{i}.x{suffix}",
            depth_path=f"{root}/{name}/RDs/{i}.x.png",
            invalid=invalid,
        )
        for name, suffix, invalid in (("A", ".jpg", None), ("B", ".PNG", 0))
        for i in range(3)
    ]


def test_every_file_without_a_single_partner_is_named(data):
    root, mixdata = data
    (root / "A/RDs/0.x.png").unlink()
    (root / "A/Imgs/1.x.jpg").unlink()
    (root / "B/Imgs/2.x.jpeg").write_bytes(b"")
    pairs, faults = list_pairs(root, mixdata)
    assert [(pair.dataset, Path(pair.image_path).stem) for pair in pairs] == [("A", "2.x"), ("B", "0.x"), ("B", "1.x")]
    assert len(faults) == 3
    assert faults[0] == f"{root}/A/Imgs/0.x.jpg: no ground truth 0.x.* matches /A/RDs/*"
    assert faults[1] == f"{root}/A/RDs/1.x.png: no image 1.x.* matches /A/Imgs/*"
    assert "ambiguous" in faults[2]
    assert all(name in faults[2] for name in ("Imgs/2.x.PNG", "Imgs/2.x.jpeg", "RDs/2.x.png"))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "expected JSON"),
        ("[]", "expected an object"),
        ({"img": {"A": "/A/*"}}, '"depth" names no set'),
        ({"img": {}, "depth": {}}, '"img" names no set'),
        ({"img": {"A": "/A/*"}, "depth": {"A": "/A/*"}, "imgs": {}}, 'unknown key "imgs"'),
        ({"img": {"A": "/A/*", "C": "/C/*"}, "depth": {"A": "/A/*"}}, '"C" is in "img" but not in "depth"'),
        ({"img": {"A": "/A/*"}, "depth": {"A": "/A/*", "C": "/C/*"}}, '"C" is in "depth" but not in "img"'),
        ({"img": {"A": "/A/*"}, "depth": {"A": "/A/*"}, "invalid": {"C": 0}}, '"C" is in "invalid" but not in "img"'),
        ({"img": {"A": "/A/*"}, "depth": {"A": "/A/*"}, "invalid": {"A": True}}, '"invalid"."A": .* found True'),
        ({"img": {"A": "/A/*"}, "depth": {"A": "/A/*"}, "invalid": {"A": -1}}, '"invalid"."A": .* found -1'),
        ({"img": {"A": "A/*"}, "depth": {"A": "/A/*"}}, '"img"."A": .*starts with "/", found \'A/\\*\''),
        ({"img": {"A": 3}, "depth": {"A": "/A/*"}}, '"img"."A": .* found 3'),
    ],
)
def test_malformed_mixdata_is_refused(tmp_path, content, text):
    path = write_mixdata(tmp_path, content)
    with expect_data_error(text) as caught:
        read_mixdata(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_missing_mixdata_and_empty_globs_are_refused(data, tmp_path):
    _, mixdata = data
    with expect_data_error("none.json: cannot be read"):
        read_mixdata(tmp_path / "none.json")
    with expect_data_error('"img"."A": no file matches /elsewhere/A/Imgs/'):
        list_pairs("/elsewhere", mixdata)


def test_shipped_mixdata_is_valid():
    assert read_mixdata(ROOT / "data/mixdata.json")["img"] == {"RW": "/ReDWeb_V1/Imgs/*"}


def damage(root):
    """Spoils three of the six pairs, each in its own way."""
    picture = root / "A/Imgs/0.x.jpg"
    picture.write_bytes(picture.read_bytes()[:-40])
    write_image(root / "A/RDs/1.x.png", np.zeros((30, 25), np.uint8))  # portrait, its picture is landscape
    (root / "B/RDs/2.x.png").write_bytes(b"not a picture")


def test_check_finds_unreadable_files_and_other_views(data):
    root, mixdata = data
    pairs, _ = list_pairs(root, mixdata)
    assert check_pairs(pairs, workers=2) == (pairs, [])
    damage(root)
    good, faults = check_pairs(pairs, workers=2)
    assert good == [pairs[2], pairs[3], pairs[4]]
    assert [fault.split(":")[0] for fault in faults] == [
        f"{root}/A/Imgs/0.x.jpg",
        f"{root}/A/RDs/1.x.png",
        f"{root}/B/RDs/2.x.png",
    ]
    assert "(61 x 50), found another aspect ratio (25 x 30)" in faults[1]


def test_verdicts_spare_the_second_check(data, tmp_path, monkeypatch):
    root, mixdata = data
    verdicts = tmp_path / "run/verdicts.json"
    decoded = []
    find_fault = loadImgDepth._find_fault
    monkeypatch.setattr(loadImgDepth, "_find_fault", lambda pair: (decoded.append(pair), find_fault(pair))[1])
    pairs, _ = list_pairs(root, mixdata)
    damage(root)
    bad = [pairs[0], pairs[1], pairs[5]]

    first = check_pairs(pairs, 1, verdicts)
    assert decoded == pairs
    decoded.clear()
    assert check_pairs(pairs, 1, verdicts) == first  # only the bad ones are tried again
    assert decoded == bad
    decoded.clear()
    os.utime(pairs[3].depth_path, ns=(1, 1))  # might be another file now
    assert check_pairs(pairs, 1, verdicts) == first
    assert decoded == [pairs[0], pairs[1], pairs[3], pairs[5]]
    decoded.clear()
    verdicts.write_text("{broken")
    assert check_pairs(pairs, 1, verdicts) == first
    assert decoded == pairs


def test_bad_samples_stop_the_training_or_are_left_out(data):
    root, mixdata = data
    pairs, _ = list_pairs(root, mixdata)
    damage(root)
    (root / "B/RDs/0.x.png").unlink()
    with expect_data_error("^.*mixdata.json: 4 bad") as caught:
        training_pairs(root, mixdata, skip_bad=False)
    lines = str(caught.value).split("\n")
    assert lines[0] == f"{mixdata}: 4 bad training samples (2 good ones):"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        f"{root}/{name}" for name in ("B/Imgs/0.x.PNG", "A/Imgs/0.x.jpg", "A/RDs/1.x.png", "B/RDs/2.x.png")
    ]
    good, faults = training_pairs(root, mixdata, skip_bad=True)
    assert good == [pairs[2], pairs[4]]
    assert [fault.strip() for fault in lines[1:]] == faults


def test_all_bad_samples_are_named_and_no_sample_is_no_training(tmp_path):
    for i in range(23):
        (tmp_path / "i").mkdir(exist_ok=True)
        (tmp_path / f"i/{i:02}.jpg").write_bytes(b"")
    write_image(tmp_path / "d/99.png", np.zeros((4, 4), np.uint8))
    mixdata = write_mixdata(tmp_path, {"img": {"A": "/i/*"}, "depth": {"A": "/d/*"}})
    with expect_data_error("24 bad training samples") as caught:
        training_pairs(tmp_path, mixdata, skip_bad=True)
    lines = str(caught.value).split("\n")
    assert len(lines) == 25
    assert lines[23].startswith(f"  {tmp_path}/i/22.jpg")


def test_samples(data):
    root, mixdata = data
    pairs, _ = list_pairs(root, mixdata)
    source = pickle.loads(pickle.dumps(LoadImagesDepth(pairs, 32, 64, MEAN, STD)))
    assert len(source) == 6
    for i, pair in enumerate(pairs):
        image, mask, target, index = source[i]
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
    assert source[5][2].max() > 255  # 16 bits survive


@pytest.mark.skipif(not REAL_DATA.exists(), reason="no real sample images here")
def test_real_samples():
    pairs, faults = training_pairs(REAL_DATA, REAL_DATA / "mixdata.json", skip_bad=False)
    assert (len(pairs), faults) == (10, [])
    source = LoadImagesDepth([dataclasses.replace(pair, invalid=0) for pair in pairs], 384, 384, MEAN, STD)
    missing = {Path(pair.image_path).stem: 100 - 100 * source[i][1].mean(dtype=float) for i, pair in enumerate(pairs)}
    assert missing["redwood_00000"] == pytest.approx(13.04, abs=0.3)  # percent, of the data's own description
    assert missing["middlebury_tsukuba"] == pytest.approx(20.70, abs=0.3)
    assert missing["middlebury_venus"] == pytest.approx(0.0, abs=0.01)


def test_epoch_order():
    order = epoch_order(50, seed=3, epoch=7)
    assert sorted(order) == list(range(50))
    np.testing.assert_array_equal(order, epoch_order(50, seed=3, epoch=7))
    assert (order != epoch_order(50, seed=3, epoch=8)).any()
    assert (order != epoch_order(50, seed=4, epoch=7)).any()


def test_sequence_resumes_where_it_stopped():
    full = index_sequence(23, batch_size=4, seed=5, epochs=3)
    assert len(full) == 3 * 20  # 23 samples make 5 batches of 4
    np.testing.assert_array_equal(full[20:40], epoch_order(23, 5, 1)[:20])
    for epoch in range(3):
        for step in range(6):  # step 5 of 5: the epoch is done
            rest = index_sequence(23, 4, 5, 3, start_epoch=epoch, start_step=step)
            np.testing.assert_array_equal(rest, full[(epoch * 5 + step) * 4 :])
    assert len(index_sequence(23, 4, 5, epochs=3, start_epoch=3)) == 0


def test_ranks_share_every_global_batch():
    alone = index_sequence(40, batch_size=6, seed=1, epochs=2)
    ranks = [index_sequence(40, 2, 1, 2, rank=rank, world=3).reshape(-1, 2) for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate(ranks, axis=1).ravel(), alone)


def test_too_few_samples_for_a_step():
    with expect_data_error(r"7 samples are fewer than one step takes \(batch size 4 x 2 devices\)"):
        index_sequence(7, batch_size=4, seed=0, epochs=1, world=2)


class Numbers:
    """A source whose samples tell their number; number 13 is bad."""

    def __getitem__(self, index):
        if index == 13:
            raise DataError("/data/13.jpg: expected an image, found 0 bytes")
        plane = np.full((4, 6), index, np.float32)
        return np.stack([plane] * 3), plane, plane, np.int32(index)


@pytest.mark.parametrize("workers", [1, 2, 1000])
def test_dataset_keeps_the_order_of_the_sequence(workers):
    pytest.importorskip("mindspore")
    sequence = np.array([5, 0, 5, 3, 2, 2, 9, 1, 7, 4, 8, 6, 0, 5])
    dataset = create_dataset(Numbers(), sequence, 4, workers)
    assert dataset.get_dataset_size() == 3
    assert dataset.get_col_names() == ["image", "mask", "target", "index"]
    seen = [[column.asnumpy() for column in batch] for batch in batches(dataset)]
    assert [column.shape for column in seen[0]] == [(4, 3, 4, 6), (4, 4, 6), (4, 4, 6), (4,)]
    np.testing.assert_array_equal(np.concatenate([batch[3] for batch in seen]), sequence[:12])
    for image, mask, target, index in seen:
        assert (image == index[:, None, None, None]).all()
        assert (mask == index[:, None, None]).all()
        assert (target == index[:, None, None]).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_file_in_a_loader_is_one_line_with_its_name(workers):
    pytest.importorskip("mindspore")
    dataset = create_dataset(Numbers(), np.arange(16), 4, workers)
    with expect_data_error("^/data/13.jpg: expected an image, found 0 bytes$"):
        list(batches(dataset))


def test_module_needs_no_mindspore():
    code = "import sys, src.utils.loadImgDepth; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
