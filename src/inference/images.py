"""Images to predict: finding them, naming and writing the results."""

import errno
import fnmatch
import glob
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from src.common.errors import UsageError
from src.decode import HEAD_BYTES, READABLE, kind_of
from src.util import PathLike, write_color, write_depth

# Files of these names are meant to be images, even if their content is not.
_IMAGE_SUFFIXES = (
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx",
    ".mpo", ".pam", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
# Files of these names are skipped, unless their content is a picture all the same. TIFF does not count: the raw files
# of many cameras are TIFF files of a small preview.
_UNREAD_SUFFIXES = {
    "HEIC": ".heic .heif .hif",
    "camera raw": ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 "
    ".rwl .sr2 .srf .srw .x3f",
    "drawing or page": ".ai .eps .pdf .ps .svg .svgz",
    "video": ".3gp .avi .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .webm .wmv",
    "other picture": ".dds .exr .fits .ico .jxl .jxr .pcx .psd .tga .xcf",
}
_UNREAD_KIND = {suffix: kind for kind, suffixes in _UNREAD_SUFFIXES.items() for suffix in suffixes.split()}
_SHOWN, _SHOWN_SUFFIXES = 3, 8  # names of skipped files, suffixes of others

_DISK_FAULTS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO))


@dataclass
class Found:
    """Images to predict.

    Attributes:
        images: Their paths, sorted.
        root: The folder below which the results mirror those of the images.
        skipped: Files that nothing here reads, by kind, and ``others`` by suffix.
        others: How many files are no images, by suffix.
        links: How many images are left out because they are links to others that are not.
        faults: Folders that cannot be listed, with the reason.
    """

    root: Path
    images: list[Path] = field(default_factory=list)
    skipped: dict[str, list[Path]] = field(default_factory=dict)
    others: Counter = field(default_factory=Counter)
    links: int = 0
    faults: list[str] = field(default_factory=list)

    def report(self) -> list[str]:
        """Says in a few lines what was skipped and why."""
        lines = []
        for kind, paths in sorted(self.skipped.items()):
            names = ", ".join(map(str, paths[:_SHOWN])) + (", ..." if len(paths) > _SHOWN else "")
            lines.append(f"skipped: {len(paths)} of the kind {kind}, which nothing here reads: {names}")
        if self.others:
            most = sorted(self.others.items(), key=lambda item: (-item[1], not item[0], item[0]))
            counts = [f"{count} {suffix or 'without suffix'}" for suffix, count in most[:_SHOWN_SUFFIXES]]
            rest = sum(count for _, count in most[_SHOWN_SUFFIXES:])
            lines.append(f"skipped: no images: {', '.join(counts)}{f', {rest} others' if rest else ''}")
        if self.links:
            lines.append(f"skipped: links to images that are there by another name: {self.links}")
        return lines


def find_images(input_path: str, output_path: str) -> Found:
    """Lists the images that a file, a folder or a glob pattern names.

    A file is taken as it is, but for the raw file of a camera. Of a folder with its sub-folders, and of a pattern,
    these are the files that are images by their content or their name. Hidden files and folders are left out, and so is
    an output folder that lies inside: its files are earlier results. However many links lead to a file, it is taken
    once. Folders at the start of a pattern that are there by this very name are taken literally, whatever ``[``, ``*``
    or ``?`` they have.

    Raises:
        UsageError: If there are none, or if the results would lie among the images.
    """
    path = Path(input_path)
    if path.is_file():
        if _is_raw(path, kind_of(_head(path))):
            raise UsageError(
                f"input_path {path}: expected an image, found a camera's raw file; convert it to JPEG or PNG"
            )
        return Found(path.parent, [path])
    output = os.path.realpath(output_path)
    if path.is_dir():
        if os.path.realpath(path) == output:
            raise UsageError(f"output_path {output_path}: expected another folder than input_path, found the same")
        found = Found(path)
        _sort_out(found, _walk(path, output, found.faults))
        expected = "images"
    else:
        faults = []
        root, files = _match(path, output, faults)
        found = Found(root, faults=faults)
        _sort_out(found, files)
        expected = "an image, a folder or a quoted glob pattern"
    if not found.images:
        skipped = "; ".join((*found.faults, *found.report()))
        hint = f" ({skipped})" if skipped else ""
        hint = hint or ("" if path.is_dir() else "; no file matches; --input_path names your photos")
        raise UsageError(f"input_path {input_path}: expected {expected}, found none{hint}")
    return found


