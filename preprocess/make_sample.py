"""Makes sample data in the layout of the real data sets, from ray-cast scenes with exact depth.

    python preprocess/make_sample.py --output data/sample

It lets training, evaluation and every reader run end to end without a download. A network trained on it learns
these scenes; its scores say nothing about the real sets. Evaluation scenes are other scenes than training scenes.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Callable, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import h5py
import numpy as np
import scipy.io

from preprocess.associate import associate_files
from preprocess.scenes import Camera, View, draw_scene, render, render_scene
from src.common.atomic import write_text
from src.common.errors import UsageError, run_script
from src.common.progress import Progress
from src.util import write_dpt, write_png16

STAMP = "sample.json"
VERSION = 1  # raise it when the same settings give other files
SMALLEST_SIDE_PX = 32
STEREO_BASELINE_M = 0.3  # Sintel: distance of the right eye
KITTI_ASPECT, SINTEL_ASPECT, ETH3D_ASPECT = 1242 / 375, 1024 / 436, 3 / 2  # width / height of the real pictures
TUM_SEQUENCE = "rgbd_dataset_freiburg2_desk_with_person"
TUM_START_S, TUM_FRAME_S = 1311870426.504412, 1 / 30
MIXDATA = {"img": {"RW": "/ReDWeb_V1/Imgs/*"}, "depth": {"RW": "/ReDWeb_V1/RDs/*"}}
TRAIN_ENTRIES = ("mixdata.json", "ReDWeb_V1")
EVAL_ENTRIES = ("Kitti_raw_data", "TUM", "Sintel", "NYU", "ETH3D", "DIW")
ENTRIES = TRAIN_ENTRIES + EVAL_ENTRIES  # all that is ours in the output folder


def relative_inverse_depth(depth: np.ndarray) -> np.ndarray:
    """Turns depth (H, W) in metres into the 8-bit training target of ReDWeb: 0 farthest, 255 nearest pixel."""
    inverse = 1.0 / depth.astype(np.float64)
    low, high = inverse.min(), inverse.max()
    return np.rint((inverse - low) * (255 / max(high - low, np.finfo(float).tiny))).astype(np.uint8)


def _same_area(height: int, width: int, aspect: float) -> tuple[int, int]:
    """Returns (height, width) of a picture of another aspect (width / height) with as many pixels."""
    return round(np.sqrt(height * width / aspect)), round(np.sqrt(height * width * aspect))


def _write_picture(path: Path, image: np.ndarray, file_format: str = "") -> None:
    """Writes an RGB or grey uint8 picture; the format is that of the suffix unless given (``".jpg"``)."""
    stored = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(file_format or path.suffix, stored)[1].tobytes())


def _holes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draws some blobs (H, W) bool, about a tenth of the picture, where a depth camera has no reading."""
    smooth = cv2.resize(rng.random((7, 9)), (width, height), interpolation=cv2.INTER_CUBIC)
    return smooth > np.quantile(smooth, 0.9)


def _write_redweb(output: Path, rng: np.random.Generator, index: int, height: int, width: int) -> None:
    image, depth = render_scene(rng, height, width)
    _write_picture(output / "Imgs" / f"sample_{index:05d}.jpg", image)
    _write_picture(output / "RDs" / f"sample_{index:05d}.png", relative_inverse_depth(depth))


def _write_kitti(output: Path, rng: np.random.Generator, index: int, height: int, width: int) -> None:
    height, width = _same_area(height, width, KITTI_ASPECT)
    image, depth = render_scene(rng, height, width, "street")
    rows = np.arange(height)[:, None]
    scanned = (rows > 0.35 * height) & (rows % 3 == 0) & (rng.random((height, width)) < 0.8)  # as a lidar does
    drive = output / f"2011_09_26_drive_{1 + index % 2:04d}_sync"
    name = f"{index // 2:010d}.png"
    _write_picture(drive / "image" / name, image)
    write_png16(drive / "depth" / name, np.rint(256 * depth * scanned).astype(np.uint16))


def _write_tum(output: Path, rng: np.random.Generator, index: int, height: int, width: int) -> None:
    """Writes one frame and lists it; the depth camera fires a little later than the colour camera."""
    image, depth = render_scene(rng, height, width, "room")
    sequence = output / TUM_SEQUENCE
    stamp = TUM_START_S + TUM_FRAME_S * index
    stamps = {"rgb": stamp, "depth": stamp + rng.uniform(0.001, 0.012)}
    files = {kind: f"{kind}/{stamps[kind]:.6f}.png" for kind in stamps}
    _write_picture(sequence / files["rgb"], image)
    write_png16(sequence / files["depth"], np.rint(5000 * depth * ~_holes(rng, height, width)).astype(np.uint16))
    for kind, title in (("rgb", "color images"), ("depth", "depth maps")):
        with open(sequence / f"{kind}.txt", "a", encoding="ascii") as listing:
            if index == 0:
                listing.write(f"# {title}\n# file: made by preprocess/make_sample.py\n# timestamp filename\n")
            listing.write(f"{stamps[kind]:.6f} {files[kind]}\n")


