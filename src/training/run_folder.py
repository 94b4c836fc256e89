"""The folder of one training run: its settings and checkpoints, and a lock."""

import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import Optional, TextIO, Union

from src.common.atomic import remove_leftovers, write_text
from src.common.errors import UsageError
from src.training.loss_log import LOSS_CSV
from src.weights.locate import Checkpoint, find_checkpoint, list_checkpoints

CONFIG_FILE = "config.yaml"
LOCK_FILE = "run.lock"


class RunFolder:
    """A folder that holds one training run.

    Args:
        path: The folder; made by ``lock``.
        device_id: Number of the device, part of the documented checkpoint name.
    """

    def __init__(self, path: Union[str, Path], device_id: int = 0):
        self.path = Path(path)
        self.device_id = device_id
        self._lock: Optional[TextIO] = None

    def lock(self) -> None:
        """Makes the folder and claims it for this process until it ends, however it ends.

        Raises:
            UsageError: Another process trains in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / LOCK_FILE, "a+")  # noqa: SIM115 open as long as the process lives
        try:
            # A lock of fcntl is not handed on to the loaders, which may outlive the process for a moment.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return  # a file system without locks
            self._lock.seek(0)
            owner = self._lock.read().strip() or "another process"
            raise UsageError(
                f"train_output_path {self.path}: expected a folder in which nobody trains, found a run of {owner}"
            ) from error
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()

    def start(self, settings: str, epoch: int, step: int) -> None:
        """Tidies up, and writes the settings unless there are some: those of a resumed run stay as they are.

        Args:
            settings: YAML text.
            epoch: The run starts after ``step`` of this epoch; 1 and 0 for a new one.
            step: See ``epoch``.

        Raises:
            UsageError: If the folder holds checkpoints from beyond that point, of another run: the present one's would
                be taken for older than those, and deleted first. Or if its config.yaml is not of a run.
        """
        latest = self.latest()
        if latest and (latest.epoch, latest.step) > (epoch, step):
            raise UsageError(
                f"train_output_path {self.path}: expected no checkpoints after epoch {epoch} step {step}, where this "
                f"run starts, found {latest.path.name}; resume from it with --resume True, or name another folder"
            )
        remove_leftovers(self.path)
        path = self.path / CONFIG_FILE
        if path.exists():
            if (epoch, step) != (1, 0):
                return
            if _first_line(path.read_text(encoding="utf-8", errors="replace")) != _first_line(settings):
                raise UsageError(
                    f"train_output_path {self.path}: expected a folder for a run, found a config.yaml that is not of a "
                    "run and would be overwritten; name another folder"
                )
        write_text(path, settings)

    def checkpoint_path(self, epoch: int, step: int) -> Path:
        """Returns the documented name ``Midas_{device_id}-{epoch}_{step}.ckpt`` in this folder."""
        return self.path / f"Midas_{self.device_id}-{epoch}_{step}.ckpt"

    @property
    def best_path(self) -> Path:
        """The file of the network that has scored best so far, ``Midas_{device_id}-best.ckpt``."""
        return self.path / f"Midas_{self.device_id}-best.ckpt"

    def checkpoints(self) -> list[Checkpoint]:
        """Lists the checkpoints of the run, whichever device wrote them, oldest first."""
        return list_checkpoints(self.path)

    def latest(self) -> Optional[Checkpoint]:
        """Returns the checkpoint that is furthest in the run, or None."""
        return (self.checkpoints() or [None])[-1]

    def prune(self, keep: int) -> None:
        """Deletes all but the ``keep`` newest checkpoints."""
        for checkpoint in self.checkpoints()[:-keep]:
            checkpoint.path.unlink(missing_ok=True)


def find_resume(resume: Union[bool, str], train_output_path: str) -> Optional[Path]:
    """Returns the checkpoint to resume from; None for a new run.

    Args:
        resume: The setting: True for the newest checkpoint of ``train_output_path``, a path, or False.
        train_output_path: The setting.

    Raises:
        UsageError: There is no such checkpoint.
    """
    if resume is False:
        return None
    if isinstance(resume, str):
        advice = "True resumes the run in train_output_path, False starts a new one"
        found = find_checkpoint(resume, "resume", advice)
        return found.resolve() if found.is_symlink() else found  # the settings of the run are beside the file itself
    latest = RunFolder(train_output_path).latest()
    if latest is None:
        raise UsageError(
            f"resume: expected Midas_*.ckpt in {train_output_path} (train_output_path), found none; --resume False "
            "starts a new run"
        )
    return latest.path


def folder_to_resume(checkpoint: Path, train_output_path: str, is_given: bool) -> Path:
    """Returns where a resumed run goes on: where its checkpoint is, unless another folder is given.

    Args:
        checkpoint: To resume from.
        train_output_path: The setting.
        is_given: Whether that is no default.

    Raises:
        UsageError: In the other folder are the files of another run.
    """
    folder = RunFolder(train_output_path)
    if not is_given and (checkpoint.parent / CONFIG_FILE).is_file():
        folder = RunFolder(checkpoint.parent)
    if checkpoint.parent.resolve() != folder.path.resolve() and (folder.latest() or (folder.path / LOSS_CSV).exists()):
        raise UsageError(
            f"train_output_path {folder.path}: expected a new folder, or {checkpoint.parent}, where the checkpoint is, "
            "found the files of another run"
        )
    return folder.path


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
