"""Settings: defaults, files, command line, every fault with its one line, paths, dump and help."""

import dataclasses
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import yaml

from src import config as config_module
from src.common.errors import UsageError
from src.common.names import COLORMAPS, DATA_SETS
from src.config import (
    BACKEND_KEYS,
    NETWORK_KEYS,
    NORMALISATION_KEYS,
    PREDICTION_KEYS,
    Config,
    dump_config,
    load_config,
    not_instead,
    require_file,
    require_folder,
    settle,
)

ROOT = Path(__file__).resolve().parents[1]

# The settings that the document of the 2021 suite lists, with the defaults that are kept from it. The learning
# rates are those of its results table and of the paper: its settings block swaps encoder and decoder.
DOCUMENTED_DEFAULTS = {
    "device_id": 0,
    "run_distribute": False,
    "is_modelarts": False,
    "no_backbone_params_lr": 1e-4,
    "no_backbone_params_end_lr": 1e-7,
    "backbone_params_lr": 1e-5,
    "backbone_params_end_lr": 1e-8,
    "power": 0.5,
    "epoch_size": 400,
    "batch_size": 8,
    "lr_decay": False,
    "width_per_group": 8,
    "groups": 32,
    "in_channels": 64,
    "features": 256,
    "layers": (3, 4, 23, 3),
    "img_width": 384,
    "img_height": 384,
    "nm_img_mean": (0.485, 0.456, 0.406),
    "nm_img_std": (0.229, 0.224, 0.225),
    "resize_target": True,
    "keep_aspect_ratio": False,
    "ensure_multiple_of": 32,
    "resize_method": "upper_bound",
    "data_name": "all",
    "file_format": "MINDIR",
}
# The documented settings whose default named a place on one machine.
DOCUMENTED_PLACES = {
    "device_target": "auto",
    "train_data_dir": str(ROOT / "data"),
    "datapath_TUM": str(ROOT / "data/TUM"),
    "datapath_Sintel": str(ROOT / "data/Sintel"),
    "datapath_ETH3D": str(ROOT / "data/ETH3D"),
    "datapath_Kitti": str(ROOT / "data/Kitti_raw_data"),
    "datapath_DIW": str(ROOT / "data/DIW"),
    "datapath_NYU": (str(ROOT / "data/NYU/nyu.mat"), str(ROOT / "data/NYU/splits.mat")),
    "ann_file": str(ROOT / "val.json"),
    "ckpt_path": str(ROOT / "ckpt/midas_v21_384.ckpt"),
    "input_path": str(ROOT / "input"),
    "output_path": str(ROOT / "output"),
    "model_weights": str(ROOT / "ckpt/midas_v21_384.ckpt"),
}


# Not part of the repository: the environment, data, weights, results.
OTHER_FOLDERS = {".git", ".venv", "venv", "data", "ckpt", "output"}


def yaml_files():
    """Every YAML file of the repository."""
    for entry in ROOT.iterdir():
        if entry.name not in OTHER_FOLDERS:
            found = entry.rglob("*") if entry.is_dir() else [entry]
            yield from (path for path in found if path.suffix in (".yaml", ".yml"))


def is_hidden(path):
    """Whether a file is for tools (.github, .pre-commit-config.yaml); the others are settings."""
    return any(part.startswith(".") for part in path.relative_to(ROOT).parts)


SETTINGS_FILES = sorted(path for path in yaml_files() if not is_hidden(path))
TOOL_FILES = sorted(path for path in yaml_files() if is_hidden(path))


# The settings; ``given`` is none.
FIELDS = [field for field in dataclasses.fields(Config) if field.compare]


def load(*argv):
    return load_config("Test.", list(argv))


def load_yaml(tmp_path, text, *argv):
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return load("--config_path", str(path), *argv)


def fault(function, *args):
    """The message of the UsageError that the call raises; always a single line."""
    with pytest.raises(UsageError) as caught:
        function(*args)
    assert caught.value.exit_status == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- defaults and the shipped files


def test_documented_keys_and_defaults():
    values = dataclasses.asdict(load())
    for key, expected in {**DOCUMENTED_DEFAULTS, **DOCUMENTED_PLACES}.items():
        assert values[key] == expected, key
        assert type(values[key]) is type(expected), key


