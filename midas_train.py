"""Trains MiDaS on the images that mixdata.json lists, or fine-tunes it on two folders.

``python midas_train.py --model_weights ./ckpt/midas_resnext_101_WSL.ckpt`` starts from an ImageNet encoder,
``--model_weights ""`` from random weights. ``--train_images DIR --train_depth DIR --train_kind depth`` fine-tunes on
two folders. ``--resume True`` resumes a run that was interrupted, with its settings. docs/training.md says more.
"""

import functools
import json
import os
import sys
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from src.common.compile_cache import enable_compile_cache
from src.common.device import Device, setup_device, worker_count
from src.common.errors import UsageError, run_script
from src.common.names import DATA_SETS
from src.config import (
    COMMAND_LINE,
    FINE_TUNING_FILE,
    NETWORK_KEYS,
    NORMALISATION_KEYS,
    Config,
    dump_config,
    load_config,
    load_training_config,
    named_sets,
    require_file,
    require_folder,
    settle,
)
from src.evaluation.datasets import open_dataset
from src.evaluation.session import ShareScorer, open_sets
from src.training.group import Group
from src.training.loss_log import LOSS_CSV
from src.training.modelarts import RunMirror, copy_data_in, copy_run_in
from src.training.run_folder import CONFIG_FILE, RunFolder, find_resume, folder_to_resume
from src.training.run_log import TRAIN_LOG, tee_to
from src.training.schedule import LearningRate, LoopSettings, Schedule
from src.utils.augmentation import Augmentation
from src.utils.loadImgDepth import LoadImagesDepth, create_dataset
from src.utils.mixdata import (
    Pair,
    check_pairs,
    describe_mixture,
    describe_sets,
    good_pairs,
    list_folders,
    list_pairs,
    set_sizes,
    split_pairs,
    verdicts_path,
    warnings_of,
)
from src.utils.order import Position, SampleOrder

if TYPE_CHECKING:
    from src.training.precision import Precision
    from src.training.saved_run import SavedRun
    from src.training.step import TrainStep
    from src.training.validation import Validator
    from src.weights.checkpoint import Weights

# What decides the course of a run: a resumed run cannot change it. Of the data, the list of files counts, wherever they
# are. How many images make a step may change: the order of the samples goes on as it was.
COURSE_KEYS = (
    "seed", *NETWORK_KEYS, *NORMALISATION_KEYS, "img_width", "img_height", "resize_target", "keep_aspect_ratio",
    "ensure_multiple_of", "backbone_params_lr", "backbone_params_end_lr", "no_backbone_params_lr",
    "no_backbone_params_end_lr", "power", "lr_decay", "loss", "loss_alpha", "loss_scales", "loss_trim", "revive_output",
    "target_range", "mixing", "upper_bound", "epoch_images", "random_flip", "random_crop", "grad_clip_norm",
    "amp_level", "amp_dtype", "loss_scaling", "loss_scale", "loss_scale_window", "sync_bn", "freeze_backbone_bn",
    "freeze_backbone_epochs", "val_share",
)  # fmt: skip
# What earlier versions did, which had no such settings: their runs can be resumed.
EARLIER = {
    "loss_alpha": 0.5, "loss_scales": 4, "loss_trim": 0.2, "revive_output": False, "target_range": 255,
    "mixing": "pooled", "upper_bound": False, "epoch_images": 0, "random_flip": 0.0, "random_crop": 0.0,
}  # fmt: skip
# Learning rates that fall depend on these, too.
DECAY_KEYS = ("epoch_size", "max_steps")
# What a resumed run may change: where it runs, how long, what it reads and writes. (It starts from its checkpoint,
# whatever model_weights is.)
FREE_KEYS = (
    "device_target", "device_id", "run_distribute", "jit_level", "op_precision", "allow_hf32", "enable_compile_cache",
    "num_parallel_workers", "batch_size", "accumulate_steps", "train_data_dir", "mixdata", "train_images",
    "train_depth", "train_kind", "train_invalid", "skip_bad_samples",
    "train_output_path", "resume", "save_checkpoint_epochs", "save_checkpoint_steps", "save_checkpoint_minutes",
    "keep_checkpoint_max", "log_interval", "model_weights", "eval_interval", "val_data_name", "patience",
    "eval_protocol", *(f"datapath_{name}" for name in DATA_SETS), "eval_shapes", "resize_method", "invert_output",
    "is_modelarts", "data_url", "train_url",
)  # fmt: skip
KEYS = (*COURSE_KEYS, *DECAY_KEYS, *FREE_KEYS)

