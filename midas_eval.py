"""Scores a network on the benchmark sets.

``python midas_eval.py --data_name Kitti,TUM --ckpt_path WEIGHTS`` writes the mean of each set to ``ann_file``
(val.json), and beside it a row per image to ``val_details.csv``, and metric, images, protocol, checkpoint and settings
to ``val_settings.json``. ``--data_name all`` evaluates the sets that are there. A new evaluation keeps the files of
earlier ones under numbers (``val.1.json`` ...). ``--resume True`` resumes an interrupted one.
"""

import time
from dataclasses import replace
from typing import Any

from src.common.device import worker_count
from src.common.errors import UsageError, run_script
from src.common.names import DATA_SETS
from src.common.stop import stop_between_items
from src.config import BACKEND_KEYS, NETWORK_KEYS, PREDICTION_KEYS, Config, load_config, named_sets, not_instead, settle
from src.evaluation.datasets import open_dataset
from src.evaluation.report import network_is_inverted
from src.evaluation.results import ResultFiles, content_hash
from src.evaluation.session import conclude, evaluate_sets, open_sets
from src.inference.backends import Backend, choose_backend, load_predictor, open_model

# What the figures depend on: a resumed evaluation must have the same.
FIGURE_KEYS = (*NETWORK_KEYS, *(key for key in PREDICTION_KEYS if key != "resize_method"), "eval_protocol")
# A resumed evaluation may have others of these. Instead of device_target, backend, precision, ckpt_path and seed,
# settings_of records what they lead to: device, program and precision, the content of the file, and the seed where it
# decides the weights. The files of a data set
# have a fingerprint, wherever they are. Each data set has a resize_method of its own. The rest decides which sets are
# evaluated, how fast, and where results go.
OTHER_KEYS = (
    *BACKEND_KEYS, "ckpt_path", "train_data_dir", *(f"datapath_{name}" for name in DATA_SETS),
    "resize_method", "data_name", "num_parallel_workers", "ann_file", "resume", "show_published",
)  # fmt: skip
KEYS = (*FIGURE_KEYS, *OTHER_KEYS)


def settings_of(config: Config, backend: Backend) -> dict[str, Any]:
    """Lists what the figures depend on, to the last bit, but for the data; and the path of the weights."""
    import cv2

    return {
        "backend": backend.release,
        "precision": backend.precision,
        "opencv": cv2.__version__,
        "checkpoint": config.ckpt_path,
        "ckpt_sha256": content_hash(config.ckpt_path) if config.ckpt_path else f"random, seed {config.seed}",
        "device_target": backend.device_target,
        **{key: getattr(config, key) for key in FIGURE_KEYS},
    }


def main() -> int:
    """Runs the script; returns its exit status."""
    config = load_config(__doc__, keys=KEYS)
    if isinstance(config.resume, str):
        raise UsageError(f"resume: expected True or False for an evaluation, found {config.resume}")
    not_instead(config, "model_weights", "ckpt_path")
    start = time.perf_counter()
    datasets, left_out = open_sets(
        named_sets(config.data_name),
        lambda name: open_dataset(name, getattr(config, f"datapath_{name}"), config.eval_protocol),
        setting=lambda name: f"datapath_{name}",
        asked=f"data_name {config.data_name}",
    )
    model = open_model(config.ckpt_path, "ckpt_path")
    backend = choose_backend(model, **config.execution)
    print(f"{backend}, eval_protocol {config.eval_protocol}")
    config = settle(config, model)
    if model:
        config = replace(config, ckpt_path=str(model.path))
    predictor = load_predictor(model, "ckpt_path", backend, config.network, **config.predictor)
    settings = settings_of(config, backend)
    with (
        stop_between_items("asked to stop: the evaluation ends after this image") as requests,
        ResultFiles(config.ann_file, settings, datasets, config.resume) as files,
    ):
        if files.backed_up:
            copies = ", ".join(map(str, files.backed_up))
            print(f"earlier results are kept as {copies}; --resume True resumes an interrupted evaluation")
        results = evaluate_sets(
            datasets,
            lambda dataset, sample: predictor.prepare(sample.image, dataset.resize_method),
            predictor.infer,
            files,
            worker_count(config.num_parallel_workers),
            requests,
            "; --resume True resumes",
        )
    return conclude(
        results,
        left_out,
        config.eval_protocol,
        config.show_published,
        network_is_inverted(config.invert_output),
        f"{files.ann_file} and {files.details} written; {time.perf_counter() - start:.1f} s, "
        f"graph compilations: {predictor.compilations} (eval_shapes {config.eval_shapes})",
        config.eval_shapes == "fixed",
    )


if __name__ == "__main__":
    run_script(main)