def test_every_key_of_the_file_has_a_type_and_every_type_a_key():
    keys = list(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")))
    assert sorted(keys) == sorted(field.name for field in FIELDS)


def test_yaml_files_are_found():
    assert {ROOT / "config.yaml", ROOT / "scripts/demo.yaml"} <= set(SETTINGS_FILES)


@pytest.mark.parametrize("path", SETTINGS_FILES, ids=lambda path: path.name)
def test_shipped_files_load(path):
    assert isinstance(load("--config_path", str(path)), Config)


def test_files_for_tools_are_yaml():
    for path in TOOL_FILES:
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path


def test_published_figures_are_shown_but_for_the_samples():
    assert load().show_published is True
    assert load("--config_path", str(ROOT / "scripts/demo.yaml")).show_published is False


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load().batch_size = 4


def test_argv_none_means_the_command_line_of_the_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["midas_train.py", "--batch_size", "3"])
    assert load_config("Test.").batch_size == 3


def test_import_does_no_work_and_needs_no_mindspore():
    # An unknown flag, a folder without config.yaml and a forbidden import: none of them may matter.
    code = "import sys; sys.modules['mindspore'] = None; import src.config; print('imported')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-c", code, "-q"]
    done = subprocess.run(run, cwd="/", env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("imported\n", "")


# ---- overrides


def test_precedence_file_over_defaults_command_line_over_file(tmp_path):
    config = load_yaml(tmp_path, "batch_size: 2\nseed: 7\n", "--seed", "9")
    assert (config.batch_size, config.seed, config.epoch_size) == (2, 9, 400)


@pytest.mark.parametrize(
    ("argv", "key", "expected"),
    [
        (["--batch_size", "4"], "batch_size", 4),
        (["--batch_size=4"], "batch_size", 4),
        (["--batch_size", "4", "--batch_size", "5"], "batch_size", 5),
        (["--device_id", "010"], "device_id", 10),
        (["--layers", "[1,1,1,2]"], "layers", (1, 1, 1, 2)),
        (["--layers=[1, 1, 1, 2]"], "layers", (1, 1, 1, 2)),
        (["--nm_img_mean", "[-0.5, 0, 5e-1]"], "nm_img_mean", (-0.5, 0.0, 0.5)),
        (["--lr_decay", "True"], "lr_decay", True),
        (["--lr_decay", "yes"], "lr_decay", True),
        (["--lr_decay=on"], "lr_decay", True),
        (["--resize_target", "false"], "resize_target", False),
        (["--backbone_params_lr", "1e-5"], "backbone_params_lr", 1e-5),
        (["--backbone_params_lr", "2.5E-3"], "backbone_params_lr", 2.5e-3),
        (["--backbone_params_lr", "1"], "backbone_params_lr", 1.0),
        (["--backbone_params_end_lr", "0"], "backbone_params_end_lr", 0.0),
        (["--model_weights", ""], "model_weights", ""),
        (["--model_weights="], "model_weights", ""),
        (["--resume", "True"], "resume", True),
        (["--resume", "no"], "resume", False),
        (["--resume", "/runs/1.ckpt"], "resume", "/runs/1.ckpt"),
        (["--output_path", "/a b/c: d #e"], "output_path", "/a b/c: d #e"),
        (["--output_path=/a=b"], "output_path", "/a=b"),
        (["--colormap", "none"], "colormap", "none"),
        (["--file_format", "onnx"], "export_formats", ("ONNX",)),
        (["--file_format", "Mindir, ONNX,mindir"], "export_formats", ("MINDIR", "ONNX")),
        (["--file_format", "[MINDIR, onnx]"], "export_formats", ("MINDIR", "ONNX")),
        (["--export_for", "kitti"], "export_size", (384, 1280)),
        (["--img_width", "96"], "export_size", (384, 96)),
    ],
)
def test_command_line_values(argv, key, expected):
    value = getattr(load(*argv), key)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("backbone_params_lr: 1e-5", "backbone_params_lr", 1e-5),
        ("grad_clip_norm: 1", "grad_clip_norm", 1.0),
        ("layers:\n  - 1\n  - 2\n  - 3\n  - 4", "layers", (1, 2, 3, 4)),
        ("lr_decay: yes", "lr_decay", True),
        ("file_format: [MINDIR, ONNX]", "file_format", "MINDIR,ONNX"),
        ("file_format:\n  - ONNX", "file_format", "ONNX"),
        ("output_path: 123", "output_path", str(ROOT / "123")),
        ("resume: runs/last.ckpt", "resume", str(ROOT / "runs/last.ckpt")),
        ("resume: 'true'", "resume", str(ROOT / "true")),
        ("\ufeffseed: 3", "seed", 3),
    ],
)
def test_file_values(tmp_path, line, key, expected):
    value = getattr(load_yaml(tmp_path, line + "\n"), key)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("data_name", "expected"),
    [
        ("all", ("Kitti", "Sintel", "TUM", "NYU", "ETH3D", "DIW")),
        ("KITTI", ("Kitti",)),
        ("tum, eth3d,TUM", ("TUM", "ETH3D")),
        ("NYU,All", ("NYU", "Kitti", "Sintel", "TUM", "ETH3D", "DIW")),
    ],
)
def test_data_names(data_name, expected):
    assert load("--data_name", data_name).data_names == expected


