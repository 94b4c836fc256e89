"""Training data: the source of samples, and the MindSpore pipeline that loads them."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from src.common.errors import DataError
from src.util import read_image, read_truth
from src.utils.mixdata import Pair
from src.utils.order import SampleOrder
from src.utils.transforms import NormalizeImage, PrepareForNet, Resize, use_one_opencv_thread
from src.utils.truth import inverse_depth_of, inverse_depth_range

COLUMNS = ("image", "target", "mask", "index")
_PREFETCHED_BATCHES = 4  # MindSpore's 16 would hold 380 MB of 8 x 384 x 384 samples ready


class LoadImagesDepth:
    """The training samples, by number: a map-style source, picklable.

    Args:
        pairs: The samples.
        width: Width of the network's input in pixels.
        height: Its height.
        mean: RGB mean, on the scale 0..1.
        std: RGB standard deviation, on the scale 0..1.
        ensure_multiple_of: Sides are made multiples of this.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        width: int,
        height: int,
        mean: Sequence[float],
        std: Sequence[float],
        ensure_multiple_of: int = 32,
    ):
        self.pairs = list(pairs)
        self._resize = Resize(width, height, ensure_multiple_of=ensure_multiple_of)
        self._normalize = NormalizeImage(mean, std)
        self._prepare = PrepareForNet()

    def __len__(self) -> int:
        return len(self.pairs)

    def image_paths(self, indices: Sequence[int]) -> list[str]:
        """Returns the image files of samples."""
        return [self.pairs[index].image_path for index in indices]

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Loads a sample. The pixels of picture and ground truth are those stored: they belong together.

        Returns:
            image, float32 (3, H, W), normalised RGB; target, float32 (H, W), inverse depth 0..255, larger is nearer
            (see ``truth.inverse_depth_of``); mask, float32 (H, W), 1 where there is ground truth and 0 elsewhere;
            index, int32 scalar.

        Raises:
            DataError: A file cannot be read.
        """
        pair = self.pairs[index]
        stored = read_truth(pair.depth_path)
        limits = inverse_depth_range(stored, pair.kind, pair.invalid)
        sample = self._resize({"image": read_image(pair.image_path, exif_rotation=False), "depth": stored})
        # Nearest neighbour picks pixels and mixes none, so the smaller image may as well be the one that is converted.
        sample["depth"], sample["mask"] = inverse_depth_of(sample["depth"], pair.kind, pair.invalid, limits)
        sample = self._prepare(self._normalize(sample))
        return sample["image"], sample["depth"], sample["mask"], np.int32(index)


class _Steps:
    """The rest of a run as a map-style source: item k is the stacked batch of its k-th step."""

    def __init__(self, source: Any, order: SampleOrder, first: int, count: int):
        self._source, self._order, self._first, self._count = source, order, first, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, step: int) -> tuple[np.ndarray, ...]:
        samples = [self._source[number] for number in self._order.samples(self._first + step).tolist()]
        return tuple(np.stack(column) for column in zip(*samples))


def create_dataset(source: Any, order: SampleOrder, first: int, count: int, num_parallel_workers: int) -> Any:
    """Makes the MindSpore pipeline of the rest of a run.

    One pipeline serves all epochs: its workers start once, and it never runs dry between epochs. (MindSpore's own
    samplers cannot do that: a sampler may not be longer than its source.) A worker makes whole batches, since MindSpore
    asks its workers for results ten times a second only.

    Args:
        source: Map-style source of (image, target, mask, index), e.g. ``LoadImagesDepth``.
        order: Which samples each step takes.
        first: The first step, counted from 0 in the whole run.
        count: How many steps.
        num_parallel_workers: Worker processes, forked from this one, at most one a core (MindSpore refuses more); with
            1, a thread of this process does the work.

    Returns:
        ``mindspore.dataset.Dataset`` of batches with the columns image (N, 3, H, W), target (N, H, W), mask (N, H, W)
        and index (N,), in the order of the steps whatever the number of workers.
    """
    import mindspore.dataset

    use_one_opencv_thread()
    workers = min(num_parallel_workers, os.cpu_count() or 1)
    mindspore.dataset.config.set_prefetch_size(_PREFETCHED_BATCHES)
    return mindspore.dataset.GeneratorDataset(
        _Steps(source, order, first, count),
        list(COLUMNS),
        shuffle=False,
        num_parallel_workers=workers,
        python_multiprocessing=workers > 1,
    )


def batches(dataset: Any) -> Iterator[tuple[Any, ...]]:
    """Iterates once over the batches of ``create_dataset``, as tuples of ``mindspore.Tensor``.

    Raises:
        DataError: A loader met a bad file. (MindSpore reports it as a RuntimeError of many lines.)
    """
    try:
        yield from dataset.create_tuple_iterator(num_epochs=1)
    except RuntimeError as error:
        faults = re.findall(r"^(?:src\.common\.errors\.)?DataError: (.*)$", str(error), re.MULTILINE)
        if not faults:
            raise
        raise DataError(faults[-1]) from error  # the first may head the traceback of a worker process
