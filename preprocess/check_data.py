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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Union

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.common.errors import DataError, UsageError, run_script
from src.common.progress import Progress
from src.config import load_config
from src.evaluation.datasets import open_dataset
from src.evaluation.datasets.base import DatasetMissing, EvalDataset, OrdinalSample
from src.util import read_gray, read_image
from src.utils.mixdata import Pair, check_pairs, list_pairs, read_mixdata

MAX_NAMED = 20  # faults printed per set


@dataclass
class Report:
    """What was found of one data set.

    Attributes:
        name: The data set.
        missing: Where it was looked for, if there is nothing.
        samples: How many samples it lists.
        detail: What the sample that was decoded in depth looks like.
        faults: One line each.
    """

    name: str
    missing: str = ""
    samples: int = 0
    detail: str = ""
    faults: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        """``missing``, ``broken`` or ``ready``."""
        if self.missing:
            return "missing"
        return "broken" if self.faults else "ready"

    def lines(self) -> list[str]:
        """The report in words."""
        parts = [self.missing] if self.missing else [f"{self.samples} samples", self.detail]
        named = [f"    {fault}" for fault in self.faults[:MAX_NAMED]]
        if len(self.faults) > MAX_NAMED:
            named.append(f"    ... and {len(self.faults) - MAX_NAMED} more")
        return [f"{self.name:<10}{self.status:<9}{'; '.join(filter(None, parts))}", *named]


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


def check_training(root: Path, every: bool, workers: int) -> Report:
    """Checks the training set."""
    report = Report("training")
    mixdata = root / "mixdata.json"
    if not mixdata.is_file():
        report.missing = f"{mixdata}: no such file"
        return report
    try:
        tables = read_mixdata(mixdata)
        patterns = [*tables["img"].values(), *tables["depth"].values()]
        if not any(glob.glob(glob.escape(str(root)) + pattern) for pattern in patterns):
            report.missing = f"{root}: no file matches {', '.join(patterns)}"
            return report
        pairs, report.faults = list_pairs(root, mixdata)
        report.samples = len(pairs)
        if pairs:
            report.faults += check_pairs(pairs if every else pairs[:1], workers)[1]
            if not report.faults:
                report.detail = describe_pair(pairs[0])
    except DataError as error:
        report.faults.append(str(error))
    return report


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


def check_dataset(name: str, path: Union[str, tuple[str, ...]], every: bool, workers: int) -> Report:
    """Checks one evaluation set, at the path or paths that the setting ``datapath_NAME`` gives."""
    report = Report(name)
    try:
        dataset = open_dataset(name, path)
    except DataError as error:
        folder = Path(path) if isinstance(path, str) else Path(path[0]).parent
        if isinstance(error, DatasetMissing) and not (folder.is_dir() and any(folder.iterdir())):
            report.missing = str(error)
        else:  # something is there, but not what is expected
            report.faults.append(str(error))
        return report

    report.samples = len(dataset)
    faults = dataset.listing_faults()
    listed = [index for index in range(len(dataset)) if index not in faults]
    chosen = listed if every else listed[:1]

    def read(index: int) -> str:
        try:
            return describe_sample(dataset, index)
        except DataError as error:
            faults[index] = str(error)
            return ""

    with ThreadPoolExecutor(workers) as pool, Progress(len(chosen), name, "samples") as progress:
        for description in pool.map(read, chosen):
            report.detail = report.detail or description
            progress.update()
    report.faults = [faults[index] for index in sorted(faults)]
    return report


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Checks a data folder and prints one block per data set."""
    parser = argparse.ArgumentParser(description="Check which data sets are ready.")
    default = Path(__file__).resolve().parents[1] / "data"
    parser.add_argument("data_dir", nargs="?", type=Path, default=default, help="data folder (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="decode every sample, not only the first of each set")
    options = parser.parse_args(arguments)
    if not options.data_dir.is_dir():
        raise UsageError(f"{options.data_dir}: expected the data folder, found none")

    workers = os.cpu_count() or 1
    reports = [check_training(options.data_dir, options.all, workers)]
    config = load_config("", ["--train_data_dir", str(options.data_dir)])
    reports += [
        check_dataset(name, getattr(config, f"datapath_{name}"), options.all, workers) for name in config.data_names
    ]
    for report in reports:
        print("\n".join(report.lines()))
    statuses = [report.status for report in reports]
    return 0 if "ready" in statuses and "broken" not in statuses else 1


if __name__ == "__main__":
    run_script(main)