def _walk(folder: Path, left_out: str, faults: list[str]) -> Iterator[Path]:
    """Yields the files in a folder and its sub-folders; each folder once, rather by its own name than by a link.

    Args:
        folder: Where to begin.
        left_out: The real path of a folder that is not entered.
        faults: Takes a line for each folder that cannot be listed.
    """
    folders, links, seen = [folder], [], {left_out}
    while folders or links:
        current = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(current)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(current) as entries:
                entries = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            faults.append(f"{current}: the folder cannot be listed: {error.strerror}")
            continue
        for entry in entries:
            if entry.name.startswith("."):  # ._NAME of macOS as well
                continue
            path = current / entry.name
            if os.path.isdir(path):  # unlike Path.is_dir, False where it may not be looked at
                (links if entry.is_symlink() else folders).append(path)
            else:
                yield path


def _match(path: Path, output: str, faults: list[str]) -> tuple[Path, Iterator[Path]]:
    """Finds the files that match a glob pattern and are not in an output folder inside.

    Returns:
        The fixed part of the pattern, and the files. While these are taken, ``faults`` fills as that of ``_walk`` does.
    """
    root = next((parent for parent in path.parents if parent.is_dir()), Path())
    if _lies_in(root, output):
        output = ""
    parts = path.relative_to(root).parts
    if "**" not in parts:
        fixed = next((number for number, part in enumerate(parts[:-1]) if glob.has_magic(part)), len(parts) - 1)
        names = glob.glob(os.path.join(glob.escape(str(root)), *parts))
        return root.joinpath(*parts[:fixed]), (Path(name) for name in names if not _lies_in(name, output))
    first = parts.index("**")  # glob.glob would follow links in circles
    starts = glob.glob(os.path.join(glob.escape(str(root)), *parts[:first], "")) if first else [str(root)]
    files = ((start, file) for start in map(Path, starts) for file in _walk(start, output, faults))
    return root, (file for start, file in files if _fits(file, start, parts[first:]))


def _fits(file: Path, start: Path, pattern: tuple[str, ...]) -> bool:
    """Whether the path of a file below a folder fits what begins with ``**``."""

    def fits(names: tuple[str, ...], parts: tuple[str, ...]) -> bool:
        if not parts or not names:
            return not parts and not names
        if parts[0] == "**":
            return len(parts) == 1 or fits(names, parts[1:]) or fits(names[1:], parts)
        return fnmatch.fnmatchcase(names[0], parts[0]) and fits(names[1:], parts[1:])

    return fits(file.relative_to(start).parts, pattern)


def _sort_out(found: Found, files: Iterable[Path]) -> None:
    """Divides files into images and what is skipped; of several links to one file the plainest path is taken."""
    paths = sorted(files, key=lambda path: (_is_linked(path, found.root), path))
    seen = set()
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:  # a link to nothing, or a file that has just gone
            if not path.name.startswith(".") and path.suffix.lower() in _IMAGE_SUFFIXES:
                found.images.append(path)  # read_image says why it cannot be read
            continue
        identity = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
        if path.name.startswith(".") or not stat.S_ISREG(status.st_mode):
            continue
        if identity in seen:
            found.links += path.suffix.lower() in _IMAGE_SUFFIXES
            continue
        seen.add(identity)
        suffix, kind = path.suffix.lower(), kind_of(_head(path))
        if suffix in _UNREAD_KIND and (kind == "TIFF" or kind not in READABLE):
            found.skipped.setdefault(_UNREAD_KIND[suffix], []).append(path)
        elif suffix in _IMAGE_SUFFIXES or kind in READABLE:
            found.images.append(path)
        elif kind:
            found.skipped.setdefault(kind, []).append(path)
        else:
            found.others[suffix] += 1
    found.images.sort()


def _lies_in(path: PathLike, folder: str) -> bool:
    """Whether a path is a folder or lies in it; ``folder`` is real, "" is no folder."""
    return bool(folder) and os.path.commonpath((os.path.realpath(path), folder)) == folder


