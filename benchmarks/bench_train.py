"""One training step of the full network: MindSpore (this project) against PyTorch float32, in one run.

``python benchmarks/bench_train.py [--batch_size 2] [--size 384] [--rounds 3]``; needs requirements-dev.txt and, at the
defaults, about 20 GB of memory.
"""

import argparse
import resource
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import mindspore as ms  # noqa: E402  before torch, see README
import numpy as np  # noqa: E402
import torch  # noqa: E402
from side_by_side import compare, machine  # noqa: E402
from torch_midas import TorchMidas, torch_loss  # noqa: E402

from src.loss import create_loss  # noqa: E402
from src.midas_net import MidasNet  # noqa: E402
from src.training.step import TrainStep, create_optimizer, set_learning_rates  # noqa: E402


def mindspore_step(image, target, mask):
    """Makes a call that does one step of this project."""
    net = MidasNet().set_train(True)
    step = TrainStep(net, create_loss("ssi_mse"), create_optimizer(net))
    set_learning_rates(step.optimizer, 1e-5, 1e-4)
    batch = [ms.Tensor(x) for x in (image, target, mask)]
    return lambda: float(step(*batch)[0].asnumpy())


def torch_step(image, target, mask, memory_format):
    """Makes a call that does one step of the PyTorch twin."""
    net = TorchMidas().to(memory_format=memory_format).train()
    optimizer = torch.optim.Adam(
        [{"params": net.pretrained.parameters(), "lr": 1e-5}, {"params": net.scratch.parameters(), "lr": 1e-4}]
    )
    image = torch.from_numpy(image).contiguous(memory_format=memory_format)
    target, mask = torch.from_numpy(target), torch.from_numpy(mask)

    def run():
        loss = torch_loss(net(image), target, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def main():
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--size", type=int, default=384, help="width and height, pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only_mindspore", action="store_true", help="for its peak memory")
    arguments = parser.parse_args()
    print(machine(), f"torch {torch.__version__}, {torch.get_num_threads()} threads", sep=", ")
    print(f"full network, batch size {arguments.batch_size}, {arguments.size}x{arguments.size}, Adam, float32")
    ms.set_context(mode=ms.GRAPH_MODE)
    rng = np.random.default_rng(0)
    shape = arguments.batch_size, arguments.size, arguments.size
    image = rng.standard_normal((shape[0], 3, *shape[1:])).astype(np.float32)
    target, mask = rng.uniform(0, 255, shape).astype(np.float32), np.ones(shape, np.float32)
    contenders = {"mindspore (this project)": mindspore_step(image, target, mask)}
    if not arguments.only_mindspore:
        contenders["torch"] = torch_step(image, target, mask, torch.contiguous_format)
        contenders["torch channels_last"] = torch_step(image, target, mask, torch.channels_last)
    compare(contenders, arguments.rounds)
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
