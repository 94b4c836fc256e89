"""Where weights are: the file that a setting names, or the newest checkpoint of the run folder that it names."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from src.common.errors import UsageError

PathLike = Union[str, Path]

# Where the two files are published that users start with, and what makes checkpoints of them.
GET_NETWORK = (
    "the authors' weights are midas_v21_384.pt in release v2_1 of isl-org/MiDaS; "
    "python src/utils/pth2ckpt.py midas_v21_384.pt converts them"
)
GET_ENCODER = (
    "an encoder to start from is ig_resnext101_32x8-c38310e5.pth of facebookresearch/WSL-Images; "
    "python src/utils/pth2ckpt.py ig_resnext101_32x8-c38310e5.pth makes ckpt/midas_resnext_101_WSL.ckpt of it, which "
    "--model_weights must name"
)
_CHECKPOINT = re.compile(r"Midas_(\d+)-(\d+)_(\d+)\.ckpt")
_SUFFIXES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin", ".onnx", ".mindir")  # of networks, the likeliest first


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


def list_checkpoints(folder: PathLike) -> list[Checkpoint]:
    """Lists the checkpoints of a run, whichever device wrote them, oldest first."""
    return checkpoints_among(Path(folder).glob("*.ckpt"))


def checkpoints_among(paths: Iterable[PathLike]) -> list[Checkpoint]:
    """Returns the checkpoints of a run among files that need not be on this machine, oldest first."""
    found = []
    for path in map(Path, paths):
        match = _CHECKPOINT.fullmatch(path.name)
        if match:
            found.append(Checkpoint(int(match[2]), int(match[3]), path))
    return sorted(found, key=lambda checkpoint: (checkpoint.epoch, checkpoint.step))


def find_checkpoint(path: PathLike, key: str, advice: str) -> Path:
    """Returns the file that holds the weights: ``path``, or the newest checkpoint if it is a run folder.

    Args:
        path: What the setting ``key`` says.
        key: For messages.
        advice: What to do if there is nothing.

    Raises:
        UsageError: There is neither; the text names files that may be meant.
    """
    path = Path(path)
    if path.is_dir():
        checkpoints = list_checkpoints(path)
        if checkpoints:
            return checkpoints[-1].path
        candidates = sorted(_weights_in(path), key=lambda file: (_SUFFIXES.index(file.suffix.lower()), file.name))
        hint = f"name the file: {_named(candidates)}" if candidates else advice
        raise UsageError(
            f"{key}: expected a checkpoint file or a run folder with Midas_*.ckpt, found none in {path}; {hint}"
        )
    if path.is_file():
        return path
    similar = _similar_files(path)
    hint = f"did you mean {_named(similar)}? " if similar else ""
    kind = "something else" if path.exists() else "none"
    raise UsageError(f"{key}: expected a checkpoint file or a run folder, found {kind} at {path}; {hint}{advice}")


def _weights_in(folder: Path) -> list[Path]:
    try:
        return [file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file()]
    except OSError:
        return []


def _similar_files(path: Path) -> list[Path]:
    """Finds files with weights that may be meant: of the same stem, or of a similar name in the same folder."""
    beside = _weights_in(path.parent)
    same = [file for file in beside if file.stem.lower() == path.stem.lower() or file.name.startswith(f"{path.name}.")]
    # A download that has not been converted lies where it was downloaded to, and not in ckpt.
    places = (path.parent.parent, Path.cwd(), Path.cwd() / "ckpt")
    for folder in {folder.resolve(): folder for folder in places if folder.resolve() != path.parent.resolve()}.values():
        same += [file for file in _weights_in(folder) if file.stem.lower() == path.stem.lower()]
    if same:
        return same
    names = difflib.get_close_matches(path.name, [file.name for file in beside], n=1, cutoff=0.75)
    return [path.parent / name for name in names]


def _named(files: list[Path]) -> str:
    return " or ".join(map(str, files[:3]))
