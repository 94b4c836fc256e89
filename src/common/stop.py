"""Requests to stop: SIGINT (Ctrl-C) and SIGTERM (``kill``, job schedulers).

The first one lets a script clean up and say what is kept. The second one ends the process at once.

MindSpore answers SIGINT itself once a network has run, by sending SIGTERM to its own process: from then on, nobody can
tell one from the other.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_REQUEST_S = 1.0  # signals within it are one request: a launcher passes on what its processes may have got, too


class StopRequest(KeyboardInterrupt):
    """A signal that asks to stop. It is no ``Exception``: what handles faults lets it pass, ``finally`` blocks run.

    Args:
        number: The signal.
        kept: What is kept, and how to go on; "" where nothing is.

    Attributes:
        exit_status: That of the script, as shells count: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, number: int, kept: str = ""):
        super().__init__(kept)
        self.exit_status = 128 + number


def raise_on_signals() -> None:
    """Makes the first signal raise ``StopRequest`` in the main thread, and a later one end the process at once.

    At once means while MindSpore compiles or computes, too, when no Python handler can run: a thread reads the bytes
    that Python writes to a pipe for each signal. Signals within a second are one request. Processes that are forked off
    later do not take part. A signal that whoever started the script has turned off (``nohup``) stays off.
    """

    def request_stop(number: int, _frame: object) -> None:
        _handle(_ignore)  # the same request once more must not interrupt what cleans up
        raise StopRequest(number)

    _handle(request_stop)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(reader,), daemon=True).start()
    # A signal that comes to a new process before it has forgotten all this would be lost: it has to wait.
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget)


class Requests:
    """What signals have asked for, in a block of ``stop_between_items``."""

    def __init__(self):
        self._numbers: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def add(self, number: int) -> None:
        """Notes a signal."""
        self._numbers.append(number)

    def check(self, kept: str) -> None:
        """To be called between two items, with what is kept by then.

        Raises:
            StopRequest: There was a signal.
        """
        if self._numbers:
            raise StopRequest(self._numbers[0], kept)


@contextmanager
def stop_between_items(announcement: str) -> Iterator[Requests]:
    """Inside this block, the first signal raises nothing by itself: work on an item is finished.

    Args:
        announcement: Printed on stderr at once, even while MindSpore compiles or computes.

    Yields:
        The requests so far.
    """
    requests = Requests()
    earlier = _handle(lambda number, _frame: requests.add(number))
    _announcements.append(announcement)
    try:
        yield requests
    finally:
        _announcements.remove(announcement)
        for number, handler in earlier.items():
            signal.signal(number, _ignore if requests else handler)  # a request that was heard is not heard again


@contextmanager
def end_on_signals() -> Iterator[None]:
    """Inside this block, the first signal ends the process at once.

    This is for native code that waits and keeps Python's lock, with which no handler of Python, and no thread, can run.
    """
    earlier = _handle(signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


_announcements: list[str] = []  # of the blocks at hand


def _handle(handler: Callable[[int, object], None]) -> dict[int, object]:
    """Sets the handler of both signals, but of those that are ignored; returns the earlier ones."""
    heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def _ignore(_number: int, _frame: object) -> None:
    """Leaves a signal to ``_listen``."""


def _listen(reader: int) -> None:
    first_s = None
    while True:
        for number in os.read(reader, 16):
            if number not in _SIGNALS:
                continue
            if first_s is None:
                first_s = time.monotonic()
                for line in _announcements:
                    print(line, file=sys.stderr, flush=True)
            elif time.monotonic() - first_s > SAME_REQUEST_S:
                os._exit(128 + number)


def _hold() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _forget() -> None:
    signal.set_wakeup_fd(-1)
    _handle(signal.SIG_DFL)
    _release()
