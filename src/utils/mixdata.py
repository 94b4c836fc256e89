"""What mixdata.json lists: the pairs of image and ground truth to train on, checked before the training.

A ``mixdata.json`` names the training sets by globs under a data root::

    {
        "img": {"RW": "/ReDWeb_V1/Imgs/*", "phone": "/phone/*/rgb/*.jpg"},
        "depth": {"RW": "/ReDWeb_V1/RDs/*", "phone": "/phone/*/depth/*_depth.png"},
        "kind": {"RW": "negative_disparity", "phone": "depth"},
        "invalid": {"RW": 255}
    }

Image and ground truth belong together when the wildcards of the two globs stand for the same (``find_files``). ``kind``
says what the ground truth is (``truth.py``), by default ``inverse_depth``. ``invalid`` names the value that means "no
ground truth"; without it every finite value counts, and of ``depth`` every one above 0.
"""

import contextlib
import glob
import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np

from src.common.ahead import thread_pool
from src.common.atomic import write_text
from src.common.errors import DataError
from src.common.progress import Progress
from src.util import PathLike, read_image, read_orientation, read_truth, size_and_time
from src.utils.transforms import use_one_opencv_thread
from src.utils.truth import INVERSE_DEPTH, KINDS, Invalid
from src.utils.truth_check import TruthStatistics, describe_set, measure_truth, warnings_of_set

_MAX_ASPECT_CHANGE = 1.1  # between an image and its ground truth; a forgotten rotation is far above, a crop below
_WILDCARD = re.compile(r"\*|\?|\[!?\]?[^]]*\]")  # of a glob, within one component
_VERDICTS_FOLDER = Path(__file__).resolve().parents[2] / "output" / "checked_data"
_VERDICTS_VERSION = 2  # raise it when the statistics or what counts as a fault change


@dataclass(frozen=True)
class Pair:
    """A training sample on disk.

    Attributes:
        dataset: Name of its set in mixdata.json.
        name: What the wildcards of the globs stand for: tells the pairs of a set apart.
        image_path: The picture.
        depth_path: Its ground truth, a file that ``src.util.read_truth`` reads.
        kind: What the ground truth is, one of ``truth.KINDS``.
        invalid: The value of the ground truth that means "missing", if there is one.
    """

    dataset: str
    name: str
    image_path: str
    depth_path: str
    kind: str = INVERSE_DEPTH
    invalid: Invalid = None


class TrainingSet(NamedTuple):
    """A set that mixdata.json lists: globs under the data root, kind of ground truth, value that means "missing"."""

    name: str
    images: str
    depths: str
    kind: str
    invalid: Invalid


class CheckedPairs(NamedTuple):
    """What a check of pairs has found.

    Attributes:
        good: Indices of the good pairs, ascending.
        faults: One line for every bad pair.
        statistics: Figures on the ground truths of the good pairs, in their order.
    """

    good: list[int]
    faults: list[str]
    statistics: list[TruthStatistics]


def read_mixdata(mixdata_path: PathLike) -> list[TrainingSet]:
    """Reads and checks a mixdata.json; returns its sets in order of their names.

    Raises:
        DataError: The file is missing or malformed.
    """
    try:
        tables = json.loads(Path(mixdata_path).read_text(encoding="utf-8-sig"))  # Windows may mark it
    except OSError as error:
        raise DataError(f"{mixdata_path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{mixdata_path}: expected JSON: {error}") from error
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise DataError(
            f'{mixdata_path}: expected an object of the tables "img", "depth" and optionally "kind" and "invalid"'
        )
    unknown = sorted(set(tables) - {"img", "depth", "kind", "invalid"})
    if unknown:
        raise DataError(f'{mixdata_path}: unknown key "{unknown[0]}"; expected "img", "depth", "kind", "invalid"')
    images, depths, kinds, invalid = (tables.get(key, {}) for key in ("img", "depth", "kind", "invalid"))

    def check(is_right: bool, key: str, name: str, expected: str, found: object) -> None:
        if not is_right:
            raise DataError(f'{mixdata_path}: "{key}"."{name}": expected {expected}, found {found!r}')

    sets = []
    for name in sorted({*images, *depths, *kinds, *invalid}):
        for key, table in (("img", images), ("depth", depths)):
            is_glob = isinstance(table.get(name), str) and table[name].startswith("/")
            check(is_glob, key, name, 'a glob that starts with "/"', table.get(name))
        kind, value = kinds.get(name, INVERSE_DEPTH), invalid.get(name)
        check(kind in KINDS, "kind", name, f"one of {', '.join(KINDS)}", kind)
        check(name not in invalid or _is_float32(value), "invalid", name, "a finite number", value)
        sets.append(TrainingSet(name, images[name], depths[name], kind, value))
    if not sets:
        raise DataError(f'{mixdata_path}: "img" and "depth" name no set; expected tables of globs')
    return sets


