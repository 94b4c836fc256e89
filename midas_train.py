"""Trains MiDaS on the images that mixdata.json lists.

``python midas_train.py --model_weights ./ckpt/midas_resnext_101_WSL.ckpt`` starts from an ImageNet encoder,
``--model_weights ""`` from random weights. ``--resume True`` resumes a run that was interrupted.
"""

import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import numpy as np

from src.common.compile_cache import enable_compile_cache
from src.common.device import Device, setup_device
from src.common.errors import UsageError, run_script
from src.config import NETWORK_KEYS, NORMALISATION_KEYS, Config, dump_config, load_config, require_file, require_folder
from src.training.loss_log import LOSS_CSV
from src.training.run_folder import RunFolder
from src.training.schedule import LoopSettings, Plan, Position, learning_rates
from src.utils.loadImgDepth import LoadImagesDepth, create_dataset
from src.utils.mixdata import training_pairs
from src.utils.order import SampleOrder

if TYPE_CHECKING:
    from src.training.step import TrainStep

KEYS = (
    "device_target", "device_id", "run_distribute", "seed", "enable_compile_cache", "num_parallel_workers",
    *NETWORK_KEYS, *NORMALISATION_KEYS, "img_width", "img_height", "resize_target", "keep_aspect_ratio",
    "ensure_multiple_of", "backbone_params_lr", "backbone_params_end_lr", "no_backbone_params_lr",
    "no_backbone_params_end_lr", "power", "epoch_size", "batch_size", "lr_decay", "loss", "grad_clip_norm",
    "train_data_dir", "mixdata", "skip_bad_samples", "train_output_path", "resume", "save_checkpoint_epochs",
    "save_checkpoint_steps", "keep_checkpoint_max", "log_interval", "model_weights",
)  # fmt: skip


def check_settings(config: Config) -> None:
    """Raises UsageError for settings with which training images cannot be stacked into batches, or for absent data."""
    if config.keep_aspect_ratio:
        raise UsageError("keep_aspect_ratio: expected False for training (batches need one image size), found True")
    if not config.resize_target:
        raise UsageError("resize_target: expected True for training (the loss compares pixels), found False")
    require_folder(config, "train_data_dir")
    require_file(config, "mixdata")


def load_source(config: Config) -> LoadImagesDepth:
    """Lists and checks the training images and says what was found."""
    pairs, left_out = training_pairs(
        config.train_data_dir,
        config.mixdata,
        config.skip_bad_samples,
        workers=config.num_parallel_workers,
        verdicts_path=Path(config.train_output_path) / "checked_data.json",
    )
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    found = f"{len(pairs)} training images in {config.train_data_dir}"
    print(f"{found}, {len(left_out)} left out" if left_out else found, flush=True)
    return LoadImagesDepth(
        pairs,
        config.img_width,
        config.img_height,
        **config.normalisation,
        ensure_multiple_of=config.ensure_multiple_of,
    )


def find_resume(config: Config) -> Optional[Path]:
    """Returns the checkpoint that ``resume`` names, None for a new run; UsageError if there is no such checkpoint."""
    if not config.resume:
        return None
    folder = RunFolder(config.train_output_path)
    if config.resume is True:
        latest = folder.latest()
        if latest is None:
            raise UsageError(f"resume: expected Midas_*.ckpt in {folder.path}, found none")
        return latest.path
    require_file(config, "resume")
    path = Path(config.resume)
    if path.parent != folder.path and (folder.latest() or (folder.path / LOSS_CSV).exists()):
        raise UsageError(
            f"train_output_path {folder.path}: expected a new folder, or {path.parent}, where the checkpoint is, "
            "found the files of another run"
        )
    return path


def make_plan(config: Config, device: Device, source: LoadImagesDepth) -> Plan:
    """Collects what decides the course of the run."""
    names = "\n".join(Path(pair.image_path).name for pair in source.pairs)
    return Plan(
        samples=len(source),
        files=zlib.crc32(names.encode()),
        batch_size=config.batch_size,
        world=device.world,
        seed=config.seed,
        img_width=config.img_width,
        img_height=config.img_height,
        network_ops=config.network_ops,
        loss=config.loss,
    )