RATE_KEYS = (
    "backbone_params_lr", "backbone_params_end_lr", "no_backbone_params_lr", "no_backbone_params_end_lr",
)  # fmt: skip


def course_keys(config: Config) -> tuple[str, ...]:
    """Lists the settings that decide the course of a run."""
    return (*COURSE_KEYS, *DECAY_KEYS) if config.lr_decay else COURSE_KEYS


def check_settings(config: Config) -> None:
    """Raises UsageError for settings with which training images cannot be stacked into batches, or for absent data."""
    last_step, side = 2 ** (config.loss_scales - 1), min(config.img_width, config.img_height)
    if last_step >= side:
        raise UsageError(
            f"loss_scales: expected steps of less than the {side} pixels of an image, found {config.loss_scales}, the "
            f"last of which has {last_step}"
        )
    if config.keep_aspect_ratio:
        raise UsageError("keep_aspect_ratio: expected False for training (batches need one image size), found True")
    if not config.resize_target:
        raise UsageError("resize_target: expected True for training (the loss compares pixels), found False")
    if config.train_images or config.train_depth:
        require_folder(config, "train_images")
        require_folder(config, "train_depth")
        no_effect, reason = ("mixdata",), "train_images takes its place"
    else:
        no_effect, reason = ("train_kind", "train_invalid"), "it is for train_images; mixdata.json has its own entries"
        require_folder(config, "train_data_dir")
        require_file(config, "mixdata")
    for key in no_effect:
        if config.given.get(key) == COMMAND_LINE:
            raise UsageError(f"{COMMAND_LINE}: {key} has no effect here: {reason}")


def list_training_pairs(config: Config) -> tuple[list[Pair], list[str], str, Path]:
    """Lists the training images without opening them.

    Returns:
        The pairs; a line for each file without a partner; where they are, for messages; and the file that remembers
        which of them were found good.
    """
    if config.train_images:
        invalid = float(config.train_invalid) if config.train_invalid else None
        pairs, unpaired = list_folders(config.train_images, config.train_depth, config.train_kind, invalid)
        return pairs, unpaired, config.train_images, verdicts_path(config.train_images, config.train_depth)
    pairs, unpaired = list_pairs(config.train_data_dir, config.mixdata)
    return pairs, unpaired, config.mixdata, verdicts_path(config.train_data_dir, config.mixdata)


def load_sources(config: Config, group: Group, folder: RunFolder) -> tuple[LoadImagesDepth, LoadImagesDepth]:
    """Lists the training images in every process, checks them in the first, and says what was found.

    The first process claims the run folder before that, since the check may take long.

    Returns:
        The images to train on, and those held back for validation.
    """
    pairs, unpaired, where, remembered = list_training_pairs(config)
    mixed_sets(config, pairs)  # refuses a batch size before the check, which may take long
    group.check_equal("list of training images", _names(config, pairs))

    def check() -> np.ndarray:
        folder.lock()
        checked = check_pairs(pairs, worker_count(config.num_parallel_workers), remembered)
        good = good_pairs(pairs, unpaired, checked, where, config.skip_bad_samples)
        faults = [*unpaired, *checked.faults]
        for line in faults:
            print(f"left out: {line}", file=sys.stderr)
        found = f"{len(good)} training images in {config.train_images or config.train_data_dir}"
        print(f"{found}, {len(faults)} left out" if faults else found)
        print(*(f"  {line}" for line in describe_sets(pairs, checked)), sep="\n", flush=True)
        for line in warnings_of(pairs, checked, as_options=bool(config.train_images)):
            print(f"warning: {line}", file=sys.stderr)
        is_good = np.zeros(len(pairs))
        is_good[checked.good] = 1
        return is_good

    is_good = group.first_does(check, len(pairs))
    good = [pair for pair, good in zip(pairs, is_good) if good]
    training, held_back = split_pairs(good, config.val_share, config.seed)
    if held_back and group.rank == 0:
        print(f"{len(held_back)} of them are held back for validation (val_share)", flush=True)
    load = functools.partial(
        LoadImagesDepth,
        width=config.img_width,
        height=config.img_height,
        **config.normalisation,
        ensure_multiple_of=config.ensure_multiple_of,
        target_range=config.target_range,
    )
    augmentation = Augmentation(config.seed, config.random_flip, config.random_crop)
    return load(training, augmentation=augmentation), load(held_back)