def _is_float32(value: object) -> bool:
    """Tells whether JSON holds a number that a ground truth may hold: JSON knows NaN, infinity and any size."""
    return type(value) in (int, float) and abs(value) <= np.finfo(np.float32).max


def find_files(data_root: PathLike, pattern: str) -> dict[str, str]:
    """Lists the files that a glob under a data root matches, with their pairing keys.

    Hidden files and folders are left out, as by every glob, and links to folders are followed.

    Args:
        data_root: Folder that the glob starts from; wildcards in its name mean themselves.
        pattern: The glob, with a leading ``/``; ``**`` stands for zero or more folders.

    Returns:
        Path -> what the wildcards stand for: of each component that has wildcards the part from the first to the last
        of them, joined by ``/``. The suffix of the file's name never counts.
    """
    components = [component for component in pattern.split("/") if component]
    if not components:
        return {}
    *folders, last = components
    if last == "**":  # all files below
        folders, last = [*folders, "**"], "*"
    found = {str(data_root).rstrip("/"): ""}
    for component in folders:
        found = {path: key for path, key in _step(found, component) if os.path.isdir(path)}
    return {path: key for path, key in _step(found, last, is_last=True) if os.path.isfile(path)}


def _step(found: Mapping[str, str], component: str, is_last: bool = False) -> Iterator[tuple[str, str]]:
    """Goes one component further down from the folders found, with their keys, so far."""
    is_plain = not _WILDCARD.search(component)
    for folder, key in found.items():
        if component == "**":
            for path in _folders_below(folder):
                yield path, "/".join(filter(None, (key, path[len(folder) + 1 :])))
        elif is_plain:
            yield f"{folder}/{component}", key
        else:
            for path in sorted(glob.glob(f"{glob.escape(folder)}/{component}")):
                part = _wildcard_part(path[len(folder) + 1 :], component, is_last)
                yield path, "/".join(filter(None, (key, part)))


def _wildcard_part(name: str, pattern: str, is_file: bool) -> str:
    """Returns what the wildcards of a component stand for in a name that matches it."""
    stem = name
    if is_file:
        stem, pattern_stem = Path(name).stem, pattern.rpartition(".")[0]
        if fnmatchcase(stem, pattern_stem):  # "*_depth.*": the wildcard of the suffix does not count, either
            name, pattern = stem, pattern_stem
    wildcards = list(_WILDCARD.finditer(pattern))
    if not wildcards:
        return ""
    end = len(name) - (len(pattern) - wildcards[-1].end())
    return name[wildcards[0].start() : min(end, len(stem))]


def _folders_below(top: str) -> list[str]:
    """Lists a folder and all folders below it, each once, so that links that lead in a circle come to an end.

    Where a folder can be reached by links and without them, the way without them counts.
    """
    seen, found, folders, links = set(), [], [top], []
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        found.append(folder)
        for path in sorted(glob.glob(f"{glob.escape(folder)}/*/"), reverse=True):
            (links if os.path.islink(path[:-1]) else folders).append(path[:-1])
    return found


def list_pairs(data_root: PathLike, mixdata_path: PathLike) -> tuple[list[Pair], list[str]]:
    """Lists the training pairs without opening them.

    Args:
        data_root: Folder that the globs start from.
        mixdata_path: The mixdata.json.

    Returns:
        The pairs, sorted by set and pairing key so that the order does not depend on the machine, and one line for
        every file that has no partner or more than one.

    Raises:
        DataError: mixdata.json is missing or malformed, or one of its globs matches nothing.
    """
    pairs, faults = [], []
    for entry in read_mixdata(mixdata_path):
        images, depths = (_files_by_key(data_root, glob_, mixdata_path) for glob_ in (entry.images, entry.depths))
        for key in sorted({*images, *depths}):
            if len(images[key]) == len(depths[key]) == 1:
                pairs.append(Pair(entry.name, key, images[key][0], depths[key][0], entry.kind, entry.invalid))
            elif images[key] and depths[key]:
                first, *others = images[key] + depths[key]
                faults.append(f'{first}: ambiguous name "{key}", shared by {", ".join(others)}')
            elif images[key]:
                faults += [f'{path}: no ground truth of "{key}" matches {entry.depths}' for path in images[key]]
            else:
                faults += [f'{path}: no image of "{key}" matches {entry.images}' for path in depths[key]]
    return pairs, faults


