"""Two folders, one of images and one of ground truth: which files belong together."""

import os
from pathlib import Path

import numpy as np
import pytest
from training_data import write_image, write_truth

from src.common.errors import DataError
from src.utils import mixdata
from src.utils.folders import is_truth, match_names
from src.utils.loadImgDepth import LoadImagesDepth
from src.utils.mixdata import check_pairs, describe_sets, list_folders, warnings_of
from src.utils.truth import Truth


def matched(images, truths):
    return [(match.images, match.truths) for match in match_names(images, truths)]


@pytest.mark.parametrize(
    ("image", "truth"),
    [
        ("a.jpg", "a.png"),
        ("s/1.5.jpg", "s/1.5.npy"),
        ("rgb_0001.jpg", "depth_0001.png"),
        ("rgb0001.jpg", "depth0001.png"),
        ("0001_color.png", "0001_depth.png"),
        ("0001rgb.png", "0001depth.png"),
        ("0001.png", "0001_depth_map.png"),
        ("scene/rgb/1.png", "scene/depth/1.png"),
        ("scene/Images/left/1.png", "scene/GT-disparity/1.pfm"),
        ("scene_image-3.JPG", "scene-DepthMap 3.PNG"),
        ("frame.0012.color.jpg", "frame.0012.depth.exr"),
        ("rgb_image_1.png", "ground_truth_1.h5"),
        ("rgb.png", "depth.png"),
        ("a1-rgb-b.png", "a1_depth.b.png"),
        ("-1_rgb.png", "depth/-1.png"),
    ],
)
def test_names_that_belong_together(image, truth):
    assert matched([image], [truth]) == [([image], [truth])]
    assert ([image], [truth]) in matched([image, "other.jpg"], ["another.png", truth])


@pytest.mark.parametrize(
    ("image", "truth"),
    [
        ("1.png", "01.png"),
        ("a/1.png", "b/1.png"),
        ("left_1.png", "right_1.png"),
        ("imagery_1.png", "1_depth.png"),  # part of a word
        ("dispatch_1.png", "1.png"),
        ("1_color.png", "1_2_depth.png"),
        ("-1_rgb.png", "1_depth.png"),  # separators elsewhere count
        ("1.2_rgb.png", "1-2_depth.png"),
        ("a__1_rgb.png", "a_1_depth.png"),
    ],
)
def test_names_that_do_not(image, truth):
    assert sorted(matched([image], [truth]), key=str) == sorted([([image], []), ([], [truth])], key=str)


def test_every_file_is_in_one_match():
    images = ["1.jpg", "2.jpg", "2.png", "rgb_3.jpg", "img_3.jpg", "rgb_1.jpg", "rgb.jpg", "x.jpg"]
    truths = ["1.png", "2.npy", "depth_3.png", "depth.png", "img.png", "y.png"]
    found = matched(images, truths)
    assert sorted(path for match in found for path in match[0]) == sorted(images)
    assert sorted(path for match in found for path in match[1]) == sorted(truths)
    assert (["1.jpg"], ["1.png"]) in found
    assert (["rgb_1.jpg"], []) in found  # 1.png has its own
    assert (["2.jpg", "2.png"], ["2.npy"]) in found
    assert (["img_3.jpg", "rgb_3.jpg"], ["depth_3.png"]) in found
    assert (["rgb.jpg"], ["depth.png", "img.png"]) in found
    assert found == matched(reversed(images), reversed(truths))


def test_which_of_the_two_a_file_of_one_folder_is():
    assert not is_truth("scene/rgb/1.png")
    assert is_truth("scene/depth/1.png")
    assert is_truth("rgbd/images/1_depth.png")  # the last word
    assert is_truth("images/1.npy")
    assert not is_truth("depth/1.ppm")
    with pytest.raises(ValueError, match="says neither image"):
        is_truth("scene/1.png")


def write_pair(image, truth, number=0):
    """Writes pixels that are not the same in any two pairs."""
    ramp = np.repeat(np.arange(1000 + number, 1640 + number, 20, dtype=np.uint16)[:, None], 40, axis=1)
    write_image(image, np.full((32, 40, 3), number, np.uint8))
    write_truth(truth, ramp)


