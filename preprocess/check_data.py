"""Says which data sets are ready under a data folder, and what is wrong with the others.

    python preprocess/check_data.py [DATA_DIR] [--all]

Looks for the training set (mixdata.json and the files that it names) and the six evaluation sets at their documented
places, lists their samples, finds files without a partner, and decodes the first sample of each; ``--all`` decodes
every sample. Exit status: 0 if at least one set is ready and nothing that was found is broken, else 1.
"""

import argparse
import glob
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Optional, Union

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.common.errors import DataError, UsageError, run_script
from src.common.progress import Progress
from src.config import REPOSITORY, load_config
from src.evaluation.datasets import open_dataset
from src.evaluation.datasets.base import DatasetMissing, EvalDataset, OrdinalSample
from src.util import read_gray, read_image
from src.utils.mixdata import Pair, check_pairs, list_pairs, read_mixdata

MAX_NAMED = 20  # faults printed per set
WORKERS = os.cpu_count() or 1


def describe_pair(pair: Pair) -> str:
    """Reads a training pair in depth.

    Raises:
        DataError: A file cannot be read, or the ground truth is constant.
    """
    height, width = read_image(pair.image_path).shape[:2]
    truth = read_gray(pair.depth_path)
    low, high = int(truth.min()), int(truth.max())
    if low == high:
        raise DataError(f"{pair.depth_path}: expected inverse depth, found {low} everywhere")
    return f"{Path(pair.image_path).name}: {height} x {width}, inverse depth {low}..{high} ({truth.dtype})"


def check_training(root: Path, every: bool) -> tuple[str, list[str]]:
    """Checks the training set.

    Returns:
        What it holds, and one line for each fault.

    Raises:
        DatasetMissing: There is nothing.
        DataError: It cannot be listed, or its first pair has no values.
    """
    mixdata = root / "mixdata.json"
    if not mixdata.is_file():
        raise DatasetMissing(f"{mixdata}: no such file")
    patterns = [pattern for entry in read_mixdata(mixdata) for pattern in (entry.images, entry.depths)]
    if not any(glob.glob(glob.escape(str(root)) + pattern) for pattern in patterns):
        raise DatasetMissing(f"{root}: no file matches {', '.join(patterns)}")
    pairs, faults = list_pairs(root, mixdata)
    faults += check_pairs(pairs if every else pairs[:1], WORKERS)[1]
    detail = describe_pair(pairs[0]) if pairs and not faults else ""
    return f"{len(pairs)} samples; {detail}", faults


def describe_sample(dataset: EvalDataset, index: int) -> str:
    """Reads a sample in depth.

    Raises:
        DataError: The sample cannot be read, or has no valid pixel.
    """
    sample = dataset[index]
    size = f"{sample.name}: {sample.image.shape[0]} x {sample.image.shape[1]}"
    if isinstance(sample, OrdinalSample):
        return f"{size}, pairs of points: {len(sample.relation)}"
    if not sample.valid.any():
        raise DataError(f"{dataset.name} {sample.name}: expected depth between 0 and {dataset.cap_m:g} m, found none")
    depth = sample.depth[sample.valid]
    return f"{size}, depth {depth.min():.2f}..{depth.max():.2f} m on {100 * sample.valid.mean():.1f} % of the pixels"


def check_dataset(name: str, path: Union[str, tuple[str, ...]], every: bool) -> tuple[str, list[str]]:
    """Checks one evaluation set, at the path or paths that the setting ``datapath_NAME`` gives.

    Returns:
        What it holds, and one line for each fault.

    Raises:
        DatasetMissing: There is nothing.
        DataError: It cannot be listed.
    """
    try:
        dataset = open_dataset(name, path)
    except DatasetMissing as error:
        folder = Path(path) if isinstance(path, str) else Path(path[0]).parent
        if folder.is_dir() and any(folder.iterdir()):
            raise DataError(str(error)) from error  # something is there, but not what is expected
        raise
    faults = dataset.listing_faults()
    listed = [index for index in range(len(dataset)) if index not in faults]
    chosen = listed if every else listed[:1]
    detail = ""

    def read(index: int) -> str:
        try:
            return describe_sample(dataset, index)
        except DataError as error:
            faults[index] = str(error)
            return ""

    with ThreadPoolExecutor(WORKERS) as pool, Progress(len(chosen), name, "samples") as progress:
        for description in pool.map(read, chosen):
            detail = detail or description
            progress.update()
    return f"{len(dataset)} samples; {detail}", [faults[index] for index in sorted(faults)]


def print_report(name: str, check: Callable[..., tuple[str, list[str]]], *arguments: Any) -> str:
    """Checks a data set, prints what was found, and returns ``ready``, ``missing`` or ``broken``."""
    try:
        summary, faults = check(*arguments)
        status = "broken" if faults else "ready"
    except DatasetMissing as error:
        status, summary, faults = "missing", str(error), []
    except DataError as error:
        status, summary, faults = "broken", "", [str(error)]
    print(f"{name:<10}{status:<9}{summary}".rstrip("; "))
    for fault in faults[:MAX_NAMED]:
        print(f"    {fault}")
    if len(faults) > MAX_NAMED:
        print(f"    ... and {len(faults) - MAX_NAMED} more")
    return status


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Checks a data folder and prints one block per data set."""
    parser = argparse.ArgumentParser(description="Check which data sets are ready.")
    default = REPOSITORY / "data"
    parser.add_argument("data_dir", nargs="?", type=Path, default=default, help="data folder (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="decode every sample, not only the first of each set")
    options = parser.parse_args(arguments)
    if not options.data_dir.is_dir():
        raise UsageError(f"{options.data_dir}: expected the data folder, found none")
    config = load_config("", ["--train_data_dir", str(options.data_dir)])
    statuses = [print_report("training", check_training, options.data_dir, options.all)]
    for name in config.data_names:
        statuses.append(print_report(name, check_dataset, name, getattr(config, f"datapath_{name}"), options.all))
    return 0 if "ready" in statuses and "broken" not in statuses else 1


if __name__ == "__main__":
    run_script(main)
