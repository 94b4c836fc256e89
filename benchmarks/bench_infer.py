"""Forward pass of the full network: MindSpore (this project) against PyTorch float32, in one run.

``python benchmarks/bench_infer.py [--height 384] [--width 384] [--rounds 7]``; needs requirements-dev.txt.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import mindspore as ms  # noqa: E402  before torch, see README
import numpy as np  # noqa: E402
import torch  # noqa: E402
from side_by_side import compare, machine  # noqa: E402
from torch_midas import TorchMidas  # noqa: E402

from src.inference.predictor import MindSporePredictor  # noqa: E402
from src.midas_net import MidasNet  # noqa: E402


def torch_forward(image, memory_format):
    """Makes a call that runs the PyTorch twin."""
    net = TorchMidas().to(memory_format=memory_format).eval()
    image = torch.from_numpy(image).contiguous(memory_format=memory_format)

    def run():
        with torch.inference_mode():
            return net(image).numpy()

    return run


def main():
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--height", type=int, default=384)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print(machine(), f"torch {torch.__version__}, {torch.get_num_threads()} threads", sep=", ")
    print(f"full network, one image, {arguments.height}x{arguments.width}, float32")
    ms.set_context(mode=ms.GRAPH_MODE)
    image = np.random.default_rng(0).standard_normal((1, 3, arguments.height, arguments.width)).astype(np.float32)
    static = MindSporePredictor(MidasNet(), dynamic_shape=False)
    dynamic = MindSporePredictor(MidasNet(), dynamic_shape=True)
    compare(
        {
            "mindspore (this project), dynamic shape": lambda: dynamic.infer(image),
            "mindspore (this project), static shape": lambda: static.infer(image),
            "torch": torch_forward(image, torch.contiguous_format),
            "torch channels_last": torch_forward(image, torch.channels_last),
        },
        arguments.rounds,
    )


if __name__ == "__main__":
    main()