def listed(root, images, truths, *arguments):
    """Returns the pairs of two folders by relative names, and the faults."""
    pairs, faults = list_folders(root / images, root / truths, *(arguments or ("depth", None)))
    return [tuple(path[len(str(root)) + 1 :] for path in (pair.image_path, pair.depth_path)) for pair in pairs], faults


@pytest.mark.parametrize(
    ("folders", "image", "truth"),
    [
        (("photos", "truth"), "photos/a/{}.png", "truth/a/{}.png"),
        (("photos", "truth"), "photos/rgb_{}.png", "truth/depth_{}.png"),
        (("data", "data"), "data/s/rgb/{}.png", "data/s/depth/{}.png"),
        (("data", "data"), "data/{}_color.png", "data/{}_depth.png"),
        (("data", "data"), "data/{}.ppm", "data/{}.npy"),
        (("data", "data/"), "data/{}_color.png", "data/{}_depth.png"),
        (("data", "data/truth"), "data/{}.png", "data/truth/{}.png"),
        (("data/photos", "data"), "data/photos/{}.png", "data/{}.png"),
    ],
)
def test_pairs_of_two_folders(tmp_path, folders, image, truth):
    root = tmp_path / "own [1]*"
    for number in range(3):
        write_pair(root / image.format(number), root / truth.format(number), number)
    (root / folders[0] / ".hidden.png").touch()
    (root / folders[1] / "notes.txt").touch()
    pairs, faults = listed(root, *folders)
    assert faults == []
    assert pairs == [(image.format(number), truth.format(number)) for number in range(3)]


def test_pairs_have_the_kind_and_can_be_trained_on(tmp_path):
    for number in range(3):
        write_pair(tmp_path / f"photos/{number}.png", tmp_path / f"depth/{number}.png", number)
    pairs, _ = list_folders(tmp_path / "photos", tmp_path / "depth", "inverse_depth", 1000)
    assert {pair.truth for pair in pairs} == {Truth("inverse_depth", 1000)}
    assert [pair.name for pair in pairs] == ["0", "1", "2"]
    checked = check_pairs(pairs, 1)
    assert checked.faults == []
    (line,) = describe_sets(pairs, checked)
    assert line.startswith("images: 3 pairs, 16 bit, 1001..1622, 99 % valid, inverse_depth; the lower part is nearer")
    pairs, _ = list_folders(tmp_path / "photos", tmp_path / "depth", "depth", None)
    (line,) = warnings_of(pairs, check_pairs(pairs, 1), as_options=True)
    assert line.endswith("probably --train_kind inverse_depth")
    assert LoadImagesDepth(pairs, 32, 32, [0.5] * 3, [0.5] * 3)[1][1].max() == 255


def test_nothing_is_silently_left_out(tmp_path):
    for number in range(2):
        write_pair(tmp_path / f"i/{number}.png", tmp_path / f"d/{number}.png")
    for name in ("i/7.jpg", "i/0.jpg", "d/8.npy"):
        (tmp_path / name).touch()
    pairs, faults = listed(tmp_path, "i", "d")
    assert pairs == [("i/1.png", "d/1.png")]
    assert faults == [
        f'{tmp_path}/i/0.jpg: ambiguous name "0", shared by {tmp_path}/i/0.png, {tmp_path}/d/0.png',
        f"{tmp_path}/i/7.jpg: no ground truth of this name in {tmp_path}/d",
        f"{tmp_path}/d/8.npy: no image of this name in {tmp_path}/i",
    ]
    for name in ("both/rgb_1.png", "both/depth_1.png", "both/2.png"):
        write_pair(tmp_path / name, tmp_path / name)
    pairs, faults = listed(tmp_path, "both", "both")
    assert pairs == [("both/rgb_1.png", "both/depth_1.png")]
    (fault,) = faults
    assert fault.startswith(f"{tmp_path}/both/2.png: its name says neither image")


