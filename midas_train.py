"""Trains MiDaS on the images that mixdata.json lists.

``python midas_train.py --model_weights ./ckpt/midas_resnext_101_WSL.ckpt`` starts from an ImageNet encoder,
``--model_weights ""`` from random weights. ``--resume True`` resumes a run that was interrupted, with its settings.
"""

import json
import os
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from src.common.compile_cache import enable_compile_cache
from src.common.device import Device, setup_device
from src.common.errors import UsageError, run_script
from src.config import (
    NETWORK_KEYS,
    NORMALISATION_KEYS,
    Config,
    dump_config,
    load_config,
    require_file,
    require_folder,
    settle,
)
from src.training.group import Group
from src.training.loss_log import LOSS_CSV
from src.training.run_folder import CONFIG_FILE, RunFolder, find_resume, folder_to_resume
from src.training.schedule import LearningRate, LoopSettings, Position
from src.utils.loadImgDepth import LoadImagesDepth, create_dataset
from src.utils.mixdata import (
    Pair,
    check_pairs,
    describe_sets,
    good_pairs,
    list_pairs,
    verdicts_path,
    warnings_of,
)
from src.utils.order import SampleOrder

if TYPE_CHECKING:
    from src.training.step import SavedRun, TrainStep
    from src.weights.checkpoint import Weights

# What decides the course of a run: a resumed run cannot change it. Of the data, the list of files counts, wherever they
# are; with lr_decay, epoch_size counts too, since the learning rates depend on it.
COURSE_KEYS = (
    "seed", *NETWORK_KEYS, *NORMALISATION_KEYS, "img_width", "img_height", "resize_target", "keep_aspect_ratio",
    "ensure_multiple_of", "backbone_params_lr", "backbone_params_end_lr", "no_backbone_params_lr",
    "no_backbone_params_end_lr", "power", "batch_size", "lr_decay", "loss", "grad_clip_norm",
)  # fmt: skip
# What a resumed run may change: where it runs, how long, what it reads and writes. (It starts from its checkpoint,
# whatever model_weights is; the number of processes is compared apart from run_distribute.)
FREE_KEYS = (
    "device_target", "device_id", "run_distribute", "enable_compile_cache", "num_parallel_workers", "epoch_size",
    "train_data_dir", "mixdata", "skip_bad_samples", "train_output_path", "resume", "save_checkpoint_epochs",
    "save_checkpoint_steps", "keep_checkpoint_max", "log_interval", "model_weights",
)  # fmt: skip
KEYS = (*COURSE_KEYS, *FREE_KEYS)


def course_keys(config: Config) -> tuple[str, ...]:
    """Lists the settings that decide the course of a run."""
    return (*COURSE_KEYS, "epoch_size") if config.lr_decay else COURSE_KEYS


def check_settings(config: Config) -> None:
    """Raises UsageError for settings with which training images cannot be stacked into batches, or for absent data."""
    if config.keep_aspect_ratio:
        raise UsageError("keep_aspect_ratio: expected False for training (batches need one image size), found True")
    if not config.resize_target:
        raise UsageError("resize_target: expected True for training (the loss compares pixels), found False")
    require_folder(config, "train_data_dir")
    require_file(config, "mixdata")


def load_source(config: Config, group: Group, folder: RunFolder) -> LoadImagesDepth:
    """Lists the training images in every process, checks them in the first, and says what was found.

    The first process claims the run folder before that, since the check may take long.
    """
    pairs, unpaired = list_pairs(config.train_data_dir, config.mixdata)
    group.check_equal("list of training images", _names(config, pairs))

    def check() -> np.ndarray:
        folder.lock()
        remembered = verdicts_path(config.train_data_dir, config.mixdata)
        checked = check_pairs(pairs, config.num_parallel_workers, remembered)
        good = good_pairs(pairs, unpaired, checked, config.mixdata, config.skip_bad_samples)
        faults = [*unpaired, *checked.faults]
        for line in faults:
            print(f"left out: {line}", file=sys.stderr)
        found = f"{len(good)} training images in {config.train_data_dir}"
        print(f"{found}, {len(faults)} left out" if faults else found)
        print(*(f"  {line}" for line in describe_sets(pairs, checked)), sep="\n", flush=True)
        for line in warnings_of(pairs, checked):
            print(f"warning: {line}", file=sys.stderr)
        is_good = np.zeros(len(pairs))
        is_good[checked.good] = 1
        return is_good

    is_good = group.first_does(check, len(pairs))
    return LoadImagesDepth(
        [pair for pair, good in zip(pairs, is_good) if good],
        config.img_width,
        config.img_height,
        **config.normalisation,
        ensure_multiple_of=config.ensure_multiple_of,
    )


def _names(config: Config, pairs: list[Pair]) -> str:
    """Tells one list of training images from another, wherever the data are."""
    rows = []
    for pair in pairs:
        row = vars(pair).copy()
        for key in ("image_path", "depth_path"):
            row[key] = os.path.relpath(row[key], config.train_data_dir)
        rows.append(repr(sorted(row.items())))
    return "\n".join(rows)


