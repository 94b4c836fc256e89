"""Fine-tuning on two folders by one command, and the settings files beside config.yaml."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml
from conftest import CACHED

import midas_train
from preprocess.scenes import render_scene
from src.common.errors import UsageError
from src.config import FINE_TUNING_FILE, REPOSITORY, dump_config, load_config
from src.training.loss_log import read_loss_csv, read_val_csv
from src.weights.checkpoint import read_ckpt, save_checkpoint


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
    assert (
        "fine-tuning, see config_finetune.yaml: loss ssi_trim, target_range 1, backbone_params_lr 1e-06" in done.stdout
    )
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
    ],
)
def test_faults(monkeypatch, photos, words, expected):
    folders = ["--train_images", photos / "rgb", "--train_depth", photos / "depth"]
    with pytest.raises(UsageError) as caught:
        midas_train.check_settings(settings_of(monkeypatch, *folders, *words)[0])
    assert expected in str(caught.value)


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


def settings_of(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["midas_train.py", *map(str, words)])
    return midas_train.load_settings()


def test_a_run_is_found_again_by_its_folders(monkeypatch, tmp_path):
    """--resume True looks where fine-tuning writes, and takes the settings that the run had."""
    folders = ["--train_images", tmp_path, "--train_depth", tmp_path]
    new, checkpoint = settings_of(monkeypatch, *folders, "--seed", 7)
    assert checkpoint is None
    run = tmp_path / "run"
    monkeypatch.setattr("src.config.FINE_TUNING_FILE", tmp_path / "fine.yaml")
    (tmp_path / "fine.yaml").write_text(f"train_output_path: '{run}'\n")
    run.mkdir()
    save_checkpoint(run / "Midas_0-3_2.ckpt", {})
    (run / "config.yaml").write_text(dump_config(replace(new, train_output_path=str(run))))
    for words in ([*folders, "--resume", "True"], ["--resume", run]):
        settings, checkpoint = settings_of(monkeypatch, *words)
        assert checkpoint == run / "Midas_0-3_2.ckpt"
        assert (settings.seed, settings.loss, settings.train_images) == (7, "ssi_trim", str(tmp_path))
        assert settings.train_output_path == str(run)


def test_a_run_of_an_earlier_version_goes_on_as_it_was(monkeypatch, tmp_path):
    """Its settings lack what came later, whatever the defaults are now."""
    save_checkpoint(tmp_path / "Midas_0-3_2.ckpt", {})
    lines = dump_config(load_config("", [])).splitlines()
    old = [line for line in lines if line.partition(":")[0] not in midas_train.EARLIER]
    assert len(old) == len(lines) - len(midas_train.EARLIER)
    (tmp_path / "config.yaml").write_text("\n".join(old))
    settings, _ = settings_of(monkeypatch, "--resume", tmp_path, "--mixing", "pooled")
    assert {key: getattr(settings, key) for key in midas_train.EARLIER} == midas_train.EARLIER
    with pytest.raises(UsageError, match=r"mixing: expected pooled, found naive \(a resumed run keeps"):
        settings_of(monkeypatch, "--resume", tmp_path, "--mixing", "naive")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--train_kind", "depth"], "command line: train_kind has no effect here: it is for train_images"),
        (["--train_images", ".", "--train_depth", ".", "--mixdata", "a.json"], "mixdata has no effect here"),
        (["--loss_scales", "9", "--img_width", "256"], "loss_scales: expected steps of less than the 256 pixels of an"),
        (["--upper_bound", "True"], "upper_bound: expected False unless mixing is multi_objective"),
        (["--loss_trim", "1"], "loss_trim: expected a number from 0 to below 1, found 1"),
        (["--target_range", "2"], "target_range: expected 1 or 255, found 2"),
    ],
)
def test_settings_that_make_no_sense(monkeypatch, train_data, words, expected):
    with pytest.raises(UsageError) as caught:
        midas_train.check_settings(settings_of(monkeypatch, "--train_data_dir", train_data, *words)[0])
    assert expected in str(caught.value)


def test_a_batch_holds_equally_many_images_of_each_set():
    pairs = [SimpleNamespace(dataset=name) for name in "aabbbc"]
    config = load_config("", ["--batch_size", "6"])
    assert midas_train.mixed_sets(config, pairs) == {"a": 2, "b": 3, "c": 1}
    assert midas_train.mixed_sets(replace(config, mixing="pooled"), pairs) == {}
    assert midas_train.mixed_sets(config, pairs[:2]) == {}
    with pytest.raises(UsageError, match=r"batch_size: expected a multiple of 3, the number of training sets.*found 8"):
        midas_train.mixed_sets(replace(config, batch_size=8), pairs)
