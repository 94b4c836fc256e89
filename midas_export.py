"""Exports a network for deployment.

``python midas_export.py --model_weights WEIGHTS --file_format ONNX`` writes output/export/WEIGHTS_dynamic.onnx.
``--file_format MINDIR,ONNX`` writes both. A file is loaded back and must compute what the network computes, otherwise
it is not left under its name. docs/deploy.md says which file goes where.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from src.common import names
from src.common.atomic import atomic_path, remove_leftovers, write_text
from src.common.device import setup_device
from src.common.errors import UsageError, one_line, run_script
from src.common.stop import stop_between_items
from src.config import COMMAND_LINE, NETWORK_KEYS, NORMALISATION_KEYS, Config, load_config, settle
from src.export.check import Run, Trial, random_image
from src.export.mindir import converter_command, converter_settings, write_air, write_mindir
from src.export.onnx_graph import IR_VERSION, OPSET, write_onnx
from src.inference.mindspore import MindSporePredictor, load_mindir
from src.weights.checkpoint import build_network, open_weights
from src.weights.graphs import ABOUT
from src.weights.locate import GET_NETWORK, find_checkpoint

if TYPE_CHECKING:
    from src.midas_net import MidasNet

KEYS = (
    "device_target", "device_id", "seed", *NETWORK_KEYS, "img_width", "img_height", *NORMALISATION_KEYS,
    "model_weights", "file_format", "export_shapes", "export_for", "export_path", "file_name", "export_overwrite",
)  # fmt: skip

CONVERTER = "converter settings"  # among the targets: a file beside a MINDIR of dynamic size
# One of these packages -> the file that lists them. All formats need the first, ONNX needs the others, too.
_NEEDED = {
    ("mindspore",): "requirements.txt",
    ("onnx",): "requirements-deploy.txt",
    ("onnxruntime", "openvino"): "requirements-deploy.txt",
}
_SUFFIXES = {name: f".{name.lower()}" for name in names.EXPORT_FORMATS}


def check_format(config: Config) -> None:
    """Raises UsageError for a format that cannot be written or checked here, or a size that is given twice."""
    height, width = config.export_size
    given = config.given
    for key, side in (("img_height", height), ("img_width", width)):
        # export_for on the command line overrides the size in a file: that of a training run has one.
        is_overridden = given.get("export_for") == COMMAND_LINE != given.get(key)
        if key in given and getattr(config, key) != side and not is_overridden:
            raise UsageError(
                f"{given[key]}: {key}: expected {side} for export_for {config.export_for}, found "
                f"{getattr(config, key)}; leave one of them out"
            )
    if "AIR" in config.export_formats and config.device_target in ("CPU", "GPU"):
        raise _no_air(config.device_target)
    for name in config.export_formats:
        for packages, requirements in _NEEDED.items():
            if not any(map(find_spec, packages)) and (name == "ONNX" or packages == ("mindspore",)):
                raise UsageError(
                    f"file_format {name}: expected the package {' or '.join(packages)}, which is not installed; "
                    f"pip install -r {requirements}"
                )


def _no_air(device: str) -> UsageError:
    return UsageError(
        f"file_format AIR: expected an Ascend device, which alone can write it, found {device}; "
        "MINDIR and ONNX can be written everywhere"
    )


def targets_of(config: Config, checkpoint: Optional[Path]) -> dict[str, Path]:
    """Returns the file of each format, and of the converter's settings.

    Args:
        config: The settings.
        checkpoint: The weights; None for random ones.

    Raises:
        UsageError: There is such a file already, or its name has another suffix.
    """
    height, width = config.export_size
    stem, suffix = os.path.splitext(config.file_name)
    if suffix.lower() not in _SUFFIXES.values():
        stem, suffix = config.file_name, ""
    folder = Path(config.export_path)
    targets = {}
    for name in config.export_formats:
        if suffix and suffix.lower() != _SUFFIXES[name]:
            raise UsageError(f"file_name: expected no suffix or {_SUFFIXES[name]}, found {config.file_name}")
        is_dynamic = name == "ONNX" or config.export_shapes == "dynamic"
        made = f"{checkpoint.stem if checkpoint else 'random'}_{'dynamic' if is_dynamic else f'{height}x{width}'}"
        targets[name] = folder / f"{stem or made}{_SUFFIXES[name]}"
        if name == "MINDIR" and is_dynamic:
            targets[CONVERTER] = targets[name].with_suffix(".cfg")
    for path in targets.values():
        if path.is_dir() or (path.exists() and not config.export_overwrite):
            found = "a folder" if path.is_dir() else "a file; --export_overwrite True replaces it"
            raise UsageError(f"{path}: expected nothing there, found {found}")
    return targets


def prepare_folder(folder: Path) -> None:
    """Makes the folder of the exported files, and deletes what killed exports have left there.

    Raises:
        UsageError: It cannot be made, or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"export_path: expected a folder, found {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"export_path: expected a folder that may be written to, found {folder}, which may not")
    remove_leftovers(folder)


