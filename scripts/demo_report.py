"""The end of scripts/run_demo.sh: one picture of what the network has learnt, and where everything is."""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.common.errors import run_script
from src.config import Config, load_config
from src.evaluation.datasets import open_dataset
from src.evaluation.datasets.base import EvalDataset, OrdinalSample
from src.evaluation.evaluator import Sample, score_prediction
from src.inference.backends import choose_backend, load_predictor, open_model
from src.inference.predictor import Predictor
from src.training.loss_log import read_loss_csv
from src.utils.transforms import resize_prediction

COLUMNS = ("image", "ground truth", "before training", "after training", "error after training")
ERROR_RANGE = 0.5  # relative depth error that gets the brightest colour


def predict(predictor: Predictor, dataset: EvalDataset, sample: Sample) -> np.ndarray:
    """Predicts a sample's inverse depth at the size of its image: in 1/m, as it is scored, if its depth is known."""
    inverse_depth = predictor.infer(predictor.prepare(sample.image, dataset.resize_method))
    prediction = resize_prediction(inverse_depth, *sample.image.shape[:2], half_pixel=dataset.half_pixel)
    if isinstance(sample, OrdinalSample):
        return prediction
    score = score_prediction(dataset, sample, prediction)
    return np.maximum(score.scale * prediction + score.shift, 1 / dataset.cap_m)


def draw_points(row: np.ndarray, sample: OrdinalSample) -> None:
    """Marks the two points of a sample in its image and in the predictions, and says which one is farther."""
    for axes in row[[0, 2, 3]]:
        for number, (y, x) in enumerate(sample.points[0].reshape(2, 2), start=1):
            axes.text(x, y, str(number), color="white", backgroundcolor="black", ha="center", va="center")
    farther = 1 if sample.relation[0] > 0 else 2
    row[1].text(0.5, 0.5, f"point {farther}\nis farther", ha="center", transform=row[1].transAxes)
    row[4].axis("off")


def draw_overview(config: Config, predictors: list[Predictor], path: Path) -> None:
    """Draws a row per data set: image, ground truth, predictions of inverse depth and error; the last row is DIW's."""
    figure = Figure(figsize=(15, 12), layout="constrained")
    rows = figure.subplots(len(config.data_names), len(COLUMNS), squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    for axes, title in zip(rows[0], COLUMNS):
        axes.set_title(title)
    for row, name in zip(rows, config.data_names):
        dataset = open_dataset(name, getattr(config, f"datapath_{name}"), config.eval_protocol)
        sample = dataset[0]
        predictions = [predict(predictor, dataset, sample) for predictor in predictors]
        limits = {"cmap": "inferno", "interpolation": "nearest"}  # other methods lose sparse pixels
        if isinstance(sample, OrdinalSample):
            draw_points(row, sample)
        else:
            truth = np.full(sample.depth.shape, np.nan)
            truth[sample.valid] = 1 / sample.depth[sample.valid]
            limits.update(vmin=np.nanpercentile(truth, 1), vmax=np.nanpercentile(truth, 99))
            row[1].imshow(truth, **limits)
            error = np.abs(truth / predictions[1] - 1)
            row[4].imshow(error, vmin=0, vmax=ERROR_RANGE, cmap="viridis", interpolation="nearest")
        row[0].imshow(sample.image)
        row[0].set_ylabel(name)
        for axes, prediction in zip(row[2:4], predictions):
            axes.imshow(prediction, **limits)
    colours = ScalarMappable(Normalize(0, ERROR_RANGE), "viridis")
    figure.colorbar(colours, ax=rows[:, 4], label="|d - d*| / d*", shrink=0.5)
    figure.savefig(path, dpi=70)


def print_report(demo: Path, checkpoint: Path) -> None:
    """Prints the metrics before and after training side by side, the fall of the loss, and the places."""
    before, after = (json.loads((demo / when / "val.json").read_text()) for when in ("before", "after"))
    print(f"\n{'sample set':12}{'before training':>18}{'after training':>18}   (less is better)")
    for name, value in after.items():
        print(f"{name:12}{before.get(name, np.nan):18.4g}{value:18.4g}")
    rows = list(read_loss_csv(demo / "train" / "loss.csv"))
    first, last = (np.mean([row.loss for row in rows if row.epoch == epoch]) for epoch in (1, rows[-1].epoch))
    print(f"\nloss: {first:.0f} in the first epoch, {last:.0f} in the last ({demo / 'train' / 'loss.png'})")
    print(f"network:    {checkpoint}")
    print(f"depth maps: {demo / 'depth'}")
    print(f"evaluation: {demo / 'after' / 'val.json'} and val_details.csv")
    print(f"overview:   {demo / 'overview.png'}")


def main() -> None:
    """Runs the script: ``ckpt_path`` is the trained network, ``output_path`` the folder of the demo."""
    config = load_config(__doc__)
    trained = open_model(config.ckpt_path, "ckpt_path")
    backend = choose_backend(trained, **config.execution)
    predictors = [  # before and after training
        load_predictor(model, "ckpt_path", backend, config.network, **config.predictor) for model in (None, trained)
    ]
    demo = Path(config.output_path)
    draw_overview(config, predictors, demo / "overview.png")
    print_report(demo, trained.path)


if __name__ == "__main__":
    run_script(main)
