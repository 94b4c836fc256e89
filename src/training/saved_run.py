"""What a run needs to be resumed: the training checkpoint, and what must not have changed since."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from src.common.errors import CheckpointError
from src.training.schedule import Schedule
from src.training.step import LOSS_SCALE, TrainStep
from src.utils.order import Position
from src.weights.checkpoint import read_ckpt
from src.weights.formats import MINDSPORE, format_of


@dataclass(frozen=True)
class SavedRun:
    """What a training checkpoint holds.

    Attributes:
        path: The file.
        tensors: Name -> array, as ``TrainStep.state`` has it.
        extra: What ``Trainer.save`` puts beside them.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    extra: dict[str, Any]

    @property
    def position(self) -> Position:
        """Where the run was."""
        return Position(**{field.name: self.extra[field.name] for field in fields(Position)})

    @property
    def schedule(self) -> Schedule:
        """What its learning rates were made of."""
        return Schedule(**self.extra["schedule"])


def read_run(path: Path) -> SavedRun:
    """Reads a training checkpoint; CheckpointError if the file is something else, such as weights alone."""
    advice = f"start a new run with them: --model_weights {path}"
    found = format_of(path)
    if found != MINDSPORE:
        raise CheckpointError(
            f"{path}: expected a training checkpoint with optimizer state, found a {found}; if it has weights, {advice}"
        )
    tensors, extra = read_ckpt(path)
    if not {"epoch", "step"} <= {*extra}:
        raise CheckpointError(
            f"{path}: expected a training checkpoint with optimizer state, found weights alone; {advice}"
        )
    if not {"course", "schedule", "samples"} <= {*extra}:
        raise CheckpointError(
            f"{path}: expected a checkpoint of this version, found an older one, whose order of samples was another; "
            f"{advice}"
        )
    return SavedRun(path, tensors, extra)


def restore(step: TrainStep, saved: SavedRun, course: Mapping[str, Any]) -> None:
    """Loads a training checkpoint into a step's network, optimizer and loss scale.

    Args:
        step: Built as in the run that wrote the checkpoint.
        saved: The checkpoint.
        course: What decides the course of the resumed run, as JSON has it.

    Raises:
        CheckpointError: If the checkpoint is not one of this network, or is of a run of another course.
    """
    path, tensors = saved.path, saved.tensors
    changed = differences(saved.extra["course"], course)
    if changed:
        raise CheckpointError(
            f"{path}: expected a run of the same course, found {', '.join(changed)}; give the settings that it had, or "
            f"start a new run with its weights: --model_weights {path}"
        )
    parameters = step.state()
    for name in LOSS_SCALE:  # of a run that had none, on another kind of device
        if name not in tensors:
            parameters.pop(name, None)
    wrong = [name for name, p in parameters.items() if name not in tensors or tensors[name].shape != tuple(p.shape)]
    if wrong:
        raise CheckpointError(
            f"{path}: expected the network of the configuration and its optimizer state, found {len(wrong)} tensors "
            f"missing or of another shape, first {wrong[0]}"
        )
    for name, parameter in parameters.items():
        parameter.set_data(ms.Tensor(tensors[name]))


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[str]:
    """Names what two courses do not have in common, one phrase each; ``files`` is a checksum."""
    return [
        "other training images (their files, or what mixdata says of them)"
        if key == "files"
        else f"{key} {then.get(key)} then and {now.get(key)} now"
        for key in {**then, **now}
        if then.get(key) != now.get(key)
    ]