def test_a_folder_in_the_other_is_found_through_links(tmp_path):
    """Images and ground truth have the same names, so that each file may be taken for its own partner."""
    for number in range(2):
        write_pair(tmp_path / f"data/{number}.png", tmp_path / f"elsewhere/{number}.png", number)
    (tmp_path / "data/depth").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "alias").symlink_to("data")
    expected = [(f"data/{number}.png", f"data/depth/{number}.png") for number in range(2)]
    assert listed(tmp_path, "data", "data/depth") == (expected, [])
    assert listed(tmp_path, "data/depth", "data") == ([pair[::-1] for pair in expected], [])
    for name in ("0", "1"):
        write_pair(tmp_path / f"alias/{name}.png", tmp_path / f"alias/truth/{name}.png")
    (tmp_path / "data/depth").unlink()
    expected = [(f"alias/{number}.png", f"data/truth/{number}.png") for number in range(2)]
    assert listed(tmp_path, "alias", "data/truth") == (expected, [])
    (tmp_path / "data/7.png").symlink_to("truth/1.png")
    assert listed(tmp_path, "alias", "data/truth") == (expected, [])


def test_a_file_is_not_its_own_ground_truth(tmp_path):
    write_pair(tmp_path / "i/1.png", tmp_path / "d/1.png")
    (tmp_path / "d/2.png").symlink_to(tmp_path / "i/2.png")
    write_image(tmp_path / "i/2.png", np.zeros((4, 4), np.uint8))
    pairs, faults = listed(tmp_path, "i", "d")
    assert pairs == [("i/1.png", "d/1.png")]
    text = "expected an image and its ground truth, found the same file as"
    assert faults == [f"{tmp_path}/i/2.png: {text} {tmp_path}/d/2.png"]


def test_files_of_one_folder_are_told_apart_once(tmp_path, monkeypatch):
    for number in range(3):
        write_pair(tmp_path / f"rgb_{number}.png", tmp_path / f"depth_{number}.png")
    asked = []
    monkeypatch.setattr(mixdata, "is_truth", lambda name: (asked.append(name), is_truth(name))[1])
    assert len(listed(tmp_path, ".", ".")[0]) == 3
    assert len(asked) == 6


def test_folders_without_pairs_are_refused(tmp_path):
    write_pair(tmp_path / "i/a.png", tmp_path / "d/b.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").touch()
    write_pair(tmp_path / "twice/1.jpg", tmp_path / "two/1.png")
    write_pair(tmp_path / "twice/1.png", tmp_path / "two/1.npy")
    write_pair(tmp_path / "photos/1.jpg", tmp_path / "photos/depth_1.png")
    (tmp_path / "photos/1.jpg").rename(tmp_path / "photos/1.heic")
    for images, depths, message in (
        ("gone", "d", f"{tmp_path}/gone: expected a folder of images, found none"),
        ("i", "i/a.png", f"{tmp_path}/i/a.png: expected a folder of ground truth, found none"),
        ("empty", "d", f"{tmp_path}/empty: expected images (.avif .bmp"),
        ("i", "empty", f"{tmp_path}/empty: expected ground truth (.bmp"),
        (
            "i",
            "d",
            f"found no pair; {tmp_path}/i/a.png: no ground truth of this name in {tmp_path}/d;"
            f" {tmp_path}/d/b.png: no image of this name in {tmp_path}/i",
        ),
        ("i", "i", f"found no such file; {tmp_path}/i/a.png: its name says neither image"),
        ("twice", "two", f'found no pair; {tmp_path}/twice/1.jpg: ambiguous name "1", shared by'),
        ("photos", "photos", f"{tmp_path}/photos: expected images (.avif .bmp .gif .jp2 .jpeg .jpg"),
    ):
        with pytest.raises(DataError) as caught:
            list_folders(tmp_path / images, tmp_path / depths, "depth", None)
        assert message in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_names_that_are_not_text(tmp_path):
    root = Path(os.fsdecode(bytes(tmp_path) + b"/d\xe9"))
    write_pair(tmp_path / "a.png", tmp_path / "b.png")
    for folder, file in (("rgb", "a.png"), ("depth", "b.png")):
        (root / folder).mkdir(parents=True)
        os.rename(tmp_path / file, bytes(root / folder) + b"/caf\xea.png")
    pairs, faults = list_folders(root / "rgb", root / "depth", "depth", None)
    assert (len(pairs), faults) == (1, [])
    assert check_pairs(pairs, 1).faults == []