def _files_by_key(data_root: PathLike, pattern: str, mixdata_path: PathLike) -> dict[str, list[str]]:
    by_key = defaultdict(list)
    for path, key in sorted(find_files(data_root, pattern).items()):
        by_key[key].append(path)
    if not by_key:
        raise DataError(
            f"{mixdata_path}: no file matches {str(data_root).rstrip('/')}{pattern};"
            " preprocess/readme.md says how to get the data"
        )
    return by_key


def check_pairs(pairs: Sequence[Pair], workers: int, verdicts_path: Optional[PathLike] = None) -> CheckedPairs:
    """Decodes every pair once, so that a bad file is found before the training and not in the middle of it.

    Picture and ground truth may differ in size, since both are resized, but not in shape: an aspect ratio that is off
    by more than 10 % means that they do not show the same view (typically a picture that was turned after the fact).

    Args:
        pairs: What to check.
        workers: Number of threads.
        verdicts_path: A file that remembers the pairs found good, by path, size and time of change, kind and invalid
            value, so that the next start need not decode them again. None: check everything.
    """
    use_one_opencv_thread()
    known = _read_verdicts(verdicts_path)
    prints = [_fingerprint(pair) for pair in pairs]
    waiting = [index for index, fingerprint in enumerate(prints) if fingerprint not in known]
    results = {index: known[fingerprint] for index, fingerprint in enumerate(prints) if fingerprint in known}
    if waiting:
        with thread_pool(workers) as pool, Progress(len(waiting), "Checking training data", "pairs") as progress:
            for index, result in zip(waiting, pool.map(_examine, [pairs[index] for index in waiting])):
                progress.update()
                results[index] = result
    good = [index for index in range(len(pairs)) if isinstance(results[index], TruthStatistics)]
    if verdicts_path is not None and waiting:
        verdicts = {"version": _VERDICTS_VERSION, "pairs": {prints[index]: results[index] for index in good}}
        with contextlib.suppress(OSError):  # where it cannot be kept, the next start decodes again
            write_text(verdicts_path, json.dumps(verdicts))
    faults = [results[index] for index in range(len(pairs)) if isinstance(results[index], str)]
    return CheckedPairs(good, faults, [results[index] for index in good])


def verdicts_path(data_root: PathLike, mixdata_path: PathLike) -> Path:
    """Returns the file under ``output/checked_data`` that remembers what was found good in a data folder."""
    places = [os.path.abspath(data_root), os.path.abspath(mixdata_path)]
    digest = hashlib.sha256(os.fsencode("\0".join(places)))
    return _VERDICTS_FOLDER / f"{digest.hexdigest()[:16]}.json"


def _fingerprint(pair: Pair) -> str:
    """Identifies the present contents of a pair, and what they are taken for, without reading it."""
    parts = [pair.kind, str(pair.invalid)]
    for path in (pair.image_path, pair.depth_path):
        stamp = size_and_time(path)
        parts.append(f"{os.path.abspath(path)}|{stamp[0]}|{stamp[1]}" if stamp else f"{path}|gone")
    return "|".join(parts)


def _read_verdicts(path: Optional[PathLike]) -> dict[str, TruthStatistics]:
    """Reads what is known of good pairs, by fingerprint; whatever is wrong with that file only costs another check."""
    try:
        verdicts = json.loads(Path(path).read_text(encoding="utf-8")) if path is not None else {}
        if verdicts.get("version") != _VERDICTS_VERSION:
            return {}
        return {fingerprint: TruthStatistics(*figures) for fingerprint, figures in verdicts["pairs"].items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}


