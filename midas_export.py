"""Exports a network for deployment.

``python midas_export.py --model_weights WEIGHTS --file_format ONNX`` writes output/export/WEIGHTS_dynamic.onnx.
``--file_format "[MINDIR, ONNX]"`` writes both. A file is loaded back and must compute what the network computes, or it is
not left under its name. docs/deploy.md says which file goes where.
"""

import json
import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

from src.common.atomic import atomic_path, remove_leftovers
from src.common.device import setup_device
from src.common.errors import UsageError, one_line, run_script
from src.config import NETWORK_KEYS, NORMALISATION_KEYS, Config, load_config, settle
from src.weights.checkpoint import build_network, open_weights
from src.weights.locate import GET_NETWORK, find_checkpoint

KEYS = (
    "device_target", "device_id", "seed", *NETWORK_KEYS, "img_width", "img_height", *NORMALISATION_KEYS,
    "model_weights", "file_format", "export_shapes", "export_for", "export_path", "file_name", "export_overwrite",
)  # fmt: skip


def targets_of(config: Config, checkpoint: Optional[Path]) -> dict[str, Path]:
    """Returns the path of each format's file."""
    height, width = config.export_size
    stem, suffix = os.path.splitext(config.file_name)
    if suffix.lower() not in SUFFIXES:
        stem, suffix = config.file_name, ""
    targets = {}
    for name in config.export_formats:
        if suffix and suffix.lower() != f".{name.lower()}":
            raise UsageError(f"file_name: expected a name for {name}, found {config.file_name}; leave the suffix out")
        is_dynamic = name == "ONNX" or config.export_shapes == "dynamic"
        made = f"{checkpoint.stem if checkpoint else 'random'}_{'dynamic' if is_dynamic else f'{height}x{width}'}"
        targets[name] = Path(config.export_path) / f"{stem or made}.{name.lower()}"
    return targets
