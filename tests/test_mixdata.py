"""What mixdata.json lists: pairs, their checks, and what is said of those that are bad."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_data import write_image, write_mixdata

from src.common.errors import DataError
from src.utils import mixdata as mixdata_module
from src.utils.loadImgDepth import LoadImagesDepth
from src.utils.mixdata import (
    Pair,
    check_pairs,
    describe_mixture,
    describe_sets,
    find_files,
    good_pairs,
    list_pairs,
    read_mixdata,
    set_sizes,
    split_pairs,
    verdicts_path,
    warnings_of,
)
from src.utils.truth import Truth

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
            name=f"{i}.x",
            image_path=f"{root}/{name}/Imgs/{i}.x{suffix}",
            depth_path=f"{root}/{name}/RDs/{i}.x.png",
            truth=Truth(kind, invalid),
        )
        for name, suffix, kind, invalid in (("A", ".jpg", "inverse_depth", None), ("B", ".PNG", "depth", 0))
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
    assert faults[0] == f'{root}/A/Imgs/0.x.jpg: no ground truth of "0.x" matches /A/RDs/*'
    assert faults[1] == f'{root}/A/RDs/1.x.png: no image of "1.x" matches /A/Imgs/*'
    assert ': ambiguous name "2.x", shared by' in faults[2]
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
        ({"img": {"A": "/A/*"}, "depth": {"A": "/A/*"}, "invalid": {"A": "0"}}, '"invalid"."A": .* found \'0\''),
        (
            '{"img": {"A": "/A/*"}, "depth": {"A": "/A/*"}, "invalid": {"A": NaN}}',
            '"A": expected a finite number, .* nan',
        ),
        ('{"img": {"A": "/A/*"}, "depth": {"A": "/A/*"}, "invalid": {"A": -Infinity}}', '"invalid"."A": .* found -inf'),
        ({"img": {"A": "/A/*"}, "depth": {"A": "/A/*"}, "invalid": {"A": 10**400}}, '"invalid"."A": .* found 1000'),
        ('{"img": {"A": "/A/*"}, "depth": {"A": "/A/*"}, "invalid": {"A": 1e39}}', '"invalid"."A": .* found 1e\\+39'),
        (
            {"img": {"A": "/A/*"}, "depth": {"A": "/A/*"}, "kind": {"A": "disparity"}},
            '"kind"."A": .* found \'disparity\'',
        ),
        (
            {"img": {"A": "/A/*"}, "depth": {"A": "/A/*"}, "kind": {"A": None}},
            "inverse_depth, negative_disparity, depth",
        ),
        ({"img": {"A": "/A/*"}, "depth": {"A": "/A/*"}, "kind": {"C": "depth"}}, '"img"."C": .* found None'),
        ({"img": {"A": "/A/*"}, "depth": {"A": "/A/*"}, "kind": "depth"}, "expected an object of the tables"),
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


def test_shipped_mixdata_says_what_redweb_is():
    expected = ("RW", "/ReDWeb_V1/Imgs/*", "/ReDWeb_V1/RDs/*", Truth("negative_disparity", 255), None, None)
    assert read_mixdata(ROOT / "data/mixdata.json") == [expected]


def test_invalid_may_be_any_finite_number(tmp_path):
    for value in (-1, 0, 65536, -3.4028234663852886e38, 0.5):
        tables = {"img": {"A": "/A/*"}, "depth": {"A": "/A/*"}, "invalid": {"A": value}}
        assert read_mixdata(write_mixdata(tmp_path, tables))[0].truth.invalid == value


GLOBS = {"img": {"A": "/i/*"}, "depth": {"A": "/d/*"}}


def test_tables_of_a_set(tmp_path):
    depth = {**GLOBS, "kind": {"A": "depth"}, "sky": {"A": 0}, "mask": {"A": "/m/*"}}
    depth = {**depth, "scale": {"A": 0.001}, "max_depth": {"A": 80}}
    (found,) = read_mixdata(write_mixdata(tmp_path, depth))
    assert found == ("A", "/i/*", "/d/*", Truth("depth", None, 0, 0.001, 80), "/m/*", None)
    (found,) = read_mixdata(write_mixdata(tmp_path, {**GLOBS, "invalid": {"A": 0}, "sky": {"A": "/s/*"}}))
    assert found == ("A", "/i/*", "/d/*", Truth("inverse_depth", 0), None, "/s/*")
    (found,) = read_mixdata(write_mixdata(tmp_path, json.dumps({**GLOBS, "sky": {"A": float("inf")}})))
    assert found.truth.sky == float("inf")


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({"sky": {"A": "sky/*"}}, '"sky"."A": expected a number or a glob that starts with "/", found \'sky/*\''),
        ({"sky": {"A": None}}, '"sky"."A": expected a number or a glob that starts with "/", found None'),
        ({"sky": {"A": float("nan")}}, '"sky"."A": expected a number or a glob that starts with "/", found nan'),
        ({"sky": {"A": 7}, "invalid": {"A": 7.0}}, 'expected another value than "invalid"."A", found the same, 7'),
        ({"sky": {"A": "/m/*"}, "mask": {"A": "/m/*"}}, 'expected other files than "mask"."A", found the same glob'),
        ({"mask": {"A": 0}}, '"mask"."A": expected a glob that starts with "/", found 0'),
        ({"scale": {"A": 0}}, '"scale"."A": expected a finite number above 0, found 0'),
        ({"scale": {"A": True}}, '"scale"."A": expected a finite number above 0, found True'),
        ({"scale": {"A": float("inf")}}, '"scale"."A": expected a finite number above 0, found inf'),
        (
            {"max_depth": {"A": -1}, "kind": {"A": "depth"}},
            '"max_depth"."A": expected a finite number above 0, found -1',
        ),
        ({"max_depth": {"A": 80}}, '"max_depth"."A": expected "kind"."A": "depth" beside it, found "inverse_depth"'),
        ({"max_depths": {"A": 80}}, 'unknown key "max_depths"; expected "img", "depth", "kind", "invalid", "sky"'),
        ({"scale": {"B": 2}}, '"img"."B": expected a glob that starts with "/", found None'),
    ],
)
def test_entries_that_are_wrong_or_contradict_each_other(tmp_path, tables, text):
    path = write_mixdata(tmp_path, json.dumps({**GLOBS, **tables}))
    with pytest.raises(DataError) as caught:
        read_mixdata(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert text in str(caught.value)


def write_masked_set(root, count=2):
    """Pairs with masks of half their size. Ground truth is 1000 .. 1700 from left to right, 8 x 4; the mask leaves the
    upper half out, the mask of the sky has the left quarter."""
    for number in range(count):
        write_image(root / f"i/{number}.png", np.zeros((4, 8, 3), np.uint8))
        write_image(root / f"d/{number}.png", np.tile(np.arange(1000, 1800, 100, dtype=np.uint16), (4, 1)))
        write_image(root / f"m/{number}_mask.png", np.repeat(np.uint8([[0], [1]]), 4, axis=1))
        write_image(root / f"s/{number}.png", np.repeat(np.uint8([[255, 0, 0, 0]]), 2, axis=0))
    tables = {**GLOBS, "kind": {"A": "depth"}, "mask": {"A": "/m/*_mask.png"}, "sky": {"A": "/s/*"}}
    return write_mixdata(root, tables)


def test_masks_are_paired_and_brought_to_the_size_of_the_ground_truth(tmp_path):
    pairs, faults = list_pairs(tmp_path, write_masked_set(tmp_path))
    assert faults == []
    masks = [(pair.mask_path, pair.sky_path) for pair in pairs]
    assert masks == [(f"{tmp_path}/m/{number}_mask.png", f"{tmp_path}/s/{number}.png") for number in range(2)]
    for size in ((8, 4), (4, 2)):  # of the network's input
        source = LoadImagesDepth(pairs, *size, [0.5] * 3, [0.5] * 3, ensure_multiple_of=1)
        _, target, mask = source[0]
        assert mask.tolist() == [[1] * (size[0] // 4) + [0] * (size[0] * 3 // 4)] * (size[1] // 2) + [[1] * size[0]] * (
            size[1] // 2
        )
        lower = target[-1] / 255 * (1 / 1200)  # sky is 0, the nearest pixel, of 1200, is 255
        expected = [0 if value < 1200 else 1 / value for value in range(1000, 1800, 800 // size[0])]
        np.testing.assert_allclose(lower, expected, rtol=1e-5)
    checked = check_pairs(pairs, 1)
    (statistics,) = {*checked.statistics}
    assert (statistics.low, statistics.high) == (1200, 1700)
    assert (statistics.valid, statistics.sky) == (0.625, 0.25)


def test_masks_without_a_single_partner_are_named(tmp_path):
    mixdata = write_masked_set(tmp_path, count=4)
    (tmp_path / "m/0_mask.png").unlink()
    (tmp_path / "s/1.npy").touch()
    for name in ("i/2.png", "d/2.png"):
        (tmp_path / name).unlink()
    pairs, faults = list_pairs(tmp_path, mixdata)
    assert [pair.name for pair in pairs] == ["3"]
    assert faults == [
        f'{tmp_path}/i/0.png: no mask of "0" matches /m/*_mask.png',
        f'{tmp_path}/i/1.png: ambiguous name "1", shared by {tmp_path}/d/1.png, {tmp_path}/m/1_mask.png,'
        f" {tmp_path}/s/1.npy, {tmp_path}/s/1.png",
        f'{tmp_path}/m/2_mask.png: no image of "2" matches /i/*',
    ]
    for path in (tmp_path / "s").iterdir():
        path.unlink()
    with expect_data_error("no file matches .*/s/"):
        list_pairs(tmp_path, mixdata)


def test_masks_are_checked_and_remembered(tmp_path):
    pairs, _ = list_pairs(tmp_path, write_masked_set(tmp_path))
    verdicts = tmp_path / "verdicts.json"
    first = check_pairs(pairs, 1, verdicts)
    assert (first.good, check_pairs(pairs, 1, verdicts)) == ([0, 1], first)
    write_image(tmp_path / "m/0_mask.png", np.ones((4, 4), np.uint8))
    (tmp_path / "s/1.png").write_bytes(b"none")
    checked = check_pairs(pairs, 1, verdicts)
    assert checked.good == []
    assert checked.faults[0] == (
        f"{tmp_path}/m/0_mask.png: expected the view of {tmp_path}/d/0.png (8 x 4), found another aspect ratio (4 x 4)"
    )
    assert checked.faults[1].startswith(f"{tmp_path}/s/1.png: expected an image, found 4 bytes")
    otherwise = [replace(pair, truth=replace(pair.truth, max_depth=1400)) for pair in pairs]
    write_masked_set(tmp_path)
    assert {one.high for one in check_pairs(otherwise, 1, verdicts).statistics} == {1400}
    assert {one.high for one in check_pairs(pairs, 1, verdicts).statistics} == {1700}


def test_mixture_says_how_often_each_set_comes():
    pairs = [*pairs_of("A", range(30)), *pairs_of("B", range(10))]
    expected = "mixture: 2 sets of equal shares; an epoch of 40 images goes through A 0.667 times, B 2 times"
    assert describe_mixture(set_sizes(pairs), 40) == expected


def touch(root, *names):
    for name in names:
        path = Path(os.fsdecode(root)) / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def keys(root, pattern):
    """Path below the root -> key."""
    return {path[len(str(root)) + 1 :]: key for path, key in find_files(root, pattern).items()}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/S/*/rgb/*.jpg", {"S/a/rgb/1.jpg": "a/1", "S/b/rgb/1.jpg": "b/1"}),
        ("/S/*/depth/*_depth.png", {"S/a/depth/1_depth.png": "a/1", "S/b/depth/1_depth.png": "b/1"}),
        ("/S/?/rgb/[0-9].*", {"S/a/rgb/1.jpg": "a/1", "S/b/rgb/1.jpg": "b/1"}),
        ("/S/*/rgb/1.jp*g", {"S/a/rgb/1.jpg": "a", "S/b/rgb/1.jpg": "b"}),  # the suffix of a file never counts
        ("/S/*/rgb/1.jpg", {"S/a/rgb/1.jpg": "a", "S/b/rgb/1.jpg": "b"}),
        ("/T/run_*_left/im*", {"T/run_07_left/im3.v2.png": "07/3.v2"}),
        ("/T/run_*_*/im[0-9]*.png", {"T/run_07_left/im3.v2.png": "07_left/3.v2"}),
        ("/S/**/*.jpg", {"S/a/rgb/1.jpg": "a/rgb/1", "S/b/rgb/1.jpg": "b/rgb/1", "S/0.jpg": "0"}),
        ("/**/rgb/*", {"S/a/rgb/1.jpg": "S/a/1", "S/b/rgb/1.jpg": "S/b/1"}),
        ("/N/**", {"N/none": "none", "N/two.dots.x": "two.dots", "N/deep/er/1.png": "deep/er/1"}),
        ("/S/**/**/1.jpg", {"S/a/rgb/1.jpg": "a/rgb", "S/b/rgb/1.jpg": "b/rgb"}),
        ("/N/*", {"N/none": "none", "N/two.dots.x": "two.dots"}),
        ("/S/*", {"S/0.jpg": "0"}),  # no folders
        ("/", {}),
        ("/S/*/", {"S/0.jpg": "0"}),
        ("/gone/**/x", {}),
    ],
)
def test_key_is_what_the_wildcards_stand_for(tmp_path, pattern, expected):
    root = tmp_path / "data [1]*"  # wildcards in the root mean themselves
    touch(root, "S/0.jpg", "T/run_07_left/im3.v2.png", "S/.git/rgb/1.jpg")
    touch(root, "N/none", "N/two.dots.x", "N/.hidden", "N/deep/er/1.png")
    touch(root, *(f"S/{scene}/{file}" for scene in "ab" for file in ("rgb/1.jpg", "depth/1_depth.png")))
    assert keys(root, pattern) == expected


@pytest.mark.parametrize(
    ("images", "depths"),
    [
        ("/S/*/rgb/*.jpg", "/S/*/depth/*_depth.png"),
        ("/S/**/rgb/*.jpg", "/S/**/depth/*_depth.png"),
        ("/Imgs/**/*", "/RDs/**/*"),
        ("/Imgs/**", "/RDs/*/*.npy"),
    ],
)
def test_scenes_with_equal_frame_numbers_do_not_clash(tmp_path, images, depths):
    frames = [(scene, f"{frame:03}") for scene in "abcdefgh" for frame in (0, 1, 10)]
    for scene, frame in frames:
        touch(tmp_path, f"S/{scene}/rgb/{frame}.jpg", f"S/{scene}/depth/{frame}_depth.png")
        touch(tmp_path, f"Imgs/{scene}/{frame}.jpg", f"RDs/{scene}/{frame}.npy")
    pairs, faults = list_pairs(tmp_path, write_mixdata(tmp_path, {"img": {"A": images}, "depth": {"A": depths}}))
    assert faults == []
    assert [pair.name for pair in pairs] == [f"{scene}/{frame}" for scene, frame in frames]
    for pair in pairs:
        scene, frame = pair.name.split("/")
        for path in (pair.image_path, pair.depth_path):
            assert f"/{scene}/" in path
            assert Path(path).name.startswith(frame)
    Path(pairs[4].depth_path).unlink()
    _, faults = list_pairs(tmp_path, tmp_path / "mixdata.json")
    assert faults == [f'{pairs[4].image_path}: no ground truth of "b/001" matches {depths}']


@pytest.mark.timeout(20)
def test_links_in_circles_come_to_an_end(tmp_path):
    for number in range(12):
        touch(tmp_path, f"Imgs/s{number:02}/1.jpg")
        for other in range(12):
            (tmp_path / f"Imgs/s{number:02}/to{other:02}").symlink_to(tmp_path / f"Imgs/s{other:02}")
        (tmp_path / f"Imgs/s{number:02}/up").symlink_to("..")
    (tmp_path / "Imgs/self").symlink_to("self")
    (tmp_path / "Imgs/0").symlink_to("s03")  # is the same folder
    touch(tmp_path, "elsewhere/1.jpg")
    (tmp_path / "Imgs/linked").symlink_to(tmp_path / "elsewhere")
    expected = {f"Imgs/{scene}/1.jpg": f"{scene}/1" for scene in [*(f"s{number:02}" for number in range(12)), "linked"]}
    assert keys(tmp_path, "/Imgs/**/*") == expected
    assert keys(tmp_path, "/Imgs/**") == expected


def test_names_that_are_not_text(tmp_path):
    root = Path(os.fsdecode(bytes(tmp_path) + b"/d\xe9 [a]"))
    rng = np.random.default_rng(0)
    for folder, suffix in (("Imgs", ".jpg"), ("RDs", ".png")):
        write_image(tmp_path / f"x{suffix}", rng.integers(1, 255, (40, 50), dtype=np.uint8))
        for name in (b"caf\xe9", b"caf\xea"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / f"x{suffix}", bytes(root / folder) + b"/" + name + suffix.encode())
    mixdata = write_mixdata(tmp_path, {"img": {"A": "/Imgs/*"}, "depth": {"A": "/RDs/*"}})
    pairs, faults = list_pairs(root, mixdata)
    assert faults == []
    assert [os.fsencode(pair.name) for pair in pairs] == [b"caf\xe9", b"caf\xea"]
    verdicts = tmp_path / "verdicts.json"
    first = check_pairs(pairs, 2, verdicts)
    assert first.good == [0, 1]
    assert check_pairs(pairs, 2, verdicts) == first
    assert verdicts_path(root, mixdata) != verdicts_path(tmp_path, mixdata)
    assert LoadImagesDepth(pairs, 32, 32, [0.5] * 3, [0.5] * 3)[1][1].max() > 0


def damage(root):
    """Spoils three of the six pairs, each in its own way."""
    picture = root / "A/Imgs/0.x.jpg"
    picture.write_bytes(picture.read_bytes()[:-40])
    write_image(root / "A/RDs/1.x.png", np.zeros((30, 25), np.uint8))  # portrait, its picture is landscape
    (root / "B/RDs/2.x.png").write_bytes(b"not a picture")


def test_check_finds_unreadable_files_and_other_views(two_sets):
    root, mixdata = two_sets
    pairs, _ = list_pairs(root, mixdata)
    sound = check_pairs(pairs, workers=2)
    assert (sound.good, sound.faults) == (list(range(6)), [])
    damage(root)
    checked = check_pairs(pairs, workers=2)
    assert checked.good == [2, 3, 4]
    assert checked.statistics == [sound.statistics[index] for index in checked.good]
    assert [fault.split(":")[0] for fault in checked.faults] == [
        f"{root}/A/Imgs/0.x.jpg",
        f"{root}/A/RDs/1.x.png",
        f"{root}/B/RDs/2.x.png",
    ]
    assert "as stored (61 x 50), found another aspect ratio (25 x 30)" in checked.faults[1]


def write_tagged(path, array, orientation):
    """Writes a JPEG whose EXIF data says how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, quality=95, exif=exif)