def _examine(pair: Pair) -> Union[TruthStatistics, str]:
    """Decodes a pair; returns the figures of its ground truth, or what is wrong with it."""
    try:
        height, width = read_image(pair.image_path, exif_rotation=False).shape[:2]
        truth = read_truth(pair.depth_path)
    except DataError as error:
        return str(error)
    truth_height, truth_width = truth.shape
    orientation = read_orientation(pair.image_path)
    if _differ(width / height, truth_width / truth_height):
        fault = (
            f"{pair.depth_path}: expected the view of {pair.image_path} as stored ({width} x {height}),"
            f" found another aspect ratio ({truth_width} x {truth_height})"
        )
        if orientation > 4 and not _differ(height / width, truth_width / truth_height):
            fault += "; its EXIF tag turns the picture: store it turned, without the tag (mogrify -auto-orient)"
        return fault
    statistics = measure_truth(truth, pair.kind, pair.invalid)
    # Which side is up is uncertain where the picture is to be turned: some programs turn the pixels and keep the tag.
    is_turned = orientation > 2  # 2: mirrored
    return statistics._replace(upright=None) if is_turned else statistics


def _differ(aspect: float, other: float) -> bool:
    return max(aspect / other, other / aspect) > _MAX_ASPECT_CHANGE


def good_pairs(
    pairs: Sequence[Pair], unpaired: Sequence[str], checked: CheckedPairs, mixdata_path: PathLike, skip_bad: bool
) -> list[Pair]:
    """Returns the pairs to train on.

    Args:
        pairs: All pairs, and
        unpaired: the faults beside them, of ``list_pairs``.
        checked: What ``check_pairs`` has found.
        mixdata_path: The mixdata.json.
        skip_bad: Leave bad samples out instead of refusing them all.

    Raises:
        DataError: Samples are bad and ``skip_bad`` is off (the text names them all, a line each), or none is left.
    """
    good = [pairs[index] for index in checked.good]
    faults = [*unpaired, *checked.faults]
    if faults and not (skip_bad and good):
        raise DataError(
            "\n  ".join([f"{mixdata_path}: {len(faults)} bad training samples ({len(good)} good ones):", *faults])
        )
    return good


def split_pairs(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Holds a share of each set back from the training, for validation.

    Which pairs these are depends on their names and the seed alone: not on the folder, the machine or what is trained.
    Where files are added to a set, nearly all of its pairs stay on their side. Names that two sets have in common are
    drawn alike, since they may well be the same pictures.

    Args:
        pairs: Of any number of sets.
        share: From 0 to below 1. Of n pairs of a set ``round(n * share)`` are held back, but at least one, unless
            ``share`` is 0, and never all.
        seed: Of the run.

    Returns:
        Those to train on and those held back, each in the order of ``pairs``.
    """
    by_set = defaultdict(list)
    for index, pair in enumerate(pairs):
        by_set[pair.dataset].append((_draw(pair.name, seed), index))
    held_back = set()
    for draws in by_set.values():
        count = min(max(round(len(draws) * share), 1), len(draws) - 1) if share else 0
        held_back.update(index for _, index in sorted(draws)[:count])
    training = [pair for index, pair in enumerate(pairs) if index not in held_back]
    return training, [pairs[index] for index in sorted(held_back)]


def _draw(name: str, seed: int) -> bytes:
    """A number that looks random, and is another for every name and seed."""
    return hashlib.sha256(os.fsencode(f"{seed}/{name}")).digest()


def describe_sets(pairs: Sequence[Pair], checked: CheckedPairs) -> list[str]:
    """Returns a line on each set: number, type, range, valid share and kind of its ground truth, which part is nearer.

    Args:
        pairs: All pairs.
        checked: What ``check_pairs`` has found in them, or in some of them, with the indices of ``pairs``.
    """
    listed = Counter(pair.dataset for pair in pairs)
    kinds = {pair.dataset: pair.kind for pair in pairs}
    read = _by_set(pairs, checked)
    return [describe_set(name, kinds[name], count, read[name]) for name, count in listed.items()]


def warnings_of(pairs: Sequence[Pair], checked: CheckedPairs) -> list[str]:
    """Returns a line for everything in the sets that suggests a wrong entry of mixdata.json, with the right one.

    The arguments are those of ``describe_sets``.
    """
    settings = {pair.dataset: (pair.kind, pair.invalid) for pair in pairs}
    read = _by_set(pairs, checked)
    return [line for name, facts in settings.items() for line in warnings_of_set(name, *facts, read[name])]


def _by_set(pairs: Sequence[Pair], checked: CheckedPairs) -> dict[str, list[TruthStatistics]]:
    by_set = defaultdict(list)
    for index, statistics in zip(checked.good, checked.statistics):
        by_set[pairs[index].dataset].append(statistics)
    return by_set
