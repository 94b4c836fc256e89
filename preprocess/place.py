"""Copies files of a downloaded archive, extracted or not, to their place in the documented layout."""

import argparse
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Union

from src.common.atomic import atomic_path
from src.common.errors import DataError, UsageError

DATA = Path(__file__).resolve().parents[1] / "data"
Source = Union[Path, zipfile.Path]


def create_parser(description: str, folder: str, **sources: str) -> argparse.ArgumentParser:
    """Makes the parser of a script that fills a folder of the documented layout.

    Args:
        description: What the script does, for ``--help``.
        folder: Name of the folder under ``data/`` that it fills unless ``--output`` names another one.
        **sources: What it needs: the name of an option that takes a path, and its help.
    """
    parser = argparse.ArgumentParser(description=description)
    for name, about in sources.items():
        parser.add_argument(f"--{name}", type=Path, required=True, help=about)
    parser.add_argument("--output", type=Path, default=DATA / folder, help="folder to fill (default: %(default)s)")
    parser.add_argument("--link", action="store_true", help="link to extracted files instead of copying them")
    return parser


def list_files(path: Path, link: bool) -> dict[str, Source]:
    """Lists a downloaded archive: a .zip file, or the folder into which it was extracted.

    Args:
        path: The file or folder.
        link: Whether `place_file` is to link to the files.

    Returns:
        Path relative to its top, with ``/`` -> file.

    Raises:
        DataError: There is no such folder or .zip file.
        UsageError: ``link`` is set, but ``path`` is a .zip file.
    """
    if path.is_dir():
        return {file.relative_to(path).as_posix(): file for file in path.rglob("*")}
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected a folder or a .zip file, found {error}") from error
    if link:
        raise UsageError(f"{path}: --link needs an extracted folder, found a .zip file")
    return {name: zipfile.Path(archive, name) for name in archive.namelist()}


def place_file(source: Source, target: Path, link: bool) -> None:
    """Copies a file, or makes a symbolic link to it. A file at ``target`` is replaced.

    Args:
        source: An existing file. To link to it, it must not be in a .zip file.
        target: The copy or link. Its folder is made if need be.
        link: Whether to link instead of copying.

    Raises:
        DataError: The file cannot be copied or linked, or the .zip file is damaged.
    """
    try:
        if link and target.exists() and target.samefile(source):
            return  # already there: a link to itself would lose the file
        with atomic_path(target) as temporary:
            if link:
                temporary.symlink_to(source.resolve())
            else:
                with source.open("rb") as file, open(temporary, "wb") as copy:
                    shutil.copyfileobj(file, copy)
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{target}: cannot be made from {source}: {reason}") from error
