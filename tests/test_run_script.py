"""midas_run.py as a user runs it, and how it finds images and names results."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import TINY_FLAGS

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
    assert result.stderr.splitlines()[-1].startswith("error: model_weights: expected a checkpoint file, found none at")


def test_find_images(tmp_path):
    write_images(tmp_path / "images")
    names = [path.name for path in find_images(str(tmp_path / "images"))]
    assert names == ["broken.jpg", "grey16.png", "same.JPG", "same.png", "wide.png"]
    assert [path.name for path in find_images(str(tmp_path / "*" / "w*.png"))] == ["wide.png"]
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "gone.png", "gone/*.png"):
        with pytest.raises(UsageError, match="input_path"):
            find_images(str(tmp_path / nothing))


def test_names_do_not_collide(tmp_path):
    # "b_color" + ".png" would be the coloured map of "b"; two folders hold an "a.png".
    names = ["one/a.png", "one/b.png", "one/b_color.png", "one/c.jpg", "one/c.png", "two/a.png"]
    images = [tmp_path / name for name in names]
    chosen = name_outputs(images, tmp_path / "out", "inferno")
    assert [chosen[image].name for image in images] == ["a_png", "b", "b_color_2", "c_jpg", "c_png", "a_png_2"]


def test_inputs_are_not_overwritten(tmp_path):
    with pytest.raises(UsageError, match=r"would overwrite .*a\.png"):
        name_outputs([tmp_path / "a.png"], tmp_path, "none")
