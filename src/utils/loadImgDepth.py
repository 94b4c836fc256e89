"""Training data: the source of samples, and the MindSpore pipeline that loads them."""

import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Optional

import numpy as np

from src.common.errors import DataError, end_at_once
from src.util import read_image
from src.utils.augmentation import Augmentation, View
from src.utils.mixdata import Pair, read_ground_truth
from src.utils.order import SampleOrder
from src.utils.transforms import NormalizeImage, PrepareForNet, Resize, use_one_opencv_thread
from src.utils.truth import TOP, inverse_depth_of, inverse_depth_range

COLUMNS = ("image", "target", "mask")
_TICK_S = 0.02  # between two looks at the loaders
_PATIENCE_S = 0.5  # how long a batch may be waited for when a loader has died: some may be ready
_PREFETCHED_BATCHES = 4  # MindSpore's 16 would hold 380 MB of 8 x 384 x 384 samples ready


class LoadImagesDepth:
    """The training samples, by number; picklable.

    Args:
        pairs: The samples.
        width: Width of the network's input in pixels.
        height: Its height.
        mean: RGB mean, on the scale 0..1.
        std: RGB standard deviation, on the scale 0..1.
        ensure_multiple_of: Sides are made multiples of this.
        target_range: Targets span 0..1, or 0..255 where 8-bit values keep their units, see ``truth.inverse_depth_of``.
        augmentation: Which view of a sample ``load`` returns; by default the whole of it, as it is.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        width: int,
        height: int,
        mean: Sequence[float],
        std: Sequence[float],
        ensure_multiple_of: int = 32,
        target_range: int = TOP,
        augmentation: Optional[Augmentation] = None,
    ):
        self.pairs = list(pairs)
        self._top = target_range
        self._augmentation = augmentation
        self._resize = Resize(width, height, ensure_multiple_of=ensure_multiple_of)
        width, height = self._resize.get_size(width, height)  # rounded to multiples
        self._aspect = width / height
        self._normalize = NormalizeImage(mean, std)
        self._prepare = PrepareForNet()

    def __len__(self) -> int:
        return len(self.pairs)

    def image_paths(self, indices: Sequence[int]) -> list[str]:
        """Returns the image files of samples."""
        return [self.pairs[index].image_path for index in indices]

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Loads a sample as it is. The pixels of picture and ground truth are those stored: they belong together.

        Returns:
            image, float32 (3, H, W), normalised RGB; target, float32 (H, W), inverse depth from 0 to the target range,
            larger is nearer (see ``truth.inverse_depth_of``); mask, float32 (H, W), 1 where there is ground truth and
            0 elsewhere.

        Raises:
            DataError: A file cannot be read.
        """
        return self._load(self.pairs[number], View())

    def load(self, number: int, turn: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Loads a sample for the training: augmented, if that is asked for.

        Args:
            number: Of the sample.
            turn: How often the run has been through its set before: each time the augmentation is another.

        Returns:
            As for ``source[number]``. The range of the target is that of the whole image.
        """
        return self._load(self.pairs[number], self._augmentation.view(number, turn) if self._augmentation else View())

    def _load(self, pair: Pair, view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        stored, marks = read_ground_truth(pair)
        limits = inverse_depth_range(stored, pair.truth, marks, self._top)
        image = read_image(pair.image_path, exif_rotation=False)
        sample = {"image": image, "depth": stored}
        if marks is not None:
            sample["mask"] = marks
        sample = {key: view.crop(part, self._aspect, image.shape[:2]) for key, part in sample.items()}
        sample = self._resize(sample)
        # Only what has been resized is mirrored: nearest neighbour takes other pixels from a mirrored image.
        sample = {key: view.mirror(part) for key, part in sample.items()}
        # It picks pixels and mixes none, so the smaller image may as well be the one that is converted.
        sample["depth"], sample["mask"] = inverse_depth_of(
            sample["depth"], pair.truth, limits, sample.get("mask"), self._top
        )
        sample = self._prepare(self._normalize(sample))
        return sample["image"], sample["depth"], sample["mask"]


class _Steps:
    """The rest of a run as a map-style source: item k is the stacked batch of its k-th step."""

    def __init__(self, source: Any, order: SampleOrder, start: int, count: int):
        self._source, self._order, self._start, self._count = source, order, start, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, step: int) -> tuple[np.ndarray, ...]:
        start = self._start + step * self._order.images_per_step
        samples = [self._source.load(*visit) for visit in self._order.visits(start).tolist()]
        return tuple(np.stack(column) for column in zip(*samples))


def create_dataset(source: Any, order: SampleOrder, start: int, count: int, num_parallel_workers: int) -> Any:
    """Makes the MindSpore pipeline of the rest of a run.

    One pipeline serves all epochs: its workers start once, and it never runs dry between epochs. (MindSpore's own
    samplers cannot do that: a sampler may not be longer than its source.) A worker makes whole batches, since MindSpore
    asks its workers for results ten times a second only.

    Args:
        source: Its ``load(number, turn)`` returns a sample (image, target, mask), e.g. ``LoadImagesDepth``.
        order: Which samples each step takes.
        start: Where the first step starts in the stream of samples, see ``SampleOrder``.
        count: How many steps.
        num_parallel_workers: Worker processes, forked from this one, at most one a core (MindSpore refuses more); with
            1, a thread of this process does the work.

    Returns:
        ``mindspore.dataset.Dataset`` of batches with the columns image (N, 3, H, W), target (N, H, W) and
        mask (N, H, W), in the order of the steps whatever the number of workers.
    """
    import mindspore.dataset

    use_one_opencv_thread()
    workers = min(num_parallel_workers, os.cpu_count() or 1)
    mindspore.dataset.config.set_prefetch_size(_PREFETCHED_BATCHES)
    # It would send SIGTERM to this process when a loader dies, as if somebody had asked for that. ``Batches`` watches.
    mindspore.dataset.config.set_enable_watchdog(False)
    return mindspore.dataset.GeneratorDataset(
        _Steps(source, order, start, count),
        list(COLUMNS),
        shuffle=False,
        num_parallel_workers=workers,
        python_multiprocessing=workers > 1,
    )


class Batches:
    """Iterates once over the batches of ``create_dataset``, as tuples of ``mindspore.Tensor``; a context manager.

    Args:
        dataset: Of ``create_dataset``.
        give_up: Called in a thread, with what has happened, when a loader has died and MindSpore waits for its batch,
            which it does for ever and cannot be interrupted in. It has to end the process, as the default does.

    Raises:
        DataError: While iterating: a loader met a bad file, or died. (MindSpore reports both as a RuntimeError of many
            lines.)
    """

    def __init__(self, dataset: Any, give_up: Callable[[str], None] = lambda fault: end_at_once(DataError(fault))):
        # and one that ends them if this process dies
        self._loader_count = dataset.num_parallel_workers + 1 if dataset.python_multiprocessing else 0
        self._others = {process.pid for process in multiprocessing.active_children()}
        self._loaders: list[multiprocessing.Process] = []
        self._iterator = dataset.create_tuple_iterator(num_epochs=1)
        self._give_up = give_up
        self._waits_since: Optional[float] = None
        self._is_closed = threading.Event()
        self._turn = threading.Lock()  # of whoever gives up or goes on: a step must not change what is being saved
        self._watch = threading.Thread(target=self._watch_loaders, name="loaders", daemon=True)

    def __enter__(self) -> "Batches":
        self._watch.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_closed.set()
        self._watch.join()
        with suppress(AttributeError):  # MindSpore's own; its thread would wait for ever for a batch of a killed loader
            self._iterator.dataset.sample_fn.eof.set()
        for process in self._loaders:
            with suppress(ValueError):  # MindSpore has closed it
                process.kill()  # it would wait for it, 5 s
        self._iterator.stop()
        del self._iterator

    def _watch_loaders(self) -> None:
        while not self._is_closed.wait(_TICK_S):
            if len(self._loaders) < self._loader_count:  # they are started while the first batch is waited for
                known = {*self._others, *(process.pid for process in self._loaders)}
                self._loaders += [child for child in multiprocessing.active_children() if child.pid not in known]
            with self._turn:
                since = self._waits_since
                if since is not None and time.monotonic() - since > _PATIENCE_S:
                    fault = self.find_dead_loader()
                    if fault:
                        self._give_up(fault)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        while True:
            self._waits_since = time.monotonic()
            try:
                batch = next(self._iterator, None)
            except RuntimeError as error:
                faults = re.findall(r"^(?:src\.common\.errors\.)?DataError: (.*)$", str(error), re.MULTILINE)
                # of several, the first may head the traceback of a worker process
                fault = faults[-1] if faults else self.find_dead_loader()
                if not fault:
                    raise
                raise DataError(fault) from error
            finally:
                with self._turn:
                    self._waits_since = None
            if batch is None:
                return
            yield batch

    def find_dead_loader(self) -> str:
        """Says which loader process has died of what, and what to do about it; empty if all are well."""
        for process in self._loaders:
            with suppress(ValueError):  # MindSpore has closed it
                if process.exitcode:
                    return f"loader process {process.pid} {_death(process.exitcode)}"
        return ""


def _death(exit_code: int) -> str:
    """Says what an exit code of a loader means."""
    number = -exit_code
    if number == signal.SIGBUS:
        size_mib = shutil.disk_usage("/dev/shm").total >> 20 if os.path.isdir("/dev/shm") else 0
        return (
            f"died of SIGBUS: shared memory is full (/dev/shm holds {size_mib} MiB); enlarge it (docker run --shm-size "
            "2g), or load without it: --num_parallel_workers 1"
        )
    if number == signal.SIGKILL:
        return "died of SIGKILL: memory may have run out; try a smaller --num_parallel_workers or --batch_size"
    what = f"ended with status {exit_code}" if number < 0 else f"died of signal {number}"
    return f"{what}; --num_parallel_workers 1 loads without such processes"
