"""train.log: what a training run prints, kept in its folder."""

import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, Union

from src.common.errors import fault_line, one_line

TRAIN_LOG = "train.log"


class _Log:
    """The file. Where it cannot be written, this is said once and the run goes on."""

    def __init__(self, path: Path, shown: TextIO):
        self.path, self._shown, self._is_warned = path, shown, False
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            self._file = -1
            self._warn(error)

    def write(self, text: str) -> None:
        """Appends text; it survives the end of this process from here on."""
        if self._file < 0:
            return
        data = text.encode(errors="backslashreplace")
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:  # there may be room again later
            self._warn(error)

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _warn(self, error: OSError) -> None:
        if not self._is_warned:
            self._is_warned = True
            text = f"warning: {self.path} cannot be written: {error.strerror}; the run goes on, its log has a gap"
            print(one_line(text), file=self._shown, flush=True)


class _Tee:
    """A text stream that shows what is written to it and adds every whole line to a log.

    Of a line that is overwritten again and again, as a moving bar is, the log gets the last state.
    """

    def __init__(self, shown: TextIO, log: _Log):
        self._shown, self._log, self._begun = shown, log, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shown, name)

    def write(self, text: str) -> int:
        """Writes text."""
        count = self._shown.write(text)
        lines, newline, self._begun = (self._begun + text).rpartition("\n")
        if newline:
            self._log.write("".join(f"{_last_state(line)}\n" for line in lines.split("\n")))
        self._begun = _last_state(self._begun)
        return count

    def writelines(self, lines: Any) -> None:
        """Writes several texts."""
        for line in lines:
            self.write(line)

    def end(self) -> None:
        """Adds the line that has been begun, if there is one."""
        if self._begun:
            self._log.write(f"{self._begun}\n")
            self._begun = ""


def _last_state(line: str) -> str:
    return line.rstrip("\r").rpartition("\r")[2]


@contextmanager
def tee_to(path: Union[str, Path], is_resumed: bool = False) -> Iterator[None]:
    """Inside this block, what Python prints on stdout and stderr is appended to a file as well.

    The file says when the block was entered and with what fault it was left, if with one. What native code prints goes
    past Python and is not in it.

    Args:
        path: The file; earlier contents stay. If it cannot be written, a warning on stderr says so.
        is_resumed: Whether to call it a run that was resumed.
    """
    log = _Log(Path(path), sys.stderr)
    what = "resumed" if is_resumed else "started"
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    log.write(f"----- {what} {now}, process {os.getpid()} on {socket.gethostname()} -----\n")
    shown = sys.stdout, sys.stderr
    tees = tuple(_Tee(stream, log) for stream in shown)
    sys.stdout, sys.stderr = tees
    handlers = _redirect_handlers(dict(zip(map(id, shown), tees)))
    try:
        yield
    except BaseException as error:
        for tee in tees:
            tee.end()
        log.write(f"{fault_line(error) or traceback.format_exc().rstrip()}\n")
        raise
    finally:
        for handler, stream in handlers:
            handler.setStream(stream)
        sys.stdout, sys.stderr = shown
        for tee in tees:
            tee.end()
        log.close()


def _redirect_handlers(tees: dict[int, _Tee]) -> list[tuple[logging.StreamHandler, TextIO]]:
    """Gives handlers of ``logging``, such as MindSpore's, the new streams; returns them with their old ones."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {handler for logger in loggers for handler in getattr(logger, "handlers", ())}
    changed = []
    for handler in handlers:
        if isinstance(handler, logging.StreamHandler) and id(handler.stream) in tees:
            changed.append((handler, handler.setStream(tees[id(handler.stream)])))
    return changed
