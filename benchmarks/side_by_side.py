"""Timing of several ways to do the same thing in one run: interleaved rounds, medians, ratios."""

import os
import platform
import time
from importlib.metadata import version
from typing import Callable

import numpy as np


def machine() -> str:
    """Describes processor, cores and the versions of what is compared."""
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.startswith(("model name", "flags"))]
        flags = next((line.split() for line in lines if line.startswith("flags")), [])
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
        processor += "".join(f", {flag}" for flag in ("avx2", "avx512f", "amx_tile") if flag in flags)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor}, {cores} cores, mindspore {version('mindspore')}"


class Seconds(float):
    """What a contender returns that has timed itself, another program for instance."""


def _time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    result = run()
    return result if isinstance(result, Seconds) else time.perf_counter() - start


def compare(
    contenders: dict[str, Callable[[], object]], rounds: int, unit: str = "s", work: float = 1.0, warm_up: bool = True
) -> dict:
    """Times every contender once a round, in turn, and prints medians and ratios to the first.

    Args:
        contenders: Name -> what to time, or what returns ``Seconds``.
        rounds: How often each is timed.
        unit: ``"s"`` prints seconds a call; anything else is a unit of which a call does ``work`` many.
        work: See ``unit``.
        warm_up: Call each once before the clock starts; whole processes do not need it.

    Returns:
        Name -> median seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    if warm_up:
        for name, run in contenders.items():
            print(f"{name}: first call {_time(run):.2f} s", flush=True)
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds[name].append(_time(run))
    medians = {name: float(np.median(times)) for name, times in seconds.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        figure = f"{median:.3f} s" if unit == "s" else f"{work / median:.1f} {unit}/s"
        spread = f"{min(seconds[name]):.3f} .. {max(seconds[name]):.3f} s"
        print(f"{name:40s} {figure:>16s}  ({spread})  time / first: {median / first:.2f}")
    return medians
