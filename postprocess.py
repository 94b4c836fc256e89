"""Scores predictions that the C++ runner, or any other depth network, has left in a folder.

``python postprocess.py --dataset_path KITTI --result_path PREDICTIONS --dataset_name Kitti`` scores the files
NAME.npy, NAME.pfm or NAME_HEIGHTxWIDTH.bin of a folder as midas_eval.py scores a network: by the protocol of the MiDaS
paper. It writes result_val.json to the current folder, and beside it a row per image to result_val_details.csv, and
what was scored to result_val_settings.json. Earlier results are kept under numbers. Neither MindSpore nor PyTorch is
needed.

A prediction is an array (H, W) of any size; NAME is that of its sample, DRIVE/FRAME or SCENE/FRAME, or the path of its
picture in the data set. ``--prediction depth`` says that they are depth and not inverse depth.
"""

import sys
import time
from pathlib import Path
from typing import Any

import cv2

from src.common.device import worker_count
from src.common.errors import UsageError, run_script
from src.common.names import DATA_SETS
from src.common.stop import stop_between_items
from src.config import load_config, named_sets
from src.evaluation.datasets import open_dataset
from src.evaluation.datasets.base import EvalDataset
from src.evaluation.predictions import Predictions, strays_of
from src.evaluation.report import predictions_are_inverted
from src.evaluation.results import ResultFiles
from src.evaluation.session import conclude, evaluate_sets, open_sets

KEYS = (
    "dataset_path", "result_path", "dataset_name", "prediction", "eval_protocol", "show_published",
    "num_parallel_workers", "train_data_dir", *(f"datapath_{name}" for name in DATA_SETS),
)  # fmt: skip
RESULTS = "result_val.json"


def main() -> int:
    """Runs the script; returns its exit status."""
    config = load_config(__doc__, keys=KEYS)
    named = named_sets(config.dataset_name)
    if config.dataset_path and len(named) > 1:
        raise UsageError(
            "dataset_path: expected none with several data sets, which datapath_Kitti and the others name, "
            f"found {config.dataset_path} with dataset_name {config.dataset_name}; --dataset_name names one"
        )
    start = time.perf_counter()
    result_path = Path(config.result_path or "result_Files").absolute()

    def open_one(name: str) -> tuple[EvalDataset, Predictions]:
        path = config.dataset_path or getattr(config, f"datapath_{name}")
        dataset = open_dataset(name, path, config.eval_protocol)
        return dataset, Predictions(result_path, dataset, config.prediction)

    opened, left_out = open_sets(
        named,
        open_one,
        setting=lambda name: "dataset_path" if config.dataset_path else f"datapath_{name}",
        asked=f"dataset_name {config.dataset_name}",
    )
    datasets = [dataset for dataset, _ in opened]
    predictions = {dataset.name: found for dataset, found in opened}
    print(f"prediction {config.prediction}, eval_protocol {config.eval_protocol}")
    for dataset, found in opened:
        print(f"{dataset.name}: {len(found)} predictions for {len(dataset)} samples in {found.folder}")
    sys.stdout.flush()
    for line in strays_of(predictions.values()):
        print(f"warning: {line}", file=sys.stderr)
    settings: dict[str, Any] = {
        "opencv": cv2.__version__,
        "prediction": config.prediction,
        "eval_protocol": config.eval_protocol,
        "predictions": {
            name: {"folder": str(found.folder), "fingerprint": found.fingerprint()}
            for name, found in predictions.items()
        },
    }
    with (
        stop_between_items("asked to stop: the scoring ends after this image") as requests,
        ResultFiles(RESULTS, settings, datasets) as files,
    ):
        if files.backed_up:
            print(f"earlier results are kept as {', '.join(map(str, files.backed_up))}")
        results = evaluate_sets(
            datasets,
            lambda dataset, sample: predictions[dataset.name].read(sample),
            lambda inverse_depth: inverse_depth,
            files,
            worker_count(config.num_parallel_workers),
            requests,
        )
    return conclude(
        results,
        left_out,
        config.eval_protocol,
        config.show_published,
        predictions_are_inverted(config.prediction),
        f"{files.ann_file} and {files.details} written; {time.perf_counter() - start:.1f} s",
        any(path.suffix.lower() == ".bin" for found in predictions.values() for path in found.files),
    )


if __name__ == "__main__":
    run_script(main)
