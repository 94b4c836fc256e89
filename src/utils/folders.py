"""Which files of a folder of images belong to which of a folder of ground truth, by their names alone."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2", ".gif", ".avif")
)
TRUTH_SUFFIXES = frozenset(
    (".png", ".npy", ".pfm", ".h5", ".hdf5", ".exr", ".tif", ".tiff", ".pgm", ".bmp", ".webp", ".jpg", ".jpeg")
)
# Words that tell an image from its ground truth.
_IMAGE_WORDS = "rgbs?|images?|imgs?|colou?rs?"
_TRUTH_WORDS = r"(?:inverse[ _.\-]?)?depths?(?:[ _.\-]?maps?)?|disp(?:s|arity|arities)?|gts?|ground[ _.\-]?truth"
_NEUTRAL_WORDS = "left|frames?"  # of either
_SEPARATOR = r"[ _.\-]"
_WORD = re.compile(
    rf"(?<![^ _.\-\d/])(?:(?P<image>{_IMAGE_WORDS})|(?P<truth>{_TRUTH_WORDS})|{_NEUTRAL_WORDS})(?![^ _.\-\d/])",
    re.IGNORECASE,
)
_WORDS = re.compile(rf"(?:{_SEPARATOR}*{_WORD.pattern}{_SEPARATOR}*)+", re.IGNORECASE)
_GAP = "\0"  # which no path has


class Match(NamedTuple):
    """Files that have a name in common.

    Attributes:
        name: What they have in common.
        images: Paths of images; none, one, or several that cannot be told apart.
        truths: Paths of ground truths, likewise.
    """

    name: str
    images: list[str]
    truths: list[str]


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def _bare_stem(path: str) -> str:
    """Returns a path without suffix, and without the words in its parts and the separators beside them.

    Both ``a/rgb/1.png`` and ``a/1_depth.png`` become ``a/1``; ``a-rgb-1.png`` becomes ``a_1``.
    """
    parts = (part.strip(_GAP).replace(_GAP, "_") for part in _WORDS.sub(_GAP, _stem(path)).split("/"))
    return "/".join(filter(None, parts))


def is_truth(path: str) -> bool:
    """Tells a ground truth from an image where both are in one folder: by its suffix, or the last word in its path.

    Raises:
        ValueError: Neither says.
    """
    suffix = os.path.splitext(path)[1].lower()
    if (suffix in IMAGE_SUFFIXES) != (suffix in TRUTH_SUFFIXES):
        return suffix in TRUTH_SUFFIXES
    words = [match.lastgroup for match in _WORD.finditer(_stem(path)) if match.lastgroup]
    if not words:
        raise ValueError("its name says neither image (rgb, image, color ...) nor ground truth (depth, disparity ...)")
    return words[-1] == "truth"


def _by(key: Callable[[str], str], paths: Iterable[str]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for path in sorted(paths):
        found[key(path)].append(path)
    return found


def match_names(images: Iterable[str], truths: Iterable[str]) -> list[Match]:
    """Brings images and ground truths together.

    Files with the same path, but for the suffix, belong together. Those that have no partner by this are tried again
    without the words that tell images from ground truth.

    Args:
        images: Paths relative to the folder of the images, with ``/``.
        truths: Paths relative to the folder of the ground truth.

    Returns:
        Every file in exactly one match, sorted by name.
    """
    image_stems, truth_stems = _by(_stem, images), _by(_stem, truths)
    shared = image_stems.keys() & truth_stems.keys()
    found = [Match(name, image_stems[name], truth_stems[name]) for name in shared]
    left_images, left_truths = (
        _by(_bare_stem, (path for stem, paths in stems.items() if stem not in shared for path in paths))
        for stems in (image_stems, truth_stems)
    )
    for name in left_images.keys() | left_truths.keys():
        sides = left_images.get(name, []), left_truths.get(name, [])
        if all(sides) and name not in shared:
            found.append(Match(name, *sides))
        else:  # a partner by its whole path is the better one
            found += [Match(_stem(path), [path], []) for path in sides[0]]
            found += [Match(_stem(path), [], [path]) for path in sides[1]]
    return sorted(found)
