"""Trains MiDaS on the images that mixdata.json lists.

``python midas_train.py --model_weights ./ckpt/midas_resnext_101_WSL.ckpt`` starts from an ImageNet encoder,
``--model_weights ""`` from random weights, ``--resume True`` goes on where a run stopped.
"""

import sys
import zlib
from pathlib import Path

from src.common.compile_cache import enable_compile_cache
from src.common.device import Device, setup_device
from src.common.errors import UsageError, run_script
from src.config import Config, dump_config, load_config, require_file, require_folder
from src.training.run_folder import LOSS_CSV, RunFolder
from src.utils.loadImgDepth import LoadImagesDepth, create_dataset, index_sequence, training_pairs


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
        resize_method=config.resize_method,
    )


def find_resume(config: Config, folder: RunFolder) -> Path:
    """Returns the checkpoint that ``resume`` names; UsageError if there is none."""
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


def train(config: Config, device: Device) -> None:
    """Trains as configured."""
    from src.loss import create_loss
    from src.midas_net import MidasNet
    from src.training.trainer import (
        Plan,
        Position,
        Trainer,
        TrainStep,
        create_optimizer,
        learning_rates,
        restore,
        weights_crc,
    )
    from src.weights.checkpoint import initialise

    folder = RunFolder(config.train_output_path, device.device_id)
    resume_path = find_resume(config, folder) if config.resume else None
    source = load_source(config)
    names = "\n".join(Path(pair.image_path).name for pair in source.pairs)
    plan = Plan(
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

    def samples_after(done: Position):
        done = done.or_next_epoch(plan.steps_per_epoch)
        return index_sequence(
            plan.samples,
            plan.batch_size,
            plan.seed,
            config.epoch_size,
            done.epoch - 1,
            done.step,
            device.rank,
            plan.world,
        )

    start = Position()
    sequence = samples_after(start)
    steps = config.epoch_size * plan.steps_per_epoch
    backbone_lr = learning_rates(
        config.backbone_params_lr, config.backbone_params_end_lr, config.power, steps, config.lr_decay
    )
    no_backbone_lr = learning_rates(
        config.no_backbone_params_lr, config.no_backbone_params_end_lr, config.power, steps, config.lr_decay
    )

    enable_compile_cache(config, ("train", device.target, device.world))
    net = MidasNet(**config.network)
    weights = "" if resume_path else config.model_weights
    said = initialise(net, weights)
    net.set_train(True)
    step = TrainStep(net, create_loss(config.loss), create_optimizer(net), config.grad_clip_norm, device.world)
    if resume_path:
        start = restore(step, resume_path, plan)
        sequence = samples_after(start)
        said = f"resume: {resume_path}, after epoch {start.epoch} step {start.step}"
    print(said)
    if len(sequence) == 0:
        print(f"nothing to do: the run has all its {config.epoch_size} epochs (epoch_size)")
        return

    is_first = device.rank == 0
    if is_first:
        folder.start(dump_config(config), start.epoch, start.step)
        print(
            f"{config.epoch_size} epochs of {plan.steps_per_epoch} steps, batch size {plan.batch_size} on "
            f"{plan.world} x {device.target}, {config.img_width}x{config.img_height} pixels, run folder {folder.path}",
            flush=True,
        )
    trainer = Trainer(
        step,
        plan,
        config.epoch_size,
        backbone_lr,
        no_backbone_lr,
        folder if is_first else None,
        batch_files=lambda indices: [source.pairs[index].image_path for index in indices],
        save_epochs=config.save_checkpoint_epochs,
        save_steps=config.save_checkpoint_steps,
        keep_checkpoints=config.keep_checkpoint_max,
        log_interval=config.log_interval,
    )
    dataset = create_dataset(source, sequence, plan.batch_size, config.num_parallel_workers)
    trainer.run(dataset, start)
    if device.world > 1:  # data-parallel processes must stay equal: worker_*.log tell whether they have
        print(f"weights of process {device.rank}: CRC-32 {weights_crc(net):08x}")
    if is_first:
        print(f"done: checkpoint {folder.latest().path}, losses {folder.path / 'loss.csv'} and loss.png")


def main() -> None:
    """Runs the script."""
    config = load_config(__doc__)
    check_settings(config)
    device = setup_device(config.device_target, config.device_id, config.seed, config.run_distribute)
    train(config, device)


if __name__ == "__main__":
    run_script(main)
