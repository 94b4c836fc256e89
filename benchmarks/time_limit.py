"""Running another program for a limited time."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from src.common.errors import MidasError

_ORDERLY_S = 10.0


def run_within(seconds: float, command: Sequence[object], **settings: Any) -> "subprocess.CompletedProcess[str]":
    """Runs a command; it and what it has started do not outlive the call, whatever ends it.

    Args:
        seconds: How long it may take.
        command: Program and words.
        settings: Of ``subprocess.Popen``.

    Returns:
        What it has printed, as far as ``settings`` have that kept, and its exit status.

    Raises:
        MidasError: It took longer.
    """
    words = list(map(str, command))
    with subprocess.Popen(words, start_new_session=True, text=True, **settings) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            raise MidasError(f"{' '.join(words)}: expected an end within {seconds:g} s, found none") from None
        except BaseException:
            _end(process)
            raise
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


def _end(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGINT)  # msrun then kills its workers, which have sessions of their own
    with suppress(subprocess.TimeoutExpired):
        process.wait(_ORDERLY_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
