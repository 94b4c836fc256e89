"""What mixdata.json lists: the pairs of image and ground truth to train on, checked before the training.

A ``mixdata.json`` names the training sets by globs under a data root::

    {
        "img": {"RW": "/ReDWeb_V1/Imgs/*", "phone": "/phone/*/rgb/*.jpg"},
        "depth": {"RW": "/ReDWeb_V1/RDs/*", "phone": "/phone/*/depth/*_depth.png"},
        "kind": {"RW": "negative_disparity", "phone": "depth"},
        "invalid": {"RW": 255}
    }

Image and ground truth belong together when the wildcards of the two globs stand for the same (``find_files``). Further
tables are optional, and so is each set in them (``truth.py`` says what becomes of the values):

* ``kind``: what the ground truth is, by default ``inverse_depth``;
* ``invalid``: the value that means "no ground truth"; without it every finite value counts, and of ``depth`` every one
  above 0;
* ``sky``: the value that means sky; or a glob of masks, files in which every pixel that is not 0 is sky;
* ``mask``: a glob of masks in which every pixel that is not 0 has ground truth;
* ``scale``: what a stored value is to be multiplied by for the unit of the set, such as metres;
* ``max_depth``: in that unit; depth beyond it is missing.
"""

import contextlib
import glob
import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import cv2
import numpy as np

from src.common.ahead import thread_pool
from src.common.atomic import write_text
from src.common.errors import DataError
from src.common.progress import Progress
from src.util import PathLike, read_image, read_orientation, read_truth, size_and_time
from src.utils.folders import IMAGE_SUFFIXES, TRUTH_SUFFIXES, is_truth, match_names
from src.utils.transforms import use_one_opencv_thread
from src.utils.truth import BY_MASK_MISSING, BY_MASK_SKY, BY_VALUE, DEPTH, KINDS, PLAIN, Number, Truth
from src.utils.truth_check import (
    TruthStatistics,
    describe_set,
    measure_truth,
    mixdata_entry,
    option_entry,
    warnings_of_set,
)

_TABLES = ("img", "depth", "kind", "invalid", "sky", "mask", "scale", "max_depth")
FOLDERS_SET = "images"  # name of the set that two folders make
_MAX_ASPECT_CHANGE = 1.1  # between an image and its ground truth; a forgotten rotation is far above, a crop below
_ROLES = ("image", "ground truth", "mask", "mask of the sky")  # of the files of a sample
_WILDCARD = re.compile(r"\*|\?|\[!?\]?[^]]*\]")  # of a glob, within one component
_VERDICTS_FOLDER = Path(__file__).resolve().parents[2] / "output" / "checked_data"
_VERDICTS_VERSION = 3  # raise it when the statistics or what counts as a fault change


@dataclass(frozen=True)
class Pair:
    """A training sample on disk.

    Attributes:
        dataset: Name of its set in mixdata.json.
        name: What the wildcards of the globs stand for: tells the pairs of a set apart.
        image_path: The picture.
        depth_path: Its ground truth, a file that ``src.util.read_truth`` reads.
        truth: What its values mean.
        mask_path: A file that is not 0 where there is ground truth, if there is one.
        sky_path: A file that is not 0 where there is sky, if there is one.
    """

    dataset: str
    name: str
    image_path: str
    depth_path: str
    truth: Truth = PLAIN
    mask_path: Optional[str] = None
    sky_path: Optional[str] = None


class TrainingSet(NamedTuple):
    """A set that mixdata.json lists: globs under the data root, and what the values of the ground truth mean."""

    name: str
    images: str
    depths: str
    truth: Truth = PLAIN
    masks: Optional[str] = None
    skies: Optional[str] = None


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
        optional = ", ".join(f'"{key}"' for key in _TABLES[2:])
        raise DataError(f'{mixdata_path}: expected an object of the tables "img", "depth" and optionally {optional}')
    unknown = sorted(set(tables) - set(_TABLES))
    if unknown:
        expected = ", ".join(f'"{key}"' for key in _TABLES)
        raise DataError(f'{mixdata_path}: unknown key "{unknown[0]}"; expected {expected}')
    try:
        sets = [_read_set(tables, name) for name in sorted({name for table in tables.values() for name in table})]
    except ValueError as error:
        raise DataError(f"{mixdata_path}: {error}") from error
    if not sets:
        raise DataError(f'{mixdata_path}: "img" and "depth" name no set; expected tables of globs')
    return sets


