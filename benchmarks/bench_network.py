"""The full network, MindSpore (this project) against PyTorch, float32, in one run; needs requirements-dev.txt.

python benchmarks/bench_network.py forward                                    # one image, 384x384
python benchmarks/bench_network.py forward --height 384 --width 1280
python benchmarks/bench_network.py train --rounds 3                           # a step of batch 2: 20 GB of memory
python benchmarks/bench_network.py train --rounds 3 --only_mindspore          # its own peak memory
"""

import argparse
import resource
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import mindspore as ms  # noqa: E402  before torch, see README
import numpy as np  # noqa: E402
import torch  # noqa: E402
from side_by_side import compare, machine  # noqa: E402
from torch_midas import TorchMidas, torch_loss  # noqa: E402

from src.inference.mindspore import MindSporePredictor  # noqa: E402
from src.loss import create_loss  # noqa: E402
from src.midas_net import MidasNet  # noqa: E402
from src.training.optimizer import TwoRateAdam  # noqa: E402
from src.training.schedule import LearningRate  # noqa: E402
from src.training.step import TrainStep  # noqa: E402

FORMATS = {"torch": torch.contiguous_format, "torch channels_last": torch.channels_last}


def torch_forward(image, memory_format):
    """Makes a call that runs the PyTorch twin."""
    net = TorchMidas().to(memory_format=memory_format).eval()
    image = torch.from_numpy(image).contiguous(memory_format=memory_format)

    def run():
        with torch.inference_mode():
            return net(image).numpy()

    return run


def forward_contenders(height, width):
    """Makes calls that run one image through the network."""
    image = np.random.default_rng(0).standard_normal((1, 3, height, width)).astype(np.float32)
    ours = {
        f"this project, {name} shape": partial(MindSporePredictor(MidasNet(), shapes=name).infer, image)
        for name in ("dynamic", "static")
    }
    return ours, {name: torch_forward(image, memory_format) for name, memory_format in FORMATS.items()}


def mindspore_step(batch):
    """Makes a call that does one training step of this project."""
    net = MidasNet().set_train(True)
    optimizer = TwoRateAdam(net, LearningRate.constant(1e-5), LearningRate.constant(1e-4))
    step = TrainStep(net, create_loss("ssi_mse"), optimizer)
    batch = [ms.Tensor(array) for array in (*batch, np.zeros(3, np.float32))]
    return lambda: float(step(*batch).asnumpy()[0])


def torch_step(batch, memory_format):
    """Makes a call that does one training step of the PyTorch twin."""
    net = TorchMidas().to(memory_format=memory_format).train()
    optimizer = torch.optim.Adam(
        [{"params": net.pretrained.parameters(), "lr": 1e-5}, {"params": net.scratch.parameters(), "lr": 1e-4}]
    )
    image, target, mask = map(torch.from_numpy, batch)
    image = image.contiguous(memory_format=memory_format)

    def run():
        loss = torch_loss(net(image), target, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def train_contenders(batch_size, height, width, only_mindspore):
    """Makes calls that do one training step with Adam."""
    rng = np.random.default_rng(0)
    shape = batch_size, height, width
    image = rng.standard_normal((batch_size, 3, height, width)).astype(np.float32)
    batch = image, rng.uniform(0, 255, shape).astype(np.float32), np.ones(shape, np.float32)  # target, mask
    theirs = {} if only_mindspore else {name: torch_step(batch, form) for name, form in FORMATS.items()}
    return {"this project": mindspore_step(batch)}, theirs


def main():
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description="The full network: MindSpore (this project) against PyTorch.")
    parser.add_argument("what", choices=("forward", "train"))
    parser.add_argument("--height", type=int, default=384, help="pixels")
    parser.add_argument("--width", type=int, default=384, help="pixels")
    parser.add_argument("--batch_size", type=int, default=2, help="of train")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only_mindspore", action="store_true", help="train: for the peak memory of this project")
    options = parser.parse_args()
    ms.set_context(mode=ms.GRAPH_MODE)
    print(machine(), f"torch {torch.__version__}, {torch.get_num_threads()} threads", sep=", ")
    if options.what == "forward":
        print(f"full network, one image, {options.height}x{options.width}, float32")
        ours, theirs = forward_contenders(options.height, options.width)
    else:
        print(f"full network, step of {options.batch_size} images, {options.height}x{options.width}, Adam, float32")
        ours, theirs = train_contenders(options.batch_size, options.height, options.width, options.only_mindspore)
    compare({**ours, **theirs}, options.rounds)
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
