"""Speed of the training data, in samples per second: ours against a plain float64 OpenCV pipeline.

    python benchmarks/bench_data.py                        # renders its own images, 640x480
    python benchmarks/bench_data.py --data_dir data        # a folder with mixdata.json and the sets that it names

The plain pipeline reads an image, divides by 255, resizes it by cubic interpolation, normalises and transposes it,
all in float64, and hands it over as float32; with a target, it turns 8-bit ground truth into inverse depth and its mask
and resizes both by nearest neighbour, in float64, too.
Both run on one core (OpenCV with one thread), in turn on the same files, and their results are compared. Decoding is
common to both: the last contender shows the rate that transforms taking no time at all would reach.

The second part runs the whole MindSpore pipeline with its worker processes.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from side_by_side import compare, machine  # noqa: E402

from preprocess.make_sample import make_sample  # noqa: E402
from src.common.errors import run_script  # noqa: E402
from src.util import read_image, read_truth  # noqa: E402
from src.utils.loadImgDepth import Batches, LoadImagesDepth, create_dataset  # noqa: E402
from src.utils.mixdata import Pair, list_pairs  # noqa: E402
from src.utils.order import SampleOrder  # noqa: E402
from src.utils.transforms import NormalizeImage, PrepareForNet, Resize  # noqa: E402
from src.utils.truth import NEGATIVE_DISPARITY  # noqa: E402

SIDE = 384
BATCH_SIZE = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def plain_image(pair: Pair) -> np.ndarray:
    """The plain float64 pipeline: float32 (3, SIDE, SIDE)."""
    image = cv2.cvtColor(cv2.imread(pair.image_path), cv2.COLOR_BGR2RGB) / 255.0
    image = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    image = (image - MEAN) / STD
    return np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)


def plain_sample(pair: Pair) -> tuple[np.ndarray, ...]:
    """The same with target and mask, of 8-bit ground truth."""
    image = plain_image(pair)
    stored = cv2.imread(pair.depth_path, cv2.IMREAD_UNCHANGED).astype(np.float64)
    truth = pair.truth
    mask = np.ones_like(stored) if truth.invalid is None else (stored != truth.invalid).astype(np.float64)
    target = mask * (255 - stored if truth.kind == NEGATIVE_DISPARITY else stored)
    target, mask = (cv2.resize(x, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST_EXACT) for x in (target, mask))
    return image, target.astype(np.float32), mask.astype(np.float32)


def our_image(pair: Pair) -> np.ndarray:
    """The transforms of ``src`` without a target."""
    sample = {"image": read_image(pair.image_path, False)}
    for transform in (Resize(SIDE, SIDE), NormalizeImage(MEAN, STD), PrepareForNet()):
        sample = transform(sample)
    return sample["image"]


def compare_pipelines(pairs: list[Pair], rounds: int) -> None:
    """Times both pipelines on all pairs, in turn, after comparing their results."""
    source = LoadImagesDepth(pairs, SIDE, SIDE, MEAN, STD)
    for i, pair in enumerate(pairs):  # reads the files once, too
        plain, ours = plain_sample(pair), source[i]
        np.testing.assert_allclose(ours[0], plain[0], rtol=0, atol=2e-4)  # float32; a grey level is 0.018
        np.testing.assert_array_equal(ours[1], plain[1])
        np.testing.assert_array_equal(ours[2], plain[2])

    def over_all(job):
        return lambda: [job(i) for i in range(len(pairs))]

    kinds = {
        "image alone": (
            lambda i: plain_image(pairs[i]),
            lambda i: our_image(pairs[i]),
            lambda i: read_image(pairs[i].image_path, False),
        ),
        "image, ground truth and mask": (
            lambda i: plain_sample(pairs[i]),
            lambda i: source[i],
            lambda i: (read_image(pairs[i].image_path, False), read_truth(pairs[i].depth_path)),
        ),
    }
    for kind, jobs in kinds.items():
        print(f"\n{kind}")
        contenders = dict(zip(("plain float64 OpenCV", "this project", "decoding alone"), map(over_all, jobs)))
        compare(contenders, rounds, unit="images", work=len(pairs))


def measure_workers(pairs: list[Pair], steps: int, repeats: int) -> None:
    """Prints the median rate of the whole pipeline with two workers, batches delivered as tensors to this process."""
    source = LoadImagesDepth(pairs, SIDE, SIDE, MEAN, STD)
    order = SampleOrder(len(pairs), min(BATCH_SIZE, len(pairs)), seed=0)
    rates = []
    for _ in range(repeats):
        with Batches(create_dataset(source, order, 0, steps, 2)) as batches:
            for count, _batch in enumerate(batches):
                if count == 0:
                    first = time.perf_counter()
        rates.append(count * order.batch_size / (time.perf_counter() - first))
    print(f"\n2 worker processes, batches of {order.batch_size}: {np.median(rates):.0f} images/s")


def main() -> None:
    """Reads the command line and runs both parts."""
    parser = argparse.ArgumentParser(description="Speed of the training data pipeline.")
    parser.add_argument("--data_dir", type=Path, help="folder with mixdata.json; without it, images are rendered")
    parser.add_argument("--max_pairs", type=int, default=24, help="number of pairs to use (default: 24)")
    parser.add_argument("--rounds", type=int, default=9, help="how often everything is timed (default: 9)")
    parser.add_argument("--steps", type=int, default=60, help="steps of the whole pipeline (default: 60)")
    arguments = parser.parse_args()

    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data_dir or Path(folder)
        if arguments.data_dir is None:
            make_sample(data, train=arguments.max_pairs, eval_count=0, size=(640, 480))
        pairs = list_pairs(data, data / "mixdata.json")[0][: arguments.max_pairs]
        print(f"{machine()}, OpenCV {cv2.__version__}, one thread; {len(pairs)} pairs, resized to {SIDE}x{SIDE}")
        compare_pipelines(pairs, arguments.rounds)
        measure_workers(pairs, arguments.steps, min(arguments.rounds, 3))


if __name__ == "__main__":
    run_script(main)
