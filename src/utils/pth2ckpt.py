"""Converts weights to this project's .ckpt: python src/utils/pth2ckpt.py IN.pth [OUT.ckpt].

IN is the WSL encoder (ig_resnext101_32x8-c38310e5.pth, or another ResNeXt of torchvision), an official MiDaS .pt, a
.ckpt of the 2021 suite, or what training code has made of one of them: a PyTorch, safetensors or MindSpore file, or a
run folder. PyTorch files need PyTorch.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from src.common.errors import CheckpointError, UsageError, run_script
from src.weights.checkpoint import Weights, check_complete, read_weights, save_checkpoint
from src.weights.locate import GET_ENCODER, GET_NETWORK, find_checkpoint

WSL_STEM = "ig_resnext101_32x8"  # the download is called ig_resnext101_32x8-c38310e5.pth
WSL_OUTPUT = "midas_resnext_101_WSL"


def default_output(source: Path) -> Path:
    """Returns where the converted ``source`` goes: into ``ckpt`` under the current folder."""
    stem = WSL_OUTPUT if source.stem.startswith(WSL_STEM) else source.stem
    return Path("ckpt") / f"{stem}.ckpt"


def convert(source: Path, output: Path, overwrite: bool = False) -> Weights:
    """Writes the weights of ``source`` to ``output`` and checks that they read back equal to the bit.

    What is known of the network beside its sizes (operators, normalisation) goes with them; optimizer state does not.

    Args:
        source: File of any family that ``read_weights`` knows.
        output: Another file, ends in ``.ckpt``.
        overwrite: Whether to replace ``output`` if it exists.

    Returns:
        The weights.

    Raises:
        UsageError: If ``output`` is ``source``, exists or has another suffix.
        CheckpointError: If ``source`` cannot be read or ``output`` not be written.
    """
    if output.suffix != ".ckpt":
        raise UsageError(f"{output}: expected an output name that ends in .ckpt")
    if output.resolve() == source.resolve():
        raise UsageError(f"{output}: is the input; give another output name")
    if output.exists() and not overwrite:
        raise UsageError(f"{output}: exists; --overwrite replaces it, or give another output name")
    weights = read_weights(source)
    check_complete(weights)
    extra = {"course": weights.extra["course"]} if "course" in weights.extra else {}
    if weights.network_ops and not extra:
        extra["network_ops"] = weights.network_ops
    save_checkpoint(output, weights.parameters, extra)
    written = read_weights(output).parameters
    for name, array in weights.parameters.items():
        if not np.array_equal(array.view(np.uint32), written[name].view(np.uint32)):
            raise CheckpointError(f"{output}: {name} reads back different from what was written")
    return weights


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Converts one file and prints a report."""
    parser = argparse.ArgumentParser(description="Convert weights to a MindSpore .ckpt of this project.")
    parser.add_argument(
        "source", type=Path, metavar="IN", help="a PyTorch, safetensors or MindSpore file, or a run folder"
    )
    parser.add_argument(
        "output",
        type=Path,
        metavar="OUT",
        nargs="?",
        help=f"default: ckpt/<name of IN>.ckpt under the current folder; ckpt/{WSL_OUTPUT}.ckpt for {WSL_STEM}*",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    options = parser.parse_args(arguments)
    source = find_checkpoint(options.source, "IN", f"{GET_NETWORK}; {GET_ENCODER}")
    output = options.output or default_output(source)
    weights = convert(source, output, options.overwrite)
    count = sum(array.size for name, array in weights.parameters.items() if ".moving_" not in name)
    print(f"read:    {weights.path}: {weights.family}, {'whole network' if weights.whole else 'encoder alone'}")
    known = {**weights.sizes, **({"network_ops": weights.network_ops} if weights.network_ops else {})}
    print("network:", ", ".join(f"{key} {value}" for key, value in known.items()))
    print(f"tensors: {len(weights.parameters)} ({count / 1e6:.2f} M parameters and the batch statistics)")
    if weights.remark:
        print(f"choice:  {weights.remark}")
    if weights.ignored:
        print(f"ignored: {len(weights.ignored)} not part of the network, such as {', '.join(weights.ignored[:2])}")
    print(f"written: {output}, {output.stat().st_size / 1e6:.1f} MB, reads back equal")


if __name__ == "__main__":
    run_script(main)
