"""Which device a script runs on: choice, context and distributed start.

mindspore is imported inside the functions: what the environment must say has to be said before its first import.
"""

import logging
import os
import signal
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Optional, Union

from src.common.errors import MidasError, UsageError
from src.common.stop import end_on_signals

ONEDNN_ISA = "ONEDNN_MAX_CPU_ISA"
MOST_WORKERS = 8
LOG_LEVEL, LOG_LEVEL_OF_PARTS = "GLOG_v", "MS_SUBMODULE_LOG_v"
# Parts of MindSpore whose warnings say that all is well, or that a connection is tried again; their errors are shown.
_NOISY_PARTS = "{DISTRIBUTED:3,DEVICE:3,ME:3,PIPELINE:3}"


@dataclass(frozen=True)
class Device:
    """The device of this process.

    Attributes:
        target: ``Ascend``, ``GPU`` or ``CPU``.
        device_id: Number of the device on this machine.
        rank: Number of this process among ``world`` data-parallel ones.
        world: How many processes train together; 1 unless distributed.
    """

    target: str
    device_id: int
    rank: int = 0
    world: int = 1


def guard_cpu_convolution(device_target: str) -> None:
    """Keeps MindSpore 2.9 and later away from oneDNN's reference convolution on AVX-512 processors.

    There a plain 3x3 convolution takes more than 100 times as long as it should; limiting oneDNN to AVX2 cures it.
    Does nothing for other versions and devices, or where the user has set ``ONEDNN_MAX_CPU_ISA``. Must be called
    before the first import of mindspore; says on stderr what it does.

    Args:
        device_target: As configured: ``auto``, ``Ascend``, ``GPU`` or ``CPU``.
    """
    if device_target not in ("auto", "CPU") or ONEDNN_ISA in os.environ:
        return
    try:
        major, minor = (int(part) for part in version("mindspore").split(".")[:2])
    except PackageNotFoundError:
        return  # a development build, or none at all: the import will tell
    if (major, minor) >= (2, 9):
        os.environ[ONEDNN_ISA] = "AVX2"
        print(
            f"MindSpore {major}.{minor} is slow at CPU convolutions on AVX-512: {ONEDNN_ISA}=AVX2 is set",
            file=sys.stderr,
        )


def quiet_start() -> None:
    """Leaves out warnings of MindSpore that nobody can act on; its errors, and other warnings, are shown.

    They are those of processes that look for each other (some 30 lines each), of compiled graphs that are kept, and of
    what MindSpore itself uses though it is deprecated. Must be called before the first import of mindspore. Does
    nothing where the user has set ``GLOG_v`` or ``MS_SUBMODULE_LOG_v``.
    """
    if LOG_LEVEL in os.environ or LOG_LEVEL_OF_PARTS in os.environ:
        return
    os.environ[LOG_LEVEL_OF_PARTS] = _NOISY_PARTS
    logging.getLogger(f"ME.mindspore.log.{os.getpid()}").addFilter(_is_not_for_developers)


def _is_not_for_developers(record: logging.LogRecord) -> bool:
    return "deprecated" not in record.getMessage()


