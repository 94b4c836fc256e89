"""Training data: pairs of pictures and ground-truth inverse depth, their order, and the pipeline that loads them.

A ``mixdata.json`` names the training sets by globs under a data root::

    {"img": {"RW": "/ReDWeb_V1/Imgs/*"}, "depth": {"RW": "/ReDWeb_V1/RDs/*"}, "invalid": {"RW": 0}}

Picture and ground truth belong together when their file names agree but for the extension. ``invalid`` is optional: it
names the ground-truth value that means "missing"; without it every pixel counts.
"""

import glob
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import cv2
import numpy as np

from src.common.atomic import write_text
from src.common.errors import DataError
from src.common.progress import Progress
from src.util import read_gray, read_image
from src.utils.transforms import NormalizeImage, PrepareForNet, Resize

PathLike = Union[str, Path]

COLUMNS = ("image", "mask", "target", "index")
_PREFETCHED_BATCHES = 4  # MindSpore's 16 would hold 380 MB of 8 x 384 x 384 samples ready
_MAX_ASPECT_CHANGE = 1.1  # between a picture and its ground truth; a forgotten rotation is far above, a crop below


@dataclass(frozen=True)
class Pair:
    """A training sample on disk.

    Attributes:
        dataset: Name of its set in mixdata.json.
        image_path: The picture.
        depth_path: Its inverse depth, one channel of 8 or 16 bits, larger is nearer.
        invalid: The value of the inverse depth that means "missing", if there is one.
    """

    dataset: str
    image_path: str
    depth_path: str
    invalid: Optional[int] = None


