"""midas_run.py as a user runs it."""

import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
import slow_script
from conftest import CACHED, TINY_FLAGS
from PIL import Image

import midas_run
from evaluation import CPU, RedChannel
from src.inference.mindspore import MindSporePredictor
from src.util import read_image, read_pfm
from src.utils.transforms import resize_bicubic


def run(repo, weights, *arguments):
    words = [*TINY_FLAGS, "--model_weights", str(weights), "--img_width", "96", "--img_height", "96"]
    words += map(str, arguments)
    return subprocess.run(
        [sys.executable, str(repo / "midas_run.py"), *CACHED, *words], capture_output=True, text=True, timeout=300
    )


def write_images(folder):
    """Pictures of several kinds and sizes; ``broken.jpg`` is cut short."""
    folder.mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    cv2.imwrite(str(folder / "same.png"), picture)
    cv2.imwrite(str(folder / "same.JPG"), picture)
    cv2.imwrite(str(folder / "wide.png"), cv2.resize(picture, (150, 50)))
    cv2.imwrite(str(folder / "grey16.png"), picture[..., 0].astype(np.uint16) * 257)
    (folder / "broken.jpg").write_bytes((folder / "same.JPG").read_bytes()[:-300])
    (folder / "notes.txt").write_text("not an image")


def test_folder_with_a_broken_image(repo, net, weights, tmp_path):
    images, output = tmp_path / "images", tmp_path / "output"
    write_images(images)
    result = run(repo, weights, "--input_path", images, "--output_path", output)
    assert result.returncode == 1
    assert f"left out: {images / 'broken.jpg'}:" in result.stderr
    assert "error: 1 of 5 images could not be read" in result.stderr
    assert "Traceback" not in result.stderr
    stems = ("grey16", "same_JPG", "same_png", "wide")
    assert sorted(path.name for path in output.iterdir()) == sorted(
        stem + suffix for stem in stems for suffix in (".pfm", ".png", "_color.png")
    )

    image = read_image(images / "wide.png")
    predictor = MindSporePredictor(net, width=96, height=96)
    prediction = predictor.infer(predictor.prepare(image))
    expected = resize_bicubic(prediction, 50, 150)
    found, _ = read_pfm(output / "wide.pfm")
    assert found == pytest.approx(expected, rel=1e-5)  # compiled in another process
    assert expected.std() > 0
    png = cv2.imread(str(output / "wide.png"), cv2.IMREAD_UNCHANGED)
    assert png.dtype == np.uint16
    scaled = (found.astype(float) - found.min()) / (np.ptp(found.astype(float))) * 65535
    assert np.abs(png - scaled).max() <= 0.51  # rounding
    assert cv2.imread(str(output / "wide_color.png")).shape == (50, 150, 3)


def test_one_image_without_colours_and_with_random_weights(repo, tmp_path):
    images, output = tmp_path / "images", tmp_path / "output"
    write_images(images)
    result = run(repo, "", "--input_path", images / "wide.png", "--output_path", output, "--colormap", "none")
    assert result.returncode == 0, result.stderr
    assert "random initialisation" in result.stdout
    assert sorted(path.name for path in output.iterdir()) == ["wide.pfm", "wide.png"]