def mixed_sets(config: Config, pairs: Sequence[Pair]) -> dict[str, int]:
    """Returns how many images each set has that is mixed in equal shares with others; empty if there is nothing to mix.

    Raises:
        UsageError: A batch does not hold equally many images of each set.
    """
    sizes = set_sizes(pairs)
    if config.mixing == "pooled" or len(sizes) == 1:
        return {}
    if config.batch_size % len(sizes):
        raise UsageError(
            f"batch_size: expected a multiple of {len(sizes)}, the number of training sets, so that a batch holds "
            f"equally many images of each, found {config.batch_size}; --mixing pooled takes any"
        )
    return sizes


def _names(config: Config, pairs: list[Pair]) -> str:
    """Tells one list of training images from another, wherever the data are."""
    rows = []
    roots = {"depth_path": config.train_depth or config.train_data_dir}
    for pair in pairs:
        row = {**vars(pair), **vars(pair.truth)}
        del row["truth"]
        for key in ("image_path", "depth_path", "mask_path", "sky_path"):
            root = roots.get(key, config.train_images or config.train_data_dir)
            row[key] = row[key] and os.path.relpath(row[key], root)
        for key, default in (("mask_path", None), ("sky_path", None), ("sky", None), ("scale", 1), ("max_depth", None)):
            if row[key] == default:  # earlier versions did not know it
                del row[key]
        rows.append(repr(sorted(row.items())))
    return "\n".join(rows)


def load_settings() -> tuple[Config, Optional[Path]]:
    """Reads the settings; those of a resumed run come from its folder.

    Returns:
        The settings, and the checkpoint to resume from, None for a new run.

    Raises:
        UsageError: As ``load_config``; or the command line would change the course of the run to resume.
    """
    config = load_training_config(__doc__, keys=KEYS, is_complete=False)
    if config.is_modelarts and config.train_url and config.resume is True:
        copy_run_in(config.train_url, config.train_output_path)
    checkpoint = find_resume(config.resume, config.train_output_path)
    if checkpoint is None:
        return load_training_config(__doc__, keys=KEYS), None
    train_output_path = str(folder_to_resume(checkpoint, config.train_output_path, "train_output_path" in config.given))
    if not (checkpoint.parent / CONFIG_FILE).is_file():
        return load_training_config(__doc__, keys=KEYS), checkpoint
    settings_file = checkpoint.parent / CONFIG_FILE
    then = load_config("", [], base=settings_file, earlier=EARLIER)
    now = load_config(__doc__, keys=KEYS, base=settings_file, fixed=course_keys(then), earlier=EARLIER)
    return replace(now, train_output_path=train_output_path), checkpoint


def describe_course(config: Config, source: LoadImagesDepth) -> dict[str, Any]:
    """Collects what decides the course of the run, as JSON has it."""
    files = zlib.crc32(_names(config, source.pairs).encode("utf-8", "surrogateescape"))
    settings = {key: getattr(config, key) for key in course_keys(config)}
    if not mixed_sets(config, source.pairs):
        settings["mixing"], settings["upper_bound"] = EARLIER["mixing"], EARLIER["upper_bound"]
    return json.loads(json.dumps({**settings, "images": len(source), "files": files}))


