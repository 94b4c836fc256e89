"""Scores a network on the benchmark sets.

``python midas_eval.py --data_name Kitti,TUM --ckpt_path WEIGHTS`` writes the mean of each set to ``ann_file``
(val.json), and beside it a row per image to ``val_details.csv``, and metric, images, protocol, checkpoint and settings
to ``val_settings.json``. ``--data_name all`` evaluates the sets that are there. A new evaluation keeps the files of
earlier ones under numbers (``val.1.json`` ...). ``--resume True`` resumes an interrupted one.
"""

import sys
import time
from dataclasses import replace
from typing import Any

from src.common.errors import DataError, UsageError, run_script
from src.common.names import DATA_SETS
from src.common.progress import Progress
from src.common.stop import Requests, stop_between_items
from src.config import BACKEND_KEYS, NETWORK_KEYS, PREDICTION_KEYS, Config, load_config, settle
from src.evaluation.datasets import open_dataset
from src.evaluation.datasets.base import DatasetMissing, EvalDataset
from src.evaluation.evaluator import Fault, SetResult, evaluate, summarise
from src.evaluation.report import damaged, faults, remarks, warnings_of
from src.evaluation.results import ResultFiles, content_hash
from src.evaluation.table import format_table
from src.inference.backends import Backend, choose_backend, load_predictor, open_model
from src.inference.predictor import Predictor

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


def open_datasets(config: Config) -> tuple[list[EvalDataset], dict[str, DataError]]:
    """Opens the data sets that ``data_name`` asks for.

    A set that is asked for by its name must be there; of ``all``, those that are missing are left out. A damaged set
    is left out in any case. What is left out is printed.

    Returns:
        The data sets, and the name of each that is left out with the reason.

    Raises:
        UsageError: A set is not where it was looked for, or of ``all`` there is none.
        DataError: All that is there is damaged.
    """
    datasets, left_out = [], {}
    for name in config.data_names:
        try:
            datasets.append(open_dataset(name, getattr(config, f"datapath_{name}"), config.eval_protocol))
        except DataError as error:
            if isinstance(error, DatasetMissing) and name in config.required_data_names:
                raise UsageError(f"datapath_{name}: {error}") from error
            left_out[name] = error
    for name, error in left_out.items():
        print(f"{name} is left out: {error}", file=sys.stderr)
    if not datasets:
        kind = DataError if damaged(left_out) else UsageError
        raise kind(
            f"data_name {config.data_name}: expected at least one data set, found none to evaluate, see above; "
            "preprocess/readme.md says how to get the data"
        )
    return datasets, left_out


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


def evaluate_set(
    dataset: EvalDataset, predictor: Predictor, files: ResultFiles, workers: int, requests: Requests
) -> SetResult:
    """Evaluates the samples of a data set that have no row yet; faulty ones are reported and left out.

    Raises:
        StopRequest: There was a signal; it is looked at after each sample.
    """
    records = files.records_of(dataset)
    if records:
        print(f"{dataset.name}: {len(records)} of {len(dataset)} images are taken from {files.details}")
    done = {record.number for record in records}
    numbers = [number for number in range(1, len(dataset) + 1) if number not in done]
    faulty = 0
    with Progress(len(numbers), dataset.name) as progress:
        for outcome in evaluate(
            dataset,
            numbers,
            lambda sample: predictor.prepare(sample.image, dataset.resize_method),
            predictor.infer,
            workers,
        ):
            if isinstance(outcome, Fault):
                faulty += 1
                progress.write(f"left out: {outcome.text}")
            else:
                files.append(outcome)
                records.append(outcome)
            progress.update()
            requests.check(
                f"{len(records)} of {len(dataset)} images of {dataset.name} are kept in {files.details}; "
                "--resume True resumes"
            )
    return summarise(dataset, records, faulty)


def main() -> int:
    """Runs the script; returns its exit status."""
    config = load_config(__doc__, keys=KEYS)
    if isinstance(config.resume, str):
        raise UsageError(f"resume: expected True or False for an evaluation, found {config.resume}")
    start = time.perf_counter()
    datasets, left_out = open_datasets(config)
    model = open_model(config.ckpt_path, "ckpt_path")
    backend = choose_backend(model, **config.execution)
    print(f"{backend}, eval_protocol {config.eval_protocol}")
    config = settle(config, model)
    if model:
        config = replace(config, ckpt_path=str(model.path))
    predictor = load_predictor(model, "ckpt_path", backend, config.network, **config.prediction)
    results = []
    settings = settings_of(config, backend)
    with (
        stop_between_items("asked to stop: the evaluation ends after this image") as requests,
        ResultFiles(config.ann_file, settings, datasets, config.resume) as files,
    ):
        if files.backed_up:
            copies = ", ".join(map(str, files.backed_up))
            print(f"earlier results are kept as {copies}; --resume True resumes an interrupted evaluation")
        for dataset in datasets:
            results.append(evaluate_set(dataset, predictor, files, config.num_parallel_workers, requests))
            files.finish(results[-1])
    print(f"\n{format_table(results, config.eval_protocol, config.show_published)}")
    for line in remarks(results):
        print(line)
    sys.stdout.flush()
    for line in warnings_of(results, config.eval_protocol, config.invert_output):
        print(f"warning: {line}", file=sys.stderr)
    if left_out:
        print(f"not evaluated, see above: {', '.join(left_out)}")
    print(
        f"{files.ann_file} and {files.details} written; {time.perf_counter() - start:.1f} s, "
        f"graph compilations: {predictor.compilations} (eval_shapes {config.eval_shapes})"
    )
    incomplete = faults(results, left_out)
    for line in incomplete:
        print(f"error: {line}", file=sys.stderr)
    return 1 if incomplete else 0


if __name__ == "__main__":
    run_script(main)
