"""What losses and mixing do, on rendered scenes: outliers, two sets against one, and two sets that contradict.

    python benchmarks/mixing_experiment.py                     # all runs, three seeds: an hour on two cores
    python benchmarks/mixing_experiment.py --only naive exact  # these runs alone
    python benchmarks/mixing_experiment.py --quick             # seconds a run; the figures mean nothing

Every run trains a small network with midas_train.py and scores it with midas_eval.py on sets that it has not been
trained on. Data, first weights and order of the images follow from the seed; the evaluation sets are the same for all
seeds. A run that has its scores.json is not repeated, so the experiment can be interrupted and started again. It
writes results.json, table.md and plot.png into its folder, of the runs that are asked for.

The training sets, of which the sources are rendered scenes of 96 x 64 pixels:

* scenes: rooms and streets; negative disparity of 8 bits, a tenth of the pixels missing.
* outliers: the same pictures; in blobs that cover 20 % of each, the ground truth is wrong: every blob has one value,
  drawn from the whole range of 8 bits.
* rooms: rooms alone; depth in millimetres of 16 bits. A tenth of the pixels is missing.
* streets: streets alone; negative disparity of 8 bits, a tenth of the pixels missing.
* bent: streets; depth, declared as negative disparity. The order of the pixels is right, but depth is far from a linear
  function of inverse depth (the correlation is about -0.83): no prediction suits both this set and the streets.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Optional

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from time_limit import run_within  # noqa: E402

from preprocess.make_sample import NO_TRUTH, draw_blobs, make_sample, redweb_values  # noqa: E402
from preprocess.scenes import render_scene  # noqa: E402
from src.common.atomic import atomic_path, write_text  # noqa: E402
from src.common.errors import MidasError, UsageError, run_script  # noqa: E402
from src.evaluation.results import details_path  # noqa: E402
from src.training.loss_log import SETS_CSV, read_sets_csv, running_mean  # noqa: E402

TIME_LIMIT_S = 1800
WIDTH, HEIGHT = 96, 64  # of the pictures and of the network's input
OUTLIERS_SHARE = 0.2
MISSING_SHARE = 0.1
EVALUATION_SETS = ("ETH3D", "TUM", "Kitti")  # rooms and streets, rooms, streets
EVALUATION_SEED = 1000  # no training has it
HELD_OUT_LOSS = "ssi_mse"
# The network and the learning rates of the demonstration; convolutions without groups take half the time on a CPU.
# Without revive_output, some runs with ssi_trim die.
SETTINGS = (
    "--config_path", ROOT / "scripts" / "demo.yaml", "--groups", 1, "--img_width", WIDTH, "--img_height", HEIGHT,
    "--enable_compile_cache", True, "--revive_output", True,
)  # fmt: skip
TINY = ("--in_channels", 8, "--features", 8)


@dataclass(frozen=True)
class Size:
    """How large the experiment is.

    Attributes:
        steps: Of each training.
        batch_size: Images of a step, of all sets together.
        images: Images of each training set.
        held_out: Images of each training set that are rendered in addition and not trained on.
        eval_images: Images of each evaluation set.
        seeds: One training each.
        words: Further settings of the network.
    """

    steps: int = 200
    batch_size: int = 8
    images: int = 240
    held_out: int = 40
    eval_images: int = 24
    seeds: tuple[int, ...] = (1, 2, 3)
    words: tuple[object, ...] = ()


QUICK = Size(steps=2, batch_size=2, images=4, held_out=2, eval_images=1, seeds=(1,), words=TINY)


@dataclass(frozen=True)
class Source:
    """Rendered pictures with a ground truth.

    Attributes:
        setting: See ``render_scene``.
        store: (depth in m, where it is missing, random numbers) -> folder of ground truth -> what is stored in it.
    """

    setting: Optional[str]
    store: Callable[[np.ndarray, np.ndarray, np.random.Generator], dict[str, np.ndarray]]


def store_scenes(depth: np.ndarray, missing: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns negative disparity, uint8 (H, W), as it is and with outliers."""
    values = redweb_values(depth, missing)
    blobs = draw_blobs(rng, *depth.shape, OUTLIERS_SHARE)
    count, numbers = cv2.connectedComponents(blobs.astype(np.uint8))
    wrong = rng.integers(0, NO_TRUTH, count, dtype=np.uint8)[numbers]
    return {"truth": values, "outliers": np.where(blobs & ~missing, wrong, values)}