def plan_run(
    config: Config, order: SampleOrder, saved: Optional["SavedRun"]
) -> tuple[Position, LoopSettings, Schedule]:
    """Decides where the run starts, how long it is, and what its learning rates are made of."""
    start = saved.position if saved else Position()
    steps = start.steps + order.steps_left(start, config.epoch_size)
    if config.max_steps:
        steps = min(steps, max(config.max_steps, start.steps))
    updates = saved.schedule.updates if saved else 0
    frozen = updates + order.steps_left(start, config.freeze_backbone_epochs)
    if saved:
        schedule = saved.schedule.resumed(steps - start.steps, frozen, order.images_per_step)
    else:
        schedule = Schedule(steps, 0.0, frozen, order.images_per_step)
    settings = LoopSettings(
        epochs=config.epoch_size,
        steps=steps,
        save_epochs=config.save_checkpoint_epochs,
        save_steps=config.save_checkpoint_steps,
        save_minutes=config.save_checkpoint_minutes,
        keep_checkpoints=config.keep_checkpoint_max,
        log_interval=config.log_interval,
        eval_epochs=config.eval_interval,
    )
    return start, settings, schedule


def learning_rates(config: Config, schedule: Schedule) -> tuple[LearningRate, LearningRate]:
    """Returns the learning rates of encoder and decoder."""
    encoder, decoder = config.backbone_params_lr, config.no_backbone_params_lr
    encoder_end = config.backbone_params_end_lr if config.lr_decay else encoder
    decoder_end = config.no_backbone_params_end_lr if config.lr_decay else decoder
    return (
        schedule.rate(encoder, encoder_end, config.power, is_encoder=True),
        schedule.rate(decoder, decoder_end, config.power, is_encoder=False),
    )


def with_new_decoder(config: Config, weights: Optional["Weights"]) -> Config:
    """Returns the settings, with the usual rates where fine-tuning starts with a decoder that is new."""
    if not config.train_images or (weights and weights.whole):
        return config
    usual = load_config("", [])
    keys = RATE_KEYS if weights else (*RATE_KEYS, "freeze_backbone_bn")  # random weights have no statistics to keep
    return replace(config, **{key: getattr(usual, key) for key in keys if key not in config.given})


def build_step(
    config: Config,
    device: Device,
    group: Group,
    precision: "Precision",
    rates: tuple[LearningRate, LearningRate],
    weights: Optional["Weights"],
    saved: Optional["SavedRun"],
    course: dict[str, Any],
    sets: int,
) -> "TrainStep":
    """Builds network and step, gives them the weights to start from, the same in all processes, and says which."""
    from src.loss import create_loss
    from src.training.optimizer import TwoRateAdam
    from src.training.precision import (
        apply_precision,
        create_scaler,
        freeze_normalisation,
        revive_output,
        synchronise_normalisation,
    )
    from src.training.saved_run import restore
    from src.training.step import EQUAL, EXACT, UPPER_BOUND, TrainStep
    from src.weights.checkpoint import build_network

    net, said = build_network(weights, config.network, "model_weights")
    if config.revive_output:
        revive_output(net)
    if config.freeze_backbone_bn:
        freeze_normalisation(net)
    if config.sync_bn:
        synchronise_normalisation(net, device.target, device.world)
    apply_precision(net, precision)
    net.set_train(True)
    weighting = EQUAL
    if config.mixing == "multi_objective":
        weighting = UPPER_BOUND if config.upper_bound else EXACT
    step = TrainStep(
        net,
        create_loss(config.loss, config.loss_alpha, config.loss_scales, config.loss_trim),
        TwoRateAdam(net, *rates),
        config.grad_clip_norm,
        device.world,
        create_scaler(precision, config.loss_scale, config.loss_scale_window),
        config.accumulate_steps,
        sets,
        weighting,
    )
    if saved:
        restore(step, saved, course)
        said[0] = f"resume: {saved.path}, after epoch {saved.position.epoch} step {saved.position.step}"
        before, now = saved.schedule.images_per_step, config.batch_size * config.accumulate_steps * device.world
        if before != now:
            said.append(f"{now} images make a step now, not {before}; the order of the samples goes on as it was")
    if group.rank == 0:
        print(*said, sep="\n")
    group.synchronise(step.state())
    return step


