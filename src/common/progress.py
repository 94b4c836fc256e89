"""Progress of long work: a moving bar on a terminal, plain lines with rate and time left in a log."""

import sys
import time
from typing import Optional, TextIO

from tqdm import tqdm

from src.common.errors import one_line


def format_seconds(seconds: float) -> str:
    """Formats a duration in seconds as ``m:ss`` or ``h:mm:ss``."""
    return tqdm.format_interval(max(seconds, 0.0))


class Progress:
    """Counts finished items and shows rate and time left.

    Args:
        total: How many items there are.
        title: What is being done, e.g. ``"Kitti"``.
        unit: Name of an item, e.g. ``"images"``.
        every_s: In a log, the least number of seconds between two lines.
        stream: Where to write; standard error when None.
    """

    def __init__(
        self,
        total: int,
        title: str,
        unit: str = "images",
        every_s: float = 10.0,
        stream: Optional[TextIO] = None,
    ):
        self.total, self.title, self.unit, self.every_s = total, title, unit, every_s
        self.stream = sys.stderr if stream is None else stream
        self.done = 0
        self._start = self._last_line = time.monotonic()
        self._bar = (
            tqdm(total=total, desc=title, unit=f" {unit}", file=self.stream, dynamic_ncols=True)
            if self.stream.isatty()
            else None
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """Adds ``count`` finished items."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last_line >= self.every_s or self.done == self.total:
            self._last_line = now
            rate = self.done / max(now - self._start, 1e-9)
            left = format_seconds((self.total - self.done) / rate)
            self.write(f"{self.title}: {self.done}/{self.total} {self.unit}, {rate:.2f} {self.unit}/s, {left} left")

    def write(self, line: str) -> None:
        """Prints a line without breaking the bar; what would break the line is escaped."""
        line = one_line(line)
        if self._bar is not None:
            self._bar.write(line, file=self.stream)
        else:
            print(line, file=self.stream, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
