"""The end of the demo on one picture of each set: the overview and the printed table."""

import json
import sys

import cv2
import mindspore as ms
from conftest import TINY

from preprocess.make_sample import make_sample
from scripts import demo_report
from src.common.names import DATA_SETS
from src.config import load_config
from src.midas_net import MidasNet
from src.weights.checkpoint import save_checkpoint


def test_demo_report(tmp_path, monkeypatch, capsys):
    make_sample(tmp_path / "data", train=0, eval_count=1, size=(96, 72))
    ms.set_seed(1)
    checkpoint = tmp_path / "tiny.ckpt"
    save_checkpoint(checkpoint, {item.name: item.asnumpy() for item in MidasNet(**TINY).get_parameters()})
    demo = tmp_path / "demo"
    for name, values in {"before": {"Kitti": 30.123456}, "after": dict.fromkeys(DATA_SETS, 0.25)}.items():
        (demo / name).mkdir(parents=True)
        (demo / name / "val.json").write_text(json.dumps(values))
    (demo / "train").mkdir()
    losses = "1,1,900,1,1,1\n1,2,1100,1,1,1\n2,1,80,1,1,1\n2,2,60,1,1,1\n"
    (demo / "train" / "loss.csv").write_text(f"epoch,step,loss,backbone_lr,no_backbone_lr,seconds\n{losses}")

    words = ["--train_data_dir", str(tmp_path / "data"), *(f"--{key}={value}" for key, value in TINY.items())]
    monkeypatch.setattr(demo_report, "load_config", lambda about, argv: load_config(about, [*argv, *words]))
    monkeypatch.setattr(demo_report, "setup_device", lambda *_: None)  # that is settled before the first kernel
    monkeypatch.setattr(sys, "argv", ["demo_report.py", "--checkpoint", str(checkpoint), "--demo", str(demo)])
    demo_report.main()

    picture = cv2.imread(str(demo / "overview.png"))
    assert picture.shape == (840, 1050, 3)
    assert (picture < 250).any(axis=2).mean() > 0.2  # not an empty page
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index(next(line for line in lines if line.startswith("sample set"))) + 1 :][: len(DATA_SETS)]
    assert [line.split() for line in table] == [
        ["Kitti", "30.12", "0.25"],
        *([name, "-", "0.25"] for name in DATA_SETS[1:]),
    ]
    assert f"loss: 1000 in the first epoch, 70 in the last ({demo / 'train' / 'loss.png'})" in lines
    assert f"overview:   {demo / 'overview.png'}" in lines