def test_arguments_for_network_predictor_and_device():
    argv = ["--layers", "[1, 2, 3, 4]", "--groups", "2", "--width_per_group", "16", "--in_channels", "8"]
    config = load(*argv, "--features", "16", "--network_ops", "modelzoo", "--nm_img_std", "[1, 2, 3]")
    assert config.network == {
        "layers": (1, 2, 3, 4),
        "groups": 2,
        "width_per_group": 16,
        "in_channels": 8,
        "features": 16,
        "network_ops": "modelzoo",
    }
    assert config.normalisation == {"mean": (0.485, 0.456, 0.406), "std": (1.0, 2.0, 3.0)}


def test_colormaps_are_those_of_opencv():
    theirs = {name[len("COLORMAP_") :].lower() for name in dir(cv2) if name.startswith("COLORMAP_")}
    assert set(COLORMAPS) == theirs


# ---- faults


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("batch_size", "0", "an integer >= 1"),
        ("batch_size", "-3", "an integer >= 1"),
        ("batch_size", "8.0", "an integer >= 1"),
        ("batch_size", "1e1", "an integer >= 1"),
        ("batch_size", "True", "an integer >= 1"),
        ("batch_size", "'8'", "an integer >= 1"),
        ("batch_size", "[8]", "an integer >= 1"),
        ("batch_size", "[8", "an integer >= 1"),
        ("batch_size", "null", "an integer >= 1"),
        ("device_id", "-1", "an integer >= 0"),
        ("seed", "4294967296", "from 0 to 4294967295"),
        ("lr_decay", "1", "True or False"),
        ("lr_decay", "maybe", "True or False"),
        ("lr_decay", "'True'", "True or False"),
        ("backbone_params_lr", "0", "a number > 0"),
        ("no_backbone_params_lr", "-1e-4", "a number > 0"),
        ("backbone_params_lr", "fast", "a number > 0"),
        ("backbone_params_lr", "True", "a number > 0"),
        ("backbone_params_lr", "nan", "a number > 0"),
        ("backbone_params_lr", ".inf", "a number > 0"),
        ("backbone_params_lr", "1e999", "a number > 0"),
        ("backbone_params_end_lr", "-1e-8", "a number >= 0"),
        ("grad_clip_norm", "-1", "a number >= 0"),
        ("power", "0", "a number > 0"),
        ("layers", "[3, 4, 23]", "a list of 4 integers >= 1"),
        ("layers", "[3, 4, 0, 3]", "a list of 4 integers >= 1"),
        ("layers", "[3, 4, 2.5, 3]", "a list of 4 integers >= 1"),
        ("layers", "3", "a list of 4 integers >= 1"),
        ("layers", "{a: 1}", "a list of 4 integers >= 1"),
        ("nm_img_mean", "[0.5, 0.5]", "a list of 3 numbers"),
        ("nm_img_mean", "[0.5, nan, 0.5]", "a list of 3 numbers"),
        ("nm_img_std", "[0.2, 0.2, 0.2, 0.2]", "a list of 3 numbers > 0"),
        ("nm_img_std", "[0.2, 0, 0.2]", "a list of 3 numbers > 0"),
        ("img_width", "400", "a positive multiple of 32"),
        ("img_height", "0", "a positive multiple of 32"),
        ("img_height", "-32", "a positive multiple of 32"),
        ("ensure_multiple_of", "16", "a positive multiple of 32"),
        ("features", "12", "a positive multiple of 8"),
        ("groups", "0", "an integer >= 1"),
        ("device_target", "TPU", "one of auto, Ascend, GPU, CPU"),
        ("network_ops", "torch", "one of midas, modelzoo"),
        ("resize_method", "", "one of lower_bound, upper_bound, minimal"),
        ("loss", "l2", "ssi_mse"),
        ("eval_protocol", "Paper", "one of paper, modelzoo"),
        ("eval_shapes", "any", "one of dynamic, static"),
        ("colormap", "sepia", "inferno"),
        ("file_format", "MINDIR,TFLITE", "AIR, MINDIR, ONNX or a list of them"),
        ("file_format", "[]", "AIR, MINDIR, ONNX or a list of them"),
        ("file_format", "{a: 1}", "AIR, MINDIR, ONNX or a list of them"),
        ("export_shapes", "both", "one of static, dynamic"),
        ("export_for", "NYU", "'' or one of Sintel, Kitti, TUM"),
        ("export_path", "", "a path"),
        ("file_name", "models/midas", "a name without a folder"),
        ("data_name", "Kitti,Cityscapes", "Kitti, Sintel, TUM, NYU, ETH3D, DIW"),
        ("data_name", "Kitti,", "Kitti, Sintel, TUM, NYU, ETH3D, DIW"),
        ("datapath_NYU", "[nyu.mat]", "a list of 2 paths"),
        ("datapath_NYU", "[nyu.mat, '']", "a list of 2 paths"),
        ("datapath_NYU", "nyu.mat", "a list of 2 paths"),
        ("train_data_dir", "", "a path"),
        ("resume", "", "True, False or the path of a checkpoint"),
    ],
)
def test_bad_values_on_the_command_line(key, value, expected):
    spellings = [[f"--{key}={value}"], [f"--{key}", value]]
    if value.startswith("-") and "e" in value:
        spellings.pop()  # argparse takes -1e-4 for a flag, see test_bad_command_lines
    for argv in spellings:
        message = fault(load, *argv)
        assert message.startswith(f"command line: {key}: expected ")
        assert expected in message
        assert message.endswith(f"found {value or 'nothing'}")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("batch_size: '8'", "'8'"),
        ("batch_size: 8.0", "8.0"),
        ("batch_size:", "nothing"),
        ("batch_size: &a [*a]", "&a [*a]"),
        ("batch_size: !!python/object/apply:os.getcwd []", "!!python/object/apply:os.getcwd []"),
        ("output_path: null", "null"),
        ("output_path: [a,\n  b]", "[a, b]"),
        ("loss: !!binary x", "!!binary x"),
    ],
)
def test_bad_values_in_a_file_name_its_line(tmp_path, line, found):
    message = fault(load_yaml, tmp_path, "# comment\n\n" + line + "\n")
    key = line.partition(":")[0]
    assert message.startswith(f"{tmp_path / 'settings.yaml'}:3: {key}: expected ")
    assert message.endswith(f"found {found}")


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--width_per_group", "4", "--in_channels", "8"], ["in_channels 8 (command line)", "at least 64"]),
        (["--in_channels", "4"], ["in_channels 4 (command line)", "width_per_group 8 (", "config.yaml:"]),
        (["--img_width", "416", "--ensure_multiple_of", "64"], ["img_width: ", "ensure_multiple_of 64"]),
        (["--lr_decay", "yes", "--backbone_params_lr", "1e-9"], ["backbone_params_end_lr: ", "1e-9 (command line)"]),
    ],
)
def test_values_that_contradict_each_other(argv, parts):
    message = fault(load, *argv)
    for part in parts:
        assert part in message


