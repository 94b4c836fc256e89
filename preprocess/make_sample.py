"""Makes sample data in the layout of the real data sets, from ray-cast scenes with exact depth.

    python preprocess/make_sample.py --output data/sample

With it training, evaluation and every reader run from start to end without a download. A network trained on it
learns these scenes, so its scores say nothing about the real sets. No scene is in both training and evaluation.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import h5py
import numpy as np
import scipy.io

from preprocess.associate import associate_files
from preprocess.scenes import Scene, View, draw_scene, render, render_scene
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
# All that this script makes in the output folder, apart from the stamp. The seeds depend on the order.
ENTRIES = ("mixdata.json", "ReDWeb_V1", "Kitti_raw_data", "TUM", "Sintel", "NYU", "ETH3D", "DIW")


def relative_inverse_depth(depth: np.ndarray) -> np.ndarray:
    """Turns depth (H, W) in metres into the 8-bit training target of ReDWeb: farthest pixel 0, nearest 255."""
    inverse = 1.0 / depth.astype(np.float64)
    low, high = inverse.min(), inverse.max()
    return np.rint((inverse - low) * (255 / max(high - low, np.finfo(float).tiny))).astype(np.uint8)


def _same_area(height: int, width: int, aspect: float) -> tuple[int, int]:
    """Returns (height, width) with the same number of pixels and another aspect (width / height)."""
    return round(np.sqrt(height * width / aspect)), round(np.sqrt(height * width * aspect))


def _write_picture(path: Path, image: np.ndarray, file_format: str = "") -> None:
    """Writes an RGB or grey uint8 picture. The suffix gives the format, unless ``file_format`` (``".jpg"``) does."""
    stored = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(file_format or path.suffix, stored)[1].tobytes())


def _holes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draws where a depth camera has no reading: blobs, (H, W) bool, that cover a tenth of the picture."""
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
    """Writes a frame and adds it to the lists. The depth camera fires a little later than the colour camera."""
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
    hidden = hidden_from_right(scene, view)
    _write_picture(output / "occlusions" / f"{frame}.png", np.where(hidden, 255, 0).astype(np.uint8))


def hidden_from_right(scene: Scene, view: View) -> np.ndarray:
    """Tells which pixels (H, W) of the scene's own view show a point that is hidden from the right eye."""
    right_eye = scene.camera.position + STEREO_BASELINE_M * scene.camera.axes()[:, 0]
    return scene.is_hidden(view.points, right_eye).reshape(view.depth.shape)


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
    """Writes a picture and adds the order of two of its points to the table; ``>`` and ``<`` take turns."""
    if rng.random() < 0.3:
        height, width = width, height  # some photos are upright
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
    """Draws two pixels whose depths differ by at least a tenth.

    Args:
        rng: Source of the random choices.
        depth: (H, W), m.
        first_farther: Whether the first pixel is to be the farther one.

    Returns:
        (2, 2) rows and columns counted from 0, and ``">"`` if the first pixel is farther, else ``"<"``.
    """
    flat = depth.ravel()
    first = rng.choice(np.flatnonzero((flat > 1.1 * flat.min()) | (flat < flat.max() / 1.1)))
    second = rng.choice(np.flatnonzero((flat > 1.1 * flat[first]) | (flat < flat[first] / 1.1)))
    if (flat[first] > flat[second]) != first_farther:
        first, second = second, first
    points = np.stack(np.unravel_index([first, second], depth.shape), axis=1)
    return points, ">" if first_farther else "<"


def _write_nyu(output: Path, rngs: list[np.random.Generator], height: int, width: int) -> None:
    """Writes one picture per generator, transposed as MATLAB stores them; the first and the last one for training."""
    images, depths, raw_depths = [], [], []
    for rng in rngs:
        image, depth = render_scene(rng, height, width, "room")
        images.append(image.transpose(2, 1, 0))
        depths.append(depth.T)
        raw_depths.append((depth * ~_holes(rng, height, width)).T)
    output.mkdir()
    with h5py.File(output / "nyu.mat", "w", userblock_size=512) as file:  # where MATLAB has its header
        file["images"] = np.stack(images)
        file["depths"] = np.stack(depths)
        file["rawDepths"] = np.stack(raw_depths)
    indices = np.arange(1, len(rngs) + 1, dtype=np.float64)[:, None]  # counted from 1
    scipy.io.savemat(output / "splits.mat", {"trainNdxs": indices[[0, -1]], "testNdxs": indices[1:-1]})


