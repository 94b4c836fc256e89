"""Predicts inverse depth maps for photos.

``python midas_run.py --input_path PHOTOS --output_path MAPS --model_weights WEIGHTS`` takes an image, a folder or a
quoted glob pattern. It writes three files for every image, at its size. NAME.pfm is float32 inverse depth: larger is
nearer, >= 0, of unknown scale and shift. NAME.png is the same as 16-bit grey, smallest value 0, largest 65535.
NAME_color.png is the same in colours.
"""

import sys
import time
from pathlib import Path
from typing import Optional, Union

import numpy as np

from src.common.ahead import run_ahead, thread_pool
from src.common.compile_cache import enable_compile_cache
from src.common.device import setup_device
from src.common.errors import DataError, run_script
from src.common.progress import Progress
from src.common.stop import stop_between_items
from src.config import NETWORK_KEYS, PREDICTION_KEYS, Config, load_config, settle
from src.inference.images import find_images, name_outputs, write_results
from src.inference.predictor import load_predictor
from src.util import read_image
from src.utils.transforms import resize_prediction
from src.weights.checkpoint import Weights, open_weights

KEYS = (
    "device_target", "device_id", "seed", "enable_compile_cache", *NETWORK_KEYS, *PREDICTION_KEYS, "input_path",
    "output_path", "model_weights", "colormap",
)  # fmt: skip


def predict_all(config: Config, images: list[Path], weights: Optional[Weights]) -> tuple[int, list[str]]:
    """Writes the results of all images; bad ones are reported and left out.

    Returns:
        Of how many images there are results now, and a line for each kind of fault.

    Raises:
        StopRequest: There was a signal before the last image. The maps of the images so far are complete.
    """
    names = name_outputs(images, Path(config.output_path), config.colormap)
    predictor = load_predictor(weights, "model_weights", config.network, **config.prediction)

    def load(path: Path) -> Union[DataError, tuple]:
        try:
            image = read_image(path)
        except DataError as error:
            return error
        return image.shape[:2], predictor.prepare(image)

    written = unreadable = infinite = 0
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
            if isinstance(loaded, DataError):
                unreadable += 1
                progress.write(f"left out: {loaded}")
            else:
                size, prepared = loaded
                inverse_depth = resize_prediction(predictor.infer(prepared), *size)
                if np.isfinite(inverse_depth).all():
                    write_results(names[path], inverse_depth, config.colormap)
                    written += 1
                else:
                    infinite += 1
                    progress.write(f"left out: {path}: expected a finite prediction, found NaN or infinity")
            progress.update()
    faults = []
    if unreadable:
        faults.append(f"{unreadable} of {len(images)} images could not be read")
    if infinite:
        faults.append(f"{infinite} of {len(images)} predictions were not finite; check the weights")
    return written, faults


def main() -> int:
    """Runs the script; returns its exit status."""
    config = load_config(__doc__, keys=KEYS)
    start = time.perf_counter()
    images = find_images(config.input_path)
    device = setup_device(config.device_target, config.device_id, config.seed)
    weights = open_weights(config.model_weights, "model_weights", whole=True)
    if weights:
        config = settle(config, weights.settings(config.network), weights.path)
    enable_compile_cache(
        config.enable_compile_cache, ("predict", device.target, config.network), config.eval_shapes == "static"
    )
    print(f"{len(images)} images, device {device.target}")
    written, faults = predict_all(config, images, weights)
    print(f"{written} inverse depth maps in {config.output_path} ({time.perf_counter() - start:.1f} s)")
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    run_script(main)