def test_pixels_as_stored_are_checked_and_their_orientation_is_open_if_tagged(tmp_path):
    truth = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[:, None], 80, axis=1)  # nearer below
    for orientation in range(1, 9):
        write_tagged(tmp_path / f"i/{orientation}.jpg", np.stack([truth] * 3, axis=2), orientation)
        write_image(tmp_path / f"d/{orientation}.png", truth)  # 80 x 60; turned by 5 to 8, the picture would be 60 x 80
    pairs, _ = list_pairs(tmp_path, write_mixdata(tmp_path, {"img": {"A": "/i/*"}, "depth": {"A": "/d/*"}}))
    checked = check_pairs(pairs, 1)
    assert checked.faults == []
    assert [one.upright for one in checked.statistics] == [True, True, *[None] * 6]


def test_verdicts_spare_the_second_check(two_sets, tmp_path, monkeypatch):
    root, mixdata = two_sets
    verdicts = tmp_path / "run/verdicts.json"
    decoded = []
    examine = mixdata_module._examine
    monkeypatch.setattr(mixdata_module, "_examine", lambda pair: (decoded.append(pair), examine(pair))[1])

    def check_again(pairs):
        decoded.clear()
        return check_pairs(pairs, 1, verdicts)

    pairs, _ = list_pairs(root, mixdata)
    damage(root)
    bad = [pairs[0], pairs[1], pairs[5]]

    first = check_again(pairs)
    assert decoded == pairs
    assert check_again(pairs) == first  # only the bad ones are tried again
    assert decoded == bad
    os.utime(pairs[3].depth_path, ns=(1, 1))  # might be another file now
    assert check_again(pairs) == first
    assert decoded == [pairs[0], pairs[1], pairs[3], pairs[5]]

    otherwise = [replace(pair, truth=replace(pair.truth, kind="negative_disparity")) for pair in pairs]
    assert check_again(otherwise).statistics != first.statistics
    assert decoded == otherwise
    check_again([replace(pairs[2], truth=replace(pairs[2].truth, invalid=7))])
    assert len(decoded) == 1

    check_again(pairs)
    for text in (
        "{broken",
        "[]",
        '{"version": 0, "pairs": {}}',
        '{"version": 1}',
        '{"version": 1, "pairs": {"a": [1]}}',
    ):
        verdicts.write_text(text)
        assert check_again(pairs) == first
        assert decoded == pairs


