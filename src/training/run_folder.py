"""The folder of one training run: resolved settings and checkpoints."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

from src.common.atomic import remove_leftovers, write_text
from src.common.errors import UsageError

CONFIG_FILE = "config.yaml"
_CHECKPOINT = re.compile(r"Midas_(\d+)-(\d+)_(\d+)\.ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file and its place in the run, as its name says it.

    Attributes:
        epoch: Counted from 1.
        step: Finished steps of that epoch.
        path: The file.
    """

    epoch: int
    step: int
    path: Path


class RunFolder:
    """A folder that holds one training run.

    Args:
        path: The folder; made by ``start``.
        device_id: Number of the device, part of the documented checkpoint name.
    """

    def __init__(self, path: Union[str, Path], device_id: int = 0):
        self.path = Path(path)
        self.device_id = device_id

    def start(self, settings: str, epoch: int, step: int) -> None:
        """Makes the folder and writes the resolved settings.

        Args:
            settings: YAML text.
            epoch: The run starts after ``step`` of this epoch; 1 and 0 for a new one.
            step: See ``epoch``.

        Raises:
            UsageError: If the folder holds checkpoints from beyond that point, of another run: the present one's would
                be taken for older than those, and deleted first.
        """
        latest = self.latest()
        if latest and (latest.epoch, latest.step) > (epoch, step):
            raise UsageError(
                f"train_output_path {self.path}: expected no checkpoints after epoch {epoch} step {step}, where this "
                f"run starts, found {latest.path.name}; resume from it with --resume True, or name another folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        write_text(self.path / CONFIG_FILE, settings)

    def checkpoint_path(self, epoch: int, step: int) -> Path:
        """Returns the documented name ``Midas_{device_id}-{epoch}_{step}.ckpt`` in this folder."""
        return self.path / f"Midas_{self.device_id}-{epoch}_{step}.ckpt"

    def checkpoints(self) -> list[Checkpoint]:
        """Lists the checkpoints of the run, whichever device wrote them, oldest first."""
        found = []
        for path in self.path.glob("*.ckpt"):
            match = _CHECKPOINT.fullmatch(path.name)
            if match:
                found.append(Checkpoint(int(match[2]), int(match[3]), path))
        return sorted(found, key=lambda checkpoint: (checkpoint.epoch, checkpoint.step))

    def latest(self) -> Optional[Checkpoint]:
        """Returns the checkpoint that is furthest in the run, or None."""
        return (self.checkpoints() or [None])[-1]

    def prune(self, keep: int) -> None:
        """Deletes all but the ``keep`` newest checkpoints."""
        for checkpoint in self.checkpoints()[:-keep]:
            checkpoint.path.unlink(missing_ok=True)
