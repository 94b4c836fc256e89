"""What mixdata.json lists: the pairs of image and ground truth to train on, checked before the training.

A ``mixdata.json`` names the training sets by globs under a data root::

    {"img": {"RW": "/ReDWeb_V1/Imgs/*"}, "depth": {"RW": "/ReDWeb_V1/RDs/*"}, "invalid": {"RW": 0}}

Image and ground truth belong together when their file names agree but for the extension. ``invalid`` is optional: it
names the ground-truth value that means "missing"; without it every pixel counts.
"""

import glob
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional

from src.common.atomic import write_text
from src.common.errors import DataError
from src.common.progress import Progress
from src.util import PathLike, read_gray, read_image, size_and_time
from src.utils.transforms import use_one_opencv_thread

_MAX_ASPECT_CHANGE = 1.1  # between an image and its ground truth; a forgotten rotation is far above, a crop below


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


class TrainingSet(NamedTuple):
    """A set that mixdata.json lists: globs under the data root, and the value that means "missing", if there is one."""

    name: str
    images: str
    depths: str
    invalid: Optional[int]


def read_mixdata(mixdata_path: PathLike) -> list[TrainingSet]:
    """Reads and checks a mixdata.json; returns its sets in order of their names.

    Raises:
        DataError: The file is missing or malformed.
    """
    try:
        tables = json.loads(Path(mixdata_path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{mixdata_path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{mixdata_path}: expected JSON: {error}") from error
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise DataError(f'{mixdata_path}: expected an object of the tables "img", "depth" and optionally "invalid"')
    unknown = sorted(set(tables) - {"img", "depth", "invalid"})
    if unknown:
        raise DataError(f'{mixdata_path}: unknown key "{unknown[0]}"; expected "img", "depth", "invalid"')
    images, depths, invalid = (tables.get(key, {}) for key in ("img", "depth", "invalid"))

    def check(is_right: bool, key: str, name: str, expected: str, found: object) -> None:
        if not is_right:
            raise DataError(f'{mixdata_path}: "{key}"."{name}": expected {expected}, found {found!r}')

    sets = []
    for name in sorted({*images, *depths, *invalid}):
        for key, table in (("img", images), ("depth", depths)):
            is_glob = isinstance(table.get(name), str) and table[name].startswith("/")
            check(is_glob, key, name, 'a glob that starts with "/"', table.get(name))
        value = invalid.get(name)
        is_grey = name not in invalid or (type(value) is int and 0 <= value <= 65535)
        check(is_grey, "invalid", name, "a whole number from 0 to 65535", value)
        sets.append(TrainingSet(name, images[name], depths[name], value))
    if not sets:
        raise DataError(f'{mixdata_path}: "img" and "depth" name no set; expected tables of globs')
    return sets


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
    pairs, faults = [], []
    for name, image_glob, depth_glob, invalid in read_mixdata(mixdata_path):
        images, depths = (_files_by_stem(data_root, pattern, mixdata_path) for pattern in (image_glob, depth_glob))
        for stem in sorted({*images, *depths}):
            if len(images[stem]) == len(depths[stem]) == 1:
                pairs.append(Pair(name, images[stem][0], depths[stem][0], invalid))
            elif images[stem] and depths[stem]:
                first, *others = images[stem] + depths[stem]
                faults.append(f"{first}: ambiguous name, shared by {', '.join(others)}")
            faults += [
                f"{path}: no ground truth {stem}.* matches {depth_glob}" for path in images[stem] if not depths[stem]
            ]
            faults += [f"{path}: no image {stem}.* matches {image_glob}" for path in depths[stem] if not images[stem]]
    return pairs, faults


def _files_by_stem(data_root: PathLike, pattern: str, mixdata_path: PathLike) -> dict[str, list[str]]:
    full_pattern = glob.escape(str(data_root).rstrip("/")) + pattern
    by_stem = defaultdict(list)
    for path in sorted(filter(os.path.isfile, glob.glob(full_pattern))):
        by_stem[Path(path).stem].append(path)
    if not by_stem:
        raise DataError(
            f"{mixdata_path}: no file matches {full_pattern}; preprocess/readme.md says how to get the data"
        )
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
        stamp = size_and_time(path)
        parts.append(f"{os.path.abspath(path)}|{stamp[0]}|{stamp[1]}" if stamp else f"{path}|gone")
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