def _read_set(tables: Mapping[str, Mapping[str, Any]], name: str) -> TrainingSet:
    """Checks the entries of a set; raises ValueError with table, set and what is wrong."""

    def entry(key: str, is_right: Callable[[Any], bool], expected: str, default: Any = None) -> Any:
        table = tables.get(key, {})
        if name not in table and key not in ("img", "depth"):
            return default
        if not is_right(table.get(name)):
            raise ValueError(f'"{key}"."{name}": expected {expected}, found {table.get(name)!r}')
        return table[name]

    glob_text, above_zero = 'a glob that starts with "/"', "a finite number above 0"
    images, depths = (entry(key, _is_glob, glob_text) for key in ("img", "depth"))
    kind = entry(
        "kind", lambda value: isinstance(value, str) and value in KINDS, f"one of {', '.join(KINDS)}", KINDS[0]
    )
    invalid = entry("invalid", _is_float32, "a finite number")
    sky = entry("sky", lambda value: _is_glob(value) or _is_value(value), f"a number or {glob_text}")
    masks = entry("mask", _is_glob, glob_text)
    scale = entry("scale", _is_above_zero, above_zero, 1.0)
    max_depth = entry("max_depth", _is_above_zero, above_zero)
    if max_depth is not None and kind != DEPTH:
        raise ValueError(f'"max_depth"."{name}": expected "kind"."{name}": "{DEPTH}" beside it, found "{kind}"')
    skies = sky if isinstance(sky, str) else None
    if skies is not None and skies == masks:
        raise ValueError(f'"sky"."{name}": expected other files than "mask"."{name}", found the same glob {skies!r}')
    value = None if isinstance(sky, str) else sky
    if value is not None and value == invalid:
        raise ValueError(f'"sky"."{name}": expected another value than "invalid"."{name}", found the same, {value!r}')
    return TrainingSet(name, images, depths, Truth(kind, invalid, value, scale, max_depth), masks, skies)


def _is_glob(value: object) -> bool:
    return isinstance(value, str) and value.startswith("/")


def _is_float32(value: object) -> bool:
    """Tells whether JSON holds a number that a ground truth may hold: JSON knows NaN, infinity and any size."""
    return type(value) in (int, float) and abs(value) <= np.finfo(np.float32).max


def _is_value(value: object) -> bool:
    """Tells whether JSON holds a number that may mean sky: infinity may, too."""
    return _is_float32(value) or value in (float("inf"), -float("inf"))


def _is_above_zero(value: object) -> bool:
    return _is_float32(value) and value > 0


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
        globs = zip(_ROLES, (entry.images, entry.depths, entry.masks, entry.skies))
        wanted = {role: pattern for role, pattern in globs if pattern}
        tables = {role: _files_by_key(data_root, pattern, mixdata_path) for role, pattern in wanted.items()}
        for key in sorted(set().union(*tables.values())):
            found = {role: table[key] for role, table in tables.items() if key in table}
            missing = [role for role in wanted if role not in found]
            if missing:  # said once of a sample, by its first file
                first = next(iter(found.values()))
                faults += [f'{path}: no {missing[0]} of "{key}" matches {wanted[missing[0]]}' for path in first]
            elif any(len(paths) > 1 for paths in found.values()):
                first, *others = (path for paths in found.values() for path in paths)
                faults.append(f'{first}: ambiguous name "{key}", shared by {", ".join(others)}')
            else:
                image, depth, mask, sky = (found.get(role, [None])[0] for role in _ROLES)
                pairs.append(Pair(entry.name, key, image, depth, entry.truth, mask, sky))
    return pairs, faults