def read_mixdata(mixdata_path: PathLike) -> dict[str, dict[str, Any]]:
    """Reads and checks a mixdata.json.

    Returns:
        The tables ``img`` and ``depth`` (set name to glob) and ``invalid`` (set name to value, possibly empty).

    Raises:
        DataError: The file is missing or malformed.
    """
    try:
        content = json.loads(Path(mixdata_path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{mixdata_path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{mixdata_path}: expected JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(table, dict) for table in content.values()):
        raise DataError(f'{mixdata_path}: expected an object of the tables "img", "depth" and optionally "invalid"')
    tables: dict[str, dict[str, Any]] = {"invalid": {}, **content}
    unknown = sorted(set(tables) - {"img", "depth", "invalid"})
    if unknown:
        raise DataError(f'{mixdata_path}: unknown key "{unknown[0]}"; expected "img", "depth", "invalid"')
    for key in ("img", "depth"):
        if not tables.get(key):
            raise DataError(f'{mixdata_path}: "{key}" names no set; expected a table of globs')
        for name, pattern in tables[key].items():
            if not isinstance(pattern, str) or not pattern.startswith("/"):
                raise DataError(
                    f'{mixdata_path}: "{key}"."{name}": expected a glob that starts with "/", found {pattern!r}'
                )
    for key, other in (("img", "depth"), ("depth", "img"), ("invalid", "img")):
        alone = sorted(set(tables[key]) - set(tables[other]))
        if alone:
            raise DataError(f'{mixdata_path}: set "{alone[0]}" is in "{key}" but not in "{other}"')
    for name, value in tables["invalid"].items():
        if type(value) is not int or not 0 <= value <= 65535:
            raise DataError(
                f'{mixdata_path}: "invalid"."{name}": expected a whole number from 0 to 65535, found {value!r}'
            )
    return tables


def list_pairs(data_root: PathLike, mixdata_path: PathLike) -> tuple[list[Pair], list[str]]:
    """Lists the training pairs without opening them.

    Args:
        data_root: Folder that the globs start from.
        mixdata_path: The mixdata.json.

    Returns:
        The pairs, sorted by set and file name so that the order does not depend on the machine, and one line for
        every file that has no partner or more than one.

    Raises:
        DataError: mixdata.json is missing or malformed, or one of its globs matches nothing.
    """
    tables = read_mixdata(mixdata_path)
    pairs, faults = [], []
    for name in sorted(tables["img"]):
        images, depths = (
            _files_by_stem(data_root, tables[key][name], mixdata_path, key, name) for key in ("img", "depth")
        )
        for stem in sorted({*images, *depths}):
            if len(images[stem]) == len(depths[stem]) == 1:
                pairs.append(Pair(name, images[stem][0], depths[stem][0], tables["invalid"].get(name)))
            elif not depths[stem]:
                faults += [f"{path}: no ground truth {stem}.* matches {tables['depth'][name]}" for path in images[stem]]
            elif not images[stem]:
                faults += [f"{path}: no image {stem}.* matches {tables['img'][name]}" for path in depths[stem]]
            else:
                candidates = images[stem] + depths[stem]
                faults.append(f"{candidates[0]}: ambiguous name, shared by {', '.join(candidates[1:])}")
    return pairs, faults


def _files_by_stem(
    data_root: PathLike, pattern: str, mixdata_path: PathLike, key: str, name: str
) -> dict[str, list[str]]:
    full_pattern = glob.escape(str(data_root).rstrip("/")) + pattern
    paths = sorted(path for path in glob.glob(full_pattern) if os.path.isfile(path))
    if not paths:
        raise DataError(f'{mixdata_path}: "{key}"."{name}": no file matches {full_pattern}')
    by_stem = defaultdict(list)
    for path in paths:
        by_stem[Path(path).stem].append(path)
    return by_stem


def check_pairs(
    pairs: Sequence[Pair], workers: int, verdicts_path: Optional[PathLike] = None
) -> tuple[list[Pair], list[str]]:
    """Decodes every pair once, so that a bad file is found before the training and not in the middle of it.

    Picture and ground truth may differ in size, since both are resized, but not in shape: an aspect ratio that is off
    by more than 10 % means that they do not show the same view (typically a picture rotated by its EXIF tag).

    Args:
        pairs: What to check.
        workers: Number of threads.
        verdicts_path: A file that remembers the pairs found good, by path, size and time of change, so that the next
            start need not decode them again. None: check everything.

    Returns:
        The good pairs, in order, and one line for every bad one.
    """
    use_one_opencv_thread()
    known = _read_verdicts(verdicts_path)
    prints = [_fingerprint(pair) for pair in pairs]
    open_pairs = [pair for pair, fingerprint in zip(pairs, prints) if fingerprint not in known]
    fault_of = {}
    if open_pairs:
        pool = ThreadPoolExecutor(workers)
        try:
            with Progress(len(open_pairs), "Checking training data", "pairs") as progress:
                for pair, fault in zip(open_pairs, pool.map(_find_fault, open_pairs)):
                    progress.update()
                    if fault is not None:
                        fault_of[pair] = fault
        finally:
            pool.shutdown(cancel_futures=True)  # an interrupt need not wait for the rest
    good = [pair for pair in pairs if pair not in fault_of]
    if verdicts_path is not None and open_pairs:
        verdicts = [fingerprint for pair, fingerprint in zip(pairs, prints) if pair not in fault_of]
        write_text(verdicts_path, json.dumps(verdicts, indent=0))
    return good, list(fault_of.values())


def _fingerprint(pair: Pair) -> str:
    """Identifies the present contents of a pair without reading it."""
    parts = []
    for path in (pair.image_path, pair.depth_path):
        try:
            status = os.stat(path)
        except OSError:
            parts.append(f"{path}|gone")
        else:
            parts.append(f"{os.path.abspath(path)}|{status.st_size}|{status.st_mtime_ns}")
    return "|".join(parts)


def _read_verdicts(path: Optional[PathLike]) -> frozenset:
    """Reads the fingerprints of good pairs; whatever is wrong with that file only costs another check."""
    try:
        return frozenset(json.loads(Path(path).read_text(encoding="utf-8"))) if path is not None else frozenset()
    except (OSError, ValueError, TypeError):
        return frozenset()


def _find_fault(pair: Pair) -> Optional[str]:
    """Decodes a pair and says what is wrong with it, or None."""
    try:
        height, width = read_image(pair.image_path).shape[:2]
        depth_height, depth_width = read_gray(pair.depth_path).shape
    except DataError as error:
        return str(error)
    change = (width * depth_height) / (height * depth_width)
    if max(change, 1 / change) > _MAX_ASPECT_CHANGE:
        return (
            f"{pair.depth_path}: expected the view of {pair.image_path} ({width} x {height}),"
            f" found another aspect ratio ({depth_width} x {depth_height})"
        )
    return None


def training_pairs(
    data_root: PathLike,
    mixdata_path: PathLike,
    skip_bad: bool,
    workers: int = 1,
    verdicts_path: Optional[PathLike] = None,
) -> tuple[list[Pair], list[str]]:
    """Lists and checks the training pairs.

    Args:
        data_root: Folder that the globs of mixdata.json start from.
        mixdata_path: The mixdata.json.
        skip_bad: Leave bad samples out instead of refusing them all.
        workers: Number of threads that decode.
        verdicts_path: See ``check_pairs``.

    Returns:
        The good pairs, and one line for every sample that was left out.

    Raises:
        DataError: mixdata.json is at fault; or samples are and ``skip_bad`` is off (the text names them all, a
            line each); or no sample is left.
    """
    pairs, unpaired = list_pairs(data_root, mixdata_path)
    good, unreadable = check_pairs(pairs, workers, verdicts_path)
    faults = unpaired + unreadable
    if faults and not (skip_bad and good):
        raise DataError(
            "\n  ".join([f"{mixdata_path}: {len(faults)} bad training samples ({len(good)} good ones):", *faults])
        )
    return good, faults


class LoadImagesDepth:
    """The training samples, by number: a map-style source, picklable.

    Args:
        pairs: The samples.
        width: Width of the network's input in pixels.
        height: Its height.
        mean: RGB mean, on the scale 0..1.
        std: RGB standard deviation, on the scale 0..1.
        resize_target: Resize target and mask like the image.
        keep_aspect_ratio: Keep it when resizing. Samples then differ in size and do not stack into batches.
        ensure_multiple_of: Sides are made multiples of this.
        resize_method: See ``transforms.Resize``.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        width: int,
        height: int,
        mean: Sequence[float],
        std: Sequence[float],
        resize_target: bool = True,
        keep_aspect_ratio: bool = False,
        ensure_multiple_of: int = 32,
        resize_method: str = "upper_bound",
    ):
        self.pairs = list(pairs)
        self._transforms = (
            Resize(width, height, resize_target, keep_aspect_ratio, ensure_multiple_of, resize_method),
            NormalizeImage(mean, std),
            PrepareForNet(),
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Loads a sample.

        Returns:
            image, float32 (3, H, W), normalised RGB; mask, float32 (H, W), 1 where there is ground truth and 0
            elsewhere; target, float32 (H, W), inverse depth as stored; index, int32 scalar.

        Raises:
            DataError: A file cannot be read.
        """
        pair = self.pairs[index]
        sample = {"image": read_image(pair.image_path), "depth": read_gray(pair.depth_path)}
        for transform in self._transforms:
            sample = transform(sample)
        target = sample["depth"]
        # Nearest neighbour picks pixels and mixes none, so the mask may as well be taken from the resized target.
        mask = np.ones_like(target) if pair.invalid is None else (target != pair.invalid).astype(np.float32)
        return sample["image"], mask, target, np.int32(index)


def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of the samples in an epoch: a permutation of ``range(size)``, int64."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def index_sequence(
    size: int,
    batch_size: int,
    seed: int,
    epochs: int,
    start_epoch: int = 0,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
) -> np.ndarray:
    """Returns the samples of all remaining steps of a run, in order, for one rank.

    Every epoch has ``size // (batch_size * world)`` steps; samples that do not fill a step are left out of that epoch.
    Rank r takes the r-th ``batch_size`` samples of every global batch. The order depends on ``seed`` and the epoch
    alone, so a resumed run sees exactly the rest of what the uninterrupted one would have seen.

    Args:
        size: Number of samples in the training set.
        batch_size: Samples per step and rank.
        seed: Seed of the run, >= 0.
        epochs: Number of epochs of the whole run.
        start_epoch: First epoch to be run, from 0.
        start_step: First step to be run in it, from 0.
        rank: This process, from 0.
        world: Number of processes.

    Returns:
        int64 array of ``remaining steps * batch_size`` sample numbers.

    Raises:
        DataError: There are fewer samples than one global batch takes.
    """
    steps = size // (batch_size * world)
    if steps == 0:
        raise DataError(
            f"training data: {size} samples are fewer than one step takes (batch size {batch_size} x {world} devices)"
        )
    shards = [np.empty(0, np.int64)]
    for epoch in range(start_epoch, epochs):
        order = epoch_order(size, seed, epoch)[: steps * world * batch_size]
        shard = order.reshape(steps, world, batch_size)[:, rank]
        shards.append(shard[start_step if epoch == start_epoch else 0 :].ravel())
    return np.concatenate(shards)


class _Batches:
    """A run as a map-style source: item k is the stacked batch of step k."""

    def __init__(self, source: Any, sequence: np.ndarray, batch_size: int):
        steps = len(sequence) // batch_size
        self._source = source
        self._steps = sequence[: steps * batch_size].reshape(steps, batch_size)

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, step: int) -> tuple[np.ndarray, ...]:
        samples = [self._source[number] for number in self._steps[step].tolist()]
        return tuple(np.stack(column) for column in zip(*samples))


