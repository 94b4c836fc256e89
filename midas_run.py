"""Predicts inverse depth maps for photos.

``python midas_run.py --input_path PHOTOS --output_path MAPS --model_weights WEIGHTS`` takes an image, a folder with its
sub-folders or a quoted glob pattern. It writes three files for every image, at its size. NAME.pfm is float32 inverse
depth: larger is nearer, of unknown scale and shift. NAME.png is the same as 16-bit grey, smallest value 0, largest
65535. NAME_color.png is the same in colours.
"""

import sys
import time
from pathlib import Path
from typing import Optional, Union

import numpy as np

from src.common.ahead import run_ahead, thread_pool
from src.common.errors import DataError, one_line, run_script
from src.common.progress import Progress
from src.common.stop import stop_between_items
from src.config import BACKEND_KEYS, NETWORK_KEYS, PREDICTION_KEYS, Config, load_config, not_instead, settle
from src.inference.backends import choose_backend, load_predictor, open_model
from src.inference.images import Found, check_output, find_images, name_outputs, stops_others, write_results
from src.inference.predictor import Predictor
from src.util import read_image
from src.utils.transforms import resize_bicubic

KEYS = (
    *BACKEND_KEYS, *NETWORK_KEYS, *PREDICTION_KEYS, "input_path", "output_path", "model_weights", "colormap",
)  # fmt: skip


_MOST_FULL = 3  # results in a row that a full disk has refused


def predict_all(config: Config, found: Found, predictor: Predictor) -> tuple[int, list[str]]:
    """Writes the results of all images; what cannot be read, predicted or written is reported and left out.

    Returns:
        Of how many images there are results now, and a line for each kind of fault.

    Raises:
        StopRequest: There was a signal before the last image. The maps of the images so far are complete.
    """
    images = found.images
    names = name_outputs(images, found.root, Path(config.output_path), config.colormap)

    def load(path: Path) -> Union[str, tuple]:
        try:
            image = read_image(path)
            return image.shape[:2], predictor.prepare(image)
        except DataError as error:
            return str(error)
        except MemoryError:
            return too_large(path)

    def predict(size: tuple[int, int], prepared: np.ndarray) -> Optional[np.ndarray]:
        try:
            return resize_bicubic(predictor.infer(prepared), *size)
        except MemoryError:
            return None

    def too_large(path: Path) -> str:
        return f"{path}: expected an image that fits into memory, found too large a one; scale it down"

    written = unreadable = infinite = unwritten = full = 0
    # One image is read while the network works on another.
    with (
        stop_between_items("asked to stop: the run ends after this image") as requests,
        thread_pool(1) as reader,
        Progress(len(images), "midas_run") as progress,
    ):
        for path, loaded in zip(images, run_ahead(reader, load, images, 1)):
            requests.check(
                f"{written} of {len(images)} inverse depth maps are in {config.output_path}, the next would be that of "
                f"{path}; the same command begins with the first again"
            )
            if isinstance(loaded, str):
                unreadable += 1
                progress.write(f"left out: {loaded}")
            elif (inverse_depth := predict(*loaded)) is None:
                unreadable += 1
                progress.write(f"left out: {too_large(path)}")
            else:
                if not np.isfinite(inverse_depth).all():
                    infinite += 1
                    progress.write(f"left out: {path}: expected a finite prediction, found NaN or infinity")
                elif fault := _write(names[path], inverse_depth, config.colormap):
                    unwritten += 1
                    full = full + 1 if isinstance(fault, OSError) and stops_others(fault) else 0
                    progress.write(f"not written in whole: {names[path]}.*, the maps of {path}: {_reason(fault)}")
                    if full == _MOST_FULL:
                        break
                else:
                    written += 1
                    full = 0
            progress.update()
    total = len(images)
    faults = []
    if unreadable:
        faults.append(f"{unreadable} of {total} images could not be read")
    if infinite:
        faults.append(f"{infinite} of {total} predictions were not finite; check the weights")
    if unwritten:
        faults.append(f"{unwritten} of {total} results could not be written")
    if full == _MOST_FULL:
        faults.append(f"the run ended after {full} such results in a row: {fault.strerror}")
    return written, faults


def _reason(fault: Union[OSError, MemoryError]) -> str:
    if isinstance(fault, MemoryError):
        return "too large a map for the memory; scale the image down"
    if isinstance(fault, (FileExistsError, NotADirectoryError)):
        return "expected a folder to write to, found a file in its place"
    return fault.strerror or str(fault)


def _write(stem: Path, inverse_depth: np.ndarray, colormap: str) -> Union[OSError, MemoryError, None]:
    try:
        write_results(stem, inverse_depth, colormap)
    except (OSError, MemoryError) as error:
        return error
    return None


def main() -> int:
    """Runs the script; returns its exit status."""
    config = load_config(__doc__, keys=KEYS)
    not_instead(config, "ckpt_path", "model_weights")
    start = time.perf_counter()
    found = find_images(config.input_path, config.output_path)
    check_output(Path(config.output_path))
    model = open_model(config.model_weights, "model_weights")
    backend = choose_backend(model, **config.execution)
    print(f"{len(found.images)} images, {backend}")
    config = settle(config, model)
    predictor = load_predictor(model, "model_weights", backend, config.network, **config.predictor)
    written, faults = predict_all(config, found, predictor)
    seconds = time.perf_counter() - start
    for line in (f"{written} inverse depth maps in {config.output_path} ({seconds:.1f} s)", *found.report()):
        print(one_line(line))
    faults += found.faults
    for fault in faults:
        print(f"error: {one_line(fault)}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    run_script(main)
