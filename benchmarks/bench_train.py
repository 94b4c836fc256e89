"""Training of this checkout against another one: first step, step, and images/s where loading is the limit.

    git worktree add /tmp/before v1.0                          # or any commit
    python benchmarks/bench_train.py /tmp/before
    python benchmarks/bench_train.py /tmp/before --tiny        # a small network: seconds instead of minutes

Both train with their own midas_train.py, in turn, in processes of their own, on the same rendered images; the figures
are those of their logs. The full network needs 9 GB of memory and, for its checkpoint, 2 GB of disk.
"""

import argparse
import csv
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from side_by_side import Seconds, compare, machine  # noqa: E402
from time_limit import run_within  # noqa: E402

from preprocess.make_sample import make_sample  # noqa: E402
from src.common.errors import MidasError, UsageError, run_script  # noqa: E402

TIME_LIMIT_S = 3600
TINY = ("--layers", "[1, 1, 1, 1]", "--groups", "1", "--in_channels", "8", "--features", "8")
RENDERED_SIZE = (320, 240)
LOADING_SIZE = (1920, 1440)  # what they are enlarged to: loading takes longer than computing in a small network
LOADING_BATCH, LOADING_PAIRS = 4, 8
READY_BATCHES = 8  # steps that find their batch ready, as it was loaded during the first step


def train(checkout: Path, data: Path, epochs: int, words: tuple[object, ...]) -> tuple[float, list[float]]:
    """Trains with a checkout.

    Returns:
        Seconds of the first step, compilation included, and of each of the others.

    Raises:
        MidasError: The training failed or took too long, or its log has another form.
    """
    with tempfile.TemporaryDirectory() as run:
        command = [
            sys.executable, checkout / "midas_train.py", "--device_target", "CPU", "--model_weights", "",
            "--train_data_dir", data, "--mixdata", data / "mixdata.json", "--train_output_path", run,
            "--epoch_size", epochs, "--save_checkpoint_epochs", epochs, "--log_interval", "1", *words,
        ]  # fmt: skip
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        result = run_within(TIME_LIMIT_S, command, cwd=checkout, **pipes)
        if result.returncode:
            tail = "\n".join(result.stderr.splitlines()[-5:])
            raise MidasError(f"{checkout}: expected a training, found exit status {result.returncode}:\n{tail}")
        first = re.search(r"first step ([0-9.]+) s", result.stdout)
        with open(Path(run) / "loss.csv", newline="") as file:
            seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    if first is None or len(seconds) < 2:
        found = f"{'a' if first else 'no'} line 'first step ... s' and {len(seconds)} rows of loss.csv"
        raise MidasError(f"{checkout}: expected a line 'first step ... s' and two rows of loss.csv, found {found}")
    return float(first[1]), seconds[1:]


def measure_steps(checkouts: dict[str, Path], data: Path, words: tuple[object, ...], rounds: int) -> None:
    """Prints first step and step of all checkouts."""
    firsts: dict[str, list[float]] = {name: [] for name in checkouts}

    def run(name):
        first, seconds = train(checkouts[name], data, 1, words)
        firsts[name].append(first)
        return Seconds(np.median(seconds))

    compare({name: lambda name=name: run(name) for name in checkouts}, rounds, warm_up=False)
    reference = np.median(next(iter(firsts.values())))
    for name, seconds in firsts.items():
        median = np.median(seconds)
        print(f"{name}: first step {median:.1f} s ({min(seconds):.1f} .. {max(seconds):.1f} s)  "
              f"time / first: {median / reference:.2f}")  # fmt: skip


def measure_loading(checkouts: dict[str, Path], data: Path, side: int, options: argparse.Namespace) -> None:
    """Prints the images/s of all checkouts for each number of workers."""
    epochs = math.ceil((READY_BATCHES + options.loading_steps) * LOADING_BATCH / LOADING_PAIRS)
    words = ("--batch_size", LOADING_BATCH, "--img_width", side, "--img_height", side, *TINY)

    def run(name, workers):
        _, seconds = train(checkouts[name], data, epochs, (*words, "--num_parallel_workers", workers))
        return Seconds(np.mean(seconds[READY_BATCHES:]))  # two workers deliver two batches at once: no median

    for workers in options.workers:
        print(f"\nloading with num_parallel_workers {workers}, {'x'.join(map(str, LOADING_SIZE))} -> {side}x{side}")
        contenders = {name: lambda name=name, workers=workers: run(name, workers) for name in checkouts}
        compare(contenders, options.rounds, unit="images", work=LOADING_BATCH, warm_up=False)


def main() -> None:
    """Reads the command line and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    parser.add_argument("--tiny", action="store_true", help="a small network and small images")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is timed (default: 3)")
    parser.add_argument("--steps", type=int, default=8, help="of a training, the first included (default: 8)")
    parser.add_argument("--batch_size", type=int, default=2, help="(default: 2)")
    parser.add_argument("--loading_steps", type=int, default=32, help="of the part on loading (default: 32)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of that part (default: 1 2)")
    options = parser.parse_args()
    other = options.other.resolve()
    if not (other / "midas_train.py").is_file():
        raise UsageError(f"{other}: expected a checkout of this project, found no midas_train.py in it")
    checkouts = {"the other checkout": other, "this checkout": ROOT}
    print(f"{machine()}; the other checkout: {other}")
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        size = (64, 64) if options.tiny else (640, 480)
        make_sample(data, train=options.steps * options.batch_size, eval_count=0, size=size)
        side = 64 if options.tiny else 384
        print(f"\na step, batch {options.batch_size}, {side}x{side}{', a small network' if options.tiny else ''}")
        words = (
            "--num_parallel_workers",
            2,
            "--batch_size",
            options.batch_size,
            "--img_width",
            side,
            "--img_height",
            side,
        )
        measure_steps(checkouts, data, (*words, *(TINY if options.tiny else ())), options.rounds)
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        make_sample(data, train=LOADING_PAIRS, eval_count=0, size=RENDERED_SIZE)
        for path in (data / "ReDWeb_V1").glob("*/*"):
            picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(str(path), cv2.resize(picture, LOADING_SIZE, interpolation=cv2.INTER_NEAREST))
        measure_loading(checkouts, data, side, options)


if __name__ == "__main__":
    run_script(main)
