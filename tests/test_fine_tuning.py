"""Fine-tuning on two folders by one command, and the settings files beside config.yaml."""

import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml
from conftest import CACHED

import midas_train
from preprocess.scenes import render_scene
from src.config import FINE_TUNING_FILE, REPOSITORY, load_config
from src.training.loss_log import read_loss_csv, read_val_csv
from src.weights.checkpoint import read_ckpt


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eleven photos with depth in millimetres, 0 in a corner; one photo has no depth."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "rgb").mkdir()
    (folder / "depth").mkdir()
    for index in range(11):
        image, depth = render_scene(np.random.default_rng(index), 72, 96, "room")
        cv2.imwrite(str(folder / "rgb" / f"rgb_{index:04d}.jpg"), image[..., ::-1])
        depth[:10, :20] = 0
        cv2.imwrite(str(folder / "depth" / f"depth_{index:04d}.png"), (1000 * depth).astype(np.uint16))
    return folder


@pytest.fixture(scope="module")
def command(repo, photos, weights):
    """The one command, with a small network and size."""
    words = ["--train_images", photos / "rgb", "--train_depth", photos / "depth", "--train_kind", "depth"]
    words += ["--model_weights", weights, "--img_width", 64, "--img_height", 64, "--device_target", "CPU", *CACHED]
    return [sys.executable, str(repo / "midas_train.py"), *map(str, words)]


def test_one_command(command, photos, weights, tmp_path):
    folder = tmp_path / "run"
    words = ["--epoch_size", "2", "--train_output_path", str(folder)]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert f"11 training images in {photos / 'rgb'}\n" in done.stdout
    (line,) = (line for line in done.stdout.splitlines() if "11 pairs" in line)
    assert "16 bit, 1" in line
    assert "97.1 % valid, depth; the lower part is nearer in" in line
    assert "warning" not in done.stderr
    assert "1 of them are held back for validation" in done.stdout
    assert "fine-tuning: loss ssi_trim, backbone_params_lr 1e-06, no_backbone_params_lr 1e-05" in done.stdout
    rows = list(read_loss_csv(folder / "loss.csv"))
    assert [row.samples for row in rows] == [4, 8, 12, 16, 20]
    assert rows[0].backbone_lr == pytest.approx(1e-6)
    assert len(list(read_val_csv(folder / "val.csv"))) == 2
    assert (folder / "Midas_0-best.ckpt").is_file()
    (path,) = folder.glob("Midas_0-2_*.ckpt")
    before, after = read_ckpt(weights)[0], read_ckpt(path)[0]
    stayed = {name for name, array in before.items() if np.array_equal(after[name], array)}
    assert {name for name in before if "moving" in name} <= stayed
    assert {name for name in stayed if "moving" not in name and "refinenet4_scratch.resConfUnit1" not in name} == set()
    settings = load_config("", ["--config_path", str(folder / "config.yaml")])
    assert (settings.train_images, settings.train_depth) == (str(photos / "rgb"), str(photos / "depth"))
    assert settings.freeze_backbone_bn


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--train_kind", "metres"],
            "train_kind: expected one of inverse_depth, negative_disparity, depth, found metres",
        ),
        (["--train_depth", "nowhere"], "train_depth: expected a folder, found nothing at"),
        (["--train_depth", ""], "train_depth: expected a folder"),
        (["--train_images", ""], "train_images: expected a folder"),
        (["--train_invalid", "none"], "train_invalid: expected a number or '', found none"),
        (["--batch_size", "64"], "expected at least the 64 samples that one step takes"),
    ],
)
def test_faults(command, words, expected, tmp_path):
    done = subprocess.run(
        [*command, "--train_output_path", str(tmp_path / "run"), *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode in (1, 2)
    assert expected in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def fine_tuning(*words):
    return load_config("", ["--train_images", "a", "--train_depth", "b", *words], base=FINE_TUNING_FILE)


@pytest.mark.parametrize("weights", [None, SimpleNamespace(whole=False)])
def test_a_new_decoder_learns_at_the_usual_rates(weights):
    usual = load_config("", [])
    settings = midas_train.with_new_decoder(fine_tuning("--backbone_params_lr", "3e-6"), weights)
    assert settings.backbone_params_lr == 3e-6
    assert settings.no_backbone_params_lr == usual.no_backbone_params_lr
    trained = midas_train.with_new_decoder(fine_tuning(), SimpleNamespace(whole=True))
    assert trained.no_backbone_params_lr == usual.no_backbone_params_lr / 10
    assert midas_train.with_new_decoder(usual, weights) == usual


FILES = sorted(REPOSITORY.glob("config_*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_settings_files(path):
    """Each is valid, and says nothing that training does not read."""
    keys = yaml.safe_load(path.read_text())
    assert {*keys} <= {*midas_train.KEYS}
    settings = load_config("", ["--config_path", str(path)])
    assert settings.loss == "ssi_trim"
    assert settings.target_range == 1


def test_the_recipe_of_the_paper():
    redweb, mix = (
        load_config("", ["--config_path", str(REPOSITORY / f"config_paper_{name}.yaml")]) for name in ("redweb", "mix")
    )
    for settings in (redweb, mix):
        assert (settings.backbone_params_lr, settings.no_backbone_params_lr, settings.lr_decay) == (1e-5, 1e-4, False)
        assert (settings.loss_alpha, settings.loss_scales, settings.loss_trim) == (0.5, 4, 0.2)
        assert (settings.random_flip, settings.epoch_images) == (0.5, 72000)
        assert (settings.img_width, settings.img_height) == (384, 384)
    assert mix.model_weights == redweb.train_output_path
    assert (mix.epoch_size, mix.mixing) == (60, "multi_objective")
    assert redweb.batch_size == 8
    assert mix.batch_size * mix.accumulate_steps == 8 * 5
