"""Keeping compiled graphs between starts (``enable_compile_cache``)."""

import hashlib
import os
import sys
from importlib.metadata import version
from pathlib import Path

from src.common.device import keep_compiled_graphs

_SOURCES = Path(__file__).resolve().parents[1]
# MindSpore's own variable. Its value at the start counts: it is set to one of the folders below later.
_FOLDER = Path(os.environ.get("MS_COMPILER_CACHE_PATH") or _SOURCES.parent / "output" / "compile_cache")
OPENVINO_FOLDER = _FOLDER / "openvino"  # OpenVINO itself tells networks, hints and releases apart


def enable_compile_cache(is_wanted: bool, facts: tuple, shapes_vary: bool = False) -> None:
    """Makes MindSpore keep compiled graphs, if the configuration asks for it.

    They are kept under ``output/compile_cache``, or where the environment variable ``MS_COMPILER_CACHE_PATH`` says.

    MindSpore takes a kept graph for the present one even where an operator, a constant or a size has changed, and then
    silently computes something else. So there is a folder for each combination of facts, source code and MindSpore
    version.

    Args:
        is_wanted: The setting ``enable_compile_cache``.
        facts: All that shapes the graph: which script it is of, the device, sizes, operators, constants; told apart
            by their ``repr``.
        shapes_vary: Whether the script compiles a graph for each of several image sizes, which the kept graphs do not
            tell apart. They are then not used, and a line says so.
    """
    if not is_wanted:
        return
    if shapes_vary:
        print("enable_compile_cache: not used with eval_shapes static, MindSpore confuses its graphs", file=sys.stderr)
        return
    digest = hashlib.sha256(repr((facts, version("mindspore"))).encode())
    for path in sorted(_SOURCES.rglob("*.py")):
        digest.update(path.read_bytes())
    folder = _FOLDER / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    keep_compiled_graphs(folder)
