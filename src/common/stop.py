"""Ending work in order when somebody asks for it: Ctrl-C, ``kill``, a scheduler of jobs."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Optional

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME_REQUEST_S = 1.0  # a launcher and its children may both pass on one request


class StopRequest:
    """Turns SIGINT and SIGTERM into a request that the work at hand can look at; a context manager of the main thread.

    The first signal is announced at once, even while compiled code runs, which keeps Python's own handlers waiting. A
    second one, if it does not come together with the first, ends the process there and then.

    Args:
        announcement: Printed on stderr when the first signal comes; it says what will happen.
        is_request: Asked then; false means that the signal is none of a user. (MindSpore sends SIGTERM to its own
            process when one of its loaders dies.)

    Attributes:
        requested: Whether a signal has come.
    """

    def __init__(self, announcement: str, is_request: Callable[[], bool] = lambda: True):
        self.requested = False
        self._announcement, self._is_request = announcement, is_request
        self._first: Optional[float] = None

    def __enter__(self) -> "StopRequest":
        # Python writes the number of a signal to this socket before anything else.
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._thread = threading.Thread(target=self._listen, name="stop requests", daemon=True)
        self._thread.start()
        self._handlers = {number: signal.signal(number, self._request) for number in _SIGNALS}
        self._fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *exc_info: object) -> None:
        signal.set_wakeup_fd(self._fd)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._writer.send(bytes(1))  # ends the thread; to close the socket is not enough while children have it, too
        self._thread.join()
        self._writer.close()
        self._reader.close()

    def _request(self, _number: int, _frame: object) -> None:
        self.requested = True

    def _listen(self) -> None:
        while number := self._reader.recv(1)[0]:
            if number in _SIGNALS:
                self._signalled(number)

    def _signalled(self, number: int) -> None:
        if self._first is None:
            self._first = time.monotonic()
            if self._is_request():
                print(self._announcement, file=sys.stderr, flush=True)
        elif time.monotonic() - self._first > _SAME_REQUEST_S:
            os._exit(128 + number)
