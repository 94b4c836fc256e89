"""Speed of the training data, in samples per second: ours against a plain float64 OpenCV pipeline.

    python benchmarks/bench_data.py                        # makes its own pictures in a temporary folder
    python benchmarks/bench_data.py --data_dir data        # a folder with mixdata.json and the sets that it names

The plain pipeline reads a picture, divides by 255, resizes it by cubic interpolation, normalises and transposes it,
all in float64, and hands it over as float32; with a target, it resizes target and mask by nearest neighbour in float64.
Both run on one core (OpenCV with one thread), alternately on the same files, and their results are compared. Decoding
is common to both: the last column is the ratio that transforms taking no time at all would reach.

The second part runs the whole MindSpore pipeline with its worker processes.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np

from src.common.errors import run_script
from src.util import read_gray, read_image
from src.utils.loadImgDepth import (
    LoadImagesDepth,
    Pair,
    batches,
    check_pairs,
    create_dataset,
    index_sequence,
    list_pairs,
)
from src.utils.transforms import NormalizeImage, PrepareForNet, Resize

SIDE = 384
BATCH_SIZE = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = ((640, 480), (800, 600), (1024, 768), (1200, 800))  # width, height
REDWEB_KB_PER_PAIR = 292e3 / 3600


def write_pairs(folder: Path, per_size: int) -> list[Pair]:
    """Makes pictures (JPEG, quality 90) and targets (8-bit PNG): smooth random structure with some sharp edges."""
    rng = np.random.default_rng(0)

    def structure(width: int, height: int, cells: tuple[tuple[int, float], ...]) -> np.ndarray:
        layers = (
            amplitude * cv2.resize(rng.normal(size=(height // cell + 2, width // cell + 2)), (width, height))
            for cell, amplitude in cells
        )
        return sum(layers)

    pairs = []
    for width, height in SIZES:
        for i in range(per_size):
            depth = structure(width, height, ((400, 60),)) + 80 * (structure(width, height, ((100, 1),)) > 0.7)
            light = structure(width, height, ((50, 45), (10, 12), (3, 4))) + 0.4 * depth
            image = np.stack([light + structure(width, height, ((70, 20),)) for _ in range(3)], axis=2)
            stem = str(folder / f"{width}x{height}_{i}")
            cv2.imwrite(f"{stem}.jpg", np.clip(image + 110, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
            cv2.imwrite(f"{stem}.png", np.clip(depth + 100, 0, 255).astype(np.uint8))
            pairs.append(Pair("synthetic", f"{stem}.jpg", f"{stem}.png"))
    return pairs


def plain_image(pair: Pair) -> np.ndarray:
    """The plain float64 pipeline: float32 (3, SIDE, SIDE)."""
    image = cv2.cvtColor(cv2.imread(pair.image_path), cv2.COLOR_BGR2RGB) / 255.0
    image = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    image = (image - MEAN) / STD
    return np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)


def plain_sample(pair: Pair) -> tuple[np.ndarray, ...]:
    """The same with mask and target."""
    image = plain_image(pair)
    target = cv2.imread(pair.depth_path, cv2.IMREAD_UNCHANGED).astype(np.float64)
    mask = np.ones_like(target)
    target, mask = (cv2.resize(x, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST) for x in (target, mask))
    return image, mask.astype(np.float32), target.astype(np.float32)


def our_image(pair: Pair) -> np.ndarray:
    """The transforms of ``src`` without a target."""
    sample = {"image": read_image(pair.image_path)}
    for transform in (Resize(SIDE, SIDE), NormalizeImage(MEAN, STD), PrepareForNet()):
        sample = transform(sample)
    return sample["image"]


def compare_pipelines(pairs: list[Pair], repeats: int) -> None:
    """Prints rates and ratios per picture size, and the greatest difference between the two results."""
    source = LoadImagesDepth(pairs, SIDE, SIDE, MEAN, STD)
    jobs: dict[str, Callable[[int], Any]] = {
        "plain image": lambda i: plain_image(pairs[i]),
        "our image": lambda i: our_image(pairs[i]),
        "decode image": lambda i: read_image(pairs[i].image_path),
        "plain sample": lambda i: plain_sample(pairs[i]),
        "our sample": lambda i: source[i],
        "decode sample": lambda i: (read_image(pairs[i].image_path), read_gray(pairs[i].depth_path)),
    }
    difference = 0.0
    for i, pair in enumerate(pairs):  # reads the files once, too
        plain, ours = plain_sample(pair), source[i]
        difference = max(difference, float(np.abs(plain[0] - ours[0]).max()))
        if not (np.array_equal(plain[1], ours[1]) and np.array_equal(plain[2], ours[2])):
            raise AssertionError(f"{pair.depth_path}: the two pipelines disagree")
    print(f"Greatest difference of normalised images: {difference:.1e}; targets and masks are equal.\n")

    seconds = {name: [[] for _ in pairs] for name in jobs}
    for _ in range(repeats):
        for i in range(len(pairs)):
            for name, job in jobs.items():
                start = time.perf_counter()
                job(i)
                seconds[name][i].append(time.perf_counter() - start)
    milliseconds = {name: [1e3 * statistics.median(times) for times in rows] for name, rows in seconds.items()}

    groups = defaultdict(list)
    for i, pair in enumerate(pairs):
        height, width = read_image(pair.image_path).shape[:2]
        groups[f"{width} x {height}"].append(i)
    groups["all"] = list(range(len(pairs)))
    print(f"{'':14}{'':8}{'plain/s':>9}{'ours/s':>9}{'ratio':>8}{'decoding ms':>13}{'ratio limit':>13}")
    for kind in ("image", "sample"):
        for group, members in groups.items():
            plain, ours, decode = (
                statistics.mean(milliseconds[f"{who} {kind}"][i] for i in members) for who in ("plain", "our", "decode")
            )
            print(
                f"{group:14}{kind:8}{1e3 / plain:9.1f}{1e3 / ours:9.1f}{plain / ours:8.2f}"
                f"{decode:13.2f}{plain / decode:13.2f}"
            )


def measure_datasets(pairs: list[Pair], steps: int, repeats: int) -> None:
    """Prints the rate of the whole pipeline, batches delivered as tensors to this process."""
    source = LoadImagesDepth(pairs, SIDE, SIDE, MEAN, STD)
    epochs = -(-steps * BATCH_SIZE // len(pairs)) + 1
    sequence = index_sequence(len(pairs), min(BATCH_SIZE, len(pairs)), 0, epochs)[: steps * BATCH_SIZE]

    variants: dict[str, Callable[[], Any]] = {
        "in a thread of this process": lambda: create_dataset(source, sequence, BATCH_SIZE, 1),
        "2 worker processes": lambda: create_dataset(source, sequence, BATCH_SIZE, 2),
    }
    rates, starts = defaultdict(list), defaultdict(list)
    for _ in range(repeats):
        for name, make in variants.items():
            start = time.perf_counter()
            for count, _batch in enumerate(batches(make())):
                if count == 0:
                    first = time.perf_counter()
            rates[name].append(count * BATCH_SIZE / (time.perf_counter() - first))
            starts[name].append(first - start)
    print(f"\n{'GeneratorDataset':30}{'samples/s':>10}{'best':>8}{'first batch s':>15}")
    for name in variants:
        print(
            f"{name:30}{statistics.median(rates[name]):10.1f}{max(rates[name]):8.1f}"
            f"{statistics.median(starts[name]):15.2f}"
        )


def main() -> None:
    """Reads the command line and runs both parts."""
    parser = argparse.ArgumentParser(description="Speed of the training data pipeline.")
    parser.add_argument("--data_dir", type=Path, help="folder with mixdata.json; without it, pictures are made")
    parser.add_argument("--max_pairs", type=int, default=24, help="number of pairs to use (default: 24)")
    parser.add_argument("--repeats", type=int, default=9, help="repeats of every measurement (default: 9)")
    parser.add_argument("--steps", type=int, default=60, help="steps per GeneratorDataset run (default: 60)")
    arguments = parser.parse_args()

    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data_dir is None:
            pairs = write_pairs(Path(folder), max(arguments.max_pairs // len(SIZES), 1))
        else:
            pairs = list_pairs(arguments.data_dir, arguments.data_dir / "mixdata.json")[0][: arguments.max_pairs]
        kilobytes = [sum(Path(p).stat().st_size for p in (x.image_path, x.depth_path)) / 1e3 for x in pairs]
        print(
            f"{len(pairs)} pairs of {statistics.mean(kilobytes):.0f} kB on average (ReDWeb: {REDWEB_KB_PER_PAIR:.0f}),"
            f" resized to {SIDE} x {SIDE}; OpenCV {cv2.__version__}, one thread; {arguments.repeats} repeats"
        )
        compare_pipelines(pairs, arguments.repeats)
        start = time.perf_counter()
        check_pairs(pairs, workers=1)
        took = time.perf_counter() - start
        print(f"\ncheck_pairs: {len(pairs) / took:.0f} pairs/s per core, {3600 * took / len(pairs):.0f} s for 3600")
        measure_datasets(pairs, arguments.steps, min(arguments.repeats, 3))


if __name__ == "__main__":
    run_script(main)
