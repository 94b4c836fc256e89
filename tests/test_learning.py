"""Training and prediction through the scripts: a network must learn a few pairs better than any trivial predictor."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import mindspore as ms
import numpy as np
import pytest
from conftest import CACHED, TINY

from preprocess.check_data import main
from preprocess.make_sample import make_sample
from src.evaluation.metric import align_scale_shift
from src.loss import create_loss
from src.midas_net import MidasNet
from src.training.loss_log import read_loss_csv
from src.training.optimizer import TwoRateAdam
from src.training.precision import apply_precision, create_scaler, settle_precision
from src.training.schedule import LearningRate
from src.training.step import TrainStep
from src.util import read_pfm, read_truth
from src.utils.loadImgDepth import LoadImagesDepth
from src.utils.mixdata import list_pairs
from src.utils.order import SampleOrder
from src.utils.transforms import resize_prediction
from src.utils.truth import inverse_depth_of

SETTINGS = [
    "--layers", "[1,1,1,1]", "--groups", "4", "--width_per_group", "32", "--in_channels", "16", "--features", "32",
    "--img_width", "128", "--img_height", "96", "--model_weights", "", "--lr_decay", "True",
    "--backbone_params_lr", "2e-3", "--no_backbone_params_lr", "2e-3",
]  # fmt: skip


def run_script(repo, name, *arguments):
    words = [*SETTINGS, *CACHED, *map(str, arguments)]
    subprocess.run([sys.executable, str(repo / name), *words], check=True, timeout=400)


def aligned_rmse(prediction, target, valid):
    """Root mean square error of inverse depth over valid pixels, after the best scale and shift."""
    scale, shift = align_scale_shift(prediction, target, valid)
    return float(np.sqrt(np.mean((scale * prediction[valid].astype(float) + shift - target[valid]) ** 2)))


def mean_target(truths, size):
    """The mean of all ground truths (target, valid), each resized to ``size`` (height, width), over what is valid."""
    resized = [
        [cv2.resize(array.astype(np.float32), size[::-1], interpolation=cv2.INTER_NEAREST) for array in truth]
        for truth in truths
    ]
    targets, valid = (np.stack(arrays) for arrays in zip(*resized))
    return (targets * valid).sum(axis=0, dtype=float) / np.maximum(valid.sum(axis=0), 1)


def compare(data, prediction_folder):
    """Returns name -> aligned RMSE of (prediction, constant, vertical ramp, mean target)."""
    pairs, _ = list_pairs(data, data / "mixdata.json")
    truths = {pair.name: inverse_depth_of(read_truth(pair.depth_path), pair.truth) for pair in pairs}
    table = {}
    for name, (target, valid) in truths.items():
        height, width = target.shape
        prediction = resize_prediction(read_pfm(Path(prediction_folder) / f"{name}.pfm")[0], height, width)
        trivial = (
            np.ones((height, width)),
            np.linspace(0, 1, height)[:, None] * np.ones((1, width)),
            mean_target(truths.values(), (height, width)),
        )
        assert align_scale_shift(prediction, target, valid).scale > 0, name  # larger is nearer
        table[name] = [aligned_rmse(candidate, target, valid) for candidate in (prediction, *trivial)]
    return table


def learn(repo, folder, data, epochs, batch_size, truth=None):
    """Trains on the pairs that the mixdata.json of a folder lists, predicts and checks them; returns the checkpoint.

    What is predicted is compared with the ground truth of the folder ``truth``, by default the same.
    """
    run_script(
        repo, "midas_train.py", "--train_data_dir", data, "--batch_size", batch_size, "--epoch_size", epochs,
        "--save_checkpoint_epochs", epochs, "--train_output_path", folder / "run",
    )  # fmt: skip
    losses = [row.loss for row in read_loss_csv(folder / "run" / "loss.csv")]
    assert np.mean(losses[-4:]) * 10 <= losses[0]  # several steps, since single batches scatter
    (checkpoint,) = (folder / "run").glob("*.ckpt")
    run_script(
        repo, "midas_run.py", "--input_path", data / "ReDWeb_V1" / "Imgs", "--output_path", folder / "depth",
        "--model_weights", checkpoint,
    )  # fmt: skip
    table = compare(truth or data, folder / "depth")
    assert len(table) == len(list((data / "ReDWeb_V1" / "Imgs").iterdir()))
    for name, (ours, *trivial) in table.items():
        print(name, ours, trivial)
        assert ours < min(trivial), name
    return checkpoint


def test_learns_three_rendered_pairs(repo, tmp_path):
    make_sample(tmp_path / "data", train=3, eval_count=0, seed=2, size=(128, 96))
    learn(repo, tmp_path, tmp_path / "data", epochs=60, batch_size=3)


def as_redweb(repo, realdata, folder):
    """Copies the real pairs, which are inverse depth, into the convention of ReDWeb; the lists are the repository's."""
    shutil.copytree(realdata / "ReDWeb_V1" / "Imgs", folder / "ReDWeb_V1" / "Imgs")
    shutil.copy(repo / "data" / "mixdata.json", folder)
    (folder / "ReDWeb_V1" / "RDs").mkdir()
    for path in (realdata / "ReDWeb_V1" / "RDs").iterdir():
        inverse_depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)  # 0: no ground truth
        stored = np.where(inverse_depth == 0, 255, 255 - inverse_depth).astype(np.uint8)
        assert cv2.imwrite(str(folder / "ReDWeb_V1" / "RDs" / path.name), stored)
    return folder


