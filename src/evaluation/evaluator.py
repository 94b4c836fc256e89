"""Evaluation of one data set in three steps: read a sample, predict, score.

Reading runs ahead of prediction in worker threads and scoring follows it there, so that the network need not wait for
files. What predicts is a callable: this module imports no MindSpore, and predictions that another program has left on
disk are scored in the same way.
"""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Callable, Optional, Union

import numpy as np

from src.common.ahead import run_ahead, thread_pool
from src.common.errors import DataError
from src.evaluation.datasets.base import DenseSample, EvalDataset, OrdinalSample
from src.evaluation.metric import Score, mean_over_images, score_dense, score_ordinal
from src.utils.transforms import resize_prediction

Sample = Union[DenseSample, OrdinalSample]


@dataclass(frozen=True)
class Record(Score):
    """Score of one image, and which image it is.

    Attributes:
        dataset: Name of the data set.
        image: Name of the sample.
        metric: See ``EvalDataset``.
        ms: Milliseconds that the prediction took, without reading and scoring; the network's compilation is in it
            where this image caused one.
        number: Of the sample in its data set, counted from 1.
    """

    dataset: str
    image: str
    metric: str
    ms: float
    number: int


@dataclass(frozen=True)
class Fault:
    """A sample that could not be read or scored.

    Attributes:
        number: Of the sample in its data set, counted from 1.
        text: One line that names the file or the sample.
    """

    number: int
    text: str


@dataclass(frozen=True)
class SetResult:
    """Result of one data set.

    Attributes:
        dataset: Name of the data set.
        version: Which one of its versions, see ``EvalDataset``; may be empty.
        metric: See ``EvalDataset``.
        value: Mean over the images that were scored; NaN if there are none.
        constant: The same of a constant prediction.
        scored: How many these are.
        benchmark_images: How many images the published benchmark has.
        empty: Names of the images without a valid pixel, which are left out of the mean.
        inverted: How many predictions are inverted: their fitted scale is below 0.
        faulty: How many samples could not be read or scored.
        abs_rel: Mean over the images; None for ordinal data, as the next two.
        delta1: Mean over the images of the share with max(d / d*, d* / d) < 1.25.
        rmse_m: Mean over the images, metres.
    """

    dataset: str
    version: str
    metric: str
    value: float
    constant: float
    scored: int
    benchmark_images: int
    empty: tuple[str, ...]
    inverted: int
    faulty: int
    abs_rel: Optional[float] = None
    delta1: Optional[float] = None
    rmse_m: Optional[float] = None

    @property
    def is_whole(self) -> bool:
        """Whether the images are as many as the benchmark has."""
        return self.scored + len(self.empty) == self.benchmark_images


def score_prediction(dataset: EvalDataset, sample: Sample, inverse_depth: np.ndarray) -> Score:
    """Resizes a prediction to the size of its ground truth and scores it.

    Args:
        dataset: Where the sample is from: decides metric, cap and how to resize.
        sample: Its ground truth counts; the picture gives its size alone.
        inverse_depth: Float array (h, w) of any size, scale and shift; larger is nearer.

    Raises:
        DataError: The prediction is not finite.
    """
    resized = resize_prediction(inverse_depth, *sample.image.shape[:2], half_pixel=dataset.half_pixel)
    try:
        if isinstance(sample, OrdinalSample):
            return score_ordinal(resized, sample.points, sample.relation)
        return score_dense(resized, sample.depth, sample.valid, dataset.metric, dataset.cap_m)
    except DataError as error:
        raise DataError(f"{dataset.name} {sample.name}: {error}") from error


def evaluate(
    dataset: EvalDataset,
    numbers: Iterable[int],
    prepare: Callable[[Sample], Any],
    predict: Callable[[Any], np.ndarray],
    workers: int = 2,
) -> Iterator[Union[Record, Fault]]:
    """Reads, predicts and scores samples; what is wrong with one of them does not stop the others.

    At most ``workers + 1`` samples wait for their prediction, and as many for their score: memory is bounded. The
    workers are threads: decoding and resizing release Python's lock, and nothing has to be copied between processes.

    Args:
        dataset: The data set.
        numbers: Which samples, counted from 1.
        prepare: Sample -> what ``predict`` takes; called in the workers, may raise DataError.
        predict: Result of ``prepare`` -> inverse depth (h, w); called in this thread, one sample after the other.
        workers: How many threads read and score.

    Yields:
        A Record or a Fault for every sample, in the order of ``numbers``.
    """

    def read(number: int) -> Union[tuple, Fault]:
        try:
            sample = dataset[number - 1]
            return number, sample, prepare(sample)
        except DataError as error:
            return Fault(number, str(error))

    def infer(loaded: Union[tuple, Fault]) -> Union[tuple, Fault]:
        if isinstance(loaded, Fault):
            return loaded
        number, sample, prepared = loaded
        start = time.perf_counter()
        inverse_depth = predict(prepared)
        return number, sample, inverse_depth, 1000 * (time.perf_counter() - start)

    def score(predicted: Union[tuple, Fault]) -> Union[Record, Fault]:
        if isinstance(predicted, Fault):
            return predicted
        number, sample, inverse_depth, ms = predicted
        try:
            values = vars(score_prediction(dataset, sample, inverse_depth))
        except DataError as error:
            return Fault(number, str(error))
        return Record(**values, dataset=dataset.name, image=sample.name, metric=dataset.metric, ms=ms, number=number)

    with thread_pool(workers) as pool:
        loaded = run_ahead(pool, read, numbers, workers)
        yield from run_ahead(pool, score, map(infer, loaded), workers, at_once=True)


def summarise(dataset: EvalDataset, records: Iterable[Record], faulty: int) -> SetResult:
    """Averages the records of a data set, whatever their order.

    Args:
        dataset: The data set.
        records: Its records.
        faulty: How many samples have none.
    """
    records = list(records)
    empty = tuple(record.image for record in records if math.isnan(record.value))

    def mean(field: str) -> Optional[float]:
        values = [getattr(record, field) for record in records]
        return None if None in values else mean_over_images(values)

    return SetResult(
        dataset=dataset.name,
        version=dataset.version,
        metric=dataset.metric,
        value=mean_over_images(record.value for record in records),
        constant=mean_over_images(record.constant for record in records),
        scored=len(records) - len(empty),
        benchmark_images=dataset.benchmark_images,
        empty=empty,
        inverted=sum(record.inverted for record in records),
        faulty=faulty,
        **{field: mean(field) for field in ("abs_rel", "delta1", "rmse_m")},
    )