def build_validators(config: Config, step: "TrainStep", held_back: LoadImagesDepth, group: Group) -> list["Validator"]:
    """Builds what scores the network during the training; the first score decides which network is the best."""
    from src.inference.mindspore import MindSporePredictor
    from src.training.validation import HeldBackLoss, NamedSets

    validators = []
    if not config.eval_interval:
        return validators
    workers, share = worker_count(config.num_parallel_workers), (group.rank, group.world)
    if len(held_back):
        sizes = set_sizes(held_back.pairs)
        weights = None
        if mixed_sets(config, held_back.pairs):  # the sets count alike, as in the training
            weights = [1 / sizes[pair.dataset] for pair in held_back.pairs]
        validators.append(HeldBackLoss(step.net, step.loss, held_back, *share, workers=workers, weights=weights))
    if config.val_data_name:
        datasets, _ = open_sets(
            named_sets(config.val_data_name),
            lambda name: open_dataset(name, getattr(config, f"datapath_{name}"), config.eval_protocol),
            setting=lambda name: f"datapath_{name}",
            asked=f"val_data_name {config.val_data_name}",
        )
        make_predictor = functools.partial(MindSporePredictor, **config.predictor)
        validators.append(NamedSets(step.net, make_predictor, ShareScorer(datasets, workers, *share)))
    return validators


def train(config: Config, device: Device, resume_path: Optional[Path] = None) -> "TrainStep":
    """Trains as configured; returns the step, whose network has been trained."""
    from src.training.precision import settle_precision
    from src.training.saved_run import read_run
    from src.training.trainer import EndOfRun, Trainer
    from src.training.validation import Judge
    from src.weights.checkpoint import open_weights

    precision = settle_precision(config.amp_level, config.amp_dtype, config.loss_scaling, device.target)
    saved = read_run(resume_path) if resume_path else None  # before the data are checked, which may take long
    if saved:
        saved.extra["course"] = {**EARLIER, **saved.extra["course"]}
    weights = None if resume_path else open_weights(config.model_weights)
    config = settle(config, weights)
    if not saved:
        config = with_new_decoder(config, weights)
    group = Group(device.rank, device.world)
    first_device = group.sum(np.array([device.device_id if device.rank == 0 else 0]))[0]
    folder = RunFolder(config.train_output_path, int(first_device))
    source, held_back = load_sources(config, group, folder)
    batch_size = config.batch_size * config.accumulate_steps
    sets = mixed_sets(config, source.pairs)
    size = config.epoch_images or len(source)
    order = SampleOrder(size, batch_size, config.seed, device.rank, device.world, (*sets.values(),) or (len(source),))
    course = describe_course(config, source)
    start, settings, schedule = plan_run(config, order, saved)
    rates = learning_rates(config, schedule)
    graph = (
        config.network, config.batch_size, config.accumulate_steps, config.img_height, config.img_width, config.loss,
        config.grad_clip_norm, config.freeze_backbone_bn, config.sync_bn, config.jit_level, config.op_precision,
        config.allow_hf32, config.loss_scale_window, config.loss_alpha, config.loss_scales, config.loss_trim,
        config.revive_output, config.mixing, config.upper_bound, len(sets), precision, rates,
    )  # fmt: skip
    scored = (bool(config.eval_interval), bool(len(held_back)), config.val_data_name, config.predictor)
    enable_compile_cache(
        config.enable_compile_cache,
        ("train", device.target, device.world, graph, scored),
        shapes_vary=bool(config.eval_interval and config.val_data_name) and config.eval_shapes == "static",
    )
    step = build_step(config, device, group, precision, rates, weights, saved, course, len(sets) or 1)
    last_score, is_validation_due = (saved.extra["judge"], saved.extra["is_validation_due"]) if saved else ({}, False)
    del saved  # as large as the run itself
    group.check_equal("course and start of the run", f"{course} {start} {order.images_per_step}")
    judge = Judge(config.patience, **last_score)
    is_all_done = start.steps >= settings.steps and not is_validation_due
    if is_all_done or judge.is_patience_over:
        if group.rank == 0:
            why = f"the run has all its {start.steps} steps (epoch_size, max_steps)"
            print(
                f"nothing to do: {why if is_all_done else f'no better score in {judge.waited} validations (patience)'}"
            )
        mirror = mirror_of(config, group, folder)
        group.first_finishes(lambda: mirror and mirror.close())  # the last copy may not have come to its end
        return step

    def start_folder() -> None:
        folder.start(dump_config(config), start.epoch, start.step)

    group.first_finishes(start_folder)
    with ExitStack() as stack:
        if group.rank == 0:
            stack.enter_context(tee_to(folder.path / TRAIN_LOG, is_resumed=start.steps > 0))
            describe_run(config, device, precision, order, settings, start, folder, sets)
        mirror = mirror_of(config, group, folder)
        trainer = Trainer(
            step,
            order,
            settings,
            rates,
            schedule,
            course,
            folder,
            source.image_paths,
            group,
            last_checkpoint=resume_path,
            validators=build_validators(config, step, held_back, group),
            judge=judge,
            on_saved=mirror.copy_out if mirror else None,
            sets=tuple(sets),
        )
        dataset, ending, left = None, None, settings.steps - start.steps
        if left:
            dataset = create_dataset(source, order, start.samples, left, worker_count(config.num_parallel_workers))
        try:
            trainer.run(dataset, start, is_validation_due)
        except EndOfRun as end:  # in all processes
            ending = end
        except BaseException as error:
            if mirror:
                mirror.close(error)
            raise
        group.first_finishes(lambda: mirror and mirror.close(ending))
        if ending:
            raise ending
        if group.rank == 0:
            print(f"done: checkpoint {trainer.last_checkpoint}, losses {folder.path / LOSS_CSV} and loss.png")
    return step


