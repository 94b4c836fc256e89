"""Lines that a terminal can show, and files that are never half written."""

import io
import os
import subprocess
import sys

import pytest

from src.common.atomic import atomic_path, remove_leftovers
from src.common.errors import one_line
from src.common.progress import Progress


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("maps/图 é\u202f.png", "maps/图 é\u202f.png"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\x1b[31mred\x9b", r"\x1b[31mred\x9b"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
        ("\u202egnp.exe\u2028", r"\u202egnp.exe\u2028"),
    ],
)
def test_one_line(text, shown):
    assert one_line(text) == shown


def test_progress_writes_single_lines():
    stream = io.StringIO()
    Progress(3, "title", stream=stream).write("left out: a\nb")
    assert stream.getvalue() == "left out: a\\nb\n"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("DataError('a\\nb\\x1b: expected')", r"error: a\nb\x1b: expected"),
        ("DataError('2 bad samples:\\n  a\\n  b')", "error: 2 bad samples:\n  a\n  b"),
        ("OSError(28, 'No space left on device', 'a\\nb')", r"error: a\nb: No space left on device"),
        ("DataError('caf\\udce9 \\u56fe')", "error: caf\\udce9 \\u56fe"),
    ],
)
def test_errors_of_scripts_are_readable(repo, error, shown):
    code = f"from src.common.errors import *\ndef main(): raise {error}\nrun_script(main)"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=repo, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.stderr == shown + "\n"
    assert result.returncode == 1


@pytest.mark.parametrize("name", ["a" * 255, "图" * 83 + ".pfm", "x." + "y" * 253, "a" * 251 + ".png", "." + "b" * 254])
def test_any_name_of_255_bytes_is_written(tmp_path, name):
    assert len(os.fsencode(name)) in range(253, 256)
    with atomic_path(tmp_path / name) as temporary:
        assert temporary.name.startswith(".")
        temporary.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "new"


def test_temporary_names(tmp_path):
    with atomic_path(tmp_path / "a.png") as temporary:
        assert temporary.name == f".a.{os.getpid()}.tmp.png"
        temporary.write_text("")
    names = []
    for stem in ("图" * 80 + "1", "图" * 80 + "2"):
        with atomic_path(tmp_path / f"{stem}.png") as temporary:
            assert temporary.suffix == ".png"  # by which many writers choose the format
            names.append(temporary.name)
            temporary.write_text("")
    assert len(set(names)) == 2


def test_leftovers_of_long_names_are_found(tmp_path):
    with atomic_path(tmp_path / ("a" * 250)) as temporary:
        temporary.write_text("")
        left = temporary.with_name(temporary.name.replace(str(os.getpid()), "999999999"))
        left.write_text("of a process that was killed")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a" * 250]
