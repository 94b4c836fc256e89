"""Keeping compiled graphs between starts (``enable_compile_cache``)."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from src.config import REPOSITORY, Config

# Settings that leave the graph as it is; all others, and those to come, are taken to change it.
_NEUTRAL = {
    "ann_file", "ckpt_path", "colormap", "data_name", "datapath_DIW", "datapath_ETH3D", "datapath_Kitti",
    "datapath_NYU", "datapath_Sintel", "datapath_TUM", "device_id", "enable_compile_cache", "eval_protocol",
    "file_format", "input_path", "keep_checkpoint_max", "log_interval", "mixdata", "model_weights",
    "num_parallel_workers", "output_path", "resume", "save_checkpoint_epochs", "save_checkpoint_steps", "seed",
    "skip_bad_samples", "train_data_dir", "train_output_path",
}  # fmt: skip


def enable_compile_cache(config: Config, facts: Iterable[object]) -> None:
    """Makes MindSpore keep compiled graphs under ``output/compile_cache``, if the configuration asks for it.

    MindSpore takes a kept graph for the present one even where an operator, a constant or a size has changed, and then
    computes something else without a word. So there is a folder for each combination of settings, facts, source code
    and MindSpore version.

    Args:
        config: All settings.
        facts: What else shapes the graph: which script it is of, the device, sizes that come from the data.
    """
    if not config.enable_compile_cache:
        return
    import mindspore as ms

    settings = {key: value for key, value in asdict(config).items() if key not in _NEUTRAL}
    digest = hashlib.sha256(repr((settings, list(facts), version("mindspore"))).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    folder = REPOSITORY / "output" / "compile_cache" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    ms.set_context(enable_compile_cache=True, compile_cache_path=str(folder))