def _is_linked(path: Path, root: Path) -> bool:
    return any(os.path.islink(part) for part in (path, *path.parents) if part != root and root in part.parents)


def _is_raw(path: Path, kind: str) -> bool:
    """Whether a file is a camera's raw file that could be read as its small preview."""
    return kind == "TIFF" and _UNREAD_KIND.get(path.suffix.lower()) == "camera raw"


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def output_files(stem: Path, colormap: str) -> list[Path]:
    """Lists the files that a prediction called ``stem`` consists of."""
    suffixes = [".pfm", ".png"] if colormap == "none" else [".pfm", ".png", "_color.png"]
    return [stem.with_name(stem.name + suffix) for suffix in suffixes]


def name_outputs(images: list[Path], root: Path, folder: Path, colormap: str) -> dict[Path, Path]:
    """Chooses for every image the path, without suffix, of its results, so that none overwrites another.

    It lies in ``folder`` as the image lies in ``root``. Its name is the image's stem if no other image there has it,
    else the stem and the suffix (``a_jpg``, ``a_png``); a number is added where that is taken as well. Names that
    differ in upper and lower case alone count as equal, as they do on many disks.

    Raises:
        UsageError: If a result would overwrite an input, or below ``root`` what is no earlier result.
    """
    places = {image: folder / image.parent.relative_to(root) for image in images}
    keys = {place: f"{place}/".casefold() for place in places.values()}
    stems = Counter(keys[place] + image.stem.casefold() for image, place in places.items())
    inputs = {image.resolve() for image in images}
    real = {place: place.resolve() for place in keys}
    among = {place for place, path in real.items() if path.is_relative_to(root.resolve())}
    taken, names = set(), {}
    numbers = Counter()  # of a base: the last one tried; those before it are taken
    for image, place in places.items():
        is_alone = stems[keys[place] + image.stem.casefold()] == 1
        base = image.stem if is_alone else f"{image.stem}_{image.suffix[1:]}"
        key = keys[place] + base.casefold()
        while True:
            numbers[key] += 1
            name = base if numbers[key] == 1 else f"{base}_{numbers[key]}"
            files = [file.name for file in output_files(place / name, colormap)]
            new = [keys[place] + file.casefold() for file in files]
            if taken.isdisjoint(new):
                break
        overwritten = [path for path in (real[place] / file for file in files) if path in inputs]
        if place in among or real[place] == image.parent.resolve():  # what is no earlier result is a picture
            overwritten += [path for path in _not_ours(real[place] / name, files) if path not in overwritten]
        if overwritten:
            raise UsageError(
                f"output_path {folder}: expected another folder, the results would overwrite {min(overwritten)}"
            )
        taken.update(new)
        names[image] = place / name
    return names


def _not_ours(stem: Path, files: list[str]) -> list[Path]:
    """Lists which of the files of a result are there already, unless an earlier run has written them: .pfm first."""
    if os.path.exists(f"{stem}.pfm"):
        return []
    return [path for path in map(stem.with_name, files) if path.exists()]


def check_output(folder: Path) -> None:
    """Finds out before the work that results cannot be written.

    Raises:
        UsageError: There is a file in the place of the folder, or it must not be written to.
    """
    there = next(path for path in (folder, *folder.parents, Path()) if os.path.lexists(path))
    if not there.is_dir():
        raise UsageError(f"output_path {folder}: expected a folder, found a file at {there}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(
            f"output_path {folder}: expected a folder that may be written to, found {there}, which may not"
        )


def stops_others(error: OSError) -> bool:
    """Whether what stopped one result from being written may well stop all others: a full or read-only disk."""
    return error.errno in _DISK_FAULTS


def write_results(stem: Path, inverse_depth: np.ndarray, colormap: str) -> None:
    """Writes the files of ``output_files``.

    Args:
        stem: Their path without suffix.
        inverse_depth: Finite (H, W).
        colormap: Name of an OpenCV colour map in lower case; ``none`` for no picture.

    Raises:
        OSError: One cannot be written; those before it are complete.
    """
    write_depth(stem, inverse_depth)
    if colormap != "none":
        write_color(output_files(stem, colormap)[-1], inverse_depth, colormap)
