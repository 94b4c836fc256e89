"""A whole evaluation: this project's pipeline against one image after another, in one run, with the same network.

``python benchmarks/bench_eval.py [--full] [--data_dir DATA] [--rounds 5]``. Without ``--data_dir``, which has
the layout of config.yaml, it makes sample data of about 640x480 pixels. The network is a small one unless ``--full``
asks for the large one. On a CPU the network itself keeps all cores busy, so that little is to be gained there;
``--device_ms 30`` waits instead, as a host does for an accelerator that takes so long. The end compares one
compilation for all sizes with one for each.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from conftest import TINY  # noqa: E402
from side_by_side import compare, machine  # noqa: E402

from data.make_sample import make_sample  # noqa: E402
from src.config import load_config  # noqa: E402
from src.errors import DataError  # noqa: E402
from src.eval_datasets import DatasetMissing, open_dataset  # noqa: E402
from src.evaluator import Record, evaluate, score_prediction, summarise  # noqa: E402
from src.metric import mean_over_images  # noqa: E402
from src.midas_net import MidasNet  # noqa: E402
from src.predictor import MindSporePredictor, Predictor  # noqa: E402

MIXED_SIZES = [(480, 640), (640, 480), (375, 1242), (436, 1024), (500, 500)]  # height, width of pictures


class WaitingPredictor(Predictor):
    """Stands for a network on an accelerator: takes its time without the CPU.

    Args:
        seconds: That time.
    """

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def infer(self, prepared):
        """Waits; returns the red channel."""
        time.sleep(self.seconds)
        return prepared[0, 0]


def pipeline(dataset, predictor, workers):
    """Evaluates as midas_eval.py does; returns the mean."""
    outcomes = evaluate(
        dataset,
        range(1, len(dataset) + 1),
        lambda sample: predictor.prepare(sample.image, dataset.resize_method),
        predictor.infer,
        workers,
    )
    records = [outcome for outcome in outcomes if isinstance(outcome, Record)]
    return summarise(dataset, records, len(dataset) - len(records)).value


def plain_loop(dataset, predictor):
    """Reads, predicts and scores one image after another; returns the mean."""
    values = []
    for index in range(len(dataset)):
        try:
            sample = dataset[index]
            inverse_depth = predictor.infer(predictor.prepare(sample.image, dataset.resize_method))
            values.append(score_prediction(dataset, sample, inverse_depth).value)
        except DataError:
            continue
    return mean_over_images(values)


def open_all(folder):
    """Opens the sets that are under a folder."""
    config = load_config("", ["--train_data_dir", str(folder)])
    datasets = []
    for name in config.data_names:
        try:
            datasets.append(open_dataset(name, getattr(config, f"datapath_{name}")))
        except DatasetMissing as error:
            print(error)
    return datasets


def compare_shapes(net_arguments, rounds):
    """Times the network alone on pictures of several sizes, compiled once for all and once for each."""
    dynamic, static = (
        MindSporePredictor(MidasNet(**net_arguments), dynamic_shape=dynamic_shape) for dynamic_shape in (True, False)
    )
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in MIXED_SIZES]
    prepared = [dynamic.prepare(picture) for picture in pictures]

    def run(predictor):
        for array in prepared:
            predictor.infer(array)

    shapes = ", ".join(f"{array.shape[2]}x{array.shape[3]}" for array in prepared)
    print(f"\nnetwork alone, {len(prepared)} inputs of mixed sizes: {shapes}")
    contenders = {"dynamic shapes": partial(run, dynamic), "static shapes": partial(run, static)}
    compare(contenders, rounds, unit="images", work=len(prepared))
    print(f"graph compilations: dynamic {dynamic.compilations}, static {static.compilations}")


def main():
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, help="root of the data sets")
    parser.add_argument("--full", action="store_true", help="the network at its full size")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--device_ms", type=float, help="wait so long in place of the network")
    arguments = parser.parse_args()
    if arguments.device_ms is not None:
        network, predictor = f"{arguments.device_ms:g} ms on a device", WaitingPredictor(arguments.device_ms / 1000)
    else:
        ms.set_context(mode=ms.GRAPH_MODE)
        network = "full network" if arguments.full else "small network"
        predictor = MindSporePredictor(MidasNet() if arguments.full else MidasNet(**TINY))
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.data_dir
        if folder is None:
            folder = Path(temporary)
            make_sample(folder, train=0, eval_count=8, size=(640, 480))
        for dataset in open_all(folder):
            print(f"\n{dataset.name}: {len(dataset)} images, {network}")
            if plain_loop(dataset, predictor) != pipeline(dataset, predictor, 2):
                raise SystemExit("expected equal results, found others")
            contenders = {"one image after another": partial(plain_loop, dataset, predictor)}
            for workers in arguments.workers:
                contenders[f"this project, workers: {workers}"] = partial(pipeline, dataset, predictor, workers)
            compare(contenders, arguments.rounds, unit="images", work=len(dataset))
    if arguments.device_ms is None:
        print(f"\ngraph compilations, all sets together: {predictor.compilations}")
        compare_shapes({} if arguments.full else TINY, arguments.rounds)


if __name__ == "__main__":
    main()