def setup_device(
    device_target: str,
    device_id: int,
    seed: int,
    run_distribute: bool = False,
    jit_level: str = "auto",
    op_precision: Optional[str] = None,
    allow_hf32: Optional[bool] = None,
) -> Device:
    """Chooses the device and sets MindSpore up for it in graph mode.

    The seed alone makes runs alike on the CPU only: other devices add up in no fixed order unless
    ``mindspore.set_deterministic`` makes them, which slows them down.

    Args:
        device_target: ``auto`` or a device, which must then be there.
        device_id: Which of several devices; the launcher decides in a distributed run.
        seed: Seeds MindSpore's initialisers.
        run_distribute: Join the data-parallel group that ``msrun`` (or mpirun, or a rank table) started.
        jit_level: ``O0``, ``O1``, ``O2`` (Ascend only), or ``auto``, which leaves it to MindSpore.
        op_precision: Ascend: one of ``OP_PRECISIONS``; None leaves it to MindSpore: it keeps the types of the network
            where the device has operators of them.
        allow_hf32: Ascend: whether convolutions and products of float32 may round what they take to HF32; None leaves
            it to MindSpore.

    Returns:
        The device of this process.

    Raises:
        UsageError: If the device is not available, or has no such ``jit_level``.
        MidasError: If the distributed group cannot be joined.
    """
    if find_spec("mindspore") is None:
        raise UsageError("expected the package mindspore, found none; pip install -r requirements.txt")
    guard_cpu_convolution(device_target)
    quiet_start()
    import mindspore as ms

    if device_target == "auto":
        # MindSpore's own default is the best device whose plugin it could load: Ascend, else GPU, else CPU.
        device_target = ms.get_context("device_target")
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        if device_target == "CPU":
            if ms.get_context("device_target") != "CPU":  # MindSpore refuses it once it has run anything
                ms.set_device("CPU")
        elif run_distribute:
            ms.set_device(device_target)
        else:
            ms.set_device(device_target, device_id)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"device_target {device_target}, device_id {device_id}: not available here ({reason})"
        ) from None
    if jit_level == "O2" and device_target != "Ascend":
        raise UsageError(f"jit_level: expected auto, O0 or O1 on {device_target}, found O2, which only Ascend has")
    if jit_level != "auto":
        ms.set_context(jit_config={"jit_level": jit_level})
    if device_target == "Ascend":
        _set_precision_of_ascend(op_precision, allow_hf32)
    ms.set_seed(seed)
    if not run_distribute:
        return Device(device_target, 0 if device_target == "CPU" else device_id)

    from mindspore import communication

    if os.environ.get("MS_ROLE") == "MS_SCHED":
        # This process only introduces the others to each other. They end in order when they are asked to stop, and it
        # ends after them. (The launcher sees to it that it does not stay when nobody has come.)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    _say_what_is_awaited()
    try:
        with end_on_signals():  # it may wait for minutes, and nothing has been done that could be lost
            communication.init()
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split("\n\n---")[0].split())
        hint = "" if "MS_ROLE" in os.environ else "; start the script with scripts/run_distribute_train.sh or msrun"
        raise MidasError(f"run_distribute: expected a group of processes, found none to join: {reason}{hint}") from None
    rank, world = communication.get_rank(), communication.get_group_size()
    # It is to be removed one day, but what is to follow it (AutoParallel) knows no data parallelism yet.
    ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=world)
    return Device(device_target, ms.get_context("device_id"), rank, world)


def _say_what_is_awaited() -> None:
    """Prints whom the first worker of this machine waits for: with a wrong address that takes minutes."""
    here = os.environ
    if here.get("MS_ROLE") != "MS_WORKER" or not {"MS_WORKER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT"} <= {*here}:
        return
    number = here.get("MS_NODE_ID", "")
    if number.isdecimal() and int(number) % _processes_here() == 0:
        where = f"{here['MS_SCHED_HOST']}:{here['MS_SCHED_PORT']}"
        print(f"rank {number}: joins {here['MS_WORKER_NUM']} processes at {where}", file=sys.stderr, flush=True)


def _processes_here() -> int:
    """How many processes of this run are on this machine.

    Our launcher says it in ``LOCAL_WORLD_SIZE``. ``msrun`` says only how many there are on all machines together, in
    ``MS_WORKER_NUM``: with several machines, this is too many.
    """
    said = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("MS_WORKER_NUM") or ""
    return max(1, int(said)) if said.isdecimal() else 1


def _set_precision_of_ascend(op_precision: Optional[str], allow_hf32: Optional[bool]) -> None:
    """Says what operators may do to float32; the defaults have changed from release to release."""
    from mindspore.device_context.ascend import op_precision as ascend

    if op_precision is not None:
        ascend.precision_mode(op_precision)
    if allow_hf32 is not None:
        ascend.conv_allow_hf32(allow_hf32)
        ascend.matmul_allow_hf32(allow_hf32)


def worker_count(setting: Union[int, str]) -> int:
    """Decides how many workers this process has.

    Args:
        setting: A number, or ``auto``: the cores that this process may use, shared out among the processes of this
            machine (as the launcher says in ``LOCAL_WORLD_SIZE``), at least 1 and at most 8. Under plain ``msrun`` they
            are shared out among ``MS_WORKER_NUM`` processes, which are those of all machines.
    """
    if setting != "auto":
        return int(setting)
    share = _usable_cores() // _processes_here()
    return max(1, min(share, MOST_WORKERS))


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux; others do not say
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_compiled_graphs(folder: Path) -> None:
    """Makes MindSpore keep its compiled graphs in a folder, and take them from there."""
    os.environ["MS_COMPILER_CACHE_ENABLE"] = "1"
    os.environ["MS_COMPILER_CACHE_PATH"] = str(folder)