WRITERS = {  # of the sets that are written picture by picture
    "ReDWeb_V1": _write_redweb,
    "Kitti_raw_data": _write_kitti,
    "TUM": _write_tum,
    "Sintel": _write_sintel,
    "ETH3D": _write_eth3d,
    "DIW": _write_diw,
}


def _write_all(output: Path, counts: dict[str, int], seed: int, height: int, width: int) -> None:
    """Writes that many pictures of each set into an empty folder."""

    def random_of(name: str, index: int) -> np.random.Generator:
        return np.random.default_rng([seed, ENTRIES.index(name), index])

    with Progress(sum(counts.values()), "sample data") as progress:
        for name, write in WRITERS.items():
            for index in range(counts[name]):
                write(output / name, random_of(name, index), index, height, width)
                progress.update()
        if counts["NYU"]:
            _write_nyu(output / "NYU", [random_of("NYU", index) for index in range(counts["NYU"] + 2)], height, width)
            progress.update(counts["NYU"])
    if counts["TUM"]:
        sequence = output / "TUM" / TUM_SEQUENCE
        associate_files(sequence / "rgb.txt", sequence / "depth.txt", sequence / "associate.txt")
    if counts["ReDWeb_V1"]:
        write_text(output / "mixdata.json", json.dumps(MIXDATA) + "\n")


def _read_stamp(stamp: Path) -> Optional[dict]:
    """Returns the settings of an earlier sample, or None if there is none."""
    try:
        return json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def make_sample(
    output: Path,
    train: int = 64,
    eval_count: int = 4,
    seed: int = 1,
    size: tuple[int, int] = (320, 240),
    diw_count: Optional[int] = None,
) -> bool:
    """Makes sample data, unless a complete sample of the same settings is already there.

    Files are made in a temporary folder inside ``output`` and moved when all of them are complete. An older sample
    is replaced. Files that this script did not make are never touched.

    Args:
        output: The folder, made if need be.
        train: Number of training pairs; 0 leaves the training set out.
        eval_count: Number of pictures of each evaluation set; 0 leaves them out.
        seed: All pictures follow from it. Picture i is the same whatever the counts.
        size: (width, height) of the training pictures in pixels. Sets whose real pictures have another aspect get
            that aspect with the same number of pixels.
        diw_count: Number of pictures of DIW, which hold one pair of points each; None for ``eval_count``.

    Returns:
        Whether anything was made.

    Raises:
        UsageError: A value is out of range, or the folder holds a data set that this script did not make.
    """
    output = Path(output)
    width, height = size
    diw_count = eval_count if diw_count is None else diw_count
    for key, value, least in (
        ("train", train, 0),
        ("eval", eval_count, 0),
        ("diw", diw_count, 0),
        ("seed", seed, 0),
        ("size", min(size), SMALLEST_SIDE_PX),
    ):
        if value < least:
            raise UsageError(f"--{key}: expected at least {least}, found {value}")
    settings = {
        "version": VERSION,
        "train": train,
        "eval": eval_count,
        "diw": diw_count,
        "seed": seed,
        "size": [width, height],
    }
    counts = {**dict.fromkeys(ENTRIES[1:], eval_count), "ReDWeb_V1": train, "DIW": diw_count}
    stamp = output / STAMP
    expected = [name for name in ENTRIES if counts.get(name, train)]  # mixdata.json belongs to the training set
    if _read_stamp(stamp) == settings and all((output / name).exists() for name in expected):
        return False
    present = [name for name in ENTRIES if (output / name).exists()]
    if present and not stamp.is_file():
        raise UsageError(
            f"{output}: expected a new folder or an older sample, found {present[0]} without {STAMP}; "
            "remove it or choose another --output"
        )
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sample.", dir=output) as folder:
        _write_all(Path(folder), counts, seed, height, width)
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
    parser.add_argument(
        "--diw",
        type=int,
        metavar="N",
        help="pictures of DIW, which hold one pair of points each (default: as many as --eval)",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of all random choices (default: 1)")
    parser.add_argument(
        "--size", type=_parse_size, default=(320, 240), metavar="WxH", help="size of the pictures (default: 320x240)"
    )
    options = parser.parse_args(arguments)
    made = make_sample(options.output, options.train, options.eval, options.seed, options.size, options.diw)
    print(f"{options.output}: {'made' if made else 'already there'}")


if __name__ == "__main__":
    run_script(main)
