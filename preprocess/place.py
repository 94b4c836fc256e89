"""Copies files of a downloaded archive, extracted or not, to their place in the documented layout."""

import shutil
import zipfile
import zlib
from pathlib import Path

from src.common.atomic import atomic_path
from src.common.errors import DataError, UsageError


def place_file(source: Path, target: Path, link: bool = False) -> None:
    """Copies a file, or makes a symbolic link to it. A file at ``target`` is replaced.

    Args:
        source: An existing file.
        target: The copy or link. Its folder is made if need be.
        link: Whether to link instead of copying.

    Raises:
        DataError: The file cannot be copied or linked.
    """
    try:
        if target.exists() and target.samefile(source) and (link or not target.is_symlink()):
            return  # already there: a link to itself would lose the file
        with atomic_path(target) as temporary:
            if link:
                temporary.symlink_to(source.resolve())
            else:
                shutil.copyfile(source, temporary)
    except OSError as error:
        raise DataError(f"{target}: cannot be made from {source}: {error.strerror}") from error


class Archive:
    """A downloaded archive: a .zip file, or the folder into which it was extracted.

    Args:
        path: The file or folder.
        link: Whether `place` links to the files instead of copying them.

    Attributes:
        path: The file or folder.
        names: Sorted paths of its files relative to its top, with ``/``.

    Raises:
        DataError: There is no such folder or .zip file.
        UsageError: ``link`` is set, but ``path`` is a .zip file.
    """

    def __init__(self, path: Path, link: bool = False):
        self.path, self._link = Path(path), link
        self._zip = None
        if self.path.is_dir():
            files = (path for path in self.path.rglob("*") if path.is_file())
            self.names = sorted(path.relative_to(self.path).as_posix() for path in files)
            return
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.path}: expected a folder or a .zip file, found {error}") from error
        if link:
            raise UsageError(f"{self.path}: --link needs an extracted folder, found a .zip file")
        self.names = sorted(name for name in self._zip.namelist() if not name.endswith("/"))

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._zip is not None:
            self._zip.close()

    def place(self, name: str, target: Path) -> None:
        """Copies or links one of its files to ``target``; see `place_file`.

        Raises:
            DataError: The file cannot be copied or linked, or the .zip file is damaged.
        """
        if self._zip is None:
            place_file(self.path / name, target, self._link)
            return
        try:
            with self._zip.open(name) as source, atomic_path(target) as temporary, open(temporary, "wb") as file:
                shutil.copyfileobj(source, file)
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{target}: cannot be made from {name} in {self.path}: {error}") from error
