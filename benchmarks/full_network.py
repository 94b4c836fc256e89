"""The full network with random weights, in every format, for the benchmarks."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def make_files(folder: Path) -> dict[str, Path]:
    """Writes the same network as .pt (of the authors' form), .ckpt, .mindir and .onnx, unless they are there.

    Args:
        folder: Where to: 1.7 GB.

    Returns:
        Format -> path.
    """
    paths = {suffix: folder / f"full.{suffix}" for suffix in ("pt", "ckpt", "mindir", "onnx")}
    folder.mkdir(parents=True, exist_ok=True)
    python = [sys.executable]
    if not paths["pt"].exists():
        subprocess.run([*python, Path(__file__).resolve(), paths["pt"]], check=True)
    if not paths["ckpt"].exists():
        subprocess.run([*python, ROOT / "src/utils/pth2ckpt.py", paths["pt"], paths["ckpt"]], check=True)
    if not (paths["mindir"].exists() and paths["onnx"].exists()):
        words = ["--model_weights", paths["ckpt"], "--export_path", folder, "--file_name", "full"]
        words += ["--file_format", "MINDIR,ONNX", "--export_shapes", "dynamic", "--export_overwrite", "True"]
        subprocess.run([*python, ROOT / "midas_export.py", *map(str, words)], check=True)
    return paths


def main() -> None:
    """Writes the weights of a PyTorch network with random values that change with the image."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import torch
    from torch_midas import TorchMidas

    from src.common.atomic import atomic_path

    torch.manual_seed(0)
    with atomic_path(sys.argv[1]) as temporary:  # half a file would be taken for a whole one next time
        torch.save(TorchMidas().state_dict(), temporary)


if __name__ == "__main__":
    main()
