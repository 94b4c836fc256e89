"""Training on ModelArts: the data come from object storage, the run folder goes there and comes back from there.

``moxing``, the package of ModelArts that reaches object storage, is imported here alone, inside a function. What it
raises is not documented, so any exception of it counts as a failed attempt.
"""

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Optional, TypeVar, Union

from src.common.atomic import atomic_path, write_text
from src.common.errors import MidasError, UsageError, one_line
from src.common.progress import format_seconds
from src.training.run_folder import CONFIG_FILE, LOCK_FILE
from src.weights.locate import Checkpoint, checkpoints_among, list_checkpoints

PathLike = Union[str, Path]
T = TypeVar("T")

MARKER = ".copied_from"  # in a folder whose data are complete
_LOCK = ".copy.lock"
_PAUSES_S = (1.0, 5.0, 20.0)  # before each further attempt


def is_remote(url: str) -> bool:
    """Tells whether moxing must be asked for it. The console of ModelArts hands over local folders as well."""
    return "://" in url


def copy_data_in(data_url: str, folder: PathLike) -> None:
    """Copies the training data to this machine, unless that has been done.

    Several processes may call it at once: one copies, the others wait. A copy that was killed is done again.

    Args:
        data_url: Where the data are.
        folder: Where they go; made if need be. What else is in it stays, unless a file has the same name.

    Raises:
        UsageError: There is no ``data_url``, the folder holds other data, or there is no moxing.
        MidasError: They cannot be copied.
    """
    folder, data_url = Path(folder), data_url.rstrip("/")
    with _one_at_a_time(folder):
        marker = folder / MARKER
        if marker.is_file():
            earlier = marker.read_text(encoding="utf-8").strip()
            if earlier != data_url:
                raise UsageError(
                    f"train_data_dir {folder}: expected the data of {data_url} (data_url), found those of {earlier}; "
                    "name another folder"
                )
            return
        storage, start = _storage(), time.perf_counter()
        print(f"copying the data from {data_url} to {folder}", flush=True)
        what = f"data_url {data_url}: could not be copied to {folder}"
        count = _attempt(lambda: _copy_tree_in(storage, data_url, folder), what)
        write_text(marker, f"{data_url}\n")
        print(f"copied {count} files in {format_seconds(time.perf_counter() - start)}", flush=True)


def has_run(train_url: str) -> bool:
    """Tells whether the checkpoints of a run have been copied to ``train_url``.

    Raises:
        UsageError: There is no moxing.
        MidasError: ``train_url`` cannot be listed.
    """
    return bool(checkpoints_among(_list_run(_storage(), train_url)))


def copy_run_in(train_url: str, folder: PathLike) -> None:
    """Copies a run that is to be resumed to this machine: its newest checkpoint and whatever else is no checkpoint.

    Nothing is copied if the folder is as far or farther. Several processes may call it at once. The checkpoint comes
    last, under its name when it is complete, so a copy that was killed is done again.

    Args:
        train_url: Where the run was copied to.
        folder: The run folder; made if need be.

    Raises:
        UsageError: There is no run in either, the folder holds another one, or there is no moxing.
        MidasError: It cannot be copied.
    """
    folder, storage = Path(folder), _storage()
    with _one_at_a_time(folder):
        names = _list_run(storage, train_url)
        there, here = checkpoints_among(names), list_checkpoints(folder)
        if not there and not here:
            raise UsageError(
                f"resume: expected Midas_*.ckpt in {train_url} (train_url) or {folder}, found none; "
                "--resume False starts a new run"
            )
        if not there or (here and _place(here[-1]) >= _place(there[-1])):
            return
        if here and not _is_same_run(storage, train_url, folder):
            raise UsageError(
                f"train_output_path {folder}: expected the run of {train_url} (train_url), found another one; "
                "name another folder"
            )
        numbered = {checkpoint.path.name for checkpoint in there}
        newest = there[-1].path.name
        print(f"copying the run from {train_url} to {folder}: {newest}", flush=True)
        for name in [*(name for name in names if name not in numbered), newest]:
            url = _join(train_url, name)
            _attempt(partial(_copy_file_in, storage, url, folder / name), f"{url}: could not be copied to {folder}")


