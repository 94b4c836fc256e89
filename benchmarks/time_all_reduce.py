"""One process of a group that times reductions, or trains; check_scaling.py starts it with msrun.

    time_all_reduce.py RESULT.json BYTES ...     # the first process writes {"one": {BYTES: s}, "pieces": {BYTES: s}}
    time_all_reduce.py train WORDS ...           # midas_train.py with these words

Every process takes a core of its own, as it would have a device of its own.
"""

import json
import os
import runpy
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 30
PIECES = 32  # tensors that "pieces" divides the bytes among; the gradient reducer of training reduces them


def main() -> None:
    """Runs this process."""
    cores = sorted(os.sched_getaffinity(0))
    # before MindSpore starts its threads
    os.sched_setaffinity(0, {cores[int(os.environ.get("RANK_ID", "0")) % len(cores)]})
    sys.path[:0] = [str(ROOT)]
    if sys.argv[1] == "train":
        sys.argv[:2] = [str(ROOT / "midas_train.py")]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        time_reductions(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]])


def time_reductions(result: Path, sizes: list[int]) -> None:
    """Times reductions of so many bytes; the first process writes the least seconds, as others use the machine, too."""
    import mindspore as ms
    import numpy as np
    from mindspore import nn, ops

    from src.common.device import setup_device

    device = setup_device("CPU", 0, 1, run_distribute=True)

    class Reduce(nn.Cell):
        """Tensors -> one number of each sum, so that fetching the result takes no time."""

        def __init__(self, count):
            super().__init__()
            weights = [ms.Parameter(ms.Tensor([0.0], ms.float32), name=f"weight{i}") for i in range(count)]
            self.reduce = nn.DistributedGradReducer(weights)

        def construct(self, *tensors):  # as a tuple they would be constants, and equal ones be reduced once
            return ops.stack([x[0] for x in self.reduce(tensors)])

    def least(size, count):
        reduce = Reduce(count)
        tensors = tuple(ms.Tensor(np.ones(size // 4 // count, np.float32)) for _ in range(count))
        seconds = []
        for _ in range(REPEATS + 1):  # the first compiles
            start = time.perf_counter()
            mean = reduce(*tensors).asnumpy()
            seconds.append(time.perf_counter() - start)
        np.testing.assert_array_equal(mean, 1)
        return min(seconds[1:])

    found = {
        "one": {size: least(size, 1) for size in sizes},
        "pieces": {size: least(size, PIECES) for size in (sizes[0], sizes[-1])},
    }
    if device.rank == 0:
        result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