def test_missing_weights(repo, tmp_path):
    write_images(tmp_path / "images")
    result = run(repo, tmp_path / "gone.ckpt", "--input_path", tmp_path / "images", "--output_path", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(
        "error: model_weights: expected a checkpoint file or a run folder, found none at"
    )


@pytest.fixture
def run_stub(monkeypatch, tmp_path):
    """Runs midas_run.py in this process on ``tmp_path / "images"``; returns its status."""
    monkeypatch.setattr(midas_run, "choose_backend", lambda *_, **__: CPU)

    def run(predictor):
        monkeypatch.setattr(midas_run, "load_predictor", lambda *_, **__: predictor)
        words = ["--input_path", str(tmp_path / "images"), "--output_path", str(tmp_path / "output")]
        words += ["--model_weights", ""]
        monkeypatch.setattr(sys, "argv", ["midas_run.py", *words])
        return midas_run.main()

    return run


def test_predictions_that_are_not_finite(run_stub, tmp_path, capsys):
    write_images(tmp_path / "images")

    class Broken(RedChannel):
        def infer(self, prepared):
            return np.where(prepared.shape[1] == 150, np.nan, prepared)

    assert run_stub(Broken()) == 1
    out, err = capsys.readouterr()
    assert f"left out: {tmp_path / 'images' / 'wide.png'}: expected a finite prediction, found NaN or infinity" in err
    assert err.splitlines()[-2:] == [
        "error: 1 of 5 images could not be read",
        "error: 1 of 5 predictions were not finite; check the weights",
    ]
    assert f"3 inverse depth maps in {tmp_path / 'output'} (" in out


def write_plain(folder, *names):
    """Pictures whose red channel is their number, 6 x 8."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        bgr = np.full((6, 8, 3), (0, 0, number), np.uint8)
        path.write_bytes(cv2.imencode(".png", bgr)[1].tobytes())


def red(tmp_path, name):
    values = np.unique(read_pfm(tmp_path / "output" / f"{name}.pfm")[0])
    assert len(values) == 1
    return values[0]


def test_results_that_cannot_be_written(run_stub, tmp_path, capsys):
    long = "a" * 248  # with .pfm and .png it fits, with _color.png it does not
    write_plain(tmp_path / "images", f"{long}.png", "b.png", "taken/c.png", "z.png")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "taken").write_text("a file where a folder should be")
    assert run_stub(RedChannel()) == 1
    out, err = capsys.readouterr()
    images, output = tmp_path / "images", tmp_path / "output"
    assert [line for line in err.splitlines() if "not written" in line] == [
        f"not written in whole: {output / long}.*, the maps of {images / long}.png: File name too long",
        f"not written in whole: {output / 'taken' / 'c'}.*, the maps of {images / 'taken' / 'c.png'}: "
        "expected a folder to write to, found a file in its place",
    ]
    assert err.splitlines()[-1] == "error: 2 of 4 results could not be written"
    assert f"2 inverse depth maps in {output} (" in out
    assert (red(tmp_path, "b"), red(tmp_path, "z")) == (1, 3)
    assert not list(output.glob(".*"))


@pytest.mark.parametrize(("full", "done"), [({1, 2, 4, 5, 7}, 3), ({1, 2, 3}, 1)])
def test_full_disk(run_stub, tmp_path, capsys, monkeypatch, full, done):
    """Two results in a row may just have been too large. Three are enough."""
    write_plain(tmp_path / "images", *(f"{number}.png" for number in range(8)))
    write_results = midas_run.write_results

    def write(stem, inverse_depth, colormap):
        if inverse_depth[0, 0] in full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_results(stem, inverse_depth, colormap)

    monkeypatch.setattr(midas_run, "write_results", write)
    assert run_stub(RedChannel()) == 1
    out, err = capsys.readouterr()
    assert f"{done} inverse depth maps in {tmp_path / 'output'} (" in out
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert lines[0] == f"error: {len(full)} of 8 results could not be written"
    ended = ["error: the run ended after 3 such results in a row: No space left on device"] if len(full) == 3 else []
    assert lines[1:] == ended


def test_images_that_vanish_or_do_not_fit_into_memory(run_stub, tmp_path, capsys):
    write_plain(tmp_path / "images", "a.png", "b.png", "c.png", "d.png")

    class Greedy(RedChannel):
        def prepare(self, image):
            (tmp_path / "images" / "c.png").unlink(missing_ok=True)
            if image[0, 0, 0] == 1:
                raise MemoryError
            return super().prepare(image)

    assert run_stub(Greedy()) == 1
    out, err = capsys.readouterr()
    assert f"left out: {tmp_path / 'images' / 'b.png'}: expected an image that fits into memory" in err
    assert f"left out: {tmp_path / 'images' / 'c.png'}: cannot be read: No such file or directory" in err
    assert "2 inverse depth maps" in out
    assert (red(tmp_path, "a"), red(tmp_path, "d")) == (0, 3)


def test_maps_that_do_not_fit_into_memory(run_stub, tmp_path, capsys, monkeypatch):
    write_plain(tmp_path / "images", "a.png", "b.png", "c.png", "d.png")
    write_results = midas_run.write_results

    class Greedy(RedChannel):
        def infer(self, prepared):
            if prepared[0, 0] == 1:
                raise MemoryError
            return prepared

    def write(stem, inverse_depth, colormap):
        if inverse_depth[0, 0] == 2:
            raise MemoryError
        write_results(stem, inverse_depth, colormap)

    monkeypatch.setattr(midas_run, "write_results", write)
    assert run_stub(Greedy()) == 1
    out, err = capsys.readouterr()
    images, output = tmp_path / "images", tmp_path / "output"
    assert f"left out: {images / 'b.png'}: expected an image that fits into memory" in err
    assert f"{output / 'c'}.*, the maps of {images / 'c.png'}: too large a map for the memory" in err
    assert "2 inverse depth maps" in out
    assert (red(tmp_path, "a"), red(tmp_path, "d")) == (0, 3)


def test_cubic_overshoot_is_written_as_it_is(run_stub, tmp_path):
    write_plain(tmp_path / "images", "a.png")

    class Edge(RedChannel):
        def infer(self, prepared):
            return np.float32([[0, 0, 1, 1]])

    assert run_stub(Edge()) == 0
    found, _ = read_pfm(tmp_path / "output" / "a.pfm")
    np.testing.assert_array_equal(found, resize_bicubic(np.float32([[0, 0, 1, 1]]), 6, 8))
    assert found.min() < 0


def test_folder_tree(repo, weights, tmp_path):
    """What users' folders hold, in a terminal that knows ASCII only; the results go into the same tree, twice."""
    photos = tmp_path / "photos"
    write_images(photos)
    (photos / "broken.jpg").unlink()
    rgb = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    strange = os.fsdecode(b"caf\xe9 \x1b[31m\nnew line")
    for name in (f"{strange}/a.jfif", f"{strange}/b.gif", "sub/c.avif", "sub/\u56fe.pgm", "sub/deep/no suffix"):
        path = photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".jfif": "JPEG", ".gif": "GIF", ".avif": "AVIF", ".pgm": "PPM"}.get(path.suffix, "PNG")
        with open(path, "wb") as file:
            Image.fromarray(rgb).save(file, kind)
    (photos / "sub" / "loop").symlink_to(photos)
    (photos / "sub" / "._c.avif").write_bytes(b"macOS")
    (photos / "phone.heic").write_bytes(b"")
    jpeg = cv2.imencode(".jpg", rgb)[1].tobytes()
    (photos / "sub" / "hole.jpg").write_bytes(jpeg[:900] + bytes(200) + jpeg[1100:])
    png = cv2.imencode(".png", rgb)[1].tobytes()
    (photos / strange / "cut.png").write_bytes(png[: len(png) // 2])
    output = photos / "maps"
    command = [sys.executable, str(repo / "midas_run.py"), *TINY_FLAGS, "--model_weights", str(weights)]
    command += ["--img_width", "96", "--img_height", "96", "--colormap", "none"]
    command += ["--input_path", str(photos), "--output_path", str(output)]
    environment = {**os.environ, "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for _ in range(2):
        result = subprocess.run(command, capture_output=True, timeout=300, env=environment)
        stdout, stderr = result.stdout.decode("ascii"), result.stderr.decode("ascii")
        assert result.returncode == 1, stderr
        written = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
        stems = ["grey16", "same_JPG", "same_png", "wide", f"{strange}/a", f"{strange}/b", "sub/c", "sub/\u56fe"]
        stems.append("sub/deep/no suffix")
        assert written == {stem + suffix for stem in stems for suffix in (".pfm", ".png")}
        assert "11 images, device" in stdout
        lines = stdout.splitlines()[-3:]
        assert lines[0].startswith(f"9 inverse depth maps in {output} (")
        assert lines[1:] == [
            f"skipped: 1 of the kind HEIC, which nothing here reads: {photos / 'phone.heic'}",
            "skipped: no images: 1 .txt",
        ]
        lines = [line.split(" (C")[0] for line in stderr.splitlines() if not line.startswith("midas_run: ")]
        assert lines == [
            f"left out: {photos}/caf\\udce9 \\x1b[31m\\nnew line/cut.png: expected an image, found a truncated or "
            f"damaged PNG file of {len(png) // 2} bytes (it ends too early)",
            f"left out: {photos}/sub/hole.jpg: expected an image, found a truncated or damaged JPEG file of "
            f"{len(jpeg)} bytes",
            "error: 2 of 11 images could not be read",
        ]
    assert read_pfm(output / "sub" / "c.pfm")[0].shape == (40, 60)


def test_cut_files_in_every_order(repo, weights, cases, tmp_path):
    """A cut JPEG 2000 file after a cut BMP file ended the process."""
    for number, order in enumerate(itertools.permutations(["a.bmp", "b.jp2", "c.jpg"])):
        for place, name in enumerate(order):
            target = tmp_path / "images" / str(number) / f"{place}{name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(cases / "truncated_images" / name, target)
    result = run(repo, weights, "--input_path", tmp_path / "images", "--output_path", tmp_path / "out")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "error: 12 of 18 images could not be read"
    assert len(list((tmp_path / "out").rglob("*c.pfm"))) == 6


def test_a_pattern_without_quotes(repo, tmp_path):
    write_plain(tmp_path, "a.png", "b.png")
    result = run(repo, "", "--input_path", tmp_path / "a.png", tmp_path / "b.png")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        "error: command line: expected one word for each key (a pattern in quotes: --input_path 'photos/*.jpg'), "
        f"found '{tmp_path / 'b.png'}'"
    )


def test_names_that_are_no_text(run_stub, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / "images").mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    (tmp_path / "images" / f"{name}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    assert run_stub(RedChannel()) == 0
    np.testing.assert_array_equal(read_pfm(tmp_path / "output" / f"{name}.pfm")[0], picture[..., 2])
    names = [f"{name}.pfm", f"{name}.png", f"{name}_color.png"]
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == sorted(names)


def test_output_is_turned_round(net):
    image = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    plain, turned = (MindSporePredictor(net, width=96, height=96, invert_output=flag) for flag in (False, True))
    prediction = plain.infer(plain.prepare(image))
    inverted = turned.infer(turned.prepare(image))
    assert inverted == pytest.approx(prediction.max() - prediction, abs=1e-6 * prediction.max())
    assert inverted.min() == 0
    assert inverted.std() > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_on_request(repo, weights, tmp_path, number):
    images, output = tmp_path / "images", tmp_path / "output"
    images.mkdir()
    for image in range(100):
        cv2.imwrite(str(images / f"{image:03}.png"), np.full((32, 32, 3), image, np.uint8))
    words = [*TINY_FLAGS, "--model_weights", weights, "--img_width", "96", "--img_height", "96"]
    words += ["--input_path", images, "--output_path", output]
    is_time = (output / "001_color.png").exists
    stderr = slow_script.stop(repo, "midas_run", 0.2, words, is_time, number)
    count = len(list(output.glob("*.pfm")))
    assert 2 <= count < 50
    assert stderr.splitlines()[-1] == (
        f"stopped on request: {count} of 100 inverse depth maps are in {output}, the next would be that of "
        f"{images / f'{count:03}.png'}; the same command begins with the first again"
    )
    expected = [f"{image:03}{suffix}" for image in range(count) for suffix in (".pfm", ".png", "_color.png")]
    assert sorted(path.name for path in output.iterdir()) == sorted(expected)
