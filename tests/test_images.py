"""How images are found, sorted out and named, and how results are written."""

import itertools
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from src.common.errors import UsageError
from src.inference.images import Found, check_output, find_images, name_outputs, write_results
from src.util import read_pfm

PNG = cv2.imencode(".png", np.zeros((2, 3), np.uint8))[1].tobytes()


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"  # how such a file begins


def write(folder, *names, data=PNG):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def find(path, output="no folder"):
    """Names of the images found, below their root."""
    found = find_images(str(path), str(output))
    return [image.relative_to(found.root).as_posix() for image in found.images]


def test_folder_pattern_and_file(tmp_path):
    write(tmp_path, "one/b.png", "one/a.JPG", "one/sub/deep/c.png", "one/sub.jpg/d.png", "one/notes.txt", data=b"")
    (tmp_path / "one" / "notes.txt").write_text("no image")
    assert find(tmp_path / "one") == ["a.JPG", "b.png", "sub/deep/c.png", "sub.jpg/d.png"]
    assert find(tmp_path / "one" / "*.png") == ["b.png"]
    assert find(tmp_path / "one" / "*") == ["a.JPG", "b.png"]
    assert find(tmp_path / "one" / "*" / "*.png") == ["sub.jpg/d.png"]
    assert find(tmp_path / "*" / "a*") == ["one/a.JPG"]
    assert find(tmp_path / "one" / "**" / "*.png") == ["b.png", "sub/deep/c.png", "sub.jpg/d.png"]
    assert find(tmp_path / "one" / "**" / "deep" / "*") == ["sub/deep/c.png"]
    assert find(tmp_path / "o*" / "**" / "d*" / "**") == ["one/sub/deep/c.png"]
    assert find(tmp_path / "one" / "**") == find(tmp_path / "one")
    assert find(tmp_path / "one" / "notes.txt") == ["notes.txt"]  # named by itself: read_image says what it is
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "gone.png", "gone/*.png", "one/sub/*", "one/**/x*"):
        with pytest.raises(UsageError, match=r"input_path .*found none"):
            find(tmp_path / nothing)