def mirror_of(config: Config, group: Group, folder: RunFolder) -> Optional[RunMirror]:
    """Makes what copies the run folder to ``train_url``, in the first process, if it is to be copied."""
    if group.rank == 0 and config.is_modelarts and config.train_url:
        return RunMirror(folder.path, config.train_url)
    return None


def describe_run(
    config: Config,
    device: Device,
    precision: "Precision",
    order: SampleOrder,
    settings: LoopSettings,
    start: Position,
    folder: RunFolder,
    sets: dict[str, int],
) -> None:
    """Prints what is about to run."""
    parts = f" x {config.accumulate_steps} parts" if config.accumulate_steps > 1 else ""
    print(
        f"{config.epoch_size} epochs, {settings.steps} steps in all, batch size {config.batch_size}{parts} on "
        f"{device.world} x {device.target}, {config.img_width}x{config.img_height} pixels, {precision.describe()}, "
        f"run folder {folder.path}"
    )
    if config.train_images:
        print(f"fine-tuning, see {FINE_TUNING_FILE.name}: {describe_fine_tuning(config)}")
    if sets:
        by = " by the upper bound" if config.upper_bound else ""
        print(f"mixing {config.mixing}{by}: a batch holds {config.batch_size // len(sets)} images of each set")
        print(describe_mixture(sets, order.size))
    elif config.mixing == "multi_objective":
        print("mixing multi_objective: there is one set, so there is nothing to mix")
    images = config.epoch_size * order.size - start.samples
    left = order.steps_left(start, config.epoch_size)
    rest = images - left * order.images_per_step
    if rest and left == settings.steps - start.steps:
        print(
            f"the last {rest} images of the last epoch do not fill a step of {order.images_per_step} and are left out"
        )
    if device.world > 1 and not config.sync_bn and not config.freeze_backbone_bn:
        print("batch normalisation: each device normalises by its own batch; statistics are averaged over the devices")
    sys.stdout.flush()


def describe_fine_tuning(config: Config) -> str:
    """Names the settings that fine-tuning decides."""
    keys = (
        "loss", "target_range", "backbone_params_lr", "no_backbone_params_lr", "lr_decay", "freeze_backbone_bn",
        "random_flip", "random_crop", "val_share",
    )  # fmt: skip
    return ", ".join(f"{key} {getattr(config, key)}" for key in keys)


def main() -> None:
    """Runs the script."""
    config, resume_path = load_settings()
    if config.is_modelarts and config.data_url:
        copy_data_in(config.data_url, config.train_data_dir)
    check_settings(config)
    device = setup_device(
        config.device_target,
        config.device_id,
        config.seed,
        config.run_distribute,
        config.jit_level,
        config.op_precision,
        config.allow_hf32,
    )
    train(config, device, resume_path)


if __name__ == "__main__":
    run_script(main)
