"""Writing files so that a reader, or a killed run, sees the old file or the new one and never half of one."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Union

_MARK = ".tmp"
_MOST_NAME_BYTES = 255  # of nearly all file systems


@contextmanager
def atomic_path(path: Union[str, Path]) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; it takes the place of ``path`` when the block ends without error.

    The temporary name keeps the suffix, since many writers choose the format by it, and starts with a dot, so that
    globs do not see it. Where it would be too long for the file system, a hash takes the place of the name. The folder
    is made if need be.

    Args:
        path: The file to write or replace.

    Yields:
        The path to write to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # of a full disk the system names no file
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_path(path: Path) -> Path:
    mark = f".{os.getpid()}{_MARK}"
    name = f".{path.stem}{mark}{path.suffix}"
    if len(os.fsencode(name)) > _MOST_NAME_BYTES:
        suffix = path.suffix if len(os.fsencode(path.suffix)) < 100 else ""
        name = f".{hashlib.sha1(os.fsencode(path.name)).hexdigest()}{mark}{suffix}"
    return path.with_name(name)


def remove_leftovers(folder: Union[str, Path]) -> None:
    """Deletes what killed processes left unfinished in ``folder``; what a live one is writing stays."""
    for path in Path(folder).glob(f".*.*{_MARK}*"):
        match = re.search(rf"\.(\d+){re.escape(_MARK)}", path.name)
        if match and not _is_alive(int(match[1])):
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def write_text(path: Union[str, Path], text: str) -> None:
    """Writes ``text`` as UTF-8, atomically; odd bytes in names of files come out as they are (``os.fsdecode``)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