def build_step(config: Config, plan: Plan, resume_path: Optional[Path]) -> tuple["TrainStep", Position]:
    """Builds network and step, gives them the weights to start from and says which; returns where the run starts."""
    from src.loss import create_loss
    from src.midas_net import MidasNet
    from src.training.step import TrainStep, create_optimizer, restore
    from src.weights.checkpoint import initialise

    net = MidasNet(**config.network)
    said = initialise(net, "" if resume_path else config.model_weights)
    net.set_train(True)
    step = TrainStep(net, create_loss(config.loss), create_optimizer(net), config.grad_clip_norm, plan.world)
    start = Position()
    if resume_path:
        start = restore(step, resume_path, plan)
        said = f"resume: {resume_path}, after epoch {start.epoch} step {start.step}"
    print(said)
    return step, start


def loop_settings(config: Config) -> LoopSettings:
    """Collects how long the run is and what it leaves behind."""
    return LoopSettings(
        epochs=config.epoch_size,
        save_epochs=config.save_checkpoint_epochs,
        save_steps=config.save_checkpoint_steps,
        keep_checkpoints=config.keep_checkpoint_max,
        log_interval=config.log_interval,
    )


def all_rates(config: Config, steps: int) -> np.ndarray:
    """Returns the learning rates of encoder and decoder at every step of the run, (2, steps) float32."""
    ends = (
        (config.backbone_params_lr, config.backbone_params_end_lr),
        (config.no_backbone_params_lr, config.no_backbone_params_end_lr),
    )
    return np.stack([learning_rates(lr, end_lr, config.power, steps, config.lr_decay) for lr, end_lr in ends])


def start_folder(config: Config, device: Device, plan: Plan, start: Position) -> Optional[RunFolder]:
    """Starts the run folder and says what is trained; only the first of several processes has one."""
    if device.rank != 0:
        return None
    folder = RunFolder(config.train_output_path, device.device_id)
    folder.start(dump_config(config), start.epoch, start.step)
    print(
        f"{config.epoch_size} epochs of {plan.steps_per_epoch} steps, batch size {plan.batch_size} on "
        f"{plan.world} x {device.target}, {config.img_width}x{config.img_height} pixels, run folder {folder.path}",
        flush=True,
    )
    return folder


def train(config: Config, device: Device) -> "TrainStep":
    """Trains as configured; returns the step, whose network has been trained."""
    resume_path = find_resume(config)
    source = load_source(config)
    plan = make_plan(config, device, source)
    order = SampleOrder(plan.samples, plan.batch_size, plan.seed, device.rank, plan.world)
    graph = (config.network, config.batch_size, config.img_height, config.img_width, config.loss, config.grad_clip_norm)
    enable_compile_cache(config.enable_compile_cache, ("train", device.target, device.world, graph))
    step, start = build_step(config, plan, resume_path)
    done, total = start.steps_done(plan.steps_per_epoch), config.epoch_size * plan.steps_per_epoch
    if done >= total:
        print(f"nothing to do: the run has all its {config.epoch_size} epochs (epoch_size)")
        return step

    from src.training.trainer import Trainer

    folder = start_folder(config, device, plan, start)
    dataset = create_dataset(source, order, done, total - done, config.num_parallel_workers)
    trainer = Trainer(step, plan, loop_settings(config), all_rates(config, total), folder, source.image_paths)
    trainer.run(dataset, start)
    if folder:
        print(f"done: checkpoint {folder.latest().path}, losses {folder.path / LOSS_CSV} and loss.png")
    return step


def main() -> None:
    """Runs the script."""
    config = load_config(__doc__, keys=KEYS)
    check_settings(config)
    device = setup_device(config.device_target, config.device_id, config.seed, config.run_distribute)
    train(config, device)


if __name__ == "__main__":
    run_script(main)
