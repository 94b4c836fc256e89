"""Works on local folders, and fails where a test wants it.

$MOXING_FAULTS says which calls go wrong: words FUNCTION:TEXT:KIND:COUNT. The first COUNT calls of FUNCTION with TEXT in
an argument raise (``raise``) or leave half of the file out without a word (``halve``). $MOXING_DELAY_S is how long it
takes to copy a file. What was called is in calls.log, beside the buckets.
"""

import os
import shutil
import time
from pathlib import Path


def _root():
    return Path(os.environ["MOXING_ROOT"])


def _local(url):
    url = str(url)
    return _root() / url.removeprefix("obs://") if url.startswith("obs://") else Path(url)


def _enter(function, *urls):
    """Notes the call; returns "halve" if it is to go wrong without a word."""
    line = " ".join([function, *map(str, urls)])
    with open(_root() / "calls.log", "a") as log:
        log.write(f"{line}\n")
    for fault in os.environ.get("MOXING_FAULTS", "").split():
        name, text, kind, count = fault.split(":")
        if name == function and text in line:
            seen = sum(
                text in call and call.startswith(f"{name} ")
                for call in (_root() / "calls.log").read_text().splitlines()
            )
            if seen <= int(count):
                if kind == "raise":
                    raise OSError(f"{function}: the service says no\n(request id 17)")
                return kind
    return None


def _copy(source, target, fault=None):
    time.sleep(float(os.environ.get("MOXING_DELAY_S", "0")))
    target.parent.mkdir(parents=True, exist_ok=True)
    data = source.read_bytes()
    target.write_bytes(data[: len(data) // 2] if fault == "halve" else data)


def exists(url):
    _enter("exists", url)
    return _local(url).exists()


def is_directory(url):
    _enter("is_directory", url)
    return _local(url).is_dir()


def make_dirs(url):
    _enter("make_dirs", url)
    _local(url).mkdir(parents=True)


def list_directory(url, recursive=False):
    _enter("list_directory", url)
    folder = _local(url)
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path.relative_to(folder).as_posix() for path in found)


def get_size(url, recursive=False):
    _enter("get_size", url)
    return _local(url).stat().st_size


def read(url, binary=False):
    _enter("read", url)
    return _local(url).read_bytes() if binary else _local(url).read_text()


def copy(src_url, dst_url):
    """Copies one file, and replaces one that is there."""
    fault = _enter("copy", src_url, dst_url)
    if _local(src_url).is_dir():
        raise OSError(f"{src_url} is a folder")
    _copy(_local(src_url), _local(dst_url), fault)


def copy_parallel(src_url, dst_url, file_list=None, threads=16, is_processing=True, use_queue=True):
    """Copies what is in a folder; empty folders have no place in object storage."""
    fault = _enter("copy_parallel", src_url, dst_url)
    source, target = _local(src_url), _local(dst_url)
    paths = sorted(path for path in source.rglob("*") if path.is_file())
    for path in paths[: len(paths) // 2] if fault == "halve" else paths:
        _copy(path, target / path.relative_to(source))


def remove(url, recursive=False):
    _enter("remove", url)
    shutil.rmtree(_local(url)) if recursive else _local(url).unlink()
