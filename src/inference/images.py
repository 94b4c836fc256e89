"""Images to predict: finding them, naming and writing the results."""

import glob
import os
from collections import Counter
from pathlib import Path

import numpy as np

from src.common.errors import UsageError
from src.util import write_color, write_depth

IMAGE_SUFFIXES = (".bmp", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def find_images(input_path: str) -> list[Path]:
    """Lists the images that a file, a folder or a glob pattern names, sorted.

    Of a folder these are the files with one of ``IMAGE_SUFFIXES``, without sub-folders and hidden files. Folders at the
    start of a pattern that are there by this very name are taken literally, whatever ``[``, ``*`` or ``?`` they have.

    Raises:
        UsageError: If there are none.
    """
    path = Path(input_path)
    if path.is_file():
        return [path]
    if path.is_dir():
        images = sorted(
            p
            for p in path.iterdir()
            if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.is_file()
        )
        if not images:
            raise UsageError(f"input_path {path}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none")
        return images
    images = sorted(Path(p) for p in glob.glob(_pattern(path), recursive=True) if os.path.isfile(p))
    if not images:
        raise UsageError(
            f"input_path {input_path}: expected an image, a folder or a quoted glob pattern, found none; "
            "name your photos with --input_path"
        )
    return images


def _pattern(path: Path) -> str:
    """Makes a glob pattern of a path whose first folders may have brackets in their names."""
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    return os.path.join(glob.escape(str(folder)), path.relative_to(folder))


def output_files(stem: Path, colormap: str) -> list[Path]:
    """Lists the files that a prediction called ``stem`` consists of."""
    suffixes = [".pfm", ".png"] if colormap == "none" else [".pfm", ".png", "_color.png"]
    return [stem.with_name(stem.name + suffix) for suffix in suffixes]


def name_outputs(images: list[Path], folder: Path, colormap: str) -> dict[Path, Path]:
    """Chooses for every image the path, without suffix, of its results, so that none overwrites another.

    The image's stem if no other image has it, else the stem and the suffix (``a_jpg``, ``a_png``); a number is added
    where that is taken as well.

    Raises:
        UsageError: If a result would overwrite an input.
    """
    stems = Counter(image.stem for image in images)
    inputs = {image.resolve() for image in images}
    taken, names = set(), {}
    numbers = Counter()  # of a base: the last one tried; those before it are taken
    for image in images:
        base = image.stem if stems[image.stem] == 1 else f"{image.stem}_{image.suffix[1:]}"
        while True:
            numbers[base] += 1
            name = base if numbers[base] == 1 else f"{base}_{numbers[base]}"
            files = output_files(folder / name, colormap)
            if taken.isdisjoint(files):
                break
        overwritten = inputs.intersection(file.resolve() for file in files)
        if overwritten:
            raise UsageError(
                f"output_path {folder}: expected another folder, the results would overwrite {min(overwritten)}"
            )
        taken.update(files)
        names[image] = folder / name
    return names


def write_results(stem: Path, inverse_depth: np.ndarray, colormap: str) -> None:
    """Writes the files of ``output_files``.

    Args:
        stem: Their path without suffix.
        inverse_depth: Finite (H, W).
        colormap: Name of an OpenCV colour map in lower case; ``none`` for no picture.
    """
    write_depth(stem, inverse_depth)
    if colormap != "none":
        write_color(output_files(stem, colormap)[-1], inverse_depth, colormap)