def list_folders(images: PathLike, depths: PathLike, kind: str, invalid: Number) -> tuple[list[Pair], list[str]]:
    """Lists the pairs of a folder of images and a folder of ground truth, which may be the same, without opening them.

    Sub-folders are searched. Files belong together by their names, see ``folders.match_names``. Hidden files, and those
    whose suffix is of neither, do not count.

    Args:
        images: Folder of the images.
        depths: Folder of the ground truth.
        kind: What the ground truth is, one of ``truth.KINDS``.
        invalid: The value that means "no ground truth", if there is one.

    Returns:
        As ``list_pairs``; the set is called ``FOLDERS_SET``.

    Raises:
        DataError: A folder is missing or has no such file, or nothing belongs together.
    """
    roots = [str(folder).rstrip("/") for folder in (images, depths)]
    listed = _listed(images, IMAGE_SUFFIXES, "images"), _listed(depths, TRUTH_SUFFIXES, "ground truth")
    paths = [{path[len(root) + 1 :]: path for path in found} for root, found in zip(roots, listed)]
    faults = _set_apart(paths, [os.path.realpath(folder) for folder in (images, depths)])
    truth, pairs = Truth(kind, invalid), []
    for match in match_names(*paths):
        sides = [[table[name] for name in names] for table, names in zip(paths, match[1:])]
        if len(sides[0]) == len(sides[1]) == 1:
            pairs.append(Pair(FOLDERS_SET, match.name, sides[0][0], sides[1][0], truth))
        elif all(sides):
            first, *others = [*sides[0], *sides[1]]
            faults.append(f'{first}: ambiguous name "{match.name}", shared by {", ".join(others)}')
        else:
            faults += [f"{path}: no ground truth of this name in {depths}" for path in sides[0]]
            faults += [f"{path}: no image of this name in {images}" for path in sides[1]]
    if not pairs:
        example = " and ".join(min(table, default="none") for table in paths)
        raise DataError(
            f"{images}: expected images that have the names of the ground truth in {depths}, found no two files that"
            f" belong together, such as {example}"
        )
    return pairs, faults


def _set_apart(paths: Sequence[dict[str, str]], folders: Sequence[str]) -> list[str]:
    """Leaves every file on one side only, where one folder is the other or is in it.

    Args:
        paths: Of images and ground truths: path relative to its folder -> path; those of the other side are removed.
        folders: Their real paths.

    Returns:
        A line for every file that may be either.
    """
    faults = []
    is_one = folders[0] == folders[1]
    for side, (folder, other) in enumerate((folders, folders[::-1])):
        for name in list(paths[side]):
            try:
                is_here = is_truth(name) == bool(side) if is_one else not _is_in(f"{folder}/{name}", other, folder)
            except ValueError as error:
                is_here = False
                if side == 0:
                    faults.append(f"{paths[side][name]}: {error}")
            if not is_here:
                del paths[side][name]
    return faults


def _is_in(path: str, folder: str, outer: str) -> bool:
    """Tells whether a path is in a folder that is in another."""
    return folder.startswith(f"{outer}/") and path.startswith(f"{folder}/")


def _listed(folder: PathLike, suffixes: Collection[str], what: str) -> list[str]:
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: expected a folder of {what}, found none")
    paths = [path for path in find_files(folder, "/**") if Path(path).suffix.lower() in suffixes]
    if not paths:
        raise DataError(f"{folder}: expected {what} ({' '.join(sorted(suffixes))}), found no such file")
    return paths


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


