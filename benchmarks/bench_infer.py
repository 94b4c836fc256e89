"""One image through the full network: every backend of this project against PyTorch, in one run.

Needs requirements-dev.txt. The first run makes 1.7 GB of files with random weights in --folder.

python benchmarks/bench_infer.py --folder /tmp/midas_models
python benchmarks/bench_infer.py --folder /tmp/midas_models --runner RUNNER --runner_model FULL_384x384.mindir

The C++ runner times itself, on four pictures; docs/deploy.md says how to convert a model for its library.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import mindspore  # noqa: E402, F401  before torch, see README
import numpy as np  # noqa: E402
import torch  # noqa: E402
from full_network import make_files  # noqa: E402
from side_by_side import Seconds, compare, machine  # noqa: E402
from torch_midas import TorchMidas  # noqa: E402

from preprocess.make_sample import make_sample  # noqa: E402
from src.inference.backends import choose_backend, load_predictor, open_model  # noqa: E402
from src.inference.openvino import has_bf16  # noqa: E402

PYTORCH = "PyTorch fp32, channels_last"


def torch_forward(weights, image, memory_format, use_bf16=False):
    """Makes a call that runs the PyTorch twin."""
    net = TorchMidas()
    net.load_state_dict(torch.load(weights, mmap=True))
    net = net.to(memory_format=memory_format).eval()
    image = torch.from_numpy(image).contiguous(memory_format=memory_format)

    def run():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=use_bf16):
            return net(image).float().numpy()[0]

    return run


def forward_contenders(paths, image):
    """Makes calls that run the image through the network: name -> call, PyTorch first."""
    contenders = {
        PYTORCH: torch_forward(paths["pt"], image, torch.channels_last),
        "PyTorch fp32": torch_forward(paths["pt"], image, torch.contiguous_format),
        "PyTorch bf16, channels_last": torch_forward(paths["pt"], image, torch.channels_last, use_bf16=True),
    }
    ours = [
        ("MindSpore .ckpt", "ckpt", "mindspore", "fp32"),
        ("MindSpore .mindir", "mindir", "mindspore", "fp32"),
        ("ONNX Runtime", "onnx", "onnxruntime", "fp32"),
        ("OpenVINO fp32", "onnx", "openvino", "fp32"),
    ]
    if has_bf16():
        ours.append(("OpenVINO bf16", "onnx", "openvino", "bf16"))
    for name, kind, program, precision in ours:
        model = open_model(paths[kind], kind)
        backend = choose_backend(model, "CPU", 0, 1, program, precision)
        predictor = load_predictor(model, kind, backend, {})
        contenders[name] = lambda predictor=predictor: predictor.infer(image)
    return contenders


def run_runner(runner, model, folder):
    """Runs the C++ runner on the pictures of a folder; returns the seconds an image that it measures."""
    words = ["--midas_file", model, "--image_path", folder / "Kitti_raw_data", "--dataset_name", "Kitti"]
    words += ["--device", "CPU", "--result_path", folder / "result_Files"]
    subprocess.run([runner, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    text = (folder / "time_Result" / "test_perform_static.txt").read_text()
    return Seconds(float(re.search(r"average inference time.*?: ([0-9.]+) ms", text)[1]) / 1000)


def main():
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the models")
    parser.add_argument("--height", type=int, default=384, help="pixels")
    parser.add_argument("--width", type=int, default=384, help="pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runner", type=Path, help="the C++ program")
    parser.add_argument("--runner_model", type=Path, help="its model, of the same size")
    options = parser.parse_args()
    paths = make_files(options.folder)
    image = np.random.default_rng(0).standard_normal((1, 3, options.height, options.width)).astype(np.float32)
    contenders = forward_contenders(paths, image)
    print(machine(), f"torch {torch.__version__}, {torch.get_num_threads()} threads", sep=", ")
    expected = contenders[PYTORCH]()
    for name, run in contenders.items():
        print(f"{name}: differs from {PYTORCH} by {np.abs(run() - expected).max() / np.abs(expected).max():.1e}")
    with tempfile.TemporaryDirectory() as name:
        if options.runner:
            make_sample(Path(name), train=0, eval_count=4, size=(options.width, options.height))
            contenders["C++ runner"] = partial(run_runner, options.runner, options.runner_model, Path(name))
        medians = compare(contenders, options.rounds)
    theirs = {name: seconds for name, seconds in medians.items() if name.startswith("PyTorch")}
    ours = {name: seconds for name, seconds in medians.items() if name not in theirs}
    (fast, one), (other, two) = (min(group.items(), key=lambda item: item[1]) for group in (ours, theirs))
    print(f"best of this project ({fast}) / best of PyTorch ({other}): {one / two:.2f}")


if __name__ == "__main__":
    main()
