"""MINDIR and AIR files of a network, and the configuration with which MindSpore Lite's converter takes a MINDIR."""

import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np

from src.common.errors import ExportError
from src.weights.graphs import ABOUT

if TYPE_CHECKING:
    from mindspore import nn

PathLike = Union[str, Path]
Size = tuple[int, int]  # height and width in pixels

INPUT, OUTPUT = "image", "inverse_depth"
_MOST_BYTES = 2**30  # MindSpore writes larger networks as a folder of several files


def write_mindir(net: "nn.Cell", path: PathLike, size: Optional[Size], metadata: str) -> None:
    """Writes a network as MINDIR with the input ``image`` (1, 3, H, W) and the output ``inverse_depth`` (1, H, W).

    Args:
        net: A ``MidasNet``.
        path: The file to write or replace; its folder is made if need be.
        size: The fixed height and width; None leaves them open.
        metadata: Text that goes with it as ``midas_export`` of ``user_info``.

    Raises:
        ExportError: The network is too large for one file.
        OSError: The file cannot be written.
    """
    bytes_in_all = sum(parameter.nbytes for parameter in net.get_parameters())
    if bytes_in_all > 0.99 * _MOST_BYTES:
        raise ExportError(
            f"{path}: expected a network of less than 1 GB, which MindSpore writes into one file, "
            f"found {bytes_in_all / 2**30:.2f} GB"
        )

    def complete(model: Any) -> None:
        _rename(model.graph)
        entries = model.user_info  # a list or a mapping, which the version of protobuf decides
        if hasattr(entries, "add"):
            entries.add(key=ABOUT, value=metadata)
        else:
            entries[ABOUT] = metadata

    _export(net, Path(path), size, "MINDIR", custom_func=complete)


def write_air(net: "nn.Cell", path: PathLike, size: Optional[Size]) -> None:
    """Writes a network as AIR, which MindSpore can on Ascend alone.

    Args:
        net: A ``MidasNet``.
        path: The file to write or replace; its folder is made if need be.
        size: The fixed height and width; None leaves them open.

    Raises:
        OSError: The file cannot be written.
    """
    _export(net, Path(path), size, "AIR")


def _export(net: "nn.Cell", path: Path, size: Optional[Size], file_format: str, **options: Any) -> None:
    import mindspore as ms

    shape = [1, 3, *(size or (None, None))]
    image = ms.Tensor(np.zeros(shape, np.float32)) if size else ms.Tensor(shape=shape, dtype=ms.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _inside(path.parent):
        # MindSpore takes names of ASCII letters only; the path may have others.
        plain = Path(f".export.{os.getpid()}.tmp{path.suffix}")
        plain.touch()
        mode = plain.stat().st_mode
        try:
            ms.export(net.set_train(False), image, file_name=str(plain), file_format=file_format, **options)
            plain.chmod(mode)  # MindSpore leaves a file that its owner alone can read, and nobody can write
            os.replace(plain, path)
        finally:
            plain.unlink(missing_ok=True)


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _rename(graph: Any) -> None:
    """Gives input and output their names, in place of what MindSpore makes of the code's."""
    names = {graph.input[0].name: INPUT, graph.output[0].name: OUTPUT}
    graph.input[0].name, graph.output[0].name = INPUT, OUTPUT
    for node in graph.node:
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                if name in names:
                    values[index] = names[name]


def converter_settings(sizes: Iterable[Size]) -> str:
    """Formats what MindSpore Lite's converter wants to know of a MINDIR file whose height and width are open.

    Args:
        sizes: What the converted model has to take.

    Returns:
        Text for the file of ``--configFile``.
    """
    dims = ",".join(f"[{height},{width}]" for height, width in dict.fromkeys(sizes))
    return f"[ascend_context]\ninput_format=NCHW\ninput_shape={INPUT}:[1,3,-1,-1]\ndynamic_dims={dims}\n"


def converter_command(path: Path, settings: Optional[Path]) -> str:
    """Formats the command that converts a MINDIR file for Ascend.

    Args:
        path: The file.
        settings: That of ``converter_settings``, if it needs one.
    """
    words = [
        "converter_lite", "--fmk=MINDIR", "--saveType=MINDIR", "--optimize=ascend_oriented", f"--modelFile={path}",
        f"--outputFile={path.with_name(f'{path.stem}_ascend')}", *([f"--configFile={settings}"] if settings else []),
    ]  # fmt: skip
    return shlex.join(words)
