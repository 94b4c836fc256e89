"""Predicts inverse depth maps for photos.

``python midas_run.py --input_path PHOTOS --output_path MAPS --model_weights WEIGHTS`` takes a file, a folder or a
quoted glob pattern and writes for every image, at its size:

* ``NAME.pfm``: float32, inverse depth: larger is nearer, >= 0, unknown scale and shift;
* ``NAME.png``: the same as 16-bit grey, minimum to 0 and maximum to 65535;
* ``NAME_color.png``: the same through ``colormap``, for looking at.
"""

import glob
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from src.common.compile_cache import enable_compile_cache
from src.common.device import setup_device
from src.common.errors import DataError, UsageError, run_script
from src.common.progress import Progress
from src.config import Config, load_config
from src.evaluation.metric import resize_prediction
from src.inference.predictor import load_predictor
from src.util import read_image, write_color, write_depth

IMAGE_SUFFIXES = (".bmp", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def find_images(input_path: str) -> list[Path]:
    """Lists the images that a file, a folder (not its sub-folders) or a glob pattern names, sorted.

    Raises:
        UsageError: If there are none.
    """
    path = Path(input_path)
    if path.is_file():
        return [path]
    if path.is_dir():
        images = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not images:
            raise UsageError(f"input_path {path}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none")
        return images
    images = sorted(Path(p) for p in glob.glob(input_path, recursive=True) if os.path.isfile(p))
    if not images:
        raise UsageError(f"input_path {input_path}: expected an image, a folder or a glob pattern, found nothing there")
    return images


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
    stems = [image.stem for image in images]
    inputs = {image.resolve() for image in images}
    taken, names = set(), {}
    for image in images:
        base = image.stem if stems.count(image.stem) == 1 else f"{image.stem}_{image.suffix[1:]}"
        name, number = base, 1
        while taken & set(output_files(folder / name, colormap)):
            number += 1
            name = f"{base}_{number}"
        files = output_files(folder / name, colormap)
        overwritten = inputs & {file.resolve() for file in files}
        if overwritten:
            raise UsageError(
                f"output_path {folder}: expected another folder, the results would overwrite {min(overwritten)}"
            )
        taken.update(files)
        names[image] = folder / name
    return names


def predict_all(config: Config, images: list[Path]) -> tuple[int, int]:
    """Writes the results of all images; bad ones are reported and left out.

    Returns:
        How many images were predicted, and how many were bad.
    """
    names = name_outputs(images, Path(config.output_path), config.colormap)
    predictor = load_predictor(config, "model_weights")

    def load(path: Path):
        image = read_image(path)
        return image.shape[:2], predictor.prepare(image)

    bad = 0
    # One image is read while the network works on another.
    with ThreadPoolExecutor(1) as reader, Progress(len(images), "midas_run") as progress:
        pending = reader.submit(load, images[0])
        for number, path in enumerate(images):
            current, pending = pending, None
            if number + 1 < len(images):
                pending = reader.submit(load, images[number + 1])
            try:
                size, prepared = current.result()
                inverse_depth = resize_prediction(predictor.infer(prepared), *size)
                if not np.isfinite(inverse_depth).all():
                    raise DataError(f"{path}: expected a finite prediction, found NaN or infinity; check the weights")
                write_depth(names[path], inverse_depth)
                if config.colormap != "none":
                    write_color(names[path].with_name(names[path].name + "_color.png"), inverse_depth, config.colormap)
            except DataError as error:
                bad += 1
                progress.write(f"left out: {error}")
            progress.update()
    return len(images) - bad, bad


def main() -> int:
    """Runs the script; returns its exit status."""
    config = load_config(__doc__)
    start = time.perf_counter()
    images = find_images(config.input_path)
    device = setup_device(config.device_target, config.device_id, config.seed)
    enable_compile_cache(config, ("run", device.target), shapes_vary=config.eval_shapes == "static")
    print(f"{len(images)} images, device {device.target}")
    done, bad = predict_all(config, images)
    print(f"{done} inverse depth maps in {config.output_path} ({time.perf_counter() - start:.1f} s)")
    if bad:
        print(f"error: {bad} of {len(images)} images could not be read", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    run_script(main)
