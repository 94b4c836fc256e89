"""What mixdata.json lists: pairs, their checks, and what is said of those that are bad."""

import os
from pathlib import Path

import numpy as np
import pytest
from training_data import write_image, write_mixdata

from src.common.errors import DataError
from src.utils import mixdata as mixdata_module
from src.utils.mixdata import Pair, check_pairs, list_pairs, read_mixdata, training_pairs

ROOT = Path(__file__).resolve().parents[1]


def expect_data_error(text):
    return pytest.raises(DataError, match=text)


def test_pairs_are_sorted_and_matched_by_stem(two_sets):
    root, mixdata = two_sets
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


def test_every_file_without_a_single_partner_is_named(two_sets):
    root, mixdata = two_sets
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
        ({"img": {"A": "/A/*"}}, '"depth"."A": expected a glob .* found None'),
        ({"img": {}, "depth": {}}, '"img" and "depth" name no set'),
        ({"img": {"A": "/A/*"}, "depth": {"A": "/A/*"}, "imgs": {}}, 'unknown key "imgs"'),
        ({"img": {"A": "/A/*", "C": "/C/*"}, "depth": {"A": "/A/*"}}, '"depth"."C": .* found None'),
        ({"img": {"A": "/A/*"}, "depth": {"A": "/A/*", "C": "/C/*"}}, '"img"."C": .* found None'),
        ({"img": {"A": "/A/*"}, "depth": {"A": "/A/*"}, "invalid": {"C": 0}}, '"img"."C": .* found None'),
        ({"img": {"A": "/A/*"}, "depth": {"A": "/A/*"}, "invalid": {"A": True}}, '"invalid"."A": .* found True'),
        ({"img": {"A": "/A/*"}, "depth": {"A": "/A/*"}, "invalid": {"A": None}}, '"invalid"."A": .* found None'),
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


def test_missing_mixdata_and_empty_globs_are_refused(two_sets, tmp_path):
    _, mixdata = two_sets
    with expect_data_error("none.json: cannot be read"):
        read_mixdata(tmp_path / "none.json")
    with expect_data_error("no file matches /elsewhere/A/Imgs/"):
        list_pairs("/elsewhere", mixdata)


def test_shipped_mixdata_is_valid():
    assert read_mixdata(ROOT / "data/mixdata.json")[0].images == "/ReDWeb_V1/Imgs/*"


def damage(root):
    """Spoils three of the six pairs, each in its own way."""
    picture = root / "A/Imgs/0.x.jpg"
    picture.write_bytes(picture.read_bytes()[:-40])
    write_image(root / "A/RDs/1.x.png", np.zeros((30, 25), np.uint8))  # portrait, its picture is landscape
    (root / "B/RDs/2.x.png").write_bytes(b"not a picture")


def test_check_finds_unreadable_files_and_other_views(two_sets):
    root, mixdata = two_sets
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


def test_verdicts_spare_the_second_check(two_sets, tmp_path, monkeypatch):
    root, mixdata = two_sets
    verdicts = tmp_path / "run/verdicts.json"
    decoded = []
    find_fault = mixdata_module._find_fault
    monkeypatch.setattr(mixdata_module, "_find_fault", lambda pair: (decoded.append(pair), find_fault(pair))[1])
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


def test_bad_samples_stop_the_training_or_are_left_out(two_sets):
    root, mixdata = two_sets
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