def create_dataset(source: Any, sequence: np.ndarray, batch_size: int, num_parallel_workers: int) -> Any:
    """Makes the MindSpore pipeline of a whole run.

    One pipeline serves all epochs: its workers start once, and it never runs dry between epochs. (MindSpore's own
    samplers cannot do that: a sampler may not be longer than its source.) A worker makes whole batches, since MindSpore
    asks its workers for results ten times a second only.

    Args:
        source: Map-style source of (image, mask, target, index), e.g. ``LoadImagesDepth``.
        sequence: The samples of all steps to come (``index_sequence``); what does not fill a batch is dropped.
        batch_size: Samples per step.
        num_parallel_workers: Worker processes, forked from this one, at most one a core (MindSpore refuses more); with
            1, a thread of this process does the work.

    Returns:
        ``mindspore.dataset.Dataset`` of batches with the columns image (N, 3, H, W), mask (N, H, W), target (N, H, W)
        and index (N,), in the order of ``sequence`` whatever the number of workers; its size is the number of steps.
    """
    import mindspore.dataset

    use_one_opencv_thread()
    workers = min(num_parallel_workers, os.cpu_count() or 1)
    mindspore.dataset.config.set_prefetch_size(_PREFETCHED_BATCHES)
    return mindspore.dataset.GeneratorDataset(
        _Batches(source, sequence, batch_size),
        list(COLUMNS),
        shuffle=False,
        num_parallel_workers=workers,
        python_multiprocessing=workers > 1,
    )


def use_one_opencv_thread() -> None:
    """Turns OpenCV's own threads off in this process, for good: samples are what is worked on in parallel.

    A process that is forked while OpenCV keeps a thread pool hangs in its first parallel call; so this must come before
    anything that would start the pool.
    """
    cv2.setNumThreads(1)


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