def test_values_at_the_limit_of_the_combined_checks_pass():
    config = load("--in_channels", "8", "--width_per_group", "8", "--backbone_params_lr", "1e-9")
    assert config.in_channels * config.width_per_group == 64  # and without lr_decay the end rate is not used
    assert load("--img_width", "448", "--ensure_multiple_of", "64").img_width == 448


NO_VALUE = "command line: KEY: expected a value after --KEY, found none; --KEY=VALUE takes one that begins with -"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epoch_szie", "3"], "command line: unknown key 'epoch_szie'; did you mean epoch_size?"),
        (["--batch-size=3"], "command line: unknown key 'batch-size'; did you mean batch_size?"),
        (["--batch", "3"], "command line: unknown key 'batch'; did you mean batch_size?"),
        (["--zzz", "3"], "command line: unknown key 'zzz'; config.yaml lists all keys"),
        (["--", "3"], "command line: unknown key ''; config.yaml lists all keys"),
        (["--seed", "1", "--zz\nzz"], "command line: unknown key 'zz zz'; config.yaml lists all keys"),
        (["--confg_path", "a.yaml"], "command line: unknown key 'confg_path'; did you mean --config_path?"),
        (["--help=seed"], "command line: argument -h/--help: ignored explicit argument 'seed'"),
        (
            ["--lr_decay"],
            NO_VALUE.replace("KEY", "lr_decay"),
        ),
        (
            ["--lr_decay", "--seed", "1"],
            NO_VALUE.replace("KEY", "lr_decay"),
        ),
        (
            ["--config_path"],
            NO_VALUE.replace("KEY", "config_path"),
        ),
        (
            ["--power", "-1e-4"],
            NO_VALUE.replace("KEY", "power"),
        ),
        (
            ["--layers", "1", "1", "1", "1"],
            "command line: expected --key value (a list in quotes: --layers \"[3, 4, 23, 3]\"), found '1'",
        ),
        (
            ["photo.jpg"],
            "command line: expected --key value (a list in quotes: --layers \"[3, 4, 23, 3]\"), found 'photo.jpg'",
        ),
    ],
)
def test_bad_command_lines(argv, message):
    assert fault(load, *argv) == message


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("lr learning_rate base_lr learning-rate LR", "backbone_params_lr or no_backbone_params_lr"),
        ("encoder_lr", "backbone_params_lr"),
        ("decoder_lr", "no_backbone_params_lr"),
        ("epochs num_epochs max_epochs", "epoch_size"),
        ("bs batchsize", "batch_size"),
        ("width", "img_width"),
        ("height", "img_height"),
        ("size image_size img_size resolution", "img_width or img_height"),
        ("device gpu", "device_target or device_id"),
        ("gpus", "run_distribute"),
        ("data data_dir data_path", "train_data_dir"),
        ("dataset", "dataset_path or train_data_dir"),
        ("datasets", "data_name or dataset_name"),
        ("predictions results", "result_path"),
        ("output out save_dir", "output_path or train_output_path"),
        ("input image images", "input_path"),
        ("weights checkpoint ckpt pretrained model", "model_weights or ckpt_path"),
        ("workers num_workers", "num_parallel_workers"),
        ("mean", "nm_img_mean"),
        ("std", "nm_img_std"),
        ("config cfg config_file", "--config_path"),
        ("clip grad_clip", "grad_clip_norm"),
        ("cache", "enable_compile_cache"),
        ("protocol", "eval_protocol"),
        ("cmap", "colormap"),
        ("format", "file_format"),
        ("overwrite", "export_overwrite"),
        ("log_every", "log_interval"),
    ],
)
def test_common_words_of_other_projects(tmp_path, words, meant):
    for word in words.split():
        message = f"unknown key '{word}'; did you mean {meant}?"
        assert fault(load, f"--{word}", "1") == f"command line: {message}"
        assert fault(load_yaml, tmp_path, f"{word}: 1\n") == f"{tmp_path / 'settings.yaml'}:1: {message}"


