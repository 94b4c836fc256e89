"""The faults that this project expects, and how a script reports them.

Exit status of every script: 0 all went well, 2 wrong usage or configuration, 1 the run itself failed (or part of
its input was bad and had to be left out), 130 or 143 stopped by SIGINT or SIGTERM (see ``src/common/stop.py``).
"""

import io
import os
import sys
import unicodedata
from typing import Callable, NoReturn, Optional

from src.common.stop import StopRequest, raise_on_signals


class MidasError(Exception):
    """An anticipated fault. Its text is one line: file or key, what was expected, what was found.

    Where it quotes a file it may hold control characters: ``fault_line`` escapes them.
    """

    exit_status = 1


class UsageError(MidasError):
    """Wrong command line or configuration."""

    exit_status = 2


class DataError(MidasError):
    """A file that is missing, truncated, or not what its place in a data set says it is."""


class CheckpointError(MidasError):
    """Weights that cannot be read or do not fit the network."""


class ExportError(MidasError):
    """A network that cannot be written in another format, or a written one that computes something else."""


def one_line(text: object) -> str:
    """Escapes what would break a line or steer a terminal: control characters and bytes that are no text."""
    return "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" else char.encode("unicode_escape").decode()
        for char in str(text)
    )


def _report(error: Exception) -> str:
    """The text of an error. Only what lists many faults has more than one line: those after the first are indented."""
    return _INDENTED.join(map(one_line, str(error).split(_INDENTED)))


_INDENTED = "\n  "
_NO_FILE = "input or output"


def fault_line(error: BaseException) -> str:
    """Returns what ``run_script`` says of an anticipated fault or a request to stop; "" for any other."""
    if isinstance(error, MidasError):
        return f"error: {_report(error)}"
    if isinstance(error, OSError):  # a full disk, a folder that may not be written: the file says it all
        return f"error: {one_line(f'{error.filename or _NO_FILE}: {error.strerror or error}')}"
    if isinstance(error, StopRequest):
        return f"stopped on request{': ' if str(error) else ''}{one_line(error)}"
    return ""


def run_script(main: Callable[[], Optional[int]]) -> None:
    """Runs ``main`` and ends the process: anticipated faults become one line on stderr, others keep a traceback.

    Signals stop it as ``src/common/stop.py`` says. A file name that is no text can be printed: odd bytes are escaped.

    Args:
        main: The script; its return value is the exit status (None means 0).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook has others
            stream.reconfigure(errors="backslashreplace")
    raise_on_signals()
    try:
        status = main()
    except (MidasError, OSError, StopRequest) as error:
        print(fault_line(error), file=sys.stderr)
        status = getattr(error, "exit_status", MidasError.exit_status)
    sys.exit(status)


def end_at_once(error: Exception) -> NoReturn:
    """Reports a fault and ends the process, from any thread, whatever the others do; nothing is taken down in order."""
    print(f"error: {_report(error)}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(MidasError.exit_status)