def store_millimetres(depth: np.ndarray, missing: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns depth in mm, uint16 (H, W), 0 where it is missing."""
    return {"truth": np.rint(1000 * depth * ~missing).astype(np.uint16)}


def store_disparity(depth: np.ndarray, missing: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns negative disparity, uint8 (H, W)."""
    return {"truth": redweb_values(depth, missing)}


def store_depth(depth: np.ndarray, missing: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns depth in 1/256 m, uint16 (H, W), 0 where it is missing: streets are too long for millimetres."""
    return {"truth": np.rint(256 * depth * ~missing).astype(np.uint16)}


SOURCES = {
    "scenes": Source(None, store_scenes),
    "rooms": Source("room", store_millimetres),
    "streets": Source("street", store_disparity),
    "bent": Source("street", store_depth),
}
# Training set -> source, folder of its ground truth, kind and value for "missing".
SETS = {
    "scenes": ("scenes", "truth", "negative_disparity", NO_TRUTH),
    "outliers": ("scenes", "outliers", "negative_disparity", NO_TRUTH),
    "rooms": ("rooms", "truth", "depth", 0),
    "streets": ("streets", "truth", "negative_disparity", NO_TRUTH),
    "bent": ("bent", "truth", "negative_disparity", 0),
}
TRAINING, HELD_OUT = "training", "held_out"  # folders of each source
EVERY, EVERY_SECOND = "*", "*[02468]"


@dataclass(frozen=True)
class Run:
    """A training.

    Attributes:
        sets: Names in ``SETS``.
        words: Settings.
        files: Which files of each set, a glob.
        held_out: Sets whose loss on images that were not trained on is wanted.
    """

    sets: tuple[str, ...]
    words: tuple[object, ...] = ()
    files: str = EVERY
    held_out: tuple[str, ...] = ()


CONFLICT = ("streets", "bent")
RUNS = {
    "clean ssi_mse": Run(("scenes",), ("--loss", "ssi_mse")),
    "clean ssi_trim": Run(("scenes",), ("--loss", "ssi_trim")),
    "outliers ssi_mse": Run(("outliers",), ("--loss", "ssi_mse")),
    "outliers ssi_trim": Run(("outliers",), ("--loss", "ssi_trim")),
    "rooms": Run(("rooms",)),
    "streets": Run(("streets",), held_out=CONFLICT),
    "rooms + streets": Run(("rooms", "streets"), ("--mixing", "naive"), EVERY_SECOND),  # as many images in all
    "naive": Run(CONFLICT, ("--mixing", "naive"), held_out=CONFLICT),
    "exact": Run(CONFLICT, ("--mixing", "multi_objective"), held_out=CONFLICT),
    "upper bound": Run(CONFLICT, ("--mixing", "multi_objective", "--upper_bound", True), held_out=CONFLICT),
    "clean ssi_mae": Run(("scenes",), ("--loss", "ssi_mae")),
    "outliers ssi_mae": Run(("outliers",), ("--loss", "ssi_mae")),
    "bent": Run(("bent",), held_out=CONFLICT),
}
LOSSES = ("ssi_mse", "ssi_mae", "ssi_trim")


@dataclass(frozen=True)
class Question:
    """Runs that are compared, and by what scores."""

    title: str
    runs: tuple[str, ...]
    scores: tuple[str, ...] = EVALUATION_SETS


HELD_OUT_SCORES = {name: f"loss on {name}" for name in CONFLICT}
QUESTIONS = (
    Question(
        "outliers in 20 % of the ground truth",
        tuple(f"{truth} {loss}" for truth in ("clean", "outliers") for loss in LOSSES),
    ),
    Question("two sets or one", ("rooms", "streets", "rooms + streets")),
    Question(
        "two sets that contradict",
        ("streets", "bent", "naive", "exact", "upper bound"),
        ("Kitti", *HELD_OUT_SCORES.values()),
    ),
)
METRICS = {"ETH3D": "AbsRel", "TUM": "delta>1.25, %", "Kitti": "delta>1.25, %"}
CONSTANT = "(a constant)"  # prediction


@dataclass
class Result:
    """What came of a run.

    Attributes:
        scores: Evaluation set, or ``HELD_OUT_SCORES`` -> mean over the images, less is better.
        constants: Evaluation set -> the score of the best constant prediction.
        weights: Training set -> mean weight in the second half of the steps; of runs with several sets.
    """

    scores: dict[str, float]
    constants: dict[str, float]
    weights: dict[str, float] = field(default_factory=dict)


# ---- data


def write_source(folder: Path, source: Source, seed: Sequence[int], count: int) -> None:
    """Renders pictures, and stores them in ``images`` and their ground truth beside it."""
    for index in range(count):
        rng = np.random.default_rng([*seed, index])
        image, depth = render_scene(rng, HEIGHT, WIDTH, source.setting)
        missing = draw_blobs(rng, HEIGHT, WIDTH, MISSING_SHARE)
        pictures = {"images": cv2.cvtColor(image, cv2.COLOR_RGB2BGR), **source.store(depth, missing, rng)}
        for name, picture in pictures.items():
            path = folder / name / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture)


def make_training_data(folder: Path, seed: int, size: Size) -> None:
    """Renders all sources, unless they are there."""
    facts = {"seed": seed, "images": size.images, "held_out": size.held_out, "size": [WIDTH, HEIGHT]}
    stamp, made = folder / "made.json", json.dumps(facts)
    if stamp.is_file() and stamp.read_text() == made:
        return
    shutil.rmtree(folder, ignore_errors=True)
    for number, (name, source) in enumerate(SOURCES.items()):
        write_source(folder / name / TRAINING, source, (seed, number, 0), size.images)
        write_source(folder / name / HELD_OUT, source, (seed, number, 1), size.held_out)
    write_text(stamp, made)


def mixdata(sets: Sequence[str], part: str, files: str = EVERY) -> str:
    """Returns the mixdata.json of training sets.

    Args:
        sets: Names in ``SETS``.
        part: ``TRAINING`` or ``HELD_OUT``.
        files: Which files of them, a glob without suffix.
    """
    tables: dict[str, dict[str, Any]] = {"img": {}, "depth": {}, "kind": {}, "invalid": {}}
    for name in sets:
        source, truth, kind, invalid = SETS[name]
        tables["img"][name] = f"/{source}/{part}/images/{files}.png"
        tables["depth"][name] = f"/{source}/{part}/{truth}/{files}.png"
        tables["kind"][name], tables["invalid"][name] = kind, invalid
    return json.dumps(tables, indent=1)


# ---- a run


def run_program(name: str, words: Sequence[object], log: Path) -> None:
    """Runs a script of the repository; what it says goes into a file.

    Raises:
        MidasError: It failed or took too long.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as file:
        result = run_within(
            TIME_LIMIT_S, [sys.executable, ROOT / name, *words], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        )
    if result.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise MidasError(f"{name}: expected exit status 0, found {result.returncode}; {log} ends with:\n{tail}")


def held_out_losses(checkpoint: Path, settings: Sequence[object], sets: Sequence[str], data: Path) -> dict[str, float]:
    """Returns set -> mean loss of a trained network on images that it was not trained on.

    Args:
        checkpoint: Run folder of the training.
        settings: Of the training, as words.
        sets: Names in ``SETS``.
        data: Training data of a seed.
    """
    import mindspore as ms

    from src.config import load_config, settle
    from src.loss import create_loss
    from src.training.validation import HeldBackLoss
    from src.utils.loadImgDepth import LoadImagesDepth
    from src.utils.mixdata import list_pairs
    from src.weights.checkpoint import build_network, open_weights

    ms.set_context(mode=ms.GRAPH_MODE)
    weights = open_weights(str(checkpoint))
    config = settle(load_config("", list(map(str, settings))), weights)
    net, _ = build_network(weights, config.network, "model_weights")
    losses = {}
    for name in sets:
        listing = data / f"held_out_{name}.json"
        write_text(listing, mixdata([name], HELD_OUT))
        pairs, _ = list_pairs(data, listing)
        source = LoadImagesDepth(pairs, WIDTH, HEIGHT, **config.normalisation, target_range=config.target_range)
        (score,) = HeldBackLoss(net, create_loss(HELD_OUT_LOSS), source)()
        losses[name] = score.total / score.count
    return losses


def train_and_score(name: str, seed: int, size: Size, folder: Path, data: Path, eval_data: Path) -> Result:
    """Does a run, unless its scores are there.

    Args:
        name: In ``RUNS``.
        seed: Of the run.
        size: Of the experiment.
        folder: Of the run.
        data: Training data of that seed.
        eval_data: Evaluation sets.

    Raises:
        UsageError: The folder holds a run of other settings.
        MidasError: A script failed.
    """
    run, scores = RUNS[name], folder / "scores.json"
    settings = (*SETTINGS, *size.words, "--seed", seed)
    facts = {key: value for key, value in asdict(size).items() if key != "seeds"}
    what = {"run": asdict(run), "size": facts, "settings": SETTINGS, "seed": seed}
    what = json.loads(json.dumps(what, default=str))
    if scores.is_file():
        kept = json.loads(scores.read_text())
        if kept.pop("what") != what:
            raise UsageError(f"{folder}: expected a run of the present settings, found others; choose another --output")
        return Result(**kept)
    shutil.rmtree(folder, ignore_errors=True)
    write_text(folder / "mixdata.json", mixdata(run.sets, TRAINING, run.files))
    words = (
        *settings, *run.words, "--batch_size", size.batch_size, "--max_steps", size.steps, "--epoch_size", size.steps,
        "--train_data_dir", data, "--mixdata", folder / "mixdata.json", "--train_output_path", folder / "train",
        "--save_checkpoint_epochs", size.steps, "--eval_interval", 0,
    )  # fmt: skip
    run_program("midas_train.py", words, folder / "train.txt")
    words = (
        *settings, "--ckpt_path", folder / "train", "--train_data_dir", eval_data, "--ann_file", folder / "val.json",
        "--data_name", ",".join(EVALUATION_SETS),
    )  # fmt: skip
    run_program("midas_eval.py", words, folder / "eval.txt")
    result = Result(json.loads((folder / "val.json").read_text()), constants_of(folder / "val.json"))
    if run.held_out:
        losses = held_out_losses(folder / "train", settings, run.held_out, data)
        result.scores.update({HELD_OUT_SCORES[set_name]: loss for set_name, loss in losses.items()})
    for set_name, weights in weights_of(folder).items():
        result.weights[set_name] = float(np.mean(weights[len(weights) // 2 :]))
    write_text(scores, json.dumps({"what": what, **asdict(result)}, indent=1) + "\n")
    return result


def constants_of(ann_file: Path) -> dict[str, float]:
    """Returns evaluation set -> mean score of a constant prediction."""
    values: dict[str, list[float]] = {}
    with open(details_path(ann_file), newline="") as file:
        for row in csv.DictReader(file):
            values.setdefault(row["set"], []).append(float(row["constant"]))
    return {name: float(np.mean(numbers)) for name, numbers in values.items()}


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    """Returns training set -> its weight in each step, of a run with several sets."""
    weights: dict[str, list[float]] = {}
    for row in read_sets_csv(folder / "train" / SETS_CSV):
        weights.setdefault(row.name, []).append(row.weight)
    return {name: np.array(values) for name, values in weights.items()}


# ---- report

Results = dict[str, dict[int, Result]]  # run -> seed -> result


def columns_of(question: Question, results: Results) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Yields the scores of a question, and of each the values of the runs that are there, seed by seed."""
    runs = [run for run in question.runs if results.get(run)]
    for score in question.scores:
        yield score, {run: [result.scores[score] for result in results[run].values()] for run in runs}


def cell(values: Sequence[float], digits: int) -> str:
    """Returns the mean, and each value in brackets."""
    return f"{np.mean(values):.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def digits_of(score: str) -> int:
    """Returns how many decimals of a score are shown."""
    return {"AbsRel": 3, "delta>1.25, %": 1}.get(METRICS.get(score, ""), 0)


def describe(score: str) -> str:
    """Returns the name of a score as people read it."""
    return f"{score}, {METRICS[score]}" if score in METRICS else score


def format_tables(results: Results) -> str:
    """Returns a markdown table for each question: mean, and in brackets each seed."""
    lines = []
    for question in QUESTIONS:
        columns = dict(columns_of(question, results))
        runs = [run for run in question.runs if results.get(run)]
        if not runs:
            continue
        weighted = any(result.weights for run in runs for result in results[run].values())
        heads = [question.title, *map(describe, columns), *(["mean weights, second half"] if weighted else [])]
        lines += [f"| {' | '.join(heads)} |", f"|---{'|---' * (len(heads) - 1)}|"]
        for run in runs:
            cells = [run, *(cell(values[run], digits_of(score)) for score, values in columns.items())]
            if weighted:
                cells.append(describe_weights(list(results[run].values())))
            lines.append(f"| {' | '.join(cells)} |")
        constants = next(iter(results[runs[0]].values())).constants
        cells = [f"{constants[score]:.{digits_of(score)}f}" if score in constants else "" for score in columns]
        lines += [f"| {' | '.join([CONSTANT, *cells, *([''] if weighted else [])])} |", ""]
    return "\n".join(lines)


def describe_weights(results: Sequence[Result]) -> str:
    """Returns the mean weight of each set, and in brackets that of each seed."""
    return ", ".join(f"{name} {cell([result.weights[name] for result in results], 2)}" for name in results[0].weights)


def draw(path: Path, results: Results, weights: dict[str, list[dict[str, np.ndarray]]]) -> None:
    """Draws scores, a row for each question, and the weights of the runs that choose them.

    Args:
        path: The picture.
        results: Of all runs.
        weights: Run -> for each seed, set -> weight in each step.
    """
    from matplotlib.figure import Figure

    questions = [question for question in QUESTIONS if any(results.get(run) for run in question.runs)]
    heights = [1 + 0.35 * len(question.runs) for question in questions] + [2.4] * bool(weights)
    figure = Figure(figsize=(10, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), 3, height_ratios=heights)
    for row, question in enumerate(questions):
        for column, (score, values) in enumerate(columns_of(question, results)):
            axes = figure.add_subplot(grid[row, column])
            for place, numbers in enumerate(values.values()):
                axes.barh(place, np.mean(numbers), color=f"C{place}", alpha=0.35)
                axes.plot(numbers, [place] * len(numbers), "o", ms=4, color=f"C{place}")
            axes.set_yticks(range(len(values)), list(values) if column == 0 else [""] * len(values), fontsize="small")
            axes.invert_yaxis()
            axes.set_xlabel(describe(score), fontsize="small")
            axes.tick_params(axis="x", labelsize="small")
            axes.grid(axis="x", alpha=0.3)
            if column == 0:
                axes.set_title(question.title, fontsize="medium", loc="left")
    if weights:
        axes = figure.add_subplot(grid[len(questions), :])
        for number, (run, seeds) in enumerate(weights.items()):
            name = next(iter(seeds[0]))
            for index, of_sets in enumerate(seeds):
                window = max(1, len(of_sets[name]) // 15)
                axes.plot(
                    running_mean(of_sets[name], window), lw=1, color=f"C{number}",
                    label=f"{run}: weight of {name}" if index == 0 else None,
                )  # fmt: skip
        axes.axhline(0.5, lw=1, ls=":", color="0.4", label="naive")
        axes.set(ylim=(0, 1))
        axes.set_xlabel("step", fontsize="small")
        axes.set_ylabel("weight, running mean", fontsize="small")
        axes.legend(fontsize="small", ncols=3)
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90)


def write_report(output: Path, results: Results, size: Size) -> None:
    """Writes results.json, table.md and plot.png, and prints the table."""
    named = {run: {seed: asdict(result) for seed, result in seeds.items()} for run, seeds in results.items()}
    content = {"size": asdict(size), "runs": {name: asdict(run) for name, run in RUNS.items()}, "results": named}
    write_text(output / "results.json", json.dumps(content, indent=1, default=str) + "\n")
    tables = format_tables(results)
    write_text(output / "table.md", tables)
    chosen = {run: seeds for run, seeds in results.items() if "multi_objective" in RUNS[run].words}
    weights = {run: [weights_of(folder_of(output, run, seed)) for seed in seeds] for run, seeds in chosen.items()}
    draw(output / "plot.png", results, weights)
    print(tables)


def folder_of(output: Path, run: str, seed: int) -> Path:
    """Returns the folder of a run."""
    return output / f"seed{seed}" / run.replace(" ", "_")


def main(arguments: Optional[list[str]] = None) -> None:
    """Reads the command line, does the runs that are wanted, and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "output" / "mixing_experiment"
    parser.add_argument("--output", type=Path, help=f"folder for everything (default: {default}, or quick in it)")
    parser.add_argument("--only", nargs="+", metavar="RUN", help=f"these runs alone, of: {', '.join(RUNS)}")
    parser.add_argument("--seeds", nargs="+", type=int, help="(default: 1 2 3)")
    parser.add_argument("--steps", type=int, help=f"of each training (default: {Size.steps})")
    parser.add_argument("--quick", action="store_true", help="a few images and steps, one seed: shows that it runs")
    options = parser.parse_args(arguments)
    names = options.only or list(RUNS)
    unknown = [name for name in names if name not in RUNS]
    if unknown:
        raise UsageError(f"--only: expected runs of {', '.join(RUNS)}, found {unknown[0]!r}")
    size = QUICK if options.quick else Size()
    size = replace(size, steps=options.steps or size.steps, seeds=tuple(options.seeds or size.seeds))
    output = (options.output or (default / "quick" if options.quick else default)).resolve()
    make_sample(output / "eval", 0, size.eval_images, EVALUATION_SEED, (WIDTH, HEIGHT), 0)
    results: Results = {name: {} for name in names}
    for seed in size.seeds:
        data = output / f"seed{seed}" / "data"
        make_training_data(data, seed, size)
        for name in names:
            result = train_and_score(name, seed, size, folder_of(output, name, seed), data, output / "eval")
            results[name][seed] = result
            print(f"seed {seed}, {name}: {json.dumps(result.scores)}", flush=True)
    write_report(output, results, size)


if __name__ == "__main__":
    run_script(main)