def _write_sintel(output: Path, rng: np.random.Generator, index: int, height: int, width: int) -> None:
    height, width = _same_area(height, width, SINTEL_ASPECT)
    scene = draw_scene(rng, height, width, "street")
    view = render(scene, height, width)
    frame = f"scene_{index + 1}/frame_0001"
    (output / "depth" / frame).parent.mkdir(parents=True)
    write_dpt(output / "depth" / f"{frame}.dpt", view.depth)
    _write_picture(output / "final_left" / f"{frame}.png", view.image)
    hidden = hidden_from_right(view, scene.camera, scene.is_hidden)
    _write_picture(output / "occlusions" / f"{frame}.png", np.where(hidden, 255, 0).astype(np.uint8))


def hidden_from_right(
    view: View, left: Camera, is_hidden: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Tells which pixels of the left view (H, W) show a point that something hides from the right eye."""
    right_eye = left.position + STEREO_BASELINE_M * left.axes()[:, 0]
    return is_hidden(view.points, right_eye).reshape(view.depth.shape)


def _write_eth3d(output: Path, rng: np.random.Generator, index: int, height: int, width: int) -> None:
    height, width = _same_area(height, width, ETH3D_ASPECT)
    image, depth = render_scene(rng, height, width, "street" if index % 2 else "room")
    scene = output / f"scene_{index + 1}"
    _write_picture(scene / "images" / "dslr_images" / "DSC_0001.JPG", image, ".jpg")
    depth[_holes(rng, height, width)] = np.inf
    truth = scene / "ground_truth_depth" / "dslr_images" / "DSC_0001.JPG"
    truth.parent.mkdir(parents=True)
    truth.write_bytes(depth.astype("<f4").tobytes())


def _write_diw(output: Path, rng: np.random.Generator, index: int, height: int, width: int) -> None:
    """Writes a picture and appends the order of two of its points; ``>`` and ``<`` take turns."""
    if rng.random() < 0.3:
        height, width = width, height  # photos come upright, too
    image, depth = render_scene(rng, height, width)
    name = f"DIW_test/sample_{index:05d}.thumb"
    _write_picture(output / name, image, ".jpg")
    points, relation = draw_ordered_points(rng, depth, first_farther=index % 2 == 0)
    table = output / "DIW_Annotations" / "DIW_test.csv"
    table.parent.mkdir(exist_ok=True)
    (y1, x1), (y2, x2) = points + 1
    with open(table, "a", encoding="ascii") as annotations:
        annotations.write(f"./{name}\n{y1},{x1},{y2},{x2},{relation},{width},{height}\n")


def draw_ordered_points(rng: np.random.Generator, depth: np.ndarray, first_farther: bool) -> tuple[np.ndarray, str]:
    """Draws two pixels whose depths differ by a tenth at least.

    Args:
        rng: Where they are drawn from.
        depth: (H, W), m.
        first_farther: Whether the first one shall be the farther one.

    Returns:
        (2, 2) rows and columns counted from 0, and ``">"`` if the depth of the first is larger, else ``"<"``.
    """
    flat = depth.ravel()
    first = rng.choice(np.flatnonzero((flat > 1.1 * flat.min()) | (flat < flat.max() / 1.1)))
    second = rng.choice(np.flatnonzero((flat > 1.1 * flat[first]) | (flat < flat[first] / 1.1)))
    if (flat[first] > flat[second]) != first_farther:
        first, second = second, first
    points = np.stack(np.unravel_index([first, second], depth.shape), axis=1)
    return points, ">" if first_farther else "<"


def _write_nyu(
    output: Path, seed_of: Callable[[int], np.random.Generator], count: int, height: int, width: int
) -> None:
    """Writes ``count`` test pictures between two training pictures, transposed as MATLAB stores them."""
    images, depths, raw_depths = [], [], []
    for index in range(count + 2):
        rng = seed_of(index)
        image, depth = render_scene(rng, height, width, "room")
        images.append(image.transpose(2, 1, 0))
        depths.append(depth.T)
        raw_depths.append((depth * ~_holes(rng, height, width)).T)
    output.mkdir()
    with h5py.File(output / "nyu.mat", "w", userblock_size=512) as file:  # MATLAB keeps a header block, too
        file["images"] = np.stack(images)
        file["depths"] = np.stack(depths)
        file["rawDepths"] = np.stack(raw_depths)
    indices = np.arange(1, count + 3, dtype=np.float64)[:, None]  # counted from 1
    scipy.io.savemat(output / "splits.mat", {"trainNdxs": indices[[0, -1]], "testNdxs": indices[1:-1]})


PICTURE_SETS = {
    "Kitti_raw_data": _write_kitti,
    "TUM": _write_tum,
    "Sintel": _write_sintel,
    "ETH3D": _write_eth3d,
    "DIW": _write_diw,
}


def _write_all(output: Path, train: int, eval_count: int, seed: int, height: int, width: int) -> None:
    """Writes all sets into an empty folder."""

    def seeds_of(name: str) -> Callable[[int], np.random.Generator]:
        return lambda index: np.random.default_rng([seed, ENTRIES.index(name), index])

    if train:
        write_text(output / "mixdata.json", json.dumps(MIXDATA) + "\n")
    with Progress(train + (len(PICTURE_SETS) + 1) * eval_count, "sample data") as progress:
        for index in range(train):
            _write_redweb(output / "ReDWeb_V1", seeds_of("ReDWeb_V1")(index), index, height, width)
            progress.update()
        if not eval_count:
            return
        for name, write in PICTURE_SETS.items():
            for index in range(eval_count):
                write(output / name, seeds_of(name)(index), index, height, width)
                progress.update()
        sequence = output / "TUM" / TUM_SEQUENCE
        associate_files(sequence / "rgb.txt", sequence / "depth.txt", sequence / "associate.txt")
        _write_nyu(output / "NYU", seeds_of("NYU"), eval_count, height, width)
        progress.update(eval_count)


def _is_made(output: Path, settings: dict) -> bool:
    """Tells whether the folder holds a complete sample of these settings."""
    expected = [*(TRAIN_ENTRIES if settings["train"] else ()), *(EVAL_ENTRIES if settings["eval"] else ())]
    try:
        found = json.loads((output / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return found == settings and all((output / name).exists() for name in expected)


def make_sample(
    output: Path, train: int = 64, eval_count: int = 4, seed: int = 1, size: tuple[int, int] = (320, 240)
) -> bool:
    """Makes sample data, unless the folder already holds a complete sample of the same settings.

    Files are made beside their place and moved when all are there. An older sample in the folder is replaced;
    files of other origin are never touched.

    Args:
        output: The folder, made if need be.
        train: How many training pairs; 0 leaves the training set out.
        eval_count: How many pictures of each evaluation set; 0 leaves them out.
        seed: All pictures follow from it. Picture i is the same whatever the counts.
        size: (width, height) of the training pictures in pixels. Sets whose real pictures have another aspect
            get it, with as many pixels.

    Returns:
        Whether anything was made.

    Raises:
        UsageError: A value out of range, or the folder holds a data set that this script did not make.
    """
    output = Path(output)
    width, height = size
    for key, value, least in (
        ("train", train, 0),
        ("eval", eval_count, 0),
        ("seed", seed, 0),
        ("size", min(size), SMALLEST_SIDE_PX),
    ):
        if value < least:
            raise UsageError(f"--{key}: expected at least {least}, found {value}")
    settings = {"version": VERSION, "train": train, "eval": eval_count, "seed": seed, "size": [width, height]}
    if _is_made(output, settings):
        return False
    stamp = output / STAMP
    present = [name for name in ENTRIES if (output / name).exists()]
    if present and not stamp.is_file():
        raise UsageError(
            f"{output}: expected a new folder or an older sample, found {present[0]} without {STAMP}; "
            "remove it or choose another --output"
        )
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sample.", dir=output) as folder:
        _write_all(Path(folder), train, eval_count, seed, height, width)
        stamp.unlink(missing_ok=True)
        for name in present:
            path = output / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in Path(folder).iterdir():
            os.replace(path, output / path.name)
    write_text(stamp, json.dumps(settings) + "\n")
    return True


def _parse_size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT such as 320x240, found {text!r}")
    return int(width), int(height)


def main(arguments: Optional[list[str]] = None) -> None:
    """Reads the command line and makes the sample."""
    parser = argparse.ArgumentParser(description="Makes sample data in the layout of the real data sets.")
    default = Path(__file__).resolve().parents[1] / "data" / "sample"
    parser.add_argument("--output", type=Path, default=default, help="folder to make (default: %(default)s)")
    parser.add_argument("--train", type=int, default=64, help="training pairs (default: 64)")
    parser.add_argument("--eval", type=int, default=4, help="pictures per evaluation set (default: 4)")
    parser.add_argument("--seed", type=int, default=1, help="of all random choices (default: 1)")
    parser.add_argument(
        "--size", type=_parse_size, default=(320, 240), metavar="WxH", help="of the pictures (default: 320x240)"
    )
    options = parser.parse_args(arguments)
    made = make_sample(options.output, options.train, options.eval, options.seed, options.size)
    print(f"{options.output}: {'made' if made else 'already there'}")


if __name__ == "__main__":
    run_script(main)