def metadata_of(config: Config, checkpoint: Optional[Path], size: Optional[tuple[int, int]]) -> str:
    """Returns what an exported file says of its network, as JSON.

    Args:
        config: The settings, which agree with the weights.
        checkpoint: The weights; None for random ones.
        size: Fixed height and width of the input; None if they are open.
    """
    height, width = size or (None, None)
    return json.dumps(
        {
            **{key: getattr(config, key) for key in (*NETWORK_KEYS, *NORMALISATION_KEYS)},
            "checkpoint": checkpoint.name if checkpoint else "",
            "height": height,
            "width": width,
        }
    )


def try_network(net: "MidasNet", config: Config, sizes: Sequence[tuple[int, int]]) -> Trial:
    """Runs the network on a random image of each size."""
    import mindspore as ms

    images = [random_image(size, config.nm_img_mean, config.nm_img_std) for size in sizes]
    net.set_train(False)
    if len(sizes) > 1:
        net.set_inputs(ms.Tensor(shape=[1, 3, None, None], dtype=ms.float32))
    trial = Trial(images, [net(ms.Tensor(image)).asnumpy()[0] for image in images])
    if trial.is_flat:
        print(
            "warning: the network predicts nearly the same for all of a random image; a comparison says little",
            file=sys.stderr,
        )
    return trial


