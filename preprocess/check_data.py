"""Says which data sets are ready under a data folder, and what is wrong with the others.

    python preprocess/check_data.py [DATA_DIR] [--mixdata FILE] [--all]

Looks for the training sets (mixdata.json, or FILE, and the files that it names) and the six evaluation sets at their
documented places, lists their samples, finds files without a partner, and decodes up to 24 samples of each training set
and the first of each evaluation set; ``--all`` decodes every sample. Of each training set it prints what its ground
truth looks like, and warns of what suggests a wrong entry in mixdata.json; of several sets it says how their sizes
compare.

Exit status: 0 if at least one set is ready and nothing that was found is broken, else 1; warnings do not count.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Union

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.common.ahead import thread_pool
from src.common.errors import DataError, UsageError, run_script
from src.common.progress import Progress
from src.config import REPOSITORY, load_config
from src.evaluation.datasets import open_dataset
from src.evaluation.datasets.base import DatasetMissing, EvalDataset, OrdinalSample
from src.utils.mixdata import (
    CheckedPairs,
    Pair,
    check_pairs,
    describe_mixture,
    describe_sets,
    find_files,
    list_pairs,
    read_mixdata,
    set_sizes,
    warnings_of,
)

MAX_NAMED = 20  # faults printed per set
MOST_READ = 24  # pairs of a training set without --all: enough to see what its ground truth is
WORKERS = os.cpu_count() or 1


class Found(NamedTuple):
    """What was found of a data set: a summary, a line for each fault, and further lines for the reader."""

    summary: str
    faults: list[str]
    notes: Sequence[str] = ()


def spread_sample(pairs: Sequence[Pair]) -> list[int]:
    """Returns the indices of up to ``MOST_READ`` pairs of each set, evenly spread over it, ascending."""
    of_set: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        of_set.setdefault(pair.dataset, []).append(index)
    chosen = []
    for indices in of_set.values():
        count = min(len(indices), MOST_READ)
        chosen += [indices[number * len(indices) // count] for number in range(count)]
    return sorted(chosen)


def find_constant_sets(pairs: Sequence[Pair], checked: CheckedPairs) -> list[str]:
    """Returns a line for each set whose ground truths that were read hold one and the same value everywhere."""
    values: dict[str, set] = {}
    for index, statistics in zip(checked.good, checked.statistics):
        if statistics.sky:
            values.setdefault(pairs[index].dataset, set()).add(-math.inf)
        values.setdefault(pairs[index].dataset, set()).update((statistics.low, statistics.high))
    return [
        f"{name}: expected ground truth that varies, found {found.pop():g} everywhere"
        for name, found in values.items()
        if len(found) == 1 and None not in found
    ]


def check_training(root: Path, mixdata: Path, every: bool) -> Found:
    """Checks the training sets that a file lists.

    Raises:
        DatasetMissing: There is nothing.
        DataError: They cannot be listed.
    """
    if not mixdata.is_file():
        raise DatasetMissing(f"{mixdata}: no such file")
    patterns = [pattern for entry in read_mixdata(mixdata) for pattern in (entry.images, entry.depths)]
    if not any(find_files(root, pattern) for pattern in patterns):
        raise DatasetMissing(f"{root}: no file matches {', '.join(patterns)}")
    pairs, unpaired = list_pairs(root, mixdata)
    chosen = list(range(len(pairs))) if every else spread_sample(pairs)
    checked = check_pairs([pairs[index] for index in chosen], WORKERS)
    checked = checked._replace(good=[chosen[number] for number in checked.good])  # numbered among all pairs
    faults = unpaired + checked.faults + find_constant_sets(pairs, checked)
    warnings = [f"warning: {line}" for line in warnings_of(pairs, checked)]
    notes, sizes = describe_sets(pairs, checked), set_sizes(pairs)
    if len(sizes) > 1:
        notes.append(describe_mixture(sizes, len(pairs)))
    notes += warnings
    return Found(f"{len(pairs)} pairs, {len(chosen)} read", faults, notes)


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


def check_dataset(name: str, path: Union[str, tuple[str, ...]], every: bool) -> Found:
    """Checks one evaluation set, at the path or paths that the setting ``datapath_NAME`` gives.

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

    with thread_pool(WORKERS) as pool, Progress(len(chosen), name, "samples") as progress:
        for description in pool.map(read, chosen):
            detail = detail or description
            progress.update()
    return Found(f"{len(dataset)} samples; {detail}", [faults[index] for index in sorted(faults)])


def print_report(name: str, check: Callable[..., Found], *arguments: Any) -> str:
    """Checks a data set, prints what was found, and returns ``ready``, ``missing`` or ``broken``."""
    try:
        found = check(*arguments)
        status = "broken" if found.faults else "ready"
    except DatasetMissing as error:
        status, found = "missing", Found(str(error), [])
    except DataError as error:
        status, found = "broken", Found("", [str(error)])
    print(f"{name:<10}{status:<9}{found.summary}".rstrip("; "))
    for line in (*found.notes, *found.faults[:MAX_NAMED]):
        print(f"    {line}")
    if len(found.faults) > MAX_NAMED:
        print(f"    ... and {len(found.faults) - MAX_NAMED} more")
    return status


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Checks a data folder and prints one block per data set."""
    parser = argparse.ArgumentParser(description="Check which data sets are ready.")
    default = REPOSITORY / "data"
    parser.add_argument("data_dir", nargs="?", type=Path, default=default, help="data folder (default: %(default)s)")
    parser.add_argument(
        "--mixdata", type=Path, metavar="FILE", help="list of the training sets (default: mixdata.json)"
    )
    parser.add_argument("--all", action="store_true", help="decode every sample, not only some of each set")
    options = parser.parse_args(arguments)
    if not options.data_dir.is_dir():
        raise UsageError(f"{options.data_dir}: expected the data folder, found none")
    mixdata = options.mixdata or options.data_dir / "mixdata.json"
    if options.mixdata and not mixdata.is_file():
        raise UsageError(f"--mixdata {mixdata}: expected a list of training sets, found no such file")
    config = load_config("", ["--train_data_dir", str(options.data_dir)])
    statuses = [print_report("training", check_training, options.data_dir, mixdata, options.all)]
    for name in config.data_names:
        statuses.append(print_report(name, check_dataset, name, getattr(config, f"datapath_{name}"), options.all))
    return 0 if "ready" in statuses and "broken" not in statuses else 1


if __name__ == "__main__":
    run_script(main)