def test_content_decides_and_the_rest_is_counted(tmp_path):
    tiny = np.zeros((64, 64, 3), np.uint8)
    write(tmp_path, "picture", "picture.txt", "a.jfif", "sent.heic")
    write(tmp_path, "b.NEF", data=cv2.imencode(".tiff", tiny)[1].tobytes())  # the preview of a raw file
    write(tmp_path, "z.heic", data=HEIC)
    for suffix in (".jpg", ".bmp", ".tiff", ".webp", ".jp2", ".ppm", ".hdr", ".ras"):
        data = cv2.imencode(suffix, tiny if suffix != ".hdr" else tiny.astype(np.float32))[1].tobytes()
        write(tmp_path, f"content_{suffix[1:]}", data=data)
    write(tmp_path, "empty.gif", "page.avif", "clip.mp4", "plan.svg", data=b"<html>")
    write(tmp_path, "a.txt", "b.txt", "c.json", "LICENSE", data=b"BMW, P1 and P6 are words")
    write(tmp_path, "phone", data=HEIC)
    write(tmp_path, "film", data=b"\0\0\0\x18ftypisom\0\0\0\0mp42isom")
    write(tmp_path, "still", data=b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf")
    found = find_images(str(tmp_path), "no folder")
    assert [path.name for path in found.images] == [
        "a.jfif", "content_bmp", "content_hdr", "content_jp2", "content_jpg", "content_ppm", "content_ras",
        "content_tiff", "content_webp", "empty.gif", "page.avif", "picture", "picture.txt", "sent.heic", "still",
    ]  # fmt: skip
    skipped = {kind: sorted(path.name for path in paths) for kind, paths in found.skipped.items()}
    assert skipped == {
        "HEIC": ["phone", "z.heic"],
        "camera raw": ["b.NEF"],
        "drawing or page": ["plan.svg"],
        "video": ["clip.mp4", "film"],
    }
    assert found.others == {".txt": 2, ".json": 1, "": 1}
    assert found.report()[-1] == "skipped: no images: 2 .txt, 1 .json, 1 without suffix"
    assert f"skipped: 1 of the kind camera raw, which nothing here reads: {tmp_path / 'b.NEF'}" in found.report()


def test_report_is_short(tmp_path):
    write(tmp_path, "a.png")
    write(tmp_path, *(f"{number:03}.heic" for number in range(500)), data=HEIC)
    write(tmp_path, *(f"x.{number:03}" for number in range(500)), data=b"text")
    lines = find_images(str(tmp_path), "no folder").report()
    assert lines[0] == "skipped: 500 of the kind HEIC, which nothing here reads: " + ", ".join(
        [*(str(tmp_path / f"00{number}.heic") for number in range(3)), "..."]
    )
    assert lines[1].endswith(", 492 others")
    assert len(lines) == 2


def test_nothing_but_other_files_says_what_is_there(tmp_path):
    write(tmp_path, "a.heic", "b.cr2", data=HEIC)
    with pytest.raises(UsageError, match=r"expected images, found none \(.*HEIC.*a\.heic; .*camera raw.*b\.cr2\)$"):
        find(tmp_path)


def test_hidden_files_are_no_images(tmp_path):
    write(tmp_path, "a.png", "._a.png", ".cache/b.png")
    for path in (tmp_path, tmp_path / "*", tmp_path / "**" / "*.png", tmp_path / "*.png"):
        assert find(path) == ["a.png"]
    with pytest.raises(UsageError, match="found none"):
        find(tmp_path / ".*")


def test_folders_may_have_brackets(tmp_path, monkeypatch):
    folder = tmp_path / "holiday [2020]*"
    write(folder, "a.png", "b.png", "sub/c.png")
    assert find(folder / "*.png") == ["a.png", "b.png"]
    assert find(folder / "[b-z].png") == ["b.png"]
    assert find(folder / "**" / "*.png") == ["a.png", "b.png", "sub/c.png"]
    assert find(tmp_path / "holiday*" / "a*") == ["holiday [2020]*/a.png"]
    monkeypatch.chdir(folder)
    assert find("*.png") == ["a.png", "b.png"]
    assert find("**/c*") == ["sub/c.png"]


def test_each_file_once_and_links_in_circles_end(tmp_path):
    write(tmp_path, "photos/z/real.png", "elsewhere/other.png")
    photos = tmp_path / "photos"
    for number in range(4):  # glob.glob would follow them through 4^40 folders
        (photos / f"a{number}").symlink_to(photos, target_is_directory=True)
        (photos / "z" / f"up{number}").symlink_to(photos, target_is_directory=True)
    (photos / "a.png").symlink_to(photos / "z" / "real.png")
    os.link(photos / "z" / "real.png", photos / "z" / "same.png")
    (photos / "b_link").symlink_to(tmp_path / "elsewhere")
    (photos / "c_link").symlink_to(tmp_path / "elsewhere")
    expected = ["b_link/other.png", "z/real.png"]
    assert find(photos) == find(photos / "**" / "*.png") == find(photos / "**") == expected
    assert find(photos / "*.png") == ["a.png"]
    assert find(photos / "*" / "other.png") == ["b_link/other.png"]
    report = find_images(str(photos), "no folder").report()
    assert report == ["skipped: links to images that are there by another name: 2"]  # a.png and z/same.png
    (photos / "gone.jpg").symlink_to(tmp_path / "nowhere")
    assert find(photos) == ["b_link/other.png", "gone.jpg", "z/real.png"]  # the run says that it cannot be read


def test_earlier_results_are_no_images(tmp_path):
    write(tmp_path, "photos/a.png", "photos/maps/a.png", "photos/maps/sub/b_color.png", "photos/sub/c.png")
    photos = tmp_path / "photos"
    for output in (photos / "maps", photos / "sub" / ".." / "maps"):
        assert find(photos, output) == find(photos / "**" / "*.png", output) == ["a.png", "sub/c.png"]
        assert find(photos / "*" / "*.png", output) == ["sub/c.png"]
    assert find(photos / "maps" / "*.png", photos / "maps") == ["a.png"]  # asked for
    assert find(photos / "maps", photos) == ["a.png", "sub/b_color.png"]
    with pytest.raises(UsageError, match="another folder than input_path"):
        find(photos, photos)


def test_a_folder_that_cannot_be_listed_is_a_fault(tmp_path, monkeypatch):
    write(tmp_path, "a.png", "locked/b.png")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for path in (tmp_path, tmp_path / "**" / "*.png"):
        found = find_images(str(path), "no folder")
        assert found.images == [tmp_path / "a.png"]
        assert found.faults == [f"{tmp_path / 'locked'}: the folder cannot be listed: Permission denied"]


def test_a_folder_that_may_be_listed_but_not_entered(tmp_path, monkeypatch):
    """Its files are reported, one by one, when they are read; the others are done."""
    write(tmp_path, "a.png", "locked/b.png", "locked/c.txt")
    real_stat, real_lstat = os.stat, os.lstat

    def refusing(function):
        def refuse(path, *args, **kwargs):
            if Path(path).parent.name == "locked":
                raise PermissionError(13, "Permission denied", str(path))
            return function(path, *args, **kwargs)

        return refuse

    monkeypatch.setattr(os, "stat", refusing(real_stat))
    monkeypatch.setattr(os, "lstat", refusing(real_lstat))
    for path in (tmp_path, tmp_path / "**" / "*.png"):
        assert find(path) == ["a.png", "locked/b.png"]


def test_a_raw_file_named_by_itself(tmp_path):
    """It could be read: as its preview, with the size of a stamp."""
    preview = cv2.imencode(".tiff", np.zeros((4, 5, 3), np.uint8))[1].tobytes()
    write(tmp_path, "a.DNG", "b.tif", data=preview)
    with pytest.raises(UsageError, match=r"a\.DNG: expected an image, found a camera's raw file; convert it"):
        find(tmp_path / "a.DNG")
    assert find(tmp_path / "b.tif") == ["b.tif"]


def test_pipes_are_passed_over(tmp_path):
    write(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert find(tmp_path) == find(tmp_path / "*") == ["a.png"]


# Names


def named(root, output, *names, colormap="inferno"):
    images = [Path(root, name) for name in names]
    chosen = name_outputs(images, Path(root), Path(output), colormap)
    return [chosen[image].relative_to(output).as_posix() for image in images]


def test_outputs_mirror_folders_and_do_not_collide(tmp_path):
    # "b_color" + ".png" would be the coloured map of "b".
    names = ["a.png", "b.png", "b_color.png", "c.jpg", "c.png", "sub/a.png", "sub/c_png.gif"]
    expected = ["a", "b", "b_color_2", "c_jpg", "c_png", "sub/a", "sub/c_png"]
    assert named(tmp_path, tmp_path / "out", *names) == expected


def test_names_that_differ_in_case_alone(tmp_path):
    names = ["A.jpg", "a.png", "b.JPG", "b.jpg", "Sub/c.png", "sub/C.png"]
    assert named(tmp_path, tmp_path / "out", *names) == [
        "A_jpg",
        "a_png",
        "b_JPG",
        "b_jpg_2",
        "Sub/c_png",
        "sub/C_png_2",
    ]


def test_inputs_are_not_overwritten(tmp_path):
    with pytest.raises(UsageError, match=r"would overwrite .*a\.png"):
        named(tmp_path, tmp_path, "a.png")
    with pytest.raises(UsageError, match=r"would overwrite .*a\.png"):
        named(tmp_path, tmp_path, "sub/a.png", colormap="none")
    assert named(tmp_path, tmp_path, "a.jpg") == ["a"]
    write(tmp_path, "a.png")  # is no input, but must not be lost either
    with pytest.raises(UsageError, match=r"would overwrite .*a\.png"):
        named(tmp_path, tmp_path, "a.jpg")
    write(tmp_path, "a.pfm")
    assert named(tmp_path, tmp_path, "a.jpg") == ["a"]  # an earlier result
    write(tmp_path, "out/b.png")  # a folder of photos below that of the images, which is left out of them
    with pytest.raises(UsageError, match=r"would overwrite .*out/b\.png"):
        named(tmp_path, tmp_path / "out", "b.jpg")
    write(tmp_path, "out/b.pfm")
    assert named(tmp_path, tmp_path / "out", "b.jpg") == ["b"]
    write(tmp_path, "elsewhere/sub/c.png")
    assert named(tmp_path / "photos", tmp_path / "elsewhere", "sub/c.jpg") == ["sub/c"]


def test_many_equal_names(tmp_path):
    """A number is added until a name is free; trying each number again for every image would take minutes."""
    letters = "pngPNG"
    suffixes = ["".join(case) for case in itertools.product(*zip(letters[:3], letters[3:]))]
    names = [
        f"{stem}.{suffix}"
        for stem in map("".join, itertools.product(*zip("abcdefgh", "ABCDEFGH")))
        for suffix in suffixes
    ]
    chosen = named(tmp_path, tmp_path / "out", *names)
    assert len(names) == 2048
    assert len({name.casefold() for name in chosen}) == 2048
    assert chosen[-1] == "ABCDEFGH_PNG_2048"


def test_an_output_folder_that_cannot_be(tmp_path):
    write(tmp_path, "file")
    check_output(tmp_path / "new" / "folder")
    check_output(tmp_path)
    for folder in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(UsageError, match=r"output_path .*: expected a folder, found a file at .*file$"):
            check_output(folder)


@pytest.mark.parametrize("stem", ["a" * 245, "图" * 81, "é" * 122 + "x", "a." + "b" * 243])
def test_every_name_that_fits_is_written(tmp_path, stem):
    """Names have up to 255 bytes; these leave just enough for ``_color.png``."""
    assert len(os.fsencode(stem)) in range(243, 246)
    write_results(tmp_path / stem, np.float32([[1, 2]]), "inferno")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        stem + suffix for suffix in (".pfm", ".png", "_color.png")
    )
    np.testing.assert_array_equal(read_pfm(tmp_path / f"{stem}.pfm")[0], [[1, 2]])


def test_a_name_that_does_not_fit(tmp_path):
    stem = "a" * 250
    with pytest.raises(OSError, match="File name too long"):
        write_results(tmp_path / stem, np.float32([[1, 2]]), "inferno")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{stem}.pfm", f"{stem}.png"]  # no leftovers


def test_found_without_anything_reports_nothing():
    assert Found(Path()).report() == []