def export(net: "MidasNet", config: Config, targets: dict[str, Path], checkpoint: Optional[Path], device: str) -> None:
    """Writes all files and prints a line for each.

    Args:
        net: The network.
        config: The settings, which agree with the weights.
        targets: Of ``targets_of``.
        checkpoint: The weights; None for random ones.
        device: On which the network runs.

    Raises:
        ExportError: A file differs from the network, or cannot be made of it. Those before it are complete.
        StopRequest: There was a signal before the last file. Those so far are complete.
    """
    height, width = config.export_size
    fixed = None if config.export_shapes == "dynamic" else config.export_size
    shape = f"input 1x3x{height}x{width}" if fixed else "input 1x3xHxW"
    other = (max(32, height // 64 * 32), width + 32)
    sizes = [(height, width)] if fixed and "ONNX" not in targets else [(height, width), other]
    done: list[str] = []

    def report(name: str, what: str, found: str) -> None:
        path, seconds = targets[name], time.perf_counter() - start
        print(one_line(f"{path}: {name}, {what}, {path.stat().st_size / 1e6:.1f} MB, {seconds:.1f} s; {found}"))
        done.append(str(path))

    # MindSpore answers a signal in the middle of its work with pages of its own.
    with stop_between_items("asked to stop: the export ends after this file") as requests:

        def check_requests() -> None:
            requests.check(f"{' and '.join(done) or 'no file'} written so far")

        trial = try_network(net, config, sizes)
        if "AIR" in targets:
            check_requests()
            start = time.perf_counter()
            with atomic_path(targets["AIR"]) as temporary:
                write_air(net, temporary, fixed)
            report("AIR", shape, "not checked: MindSpore reads no AIR")
        if "MINDIR" in targets:
            check_requests()
            start = time.perf_counter()
            with atomic_path(targets["MINDIR"]) as temporary:
                write_mindir(net, temporary, fixed, metadata_of(config, checkpoint, fixed))
                run, where = load_back(temporary, "MINDIR", device)
                found = (trial.first if fixed else trial).compare(targets["MINDIR"], run, where)
            report("MINDIR", shape, found)
            write_converter_settings(targets, config)
        if "ONNX" in targets:
            check_requests()
            start = time.perf_counter()
            with atomic_path(targets["ONNX"]) as temporary, mindir_of(net, targets, config) as mindir:
                write_onnx(mindir, temporary, {ABOUT: metadata_of(config, checkpoint, None)})
                run, where = load_back(temporary, "ONNX", device)
                advice = "" if device == "CPU" else "; with --device_target CPU the network itself computes in float32"
                found = trial.compare(targets["ONNX"], run, where, advice)
            report("ONNX", f"opset {OPSET}, IR version {IR_VERSION}, input Nx3xHxW", found)


def load_back(path: Path, name: str, device: str) -> tuple[Run, str]:
    """Loads an exported file: what runs it, and what that is called.

    Args:
        path: The file.
        name: Its format; ONNX runs in ONNX Runtime, or in OpenVINO where that alone is installed.
        device: Of MindSpore.
    """
    if name == "MINDIR":
        return MindSporePredictor(load_mindir(path), shapes="static").infer, f"MindSpore, {device}"
    if find_spec("onnxruntime"):
        from src.inference.onnxruntime import OnnxRuntimePredictor

        return OnnxRuntimePredictor(path).infer, "ONNX Runtime, CPU"
    from src.inference.openvino import OpenVinoPredictor

    return OpenVinoPredictor(path).infer, "OpenVINO, CPU"


@contextmanager
def mindir_of(net: "MidasNet", targets: dict[str, Path], config: Config) -> Iterator[Path]:
    """Yields a MINDIR file to translate: the one that was asked for, or one that is deleted afterwards."""
    if "MINDIR" in targets:
        yield targets["MINDIR"]
        return
    path = Path(config.export_path) / f".onnx.{os.getpid()}.tmp.mindir"
    try:
        write_mindir(net, path, None, "")
        yield path
    finally:
        path.unlink(missing_ok=True)


def write_converter_settings(targets: dict[str, Path], config: Config) -> None:
    """Writes the settings of MindSpore Lite's converter where the MINDIR needs some, and prints the command."""
    settings = targets.get(CONVERTER)
    if settings:
        write_text(settings, converter_settings([*names.EXPORT_SIZES.values(), config.export_size]))
        print(one_line(f"{settings}: sizes for the converter of MindSpore Lite"))
    print(one_line(f"for Ascend: {converter_command(targets['MINDIR'], settings)}"))


def main() -> int:
    """Runs the script; returns its exit status."""
    config = load_config(__doc__, keys=KEYS)
    check_format(config)
    checkpoint = None
    if config.model_weights:
        advice = f"{GET_NETWORK}; '' selects random weights"
        checkpoint = find_checkpoint(config.model_weights, "model_weights", advice)
    targets = targets_of(config, checkpoint)
    # MindSpore takes seconds to import: what can be refused without it has been refused.
    device = setup_device(config.device_target, config.device_id, config.seed)
    if "AIR" in config.export_formats and device.target != "Ascend":
        raise _no_air(device.target)
    prepare_folder(Path(config.export_path))
    weights = open_weights(checkpoint or "", "model_weights", whole=True)
    config = settle(config, weights)
    print(f"device {device.target}")
    net, said = build_network(weights, config.network, "model_weights")
    print(*said, sep="\n")
    export(net, config, targets, checkpoint, device.target)
    return 0


if __name__ == "__main__":
    run_script(main)