class RunMirror:
    """Keeps a copy of the run folder in object storage, in a thread: the training does not wait for it.

    As a context manager it waits, at the end of the block, until all is there. A copy that fails during the run is
    reported, and the next one makes up for it; one that fails at the end is an error.

    Args:
        folder: The run folder, with the settings of the run.
        train_url: Where the copy is kept; made if need be.

    Raises:
        UsageError: There is another run in ``train_url``, which would be overwritten; or there is no moxing.
        MidasError: ``train_url`` cannot be listed.
    """

    def __init__(self, folder: PathLike, train_url: str):
        self.folder, self.train_url, self._storage = Path(folder), train_url, _storage()
        self._sent: dict[str, tuple[int, int]] = {}  # name -> size and time of what is there
        there, here = checkpoints_among(_list_run(self._storage, train_url)), list_checkpoints(folder)
        if there:
            is_behind = not here or _place(here[-1]) < _place(there[-1])
            if is_behind or not _is_same_run(self._storage, train_url, self.folder):
                raise UsageError(
                    f"train_url {train_url}: expected no checkpoints of another run, found {there[-1].path.name}; "
                    "resume that run with --resume True, or name another place"
                )
        self._checkpoints_there = {checkpoint.path.name for checkpoint in there}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="copy-out")
        self._next: Optional[Future] = None

    def copy_out(self) -> None:
        """Has what is new or has changed copied, after what is being copied now; returns at once."""
        if self._next is None or self._next.running() or self._next.done():  # else one that waits does it, too
            self._next = self._pool.submit(self._copy_or_warn)

    def __enter__(self) -> "RunMirror":
        return self

    def __exit__(
        self, _kind: Optional[type], error: Optional[BaseException], _traceback: Optional[TracebackType]
    ) -> None:
        self.close(error)

    def close(self, error: Optional[BaseException] = None) -> None:
        """Waits until all is there.

        Args:
            error: What has ended the run, if not its own end; it will be told, and a failing copy beside it.

        Raises:
            MidasError: It cannot be copied, and there is no ``error``.
        """
        self._pool.shutdown(cancel_futures=True)
        try:
            self._copy()
        except MidasError as failure:
            text = f"{failure}; the run itself is complete in {self.folder}: copy it from there"
            if error is None:
                raise MidasError(text) from failure
            print(f"error: {one_line(text)}", file=sys.stderr, flush=True)

    def _copy_or_warn(self) -> None:
        try:
            self._copy()
        except MidasError as failure:
            text = f"{failure}; the training goes on, and the next checkpoint is the next attempt"
            print(f"warning: {one_line(text)}", file=sys.stderr, flush=True)

    def _copy(self) -> None:
        _attempt(self._copy_changes, f"train_url {self.train_url}: the run folder could not be copied there")

    def _copy_changes(self) -> None:
        """Copies what has changed, and removes checkpoints that are gone here if the newest one is there.

        Raises:
            Exception: The first of moxing's. What could be copied is there all the same.
        """
        checkpoints, failure = list_checkpoints(self.folder), None
        names = {checkpoint.path.name for checkpoint in checkpoints}
        with ExitStack() as held:
            changed = {}
            for path in self._files():
                name = path.relative_to(self.folder).as_posix()
                if self._sent.get(name) != _state(path):
                    changed[name] = held.enter_context(_held(path)) if path.suffix == ".ckpt" else path
            for name, path in changed.items():
                try:
                    self._send(path, name)
                except Exception as error:
                    failure = failure or error
                    continue
                if name in names:
                    self._checkpoints_there.add(name)
        if checkpoints and checkpoints[-1].path.name in self._checkpoints_there:
            for name in sorted(self._checkpoints_there - names):
                self._storage.remove(_join(self.train_url, name))
                self._checkpoints_there.remove(name)
                self._sent.pop(name, None)
        if failure:
            raise failure

    def _files(self) -> list[Path]:
        """Lists what is to be copied: no lock, and nothing that is being written (its name starts with a dot).

        Checkpoints come last: one that is there finds its settings and losses. (A run that is resumed drops losses that
        are ahead of its checkpoint.) The newest is first among them.
        """
        newest_first = {checkpoint.path: -number for number, checkpoint in enumerate(list_checkpoints(self.folder))}
        paths = [
            path
            for path in self.folder.rglob("*")
            if path.name != LOCK_FILE and not path.name.startswith(".") and path.is_file()
        ]
        return sorted(paths, key=lambda path: (path.suffix == ".ckpt", newest_first.get(path, 1), path))

    def _send(self, path: Path, name: str) -> None:
        state = size, _ = _state(path)
        url = _join(self.train_url, name)
        parent = url.rpartition("/")[0]
        if not self._storage.exists(parent):
            self._storage.make_dirs(parent)
        self._storage.copy(str(path), url)
        found = self._storage.get_size(url)
        if not size <= found <= path.stat().st_size:  # a log grows in the meantime
            raise OSError(f"{name}: expected {size} bytes there, found {found}")
        self._sent[name] = state


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@contextmanager
def _held(path: Path) -> Iterator[Path]:
    """Gives a file a second name, under which it stays as it is if it is deleted or replaced while it is copied.

    Checkpoints may come faster than they can be copied. The name is one that ``remove_leftovers`` knows.
    """
    second = path.with_name(f".{path.stem}-held.{os.getpid()}.tmp{path.suffix}")
    try:
        os.link(path, second)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        second = path
    try:
        yield second
    finally:
        if second != path:
            second.unlink(missing_ok=True)


