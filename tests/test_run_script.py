"""midas_run.py as a user runs it, and how it finds images and names results."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import slow_script
from conftest import TINY_FLAGS

import midas_run
from src.common.errors import UsageError
from src.inference.images import find_images, name_outputs
from src.inference.predictor import MindSporePredictor
from src.util import read_image, read_pfm
from src.utils.transforms import resize_prediction


def run(repo, weights, *arguments):
    words = [*TINY_FLAGS, "--model_weights", str(weights), "--img_width", "96", "--img_height", "96"]
    words += map(str, arguments)
    return subprocess.run(
        [sys.executable, str(repo / "midas_run.py"), *words], capture_output=True, text=True, timeout=300
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
    expected = resize_prediction(prediction, 50, 150)
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


def test_find_images(tmp_path):
    write_images(tmp_path / "images")
    names = [path.name for path in find_images(str(tmp_path / "images"))]
    assert names == ["broken.jpg", "grey16.png", "same.JPG", "same.png", "wide.png"]
    assert [path.name for path in find_images(str(tmp_path / "*" / "w*.png"))] == ["wide.png"]
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "gone.png", "gone/*.png"):
        with pytest.raises(UsageError, match="input_path"):
            find_images(str(tmp_path / nothing))


def test_hidden_files_are_no_images(tmp_path):
    for name in ("a.png", "._a.png"):
        (tmp_path / name).write_bytes(b"")
    assert find_images(str(tmp_path)) == find_images(str(tmp_path / "*.png")) == [tmp_path / "a.png"]


def test_folders_may_have_brackets(tmp_path, monkeypatch):
    folder = tmp_path / "holiday [2020]*"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/c.png"):
        (folder / name).write_bytes(b"")
    assert find_images(str(folder / "*.png")) == [folder / "a.png", folder / "b.png"]
    assert find_images(str(folder / "[b-z].png")) == [folder / "b.png"]
    assert find_images(str(folder / "**" / "*.png")) == [folder / "a.png", folder / "b.png", folder / "sub" / "c.png"]
    assert find_images(str(tmp_path / "holiday*" / "a*")) == [folder / "a.png"]
    monkeypatch.chdir(folder)
    assert find_images("*.png") == [Path("a.png"), Path("b.png")]


def test_names_do_not_collide(tmp_path):
    # "b_color" + ".png" would be the coloured map of "b"; two folders hold an "a.png".
    names = ["one/a.png", "one/b.png", "one/b_color.png", "one/c.jpg", "one/c.png", "two/a.png"]
    images = [tmp_path / name for name in names]
    chosen = name_outputs(images, tmp_path / "out", "inferno")
    assert [chosen[image].name for image in images] == ["a_png", "b", "b_color_2", "c_jpg", "c_png", "a_png_2"]


def test_inputs_are_not_overwritten(tmp_path):
    with pytest.raises(UsageError, match=r"would overwrite .*a\.png"):
        name_outputs([tmp_path / "a.png"], tmp_path, "none")


def test_many_equal_names(tmp_path):
    """The rule itself, a number is added until a name is free, on 20,000 images; trying each number again for every
    image would take an hour.
    """
    images = [tmp_path / str(number) / ("a.png" if number % 2 else f"{number}.png") for number in range(20_000)]
    chosen = [path.name for path in name_outputs(images, tmp_path / "out", "inferno").values()]
    expected = [f"a_png_{number // 2 + 1}" if number % 2 else str(number) for number in range(20_000)]
    expected[1] = "a_png"
    assert chosen == expected


class Stub:
    """In place of a network: predicts the red channel."""

    def prepare(self, image):
        return image[..., 0].astype(np.float32)

    def infer(self, prepared):
        return prepared


@pytest.fixture
def run_stub(monkeypatch, tmp_path):
    """Runs midas_run.py in this process on ``tmp_path / "images"``; returns its status."""
    monkeypatch.setattr(midas_run, "setup_device", lambda *_: SimpleNamespace(target="CPU"))

    def run(predictor):
        monkeypatch.setattr(midas_run, "load_predictor", lambda *_, **__: predictor)
        words = ["--input_path", str(tmp_path / "images"), "--output_path", str(tmp_path / "output")]
        words += ["--model_weights", ""]
        monkeypatch.setattr(sys, "argv", ["midas_run.py", *words])
        return midas_run.main()

    return run


def test_predictions_that_are_not_finite(run_stub, tmp_path, capsys):
    write_images(tmp_path / "images")

    class Broken(Stub):
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


def test_names_that_are_no_text(run_stub, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / "images").mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    (tmp_path / "images" / f"{name}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    assert run_stub(Stub()) == 0
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