def test_synonyms_name_real_keys_and_are_none_themselves():
    keys = {field.name for field in FIELDS}
    targets = {target for targets in config_module._SYNONYMS.values() for target in targets.split(" or ")}
    assert targets <= keys | {"--config_path"}
    words = " ".join(config_module._SYNONYMS).split()
    assert not keys & set(words)
    assert len(set(words)) == len(words)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ": expected 'key: value' lines, found an empty file"),
        ("# only a comment\n", ": expected 'key: value' lines, found an empty file"),
        ("- 1\n- 2\n", ": expected 'key: value' lines, found a sequence"),
        ("just text\n", ": expected 'key: value' lines, found a scalar"),
        ("seed: 1\nlayers: [1, 2\nbatch_size: 3\n", ":3: expected valid YAML: "),
        ("seed: 1\n\tbatch_size: 3\n", ":2: expected valid YAML: "),
        ("seed: 1\n---\nseed: 2\n", ":2: expected valid YAML: "),
        ("seed: \x01\n", ": expected a YAML file with settings in UTF-8, found: unacceptable character"),
        ("seed: 1\nbatch_size: 2\nseed: 3\n", ":3: seed: expected once, found again after "),
        ("seed: 1\n\nepoch_szie: 2\n", ":3: unknown key 'epoch_szie'; did you mean epoch_size?"),
        ("? [a, b]\n: 1\n", ":1: unknown key '[a, b]'; "),
        ("config_path: other.yaml\n", ":1: unknown key 'config_path'; "),
    ],
)
def test_bad_files(tmp_path, text, expected):
    message = fault(load_yaml, tmp_path, text)
    assert message.startswith(str(tmp_path / "settings.yaml") + expected)


def test_unreadable_files(tmp_path):
    missing = tmp_path / "missing.yaml"
    assert fault(load, "--config_path", str(missing)) == (
        f"{missing}: expected a YAML file with settings in UTF-8, found: No such file or directory"
    )
    assert fault(load, "--config_path", "~nobody_at_all/a.yaml").startswith(
        "~nobody_at_all/a.yaml: expected a YAML file"
    )
    assert "directory" in fault(load, "--config_path", str(tmp_path))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"seed: \xff\n")
    message = fault(load, "--config_path", str(binary))
    assert message.startswith(f"{binary}: expected a YAML file with settings in UTF-8, found: ")
    assert "byte 0xff in position 6" in message


def test_key_missing_from_the_defaults_file(tmp_path, monkeypatch):
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    defaults = tmp_path / "config.yaml"
    defaults.write_text(text.replace("batch_size: 8", "# batch_size: 8"), encoding="utf-8")
    monkeypatch.setattr(config_module, "DEFAULTS_FILE", defaults)
    assert fault(load) == f"{defaults}: expected every key, found no batch_size"


