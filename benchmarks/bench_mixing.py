"""What the paper's recipe costs: a training step with each loss, and with each way to mix two sets.

    python benchmarks/bench_mixing.py
    python benchmarks/bench_mixing.py --tiny      # a small network: a minute instead of half an hour

Each way trains with midas_train.py in a process of its own, in turn, on the same rendered images; the figures are those
of loss.csv. The full network needs 12 GB of memory and, for its checkpoint, 2 GB of disk.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from bench_train import ROOT, TINY, train  # it makes the project importable, too
from side_by_side import Seconds, compare, machine

from preprocess.make_sample import MIXDATA, make_sample
from src.common.errors import run_script

ONE_SET = {"ssi_mse": ("--loss", "ssi_mse"), "ssi_mae": ("--loss", "ssi_mae"), "ssi_trim": ("--loss", "ssi_trim")}
TWO_SETS = {
    "naive": ("--loss", "ssi_trim"),
    "multi_objective, upper bound": ("--loss", "ssi_trim", "--mixing", "multi_objective", "--upper_bound", "True"),
    "multi_objective, exact": ("--loss", "ssi_trim", "--mixing", "multi_objective"),
}


def make_data(folder: Path, count: int, size: tuple[int, int]) -> dict[int, Path]:
    """Renders pairs and lists them as one set and as two of half the size; number of sets -> list."""
    make_sample(folder, train=count, eval_count=0, size=size)
    names = sorted(path.stem for path in (folder / "ReDWeb_V1" / "Imgs").iterdir())
    tables = {key: {} for key in MIXDATA}
    for index, name in enumerate(names):
        part = "even" if index % 2 == 0 else "odd"
        for kind in ("Imgs", "RDs"):
            (path,) = (folder / "ReDWeb_V1" / kind).glob(f"{name}.*")
            (folder / part / kind).mkdir(parents=True, exist_ok=True)
            (folder / part / kind / path.name).hardlink_to(path)
        tables["img"][part], tables["depth"][part] = f"/{part}/Imgs/*", f"/{part}/RDs/*"
        tables["kind"][part], tables["invalid"][part] = MIXDATA["kind"]["RW"], MIXDATA["invalid"]["RW"]
    (folder / "two.json").write_text(json.dumps(tables))
    return {1: folder / "mixdata.json", 2: folder / "two.json"}


def main() -> None:
    """Reads the command line and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small network and small images")
    parser.add_argument("--rounds", type=int, default=2, help="how often each is timed (default: 2)")
    parser.add_argument("--steps", type=int, default=5, help="of a training, the first included (default: 5)")
    parser.add_argument("--batch_size", type=int, default=2, help="even (default: 2)")
    options = parser.parse_args()
    print(machine())
    side = 64 if options.tiny else 384
    size = ("--img_width", side, "--img_height", side, "--batch_size", options.batch_size, "--num_parallel_workers", 2)
    size += TINY if options.tiny else ()
    with tempfile.TemporaryDirectory() as name:
        count = options.steps * options.batch_size
        lists = make_data(Path(name), count, (64, 64) if options.tiny else (640, 480))

        def run(sets, words):
            _, seconds = train(ROOT, Path(name), 1, (*size, "--mixdata", lists[sets], *words))
            return Seconds(np.median(seconds))

        for sets, ways in ((1, ONE_SET), (2, TWO_SETS)):
            print(f"\na step, batch {options.batch_size}, {side}x{side}, sets: {sets}")
            contenders = {way: lambda sets=sets, words=words: run(sets, words) for way, words in ways.items()}
            compare(contenders, options.rounds, warm_up=False)


if __name__ == "__main__":
    run_script(main)