def load_settings() -> tuple[Config, Optional[Path]]:
    """Reads the settings; those of a resumed run come from its folder.

    Returns:
        The settings, and the checkpoint to resume from, None for a new run.

    Raises:
        UsageError: As ``load_config``; or the command line would change the course of the run to resume.
    """
    config = load_config(__doc__, keys=KEYS, is_complete=False)
    checkpoint = find_resume(config.resume, config.train_output_path)
    if checkpoint is None:
        return load_config(__doc__, keys=KEYS), None
    train_output_path = str(folder_to_resume(checkpoint, config.train_output_path, "train_output_path" in config.given))
    if not (checkpoint.parent / CONFIG_FILE).is_file():
        return load_config(__doc__, keys=KEYS), checkpoint
    settings_file = checkpoint.parent / CONFIG_FILE
    then = load_config("", ["--config_path", str(settings_file)])
    now = load_config(__doc__, keys=KEYS, base=settings_file, fixed=course_keys(then))
    return replace(now, train_output_path=train_output_path), checkpoint


def describe_course(config: Config, group: Group, source: LoadImagesDepth) -> dict[str, Any]:
    """Collects what decides the course of the run, as JSON has it."""
    files = zlib.crc32(_names(config, source.pairs).encode("utf-8", "surrogateescape"))
    settings = {key: getattr(config, key) for key in course_keys(config)}
    return json.loads(json.dumps({**settings, "images": len(source), "files": files, "processes": group.world}))


def build_step(
    config: Config,
    world: int,
    rates: tuple[LearningRate, LearningRate],
    weights: Optional["Weights"],
    saved: Optional["SavedRun"],
    course: dict[str, Any],
) -> tuple["TrainStep", Position]:
    """Builds network and step, gives them the weights to start from and says which; returns where the run starts."""
    from src.loss import create_loss
    from src.training.step import TrainStep, TwoRateAdam, restore
    from src.weights.checkpoint import build_network

    net, said = build_network(weights, config.network, "model_weights")
    net.set_train(True)
    step = TrainStep(net, create_loss(config.loss), TwoRateAdam(net, *rates), config.grad_clip_norm, world)
    start = Position()
    if saved:
        start = restore(step, saved, course)
        said[0] = f"resume: {saved.path}, after epoch {start.epoch} step {start.step}"
    print(*said, sep="\n")
    return step, start


def learning_rates(config: Config, steps: int) -> tuple[LearningRate, LearningRate]:
    """Returns the learning rates of encoder and decoder for a run of so many steps."""
    ends = (
        (config.backbone_params_lr, config.backbone_params_end_lr),
        (config.no_backbone_params_lr, config.no_backbone_params_end_lr),
    )
    if config.lr_decay:
        return tuple(LearningRate(start, end, config.power, steps) for start, end in ends)
    return tuple(LearningRate.constant(start) for start, _ in ends)


def loop_settings(config: Config) -> LoopSettings:
    """Collects how long the run is and what it leaves behind."""
    return LoopSettings(
        epochs=config.epoch_size,
        save_epochs=config.save_checkpoint_epochs,
        save_steps=config.save_checkpoint_steps,
        keep_checkpoints=config.keep_checkpoint_max,
        log_interval=config.log_interval,
    )


def train(config: Config, device: Device, resume_path: Optional[Path] = None) -> "TrainStep":
    """Trains as configured; returns the step, whose network has been trained."""
    from src.training.step import read_run
    from src.weights.checkpoint import open_weights

    saved = read_run(resume_path) if resume_path else None  # before the data are checked, which may take long
    weights = None if resume_path else open_weights(config.model_weights)
    config = settle(config, weights)
    group = Group(device.rank, device.world)
    first_device = group.sum(np.array([device.device_id if device.rank == 0 else 0]))[0]
    folder = RunFolder(config.train_output_path, int(first_device))
    source = load_source(config, group, folder)
    order = SampleOrder(len(source), config.batch_size, config.seed, device.rank, device.world)
    course = describe_course(config, group, source)
    rates = learning_rates(config, config.epoch_size * order.steps_per_epoch)
    graph = (config.network, config.batch_size, config.img_height, config.img_width, config.loss, config.grad_clip_norm)
    enable_compile_cache(config.enable_compile_cache, ("train", device.target, device.world, graph, rates))
    step, start = build_step(config, device.world, rates, weights, saved, course)
    del saved  # as large as the run itself
    group.check_equal("course and start of the run", f"{course} {start}")
    done, total = start.steps_done(order.steps_per_epoch), config.epoch_size * order.steps_per_epoch
    if done >= total:
        print(f"nothing to do: the run has all its {config.epoch_size} epochs (epoch_size)")
        return step

    from src.training.trainer import Trainer

    def start_folder() -> np.ndarray:
        folder.start(dump_config(config), start.epoch, start.step)
        print(
            f"{config.epoch_size} epochs of {order.steps_per_epoch} steps, batch size {config.batch_size} on "
            f"{device.world} x {device.target}, {config.img_width}x{config.img_height} pixels, "
            f"run folder {folder.path}",
            flush=True,
        )
        return np.zeros(1)

    group.first_does(start_folder, 1)
    dataset = create_dataset(source, order, done, total - done, config.num_parallel_workers)
    trainer = Trainer(
        step,
        order,
        loop_settings(config),
        rates,
        course,
        folder,
        source.image_paths,
        group,
        last_checkpoint=resume_path,
    )
    trainer.run(dataset, start)
    if group.rank == 0:
        print(f"done: checkpoint {trainer.last_checkpoint}, losses {folder.path / LOSS_CSV} and loss.png")
    return step


def main() -> None:
    """Runs the script."""
    config, resume_path = load_settings()
    check_settings(config)
    device = setup_device(config.device_target, config.device_id, config.seed, config.run_distribute)
    train(config, device, resume_path)


if __name__ == "__main__":
    run_script(main)