def test_a_script_reports_one_line_and_status_2():
    code = (
        "from src.config import load_config; from src.common.errors import run_script;"
        "run_script(lambda: load_config('Test.') and None)"
    )
    run = [sys.executable, "-c", code, "--grad_clip_norm", "-1"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "error: command line: grad_clip_norm: expected a number >= 0, found -1\n"
    assert done.stdout == ""


# ---- paths


def test_relative_paths_of_a_file_start_at_the_repository_and_of_the_command_line_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_yaml(tmp_path, "output_path: out\ninput_path: ../in\n", "--ckpt_path", "./a.ckpt")
    assert config.output_path == str(ROOT / "out")
    assert config.input_path == str(ROOT.parent / "in")
    assert config.ckpt_path == str(tmp_path / "a.ckpt")
    assert load("--train_data_dir", "sets").datapath_TUM == str(tmp_path / "sets/TUM")


def test_config_path_starts_at_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("seed: 5\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load("--config_path", "mine.yaml").seed == 5


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "TUM").mkdir()
    (tmp_path / "mine.yaml").write_text("output_path: ~/out\ndatapath_TUM: ~/TUM\n", encoding="utf-8")
    config = load("--config_path", "~/mine.yaml", "--input_path=~/in")
    assert config.output_path == str(tmp_path / "out")
    assert config.datapath_TUM == str(tmp_path / "TUM")
    assert config.input_path == str(tmp_path / "in")


def test_data_paths(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    lines = [
        f"train_data_dir: {tmp_path}/root",
        "datapath_TUM: /data_2021/TUM",  # absolute but absent: a setting of the 2021 suite
        f"datapath_Sintel: {elsewhere}",
        "datapath_ETH3D: sets/ETH3D",
        f"datapath_NYU: ['/NYU/nyu.mat', '{elsewhere}']",
        "mixdata: /lists/mixdata.json",
    ]
    config = load_yaml(tmp_path, "\n".join(lines))
    root = tmp_path / "root"
    assert config.datapath_TUM == str(root / "data_2021/TUM")
    assert config.datapath_Sintel == str(elsewhere)
    assert config.datapath_ETH3D == str(root / "sets/ETH3D")
    assert config.datapath_NYU == (str(root / "NYU/nyu.mat"), str(elsewhere))
    assert config.mixdata == str(root / "lists/mixdata.json")


def test_require_folder_and_file(tmp_path):
    (tmp_path / "TUM").mkdir()
    (tmp_path / "mixdata.json").write_text("[]", encoding="utf-8")
    config = load("--train_data_dir", str(tmp_path))
    require_folder(config, "train_data_dir")
    require_folder(config, "datapath_TUM")
    require_file(config, "mixdata")

    assert fault(require_folder, config, "datapath_Kitti") == (
        f"datapath_Kitti: expected a folder, found nothing at {tmp_path}/Kitti_raw_data "
        "(looked up under train_data_dir unless it is an absolute path that exists)"
    )
    assert f"expected a folder, found something else at {tmp_path}/mixdata.json" in fault(
        require_folder, config, "mixdata"
    )
    assert fault(require_file, config, "train_data_dir") == (
        f"train_data_dir: expected a file, found something else at {tmp_path}"
    )


# ---- what weights decide


def test_it_is_remembered_what_was_given(tmp_path):
    config = load_yaml(tmp_path, "# mine\ngroups: 4\nseed: 3\n", "--seed", "5", "--features=16")
    source = f"{tmp_path / 'settings.yaml'}:2"
    assert config.given == {"groups": source, "seed": "command line", "features": "command line"}
    assert load().given == {}
    assert config == load("--groups", "4", "--seed", "5", "--features", "16")  # it is no setting
    assert "given" not in repr(config) + dump_config(config)


def decisive(decided):
    """A file that decides these settings."""
    return SimpleNamespace(path="a.ckpt", settings=lambda network: decided)


def test_weights_decide_what_nobody_has_given(tmp_path, capsys):
    config = load_yaml(tmp_path, "groups: 4\n", "--features=16")
    decided = {"groups": 4, "features": 16, "layers": (1, 2, 1, 1), "network_ops": "modelzoo", "nm_img_mean": (0, 0, 1)}
    settled = settle(config, decisive(decided))
    assert {key: getattr(settled, key) for key in decided} == decided
    assert settled.seed == config.seed
    assert settled.given == config.given
    assert capsys.readouterr().out == (
        "a.ckpt replaces defaults of config.yaml: layers [1, 2, 1, 1] (not [3, 4, 23, 3]), network_ops modelzoo (not "
        "midas), nm_img_mean [0, 0, 1] (not [0.485, 0.456, 0.406])\n"
    )
    assert settle(config, decisive({})) == settle(config, None) == config
    assert capsys.readouterr().out == ""


def test_what_was_given_and_contradicts_the_weights_is_named(tmp_path):
    config = load_yaml(tmp_path, "groups: 4\nlayers: [1, 1, 1, 1]\n", "--features=16")
    decided = {"groups": 4, "features": 32, "layers": (1, 2, 1, 1), "in_channels": 8}
    assert fault(settle, config, decisive(decided)) == (
        f"command line: features: expected 32, found 16; {tmp_path / 'settings.yaml'}:2: layers: expected [1, 2, 1, 1],"
        " found [1, 1, 1, 1] (so it is in a.ckpt; leave the key out)"
    )


def test_setting_of_another_script_on_the_command_line(tmp_path):
    given = load("--model_weights", "a.onnx")
    assert fault(not_instead, given, "model_weights", "ckpt_path") == (
        "command line: model_weights: expected ckpt_path, which is what this script reads"
    )
    not_instead(load("--model_weights", "a.onnx", "--ckpt_path", "b.onnx"), "model_weights", "ckpt_path")
    not_instead(load_yaml(tmp_path, "model_weights: a.onnx\n"), "model_weights", "ckpt_path")


def test_settings_of_a_run_are_not_checked_against_defaults(tmp_path):
    """Here the rate of the run to resume is larger than the default."""
    words = ["--lr_decay", "True", "--backbone_params_end_lr", "1e-3"]
    assert "backbone_params_end_lr: expected at most" in fault(load, *words)
    load_config("", words, is_complete=False)
    run = tmp_path / "config.yaml"
    run.write_text("backbone_params_lr: 1e-2\n")
    assert load_config("", words, base=run).backbone_params_end_lr == 1e-3


# ---- dump and help


def test_dump_loads_again_to_the_same_values(tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    outside.mkdir()
    long_name = "深度 " + "long name " * 30 + "end"
    config = load(
        *["--train_data_dir", str(tmp_path / "root: a #1"), "--output_path", str(tmp_path / long_name)],
        *["--datapath_TUM", "/absent/TUM", "--datapath_Sintel", str(outside), "--datapath_DIW", "../beside/DIW"],
        *["--model_weights", "", "--resume", "true.ckpt", "--backbone_params_lr", "3e-7", "--layers", "[1,2,1,1]"],
        *["--lr_decay", "yes", "--data_name", "tum,KITTI", "--colormap", "none"],
    )
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1 + len(FIELDS)
    outside.rmdir()
    monkeypatch.chdir("/")
    assert load("--config_path", str(path)) == config
    assert dump_config(load("--config_path", str(path))) == dump_config(config)


@pytest.mark.parametrize("resume", ["True", "False"])
def test_dump_keeps_booleans(tmp_path, resume):
    config = load("--resume", resume)
    assert load_yaml(tmp_path, dump_config(config)) == config


HEADINGS = ["Device:", "Network:", "Images:", "Training:", "Evaluation:", "Run and export:"]
OTHERS = "The other settings of config.yaml are accepted, too; this script does not read them."


def help_text(capsys, *argv, keys=None):
    """What --help prints."""
    with pytest.raises(SystemExit) as caught:
        load_config("Trains\nthe network.", [*argv, "--help"], keys)
    assert caught.value.code == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def help_by_flag(text):
    """What a help text says of each flag, on one line."""
    blocks = text.split("\n  --")[1:]
    return {block.split()[0]: " ".join(block.split("\n\n")[0].split()) for block in blocks}


@pytest.mark.parametrize("columns", ["40", "300"])
def test_help_names_every_key_with_comment_default_and_limits(capsys, monkeypatch, columns):
    monkeypatch.setattr(sys, "argv", ["midas_train.py"])
    monkeypatch.setenv("COLUMNS", columns)
    text = help_text(capsys, "--batch_size", "nonsense", "--seed", "--config_path", "missing.yaml", "--epoch_szie=3")
    lines = text.splitlines()
    assert lines[0] == "usage: python midas_train.py [--config_path FILE] [--key value ...]"
    assert lines[2] == "Trains the network."
    assert 80 < max(map(len, lines)) <= 100
    assert [line for line in lines if line in HEADINGS] == HEADINGS
    assert OTHERS not in text

    flags = help_by_flag(text)
    assert list(flags) == ["config_path", *(field.name for field in FIELDS)]
    defaults = yaml.compose((ROOT / "config.yaml").read_text(encoding="utf-8")).value
    for key, node in defaults:
        about = flags[key.value].removeprefix(f"{key.value} VALUE ")
        comment, _, limits = about.partition(" Allowed: ")
        assert comment.endswith("."), f"no explanation: {about}"
        raw = node.start_mark.buffer[node.start_mark.pointer : node.end_mark.pointer]
        assert limits.endswith(f" Default: {raw}."), about
    assert flags["batch_size"].endswith(
        "step takes accumulate_steps times as many. Allowed: an integer >= 1. Default: 8."
    )
    assert flags["layers"].endswith("Allowed: a list of 4 integers >= 1. Default: [3, 4, 23, 3].")
    assert "[3, 4, 23, 3].\n" in text  # not wrapped, so that it can be copied
    # A comment of two lines above the key, and one that belongs to a heading.
    assert "Use False for data that is not the published benchmark, such as rendered" in flags["show_published"]
    assert "Images:\n  Training resizes every image to exactly img_width x img_height. Prediction" in text


def test_help_shows_the_keys_of_the_script_only(capsys):
    text = help_text(capsys, "--colormap", "nonsense", keys=iter(["seed", "data_name", "device_id"]))
    assert list(help_by_flag(text)) == ["config_path", "device_id", "seed", "data_name"]
    assert [line for line in text.splitlines() if line in HEADINGS] == ["Device:", "Evaluation:"]
    assert text.endswith(f"\n\n{OTHERS}\n")
    assert list(help_by_flag(help_text(capsys, keys=[]))) == ["config_path"]


def test_keys_limit_the_help_alone(tmp_path):
    config = load_config("Test.", ["--batch_size", "2", "--seed", "3"], ["seed"])
    assert config == load("--batch_size", "2", "--seed", "3")
    assert fault(load_config, "Test.", ["--batch_size", "0"], ["seed"]).startswith("command line: batch_size: ")


def test_help_of_a_file_without_comments(tmp_path, monkeypatch, capsys):
    bare = tmp_path / "config.yaml"
    bare.write_text(dump_config(load()), encoding="utf-8")
    monkeypatch.setattr(config_module, "DEFAULTS_FILE", bare)
    text = help_text(capsys)
    assert "--config_path FILE" in text
    assert list(help_by_flag(text)) == ["config_path", *(field.name for field in FIELDS)]
    assert load("--seed", "5").seed == 5


@pytest.mark.parametrize("name", ["midas_train", "midas_eval", "midas_run", "postprocess"])
def test_scripts_name_the_keys_that_they_read(name):
    properties = {
        "network": NETWORK_KEYS,
        "normalisation": NORMALISATION_KEYS,
        "predictor": PREDICTION_KEYS,
        "execution": BACKEND_KEYS,
        **{
            key: [key, "train_data_dir", *(f"datapath_{name}" for name in DATA_SETS)]
            for key in ("data_name", "dataset_name", "val_data_name")
        },
        "given": [],
    }
    source = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    read = [*re.findall(r"\bconfig\.(\w+)", source), *re.findall(r'require_\w+\(config, "(\w+)"\)', source)]
    keys = {key for word in read for key in properties.get(word, [word])}
    assert keys == set(importlib.import_module(name).KEYS)


def test_each_setting_is_part_of_the_course_of_a_training_or_free():
    """With the test above: a key that is new to the script fails until somebody has decided."""
    script = importlib.import_module("midas_train")
    assert len({*script.KEYS}) == len(script.KEYS)
    constant, decaying = (load_config("", ["--lr_decay", value]) for value in ("False", "True"))
    assert {*script.course_keys(decaying)} - {*script.course_keys(constant)} == {"epoch_size", "max_steps"}


def test_settings_of_a_run_to_resume(tmp_path):
    run = tmp_path / "config.yaml"
    run.write_text(dump_config(load_config("", ["--batch_size", "3", "--power", "2", "--log_interval", "5"])))
    other = tmp_path / "other.yaml"
    other.write_text("power: 2.0\nlog_interval: 6\nseed: 1\n")
    words = ["--config_path", str(other), "--log_interval", "7"]
    config = load_config("", words, base=run, fixed=("batch_size", "power", "seed"))
    assert (config.batch_size, config.power, config.log_interval, config.epoch_size) == (3, 2.0, 7, 400)
    other.write_text("power: 3\n")
    with pytest.raises(UsageError) as caught:
        load_config("", [*words, "--batch_size", "4"], base=run, fixed=("batch_size", "power", "seed"))
    assert str(caught.value) == (
        f"command line: batch_size: expected 3, found 4; {other}:1: power: expected 2.0, found 3 "
        f"(a resumed run keeps the settings of {run})"
    )