def test_checker_tells_which_way_up_the_real_pairs_are(repo, realdata, tmp_path, capsys):
    data = as_redweb(repo, realdata, tmp_path / "data")
    tables = json.loads((data / "mixdata.json").read_text())
    assert main([str(data)]) == 0
    output = capsys.readouterr().out
    assert "8 bit, 0..254, 92.2 % valid, negative_disparity; the lower part is nearer in 10 of 10 pictures" in output
    assert "warning" not in output
    del tables["kind"]
    (data / "mixdata.json").write_text(json.dumps(tables))
    main([str(data)])
    output = capsys.readouterr().out
    assert "inverse_depth; the lower part is nearer in 0 of 10 pictures" in output
    assert "warning: RW: in 10 of 10 pictures the upper part is nearer" in output
    assert 'probably "kind": {"RW": "negative_disparity"}' in output


@pytest.mark.timeout(900)
def test_learns_ten_real_pairs_in_the_convention_of_redweb(repo, realdata, tmp_path):
    data = as_redweb(repo, realdata, tmp_path / "data")
    checkpoint = learn(repo, tmp_path, data, epochs=60, batch_size=5, truth=realdata)
    for protocol in ("paper", "modelzoo"):
        ann_file = tmp_path / protocol / "val.json"
        run_script(
            repo, "midas_eval.py", "--train_data_dir", realdata, "--data_name", "TUM,Kitti",
            "--eval_protocol", protocol, "--ckpt_path", checkpoint, "--ann_file", ann_file,
        )  # fmt: skip
        values = json.loads(ann_file.read_text())
        print(protocol, values)
        assert list(values) == ["Kitti", "TUM"]
        assert np.isfinite(list(values.values())).all()


def test_half_precision_learns_what_full_precision_does(tmp_path):
    """From the same network, O2 comes to within 5 % of the loss of float32; the losses of O1, O3 and auto fall."""
    make_sample(tmp_path, train=8, eval_count=0, seed=3, size=(96, 72))
    pairs, _ = list_pairs(tmp_path, tmp_path / "mixdata.json")
    source = LoadImagesDepth(pairs, 64, 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    samples, order = [source[number] for number in range(8)], SampleOrder(8, 4, seed=1)
    ms.set_seed(1)
    rate = LearningRate(2e-3, 0.0, 1.0, 120)

    def learn(level, numbers, state):
        """Trains steps of these numbers from a state (name -> array); returns losses, and the state before step 60."""
        net = MidasNet(**TINY).set_train(True)
        precision = settle_precision(level, "float16", "dynamic", "CPU")
        apply_precision(net, precision)
        scaler = create_scaler(precision, 64.0, 1000)
        step = TrainStep(net, create_loss("ssi_mse"), TwoRateAdam(net, rate, rate), scaler=scaler)
        for name, array in state.items():
            step.state()[name].set_data(ms.Tensor(array))
        told, half_way = [], {}
        for number in numbers:
            if number == 60:
                half_way = {name: parameter.asnumpy().copy() for name, parameter in step.state().items()}
            batch = map(np.stack, zip(*(samples[i] for i in order.samples(4 * number))))
            told.append(step(*map(ms.Tensor, (*batch, np.zeros(3, np.float32)))).asnumpy())
        told = np.stack(told)
        print(level, int((told[:, 1] == 0).sum()), "steps skipped, loss scale", told[-1, 3])
        return told[:, 0], half_way

    untrained = {p.name: p.asnumpy().copy() for p in MidasNet(**TINY).get_parameters()}
    full, half_way = learn("O0", range(120), untrained)
    half, _ = learn("O2", range(60, 120), half_way)
    assert full[-10:].mean() < 0.2 * full[:3].mean()
    assert half[-10:].mean() == pytest.approx(full[-10:].mean(), rel=0.05)
    for level in ("O1", "O3", "auto"):
        found, _ = learn(level, range(15), untrained)
        assert found[-4:].mean() < 0.7 * found[:3].mean(), level
