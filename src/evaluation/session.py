"""What every script that evaluates does: opens the sets that are asked for, evaluates them, tells what came out."""

import functools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, Callable, TypeVar

import numpy as np

from src.common.errors import DataError, UsageError, one_line
from src.common.progress import Progress
from src.common.stop import Requests
from src.evaluation.datasets.base import DatasetMissing, EvalDataset
from src.evaluation.evaluator import Fault, Sample, SetResult, evaluate, summarise
from src.evaluation.report import damaged, faults, remarks, warnings_of
from src.evaluation.results import ResultFiles
from src.evaluation.table import format_table

Opened = TypeVar("Opened")


def open_sets(
    named: Mapping[str, bool], open_one: Callable[[str], Opened], setting: Callable[[str], str], asked: str
) -> tuple[list[Opened], dict[str, DataError]]:
    """Opens the data sets that are asked for.

    A set that is asked for by its name must be there; of ``all``, those that are missing are left out. A damaged set
    is left out in any case. What is left out is printed.

    Args:
        named: Name of a data set -> whether it must be there.
        open_one: Opens a data set by its name; may raise DataError.
        setting: Name of a data set -> the setting that says where it is.
        asked: The setting that asks for the data sets, and its value.

    Returns:
        What ``open_one`` returned, and the name of each set that is left out with the reason.

    Raises:
        UsageError: A set is not where it was looked for, or of ``all`` there is none.
        DataError: All that is there is damaged.
    """
    opened, left_out = [], {}
    for name, is_required in named.items():
        try:
            opened.append(open_one(name))
        except DataError as error:
            if isinstance(error, DatasetMissing) and is_required:
                raise UsageError(f"{error.setting or setting(name)}: {error}") from error
            left_out[name] = error
    for name, error in left_out.items():
        print(f"{name} is left out: {error}", file=sys.stderr)
    if not opened:
        kind = DataError if damaged(left_out) else UsageError
        has_data = any(isinstance(error, DatasetMissing) and error.setting for error in left_out.values())
        hint = "" if has_data else "; preprocess/readme.md says how to get the data"
        raise kind(f"{asked}: expected at least one data set, found none to evaluate, see above{hint}")
    return opened, left_out


def evaluate_sets(
    datasets: Iterable[EvalDataset],
    prepare: Callable[[EvalDataset, Sample], Any],
    predict: Callable[[Any], np.ndarray],
    files: ResultFiles,
    workers: int,
    requests: Requests,
    resumes: str = "",
) -> list[SetResult]:
    """Evaluates the samples of data sets that have no row yet; faulty ones are reported and left out.

    Args:
        datasets: The data sets.
        prepare: Sample of a data set -> what ``predict`` takes; see ``evaluate``.
        predict: See ``evaluate``.
        files: Where the results go.
        workers: How many threads read and score.
        requests: Those to stop.
        resumes: How to go on after such a request: the end of the line that says what is kept.

    Raises:
        StopRequest: There was a signal; it is looked at after each sample.
    """
    results = []
    for dataset in datasets:
        records = files.records_of(dataset)
        if records:
            print(f"{dataset.name}: {len(records)} of {len(dataset)} images are taken from {files.details}")
        done = {record.number for record in records}
        numbers = [number for number in range(1, len(dataset) + 1) if number not in done]
        faulty = 0
        with Progress(len(numbers), dataset.name) as progress:
            for outcome in evaluate(dataset, numbers, functools.partial(prepare, dataset), predict, workers):
                if isinstance(outcome, Fault):
                    faulty += 1
                    progress.write(f"left out: {outcome.text}")
                else:
                    files.append(outcome)
                    records.append(outcome)
                progress.update()
                requests.check(
                    f"{len(records)} of {len(dataset)} images of {dataset.name} are kept in {files.details}{resumes}"
                )
        results.append(summarise(dataset, records, faulty))
        files.finish(results[-1])
    return results


class ShareScorer:
    """Scores a share of the samples of data sets again and again, as the network learns, and keeps nothing.

    Faulty samples are left out; each is reported once.

    Args:
        datasets: The data sets.
        workers: How many threads read and score.
        rank: Of each set, this process takes every ``world``-th sample, from this one on.
        world: Number of processes.
    """

    def __init__(self, datasets: Sequence[EvalDataset], workers: int, rank: int = 0, world: int = 1):
        self.datasets, self.workers, self.rank, self.world = datasets, workers, rank, world
        self._reported: set[str] = set()

    def __call__(self, predictor: Any, is_asked: Callable[[], bool] = lambda: False) -> list[tuple[str, float, int]]:
        """Scores.

        Args:
            predictor: Has the methods ``prepare`` and ``infer`` of a ``Predictor``.
            is_asked: Whether to stop: it is looked at before each sample, and the rest is then left out.

        Returns:
            For each set its name and its metric, the sum of the metric over the images that have one, and how many
            these are.
        """
        return [self._score(dataset, predictor, is_asked) for dataset in self.datasets]

    def _score(self, dataset: EvalDataset, predictor: Any, is_asked: Callable[[], bool]) -> tuple[str, float, int]:
        numbers = takewhile(lambda _: not is_asked(), range(1 + self.rank, len(dataset) + 1, self.world))
        values = []
        for outcome in evaluate(
            dataset,
            numbers,
            lambda sample: predictor.prepare(sample.image, dataset.resize_method),
            predictor.infer,
            self.workers,
        ):
            if isinstance(outcome, Fault):
                self._report(outcome.text)
            elif not math.isnan(outcome.value):
                values.append(outcome.value)
        return f"{dataset.name} {dataset.metric}", math.fsum(values), len(values)

    def _report(self, fault: str) -> None:
        if fault not in self._reported:
            self._reported.add(fault)
            print(f"left out of the validation: {one_line(fault)}", file=sys.stderr, flush=True)


def conclude(
    results: Sequence[SetResult],
    left_out: Mapping[str, DataError],
    protocol: str,
    show_published: bool,
    advice: str,
    written: str,
    fixed_size: bool = False,
) -> int:
    """Prints the table of an evaluation and all that is to be known beside it.

    Args:
        results: Of the sets that were evaluated.
        left_out: Name of a set that was not -> reason.
        protocol: ``"paper"`` or ``"modelzoo"``.
        show_published: See ``format_table``.
        advice: See ``warnings_of``.
        written: The line that says what was written.
        fixed_size: See ``format_table``.

    Returns:
        The exit status of the script: 1 if the evaluation is incomplete.
    """
    print(f"\n{format_table(results, protocol, show_published, fixed_size)}")
    for line in remarks(results):
        print(line)
    sys.stdout.flush()
    for line in warnings_of(results, protocol, advice):
        print(f"warning: {line}", file=sys.stderr)
    if left_out:
        print(f"not evaluated, see above: {', '.join(left_out)}")
    print(written)
    incomplete = faults(results, left_out)
    for line in incomplete:
        print(f"error: {line}", file=sys.stderr)
    return 1 if incomplete else 0
