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

from preprocess.scenes import Scene, draw_scene, render, render_scene
from src.common.atomic import write_text
from src.common.errors import UsageError, run_script
from src.common.progress import Progress
from src.util import write_dpt, write_png16

STAMP = "sample.json"
VERSION = 3  # raise it when the same settings give other files
SMALLEST_SIDE_PX = 32
STEREO_BASELINE_M = 0.3  # Sintel: distance of the right eye
KITTI_ASPECT, SINTEL_ASPECT, ETH3D_ASPECT = 1242 / 375, 1024 / 436, 3 / 2  # width / height of the real pictures
TUM_SEQUENCE = "rgbd_dataset_freiburg2_desk_with_person"
NO_TRUTH = 255  # of ReDWeb
MIXDATA = {
    "img": {"RW": "/ReDWeb_V1/Imgs/*"},
    "depth": {"RW": "/ReDWeb_V1/RDs/*"},
    "kind": {"RW": "negative_disparity"},
    "invalid": {"RW": NO_TRUTH},
}


def redweb_values(depth: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """Turns depth into what ReDWeb stores: relative inverse depth with the sign turned, 8 bits.

    Args:
        depth: (H, W), metres.
        holes: bool (H, W), where there is no ground truth.

    Returns:
        uint8 (H, W): 0 the nearest pixel, 254 the farthest, 255 a hole.
    """
    inverse = 1.0 / depth
    low, high = inverse[~holes].min(), inverse[~holes].max()
    values = np.rint(np.interp(inverse, (low, high), (NO_TRUTH - 1, 0))).astype(np.uint8)
    values[holes] = NO_TRUTH
    return values


def _same_area(height: int, width: int, aspect: float) -> tuple[int, int]:
    """Returns (height, width) with the same number of pixels and another aspect (width / height)."""
    return round(np.sqrt(height * width / aspect)), round(np.sqrt(height * width * aspect))


def _write_picture(path: Path, image: np.ndarray, file_format: str = "") -> None:
    """Writes an RGB or grey uint8 picture. The suffix gives the format, unless ``file_format`` (``".jpg"``) does."""
    stored = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(file_format or path.suffix, stored)[1].tobytes())


def draw_blobs(rng: np.random.Generator, height: int, width: int, share: float = 0.1) -> np.ndarray:
    """Draws blobs, bool (H, W), that cover this share of the picture: where a depth camera has no reading, say."""
    smooth = cv2.resize(rng.random((7, 9)), (width, height), interpolation=cv2.INTER_CUBIC)
    return smooth > np.quantile(smooth, 1 - share)


def _write_redweb(output: Path, rng: np.random.Generator, index: int, height: int, width: int) -> None:
    """Writes a pair, and with the first one the file that tells training where the pairs are."""
    if index == 0:
        write_text(output.parent / "mixdata.json", json.dumps(MIXDATA) + "\n")
    image, depth = render_scene(rng, height, width)
    _write_picture(output / "Imgs" / f"sample_{index:05d}.jpg", image)
    _write_picture(output / "RDs" / f"sample_{index:05d}.png", redweb_values(depth, draw_blobs(rng, height, width)))


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
    """Writes a frame and adds it to associate.txt. The depth camera fires a little later than the colour camera."""
    image, depth = render_scene(rng, height, width, "room")
    sequence = output / TUM_SEQUENCE
    stamp = 1311870426 + index / 30  # s
    files = f"rgb/{stamp:.6f}.png", f"depth/{stamp + 0.005:.6f}.png"
    _write_picture(sequence / files[0], image)
    write_png16(sequence / files[1], np.rint(5000 * depth * ~draw_blobs(rng, height, width)).astype(np.uint16))
    with open(sequence / "associate.txt", "a", encoding="ascii") as pairs:
        print(*files, file=pairs)


def _write_sintel(output: Path, rng: np.random.Generator, index: int, height: int, width: int) -> None:
    height, width = _same_area(height, width, SINTEL_ASPECT)
    scene = draw_scene(rng, height, width, "street")
    image, depth, points = render(scene, height, width)
    frame = f"scene_{index + 1}/frame_0001"
    write_dpt(output / "depth" / f"{frame}.dpt", depth)
    _write_picture(output / "final_left" / f"{frame}.png", image)
    hidden = hidden_from_right(scene, points).reshape(height, width)
    _write_picture(output / "occlusions" / f"{frame}.png", np.where(hidden, 255, 0).astype(np.uint8))


def hidden_from_right(scene: Scene, points: np.ndarray) -> np.ndarray:
    """Tells which of the points (3, N) are hidden from the right eye."""
    right_eye = scene.camera.position + STEREO_BASELINE_M * scene.camera.axes()[:, 0]
    return scene.is_hidden(points, right_eye)