def test_a_check_that_cannot_be_remembered_is_no_fault(two_sets, tmp_path):
    pairs, _ = list_pairs(*two_sets)
    (tmp_path / "file").touch()
    assert len(check_pairs(pairs, 1, tmp_path / "file/verdicts.json").good) == 6


def test_verdicts_belong_to_a_data_root_and_a_list():
    path = verdicts_path("data", "data/mixdata.json")
    assert path.parent == ROOT / "output/checked_data"
    assert path == verdicts_path(Path("data").absolute(), Path("data/mixdata.json"))
    assert len({path, verdicts_path("data", "data/other.json"), verdicts_path("other", "data/mixdata.json")}) == 3


def test_sets_are_described_and_warned_of(two_sets):
    pairs, _ = list_pairs(*two_sets)
    checked = check_pairs(pairs, 1)
    lines = describe_sets(pairs, checked)
    # A: rows of zeros above, 0..199 below; B: 16 bits, 300..499, its zeros are no depth.
    assert [line.split("; ")[0] for line in lines] == [
        "A: 3 pairs, 8 bit, 0..199, 100 % valid, inverse_depth",
        "B: 3 pairs, 16 bit, 300..499, 80 % valid, depth",
    ]
    assert warnings_of(pairs, checked) == [
        "A: half of the pictures hold 0 on 20 % of their pixels or more; if that means no ground truth:"
        ' "invalid": {"A": 0}'
    ]
    some = checked._replace(good=checked.good[2:4], statistics=checked.statistics[2:4])
    assert [line.split(",")[0] for line in describe_sets(pairs, some)] == ["A: 3 pairs (1 read)", "B: 3 pairs (1 read)"]
    other = [replace(pair, truth=Truth("inverse_depth", 0)) for pair in pairs[3:]]
    assert warnings_of(other, check_pairs(other, 1)) == [
        'B: 16-bit values that look like depth, for example in millimetres; probably "kind": {"B": "depth"}'
    ]


