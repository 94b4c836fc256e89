"""The check behind scaling_model.py --measure: what it says of communication against runs of 1 and 2 processes here."""

import csv
import json
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scaling_model import GRADIENT_BYTES, SMALL_REDUCTIONS, Cluster, Layer, Link, all_reduce, print_table
from side_by_side import machine
from time_all_reduce import PIECES
from time_limit import run_within

from preprocess.make_sample import make_sample
from src.common.errors import MidasError

WORKER = Path(__file__).with_name("time_all_reduce.py")
TIME_LIMIT_S = 1800
SMALLEST_BYTES = 4096
TRAIN_SIDE = 64  # pixels: little to compute, as many gradients as ever
TRAIN_STEPS = 8
TRAIN_WORDS = (
    "train", "--run_distribute", "True", "--device_target", "CPU", "--model_weights", "", "--batch_size", "1",
    "--img_width", str(TRAIN_SIDE), "--img_height", str(TRAIN_SIDE), "--epoch_size", "1", "--log_interval", "1",
    "--num_parallel_workers", "1",
)  # fmt: skip


def run_group(processes: int, words: Sequence[object], folder: Path) -> None:
    """Runs the worker in so many processes; MidasError with the ends of their logs if one fails, or takes too long."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    python = Path(sys.executable).parent
    command = [python / "msrun", f"--worker_num={processes}", f"--local_worker_num={processes}", "--join=True"]
    command += [f"--master_port={port}", f"--log_dir={folder}", WORKER, *words]
    environment = {"GLOG_v": "3", **os.environ, "PATH": f"{python}:{os.environ['PATH']}"}  # errors only
    with open(folder / "msrun.log", "w") as log:
        status = run_within(TIME_LIMIT_S, command, env=environment, stdout=log, stderr=log).returncode
    if status:
        logs = [path for path in sorted(folder.glob("*.log")) if path.stat().st_size]
        tail = "\n".join(line for path in logs for line in path.read_text(errors="replace").splitlines()[-5:])
        raise MidasError(f"{processes} processes on the CPU: expected exit status 0, found {status}:\n{tail}")


def fit(seconds: dict[int, float], devices: int) -> Cluster:
    """Finds latency and bandwidth with which a ring takes so long: bytes -> seconds of communication.

    The squared relative errors are the least.
    """
    sizes, times = np.array(list(seconds), float), np.array(list(seconds.values()))
    hops = 2 * (devices - 1)
    columns = np.stack((np.full_like(sizes, hops), hops / devices * sizes), axis=1)
    latency, per_byte = np.linalg.lstsq(columns / times[:, None], np.ones_like(times), rcond=None)[0]
    link = Link(latency, 1 / per_byte)
    return Cluster("this machine", link, link, 1, {}, devices_per_node=devices, overhead=0.0)


def check_model(layers: Sequence[Layer], largest: int, with_training: bool) -> None:
    """Times reductions of several sizes, fits the ring to every other of them, and compares it with the rest.

    Args:
        layers: Of the network.
        largest: Bytes of the largest reduction.
        with_training: Trains the network, too, on images of ``TRAIN_SIDE`` pixels.
    """
    sizes = [size for size in (largest // 4**i for i in range(12)) if size >= SMALLEST_BYTES][::-1]
    print(f"{machine()}; processes of one core each")
    found = {}
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as name:
            run_group(processes, [Path(name) / "result.json", *sizes], Path(name))
            found[processes] = json.loads((Path(name) / "result.json").read_text())
    alone, pair = found[1], found[2]
    # what one process takes is copies and the start of the graph
    measured = {size: pair["one"][str(size)] - alone["one"][str(size)] for size in sizes}
    fitted = {size: measured[size] for size in sizes[::2]}
    cluster = fit(fitted, 2)
    print(
        f"fitted to every other size: {cluster.inside.latency * 1e6:.0f} us a hop, "
        f"{cluster.inside.bandwidth / 1e9:.3f} GB/s in each direction"
    )
    rows, errors = [], []
    for size, seconds in measured.items():
        model = all_reduce(size, 2, cluster, "ring")
        if size not in fitted:
            errors.append(abs(model / seconds - 1))
        whole = [1000 * run["one"][str(size)] for run in (alone, pair)]
        row = (size, *(f"{ms:.2f}" for ms in whole), f"{1000 * seconds:.2f}", f"{1000 * model:.2f}")
        rows.append((*row, f"{100 * (model / seconds - 1):+.0f} %", "fitted" if size in fitted else "predicted"))
    head = ("bytes", "1 process, ms", "2 processes, ms", "communication, ms", "model, ms", "error", "")
    print_table("All-reduce: measured and modelled", head, rows)
    print(f"\nerror of the sizes that were predicted: median {100 * np.median(errors):.0f} %, "
          f"largest {100 * max(errors):.0f} %")  # fmt: skip
    count = count_reductions(alone, pair, cluster, sizes[0])
    print(f"{PIECES} tensors take as long as {count:.1f} reductions of one: MindSpore fuses", end=" ")
    print("them here" if count < PIECES / 4 else "nothing here")
    if with_training:
        check_training(layers, cluster, 1 if count < PIECES / 4 else sum(layer.tensors for layer in layers))


def count_reductions(alone: dict, pair: dict, cluster: Cluster, size: int) -> float:
    """Returns how many reductions several small tensors of ``size`` bytes together take, by the time they take."""
    seconds = pair["pieces"][str(size)] - alone["pieces"][str(size)]
    return seconds / all_reduce(size / PIECES, 2, cluster, "ring")


def check_training(layers: Sequence[Layer], cluster: Cluster, reductions: int) -> None:
    """Trains with 1 and with 2 processes and compares what the second adds to a step with the model."""
    seconds = {}
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_sample(folder / "data", train=TRAIN_STEPS * processes, eval_count=0, size=(160, 120))
            paths = ["--train_data_dir", folder / "data", "--train_output_path", folder / "run"]
            run_group(processes, [*TRAIN_WORDS, *paths, "--mixdata", folder / "data" / "mixdata.json"], folder)
            with open(folder / "run" / "loss.csv", newline="") as file:
                rows = [float(row["seconds"]) for row in csv.DictReader(file)]
            seconds[processes] = min(rows[1:])  # the first step compiles
    size = sum(layer.parameters for layer in layers) * GRADIENT_BYTES
    model = reductions * all_reduce(size / reductions, 2, cluster, "ring")
    model += SMALL_REDUCTIONS * all_reduce(8 * GRADIENT_BYTES, 2, cluster, "ring")
    measured = seconds[2] - seconds[1]
    print(
        f"\ntraining step of the full network, batch 1 of {TRAIN_SIDE}x{TRAIN_SIDE} pixels a process: 1 process "
        f"{seconds[1]:.2f} s, 2 processes {seconds[2]:.2f} s; communication {measured:.2f} s, model {model:.2f} s "
        f"({100 * (model / measured - 1):+.0f} %)"
    )