def _write_eth3d(output: Path, rng: np.random.Generator, index: int, height: int, width: int) -> None:
    height, width = _same_area(height, width, ETH3D_ASPECT)
    image, depth = render_scene(rng, height, width)
    scene = output / f"scene_{index + 1}"
    _write_picture(scene / "images" / "dslr_images" / "DSC_0001.JPG", image)
    depth[draw_blobs(rng, height, width)] = np.inf
    truth = scene / "ground_truth_depth" / "dslr_images" / "DSC_0001.JPG"
    truth.parent.mkdir(parents=True)
    truth.write_bytes(depth.astype("<f4").tobytes())


def _write_diw(output: Path, rng: np.random.Generator, index: int, height: int, width: int) -> None:
    """Writes a picture and adds the order of two of its points, whose depths differ clearly, to the table."""
    if rng.random() < 0.3:
        height, width = width, height  # some photos are upright
    image, depth = render_scene(rng, height, width)
    name = f"DIW_test/sample_{index:05d}.thumb"
    _write_picture(output / name, image, ".jpg")
    depth1 = depth2 = 0.0
    while max(depth1, depth2) <= 1.1 * min(depth1, depth2):
        (y1, x1), (y2, x2) = rng.integers((height, width), size=(2, 2))
        depth1, depth2 = depth[y1, x1], depth[y2, x2]
    table = output / "DIW_Annotations" / "DIW_test.csv"
    table.parent.mkdir(exist_ok=True)
    with open(table, "a", encoding="ascii") as annotations:
        relation = ">" if depth1 > depth2 else "<"
        annotations.write(f"./{name}\n{y1 + 1},{x1 + 1},{y2 + 1},{x2 + 1},{relation},{width},{height}\n")


def _write_nyu(output: Path, rng: np.random.Generator, index: int, height: int, width: int) -> None:
    """Adds a picture to the arrays, transposed as MATLAB stores them, and to the list of test pictures."""
    image, depth = render_scene(rng, height, width, "room")
    arrays = {"images": image.transpose(2, 1, 0), "rawDepths": (depth * ~draw_blobs(rng, height, width)).T}
    output.mkdir(exist_ok=True)
    with h5py.File(output / "nyu.mat", "a") as file:
        for name, array in arrays.items():
            if index == 0:
                file.create_dataset(name, data=array[None], maxshape=(None, *array.shape), chunks=(1, *array.shape))
            file[name].resize(index + 1, axis=0)
            file[name][index] = array
    scipy.io.savemat(output / "splits.mat", {"testNdxs": np.arange(1.0, index + 2)[:, None]})  # counted from 1


WRITERS = {  # by folder; the seeds depend on the order
    "ReDWeb_V1": _write_redweb,
    "Kitti_raw_data": _write_kitti,
    "TUM": _write_tum,
    "Sintel": _write_sintel,
    "NYU": _write_nyu,
    "ETH3D": _write_eth3d,
    "DIW": _write_diw,
}


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
    settings = {"train": train, "eval": eval_count, "diw": diw_count, "seed": seed}
    for key, value in settings.items():
        if value < 0:
            raise UsageError(f"--{key}: expected at least 0, found {value}")
    if min(size) < SMALLEST_SIDE_PX:
        raise UsageError(f"--size: expected at least {SMALLEST_SIDE_PX}, found {min(size)}")
    text = json.dumps({"version": VERSION, **settings, "size": [width, height]}) + "\n"
    stamp = output / STAMP
    counts = {"mixdata.json": train, **dict.fromkeys(WRITERS, eval_count), "ReDWeb_V1": train, "DIW": diw_count}
    present = [name for name in counts if (output / name).exists()]
    complete = all(name in present for name in counts if counts[name])
    if complete and stamp.is_file() and stamp.read_bytes() == text.encode():
        return False
    if present and not stamp.is_file():
        raise UsageError(
            f"{output}: expected a new folder or an older sample, found {present[0]} without {STAMP}; "
            "remove it or choose another --output"
        )
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sample.", dir=output) as folder:
        with Progress(sum(counts[name] for name in WRITERS), "sample data") as progress:
            for number, (name, write) in enumerate(WRITERS.items()):
                for index in range(counts[name]):
                    write(Path(folder) / name, np.random.default_rng([seed, number, index]), index, height, width)
                    progress.update()
        stamp.unlink(missing_ok=True)
        for name in present:
            path = output / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in Path(folder).iterdir():
            os.replace(path, output / path.name)
    write_text(stamp, text)
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
    parser.add_argument("--diw", type=int, metavar="N", help="pictures of DIW (default: as many as --eval)")
    parser.add_argument("--seed", type=int, default=1, help="seed of all random choices (default: 1)")
    parser.add_argument(
        "--size", type=_parse_size, default=(320, 240), metavar="WxH", help="size of the pictures (default: 320x240)"
    )
    options = parser.parse_args(arguments)
    made = make_sample(options.output, options.train, options.eval, options.seed, options.size, options.diw)
    print(f"{options.output}: {'made' if made else 'already there'}")


if __name__ == "__main__":
    run_script(main)