def test_bad_samples_stop_the_training_or_are_left_out(two_sets):
    root, mixdata = two_sets
    pairs, _ = list_pairs(root, mixdata)
    damage(root)
    (root / "B/RDs/0.x.png").unlink()
    listed = list_pairs(root, mixdata)
    checked = check_pairs(listed[0], workers=1)
    with expect_data_error("^.*mixdata.json: 4 bad") as caught:
        good_pairs(*listed, checked, mixdata, skip_bad=False)
    lines = str(caught.value).split("\n")
    assert lines[0] == f"{mixdata}: 4 bad training samples (2 good ones):"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        f"{root}/{name}" for name in ("B/Imgs/0.x.PNG", "A/Imgs/0.x.jpg", "A/RDs/1.x.png", "B/RDs/2.x.png")
    ]
    assert good_pairs(*listed, checked, mixdata, skip_bad=True) == [pairs[2], pairs[4]]
    assert [fault.strip() for fault in lines[1:]] == [*listed[1], *checked.faults]


def test_all_bad_samples_are_named_and_no_sample_is_no_training(tmp_path):
    for i in range(23):
        (tmp_path / "i").mkdir(exist_ok=True)
        (tmp_path / f"i/{i:02}.jpg").write_bytes(b"")
    write_image(tmp_path / "d/99.png", np.zeros((4, 4), np.uint8))
    mixdata = write_mixdata(tmp_path, {"img": {"A": "/i/*"}, "depth": {"A": "/d/*"}})
    listed = list_pairs(tmp_path, mixdata)
    with expect_data_error("24 bad training samples") as caught:
        good_pairs(*listed, check_pairs(listed[0], workers=1), mixdata, skip_bad=True)
    lines = str(caught.value).split("\n")
    assert len(lines) == 25
    assert lines[23].startswith(f"  {tmp_path}/i/22.jpg")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/*_depth.*", {"a_depth.png": "a", "b_depth.npy": "b", "1.5_depth.png": "1.5"}),
        ("/*_depth.[np][np]*", {"a_depth.png": "a", "b_depth.npy": "b", "1.5_depth.png": "1.5"}),
        ("/*_depth.pn?", {"a_depth.png": "a", "1.5_depth.png": "1.5"}),
        ("/*_depth*", {"a_depth.png": "a_depth", "b_depth.npy": "b_depth", "1.5_depth.png": "1.5_depth"}),
        ("/f.*", {"f.001.png": "001", "f.002.tar.gz": "002.tar"}),  # more than a suffix
        ("/f.*.*", {"f.001.png": "001", "f.002.tar.gz": "002.tar"}),
        ("/*png", {"a_depth.png": "a_depth", "1.5_depth.png": "1.5_depth", "f.001.png": "f.001", "x.png": "x"}),
        ("/x.*", {"x.png": ""}),
    ],
)
def test_suffix_of_a_pattern_may_have_wildcards(tmp_path, pattern, expected):
    for name in ("a_depth.png", "b_depth.npy", "1.5_depth.png", "f.001.png", "f.002.tar.gz", "x.png"):
        (tmp_path / name).touch()
    assert {path[len(str(tmp_path)) + 1 :]: key for path, key in find_files(tmp_path, pattern).items()} == expected


def test_mixdata_of_a_windows_editor(tmp_path):
    path = tmp_path / "mixdata.json"
    path.write_bytes('\ufeff{"img": {"A": "/a/*"},\r\n "depth": {"A": "/b/*"}}\r\n'.encode())
    assert read_mixdata(path) == [("A", "/a/*", "/b/*", Truth("inverse_depth"), None, None)]


def pairs_of(dataset, numbers):
    return [Pair(dataset, f"{number:04}", f"/{dataset}/{number}.jpg", f"/{dataset}/{number}.png") for number in numbers]


@pytest.mark.parametrize(
    ("size", "share", "count"),
    [(1, 0.5, 0), (2, 0.5, 1), (2, 0.01, 1), (10, 0.0, 0), (10, 0.01, 1), (10, 0.25, 2), (400, 0.1, 40), (3, 0.9, 2)],
)
def test_so_many_pairs_of_each_set_are_held_back(size, share, count):
    pairs = [*pairs_of("A", range(size)), *pairs_of("B", range(20))]
    training, held_back = split_pairs(pairs, share, seed=1)
    assert sorted([*training, *held_back], key=pairs.index) == pairs
    assert [pair for pair in pairs if pair in training] == training  # their order stays
    assert [pair for pair in pairs if pair in held_back] == held_back
    assert len([pair for pair in held_back if pair.dataset == "A"]) == count


def test_held_back_pairs_depend_on_names_and_seed_alone():
    pairs = pairs_of("A", range(200))
    _, held_back = split_pairs(pairs, 0.1, seed=1)
    elsewhere = [Pair("renamed", pair.name, f"/moved{pair.image_path}", pair.depth_path) for pair in reversed(pairs)]
    assert {pair.name for pair in split_pairs(elsewhere, 0.1, seed=1)[1]} == {pair.name for pair in held_back}
    _, others = split_pairs(pairs, 0.1, seed=2)
    assert len({*others} & {*held_back}) < 10  # of 20; 2 by chance
    _, after_more = split_pairs(pairs_of("A", range(220)), 0.1, seed=1)
    assert len({*after_more} & {*held_back}) >= 15  # new ones take their share, the others stay
    quarters = [sum(pair.name < f"{end:04}" for pair in split_pairs(pairs, 0.5, seed=3)[1]) for end in (50, 100, 150)]
    assert np.abs(np.array(quarters) - [25, 50, 75]).max() < 15  # spread over the set
