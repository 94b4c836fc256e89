"""Keeping compiled graphs between starts (``enable_compile_cache``)."""

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from src.config import REPOSITORY, Config

# Settings that leave the graph as it is; all others, and those to come, are taken to change it.
_NEUTRAL = {
    "ann_file", "backbone_params_end_lr", "backbone_params_lr", "ckpt_path", "colormap", "data_name", "datapath_DIW",
    "datapath_ETH3D", "datapath_Kitti", "datapath_NYU", "datapath_Sintel", "datapath_TUM", "device_id",
    "enable_compile_cache", "epoch_size", "eval_protocol", "file_format", "input_path", "keep_checkpoint_max",
    "log_interval", "lr_decay", "mixdata", "model_weights", "no_backbone_params_end_lr", "no_backbone_params_lr",
    "num_parallel_workers", "output_path", "power", "resume", "save_checkpoint_epochs", "save_checkpoint_steps", "seed",
    "skip_bad_samples", "train_data_dir", "train_output_path",
}  # fmt: skip


def enable_compile_cache(config: Config, facts: Iterable[object], shapes_vary: bool = False) -> None:
    """Makes MindSpore keep compiled graphs under ``output/compile_cache``, if the configuration asks for it.

    MindSpore takes a kept graph for the present one even where an operator, a constant or a size has changed, and then
    computes something else without a word. So there is a folder for each combination of settings, facts, source code
    and MindSpore version.

    Args:
        config: All settings.
        facts: What else shapes the graph: which script it is of, the device.
        shapes_vary: Whether the script compiles a graph for each of several image sizes, which the kept graphs do not
            tell apart. They are then not used, and a line says so.
    """
    if not config.enable_compile_cache:
        return
    if shapes_vary:
        print("enable_compile_cache: not used with eval_shapes static, MindSpore confuses its graphs", file=sys.stderr)
        return
    import mindspore as ms

    settings = {key: value for key, value in asdict(config).items() if key not in _NEUTRAL}
    digest = hashlib.sha256(repr((settings, list(facts), version("mindspore"))).encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    folder = REPOSITORY / "output" / "compile_cache" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    ms.set_context(enable_compile_cache=True, compile_cache_path=str(folder))