def read_ground_truth(pair: Pair) -> tuple[np.ndarray, Optional[np.ndarray]]:
    """Reads the ground truth of a sample, and its masks.

    Returns:
        The values as stored, uint8, uint16 or float32 (H, W); and what the masks say of them, uint8 (H, W), see
        ``truth.classify``, None where there are none.

    Raises:
        DataError: A file cannot be read, or a mask shows another view.
    """
    stored = read_truth(pair.depth_path)
    if pair.mask_path is None and pair.sky_path is None:
        return stored, None
    marks = np.full(stored.shape, BY_VALUE, np.uint8)
    if pair.mask_path is not None:
        marks[~_read_mask(pair.mask_path, pair, stored.shape)] = BY_MASK_MISSING
    if pair.sky_path is not None:
        marks[_read_mask(pair.sky_path, pair, stored.shape)] = BY_MASK_SKY
    return stored, marks


def _read_mask(path: str, pair: Pair, shape: tuple[int, int]) -> np.ndarray:
    """Returns a mask, bool, in the size of its ground truth."""
    mask = (read_truth(path) != 0).astype(np.uint8)
    if _differ(mask.shape[1] / mask.shape[0], shape[1] / shape[0]):
        raise DataError(
            f"{path}: expected the view of {pair.depth_path} ({shape[1]} x {shape[0]}),"
            f" found another aspect ratio ({mask.shape[1]} x {mask.shape[0]})"
        )
    if mask.shape != shape:
        mask = cv2.resize(mask, shape[::-1], interpolation=cv2.INTER_NEAREST)
    return mask.astype(bool)


def check_pairs(pairs: Sequence[Pair], workers: int, verdicts_path: Optional[PathLike] = None) -> CheckedPairs:
    """Decodes every pair once, so that a bad file is found before the training and not in the middle of it.

    Picture and ground truth may differ in size, since both are resized, but not in shape: an aspect ratio that is off
    by more than 10 % means that they do not show the same view (typically a picture that was turned after the fact).

    Args:
        pairs: What to check.
        workers: Number of threads.
        verdicts_path: A file that remembers the pairs found good, by path, size and time of change and what
            the values mean, so that the next start need not decode them again. None: check everything.
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
    parts = [repr(pair.truth)]
    for path in filter(None, (pair.image_path, pair.depth_path, pair.mask_path, pair.sky_path)):
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
        truth, marks = read_ground_truth(pair)
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
    statistics = measure_truth(truth, pair.truth, marks)
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
    truths = {pair.dataset: pair.truth for pair in pairs}
    read = _by_set(pairs, checked)
    return [describe_set(name, truths[name], count, read[name]) for name, count in listed.items()]


def set_sizes(pairs: Sequence[Pair]) -> dict[str, int]:
    """Returns how many pairs each set has."""
    return dict(Counter(pair.dataset for pair in pairs))


def describe_mixture(sets: Mapping[str, int], epoch_images: int) -> str:
    """Says how often the images of each set come in an epoch.

    Args:
        sets: Name -> number of images.
        epoch_images: Images in an epoch.
    """
    share = epoch_images / len(sets)
    times = ", ".join(f"{name} {share / count:.3g} times" for name, count in sets.items())
    return f"mixture: {len(sets)} sets of equal shares; an epoch of {epoch_images} images goes through {times}"


def warnings_of(pairs: Sequence[Pair], checked: CheckedPairs, as_options: bool = False) -> list[str]:
    """Returns a line for everything in the sets that suggests a wrong setting, with the right one.

    Args:
        pairs: As for ``describe_sets``.
        checked: As for ``describe_sets``.
        as_options: The pairs are those of ``list_folders``: settings are options of the command line, not entries of
            mixdata.json.
    """
    examples = {pair.dataset: pair for pair in pairs}
    read = _by_set(pairs, checked)
    write = option_entry if as_options else mixdata_entry
    lines = []
    for name, pair in examples.items():
        knows_sky = pair.sky_path is not None or pair.truth.sky is not None
        lines += warnings_of_set(name, pair.truth, read[name], knows_sky, write)
    return lines


def _by_set(pairs: Sequence[Pair], checked: CheckedPairs) -> dict[str, list[TruthStatistics]]:
    by_set = defaultdict(list)
    for index, statistics in zip(checked.good, checked.statistics):
        by_set[pairs[index].dataset].append(statistics)
    return by_set
