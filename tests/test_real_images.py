"""Training and prediction on real photographs: the scripts must learn them better than any trivial predictor."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from src.evaluation.metric import align_scale_shift, resize_prediction
from src.training.run_folder import read_loss_csv
from src.util import read_gray, read_pfm

SETTINGS = [
    "--layers", "[1,1,1,1]", "--groups", "4", "--width_per_group", "32", "--in_channels", "16", "--features", "32",
    "--img_width", "128", "--img_height", "96",
]  # fmt: skip


def run_script(repo, name, *arguments):
    subprocess.run([sys.executable, str(repo / name), *SETTINGS, *map(str, arguments)], check=True, timeout=400)


def aligned_rmse(prediction, target, valid):
    """Root mean square error of inverse depth over valid pixels, after the best scale and shift."""
    scale, shift = align_scale_shift(prediction, target, valid)
    return float(np.sqrt(np.mean((scale * prediction[valid].astype(float) + shift - target[valid]) ** 2)))


def mean_target(targets, size):
    """The mean of all ground truths, each resized to ``size`` (height, width); 0 = missing is left out."""
    resized = np.stack([cv2.resize(target, size[::-1], interpolation=cv2.INTER_NEAREST) for target in targets])
    return resized.sum(axis=0, dtype=float) / np.maximum((resized > 0).sum(axis=0), 1)


def compare(truth_folder, prediction_folder):
    """Returns name -> aligned RMSE of (prediction, constant, vertical ramp, mean target)."""
    targets = {path.stem: read_gray(path) for path in sorted(Path(truth_folder).glob("*.png"))}
    table = {}
    for name, target in targets.items():
        valid = target > 0  # this set marks missing ground truth by 0
        height, width = target.shape
        prediction = resize_prediction(read_pfm(Path(prediction_folder) / f"{name}.pfm")[0], height, width)
        trivial = (
            np.ones((height, width)),
            np.linspace(0, 1, height)[:, None] * np.ones((1, width)),
            mean_target(list(targets.values()), (height, width)),
        )
        assert align_scale_shift(prediction, target, valid).scale > 0, name  # larger is nearer
        table[name] = [aligned_rmse(candidate, target, valid) for candidate in (prediction, *trivial)]
    return table


def test_learns_ten_real_pairs(repo, realdata, tmp_path):
    mixdata = {**json.loads((realdata / "mixdata.json").read_text()), "invalid": {"RW": 0}}
    (tmp_path / "mixdata.json").write_text(json.dumps(mixdata))
    run_script(
        repo, "midas_train.py", "--train_data_dir", realdata, "--mixdata", tmp_path / "mixdata.json",
        "--model_weights", "", "--batch_size", 5, "--epoch_size", 100, "--lr_decay", "True",
        "--backbone_params_lr", "2e-3", "--no_backbone_params_lr", "2e-3", "--save_checkpoint_epochs", 100,
        "--train_output_path", tmp_path / "run",
    )  # fmt: skip
    losses = [row.loss for row in read_loss_csv(tmp_path / "run" / "loss.csv")]
    assert np.mean(losses[-4:]) * 10 <= losses[0]  # the last two epochs, since single batches scatter
    run_script(
        repo, "midas_run.py", "--input_path", realdata / "ReDWeb_V1" / "Imgs", "--output_path", tmp_path / "depth",
        "--model_weights", tmp_path / "run" / "Midas_0-100_2.ckpt",
    )  # fmt: skip
    for protocol in ("paper", "modelzoo"):
        ann_file = tmp_path / protocol / "val.json"
        run_script(
            repo, "midas_eval.py", "--train_data_dir", realdata, "--data_name", "TUM,Kitti",
            "--eval_protocol", protocol, "--ckpt_path", tmp_path / "run" / "Midas_0-100_2.ckpt", "--ann_file", ann_file,
        )  # fmt: skip
        values = json.loads(ann_file.read_text())
        print(protocol, values)
        assert list(values) == ["Kitti", "TUM"]
        assert np.isfinite(list(values.values())).all()
    table = compare(realdata / "ReDWeb_V1" / "RDs", tmp_path / "depth")
    assert len(table) == 10
    for name, (ours, *trivial) in table.items():
        print(name, ours, trivial)
        assert ours < min(trivial), name