def _storage() -> ModuleType:
    try:
        import moxing
    except ImportError as error:
        raise UsageError(
            f"is_modelarts: expected the package moxing, which the images of ModelArts have, found none ({error}); "
            "elsewhere, copy the data to train_data_dir yourself, and set is_modelarts to False"
        ) from error
    return moxing.file


def _attempt(work: Callable[[], T], what: str) -> T:
    """Does something with object storage, several times if it fails.

    Raises:
        MidasError: It has failed each time; or what ``work`` raises of this kind, at once.
    """
    for pause_s in (*_PAUSES_S, None):
        try:
            return work()
        except MidasError:
            raise
        except Exception as error:
            if pause_s is None:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise MidasError(f"{what} ({reason})") from error
        time.sleep(pause_s)
    raise AssertionError("unreachable")


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Lets one process of those that fill a folder go on; the others wait. A process that dies holds no lock."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK
    with open(path, "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks
            error.filename = str(path)
            raise
        yield


def _join(url: str, name: str) -> str:
    return f"{url.rstrip('/')}/{name}"


def _copy_tree_in(storage: ModuleType, url: str, folder: Path) -> int:
    """Copies a folder, sees whether all of it has come, and returns the number of files."""
    if not storage.exists(url):
        raise UsageError(f"data_url: expected a folder with mixdata.json and the data, found none at {url}")
    storage.copy_parallel(url, str(folder))
    count, missing = 0, []
    for name in storage.list_directory(url, recursive=True):
        path = folder / name
        if path.is_file():
            count += 1
        elif not path.is_dir() and not storage.is_directory(_join(url, name)):  # empty folders need not come
            missing.append(name)
    if missing:
        raise OSError(f"{len(missing)} files have not come, {missing[0]} among them")
    return count


def _copy_file_in(storage: ModuleType, url: str, path: Path) -> None:
    with atomic_path(path) as temporary:
        storage.copy(url, str(temporary))
        size, expected = temporary.stat().st_size, storage.get_size(url)
        if size != expected:
            raise OSError(f"expected {expected} bytes, found {size}")


def _list_run(storage: ModuleType, train_url: str) -> list[str]:
    """Returns the names of the files in ``train_url``, not those in folders there; none if there is no such place."""

    def names() -> list[str]:
        if not storage.exists(train_url):
            return []
        found = (name for name in storage.list_directory(train_url) if not name.startswith("."))
        return sorted(name for name in found if not storage.is_directory(_join(train_url, name)))

    return _attempt(names, f"train_url {train_url}: could not be listed")


def _is_same_run(storage: ModuleType, train_url: str, folder: Path) -> bool:
    """Compares the settings that a run leaves in its folder: resumed, it keeps them as they are."""
    settings, url = folder / CONFIG_FILE, _join(train_url, CONFIG_FILE)

    def is_same() -> bool:
        return storage.exists(url) and storage.read(url, binary=True) == settings.read_bytes()

    return settings.is_file() and _attempt(is_same, f"{url}: could not be read")


def _place(checkpoint: Checkpoint) -> tuple[int, int]:
    return checkpoint.epoch, checkpoint.step
