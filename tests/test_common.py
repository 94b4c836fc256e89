"""Lines that a terminal can show, files that are never half written, and how MindSpore is set up."""

import io
import os
import shutil
import subprocess
import sys

import mindspore as ms
import pytest
from mindspore import communication

from src.common import device
from src.common.atomic import atomic_path, remove_leftovers
from src.common.errors import MidasError, UsageError, one_line
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


@pytest.mark.parametrize(
    ("cores", "environment", "workers"),
    [
        (1, {}, 1),
        (6, {}, 6),
        (64, {}, 8),
        (64, {"LOCAL_WORLD_SIZE": "16", "MS_WORKER_NUM": "32"}, 4),
        (64, {"MS_WORKER_NUM": "32"}, 2),
        (2, {"LOCAL_WORLD_SIZE": "8"}, 1),
        (4, {"LOCAL_WORLD_SIZE": "", "MS_WORKER_NUM": "two"}, 4),
    ],
)
def test_workers_of_this_process(monkeypatch, cores, environment, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    for name in ("LOCAL_WORLD_SIZE", "MS_WORKER_NUM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert device.worker_count("auto") == workers
    assert device.worker_count(12) == 12


def test_precision_of_ascend_is_said(monkeypatch):
    from mindspore.device_context.ascend import op_precision

    said = []
    monkeypatch.setattr(ms, "set_device", lambda *device: said.append(device))
    monkeypatch.setattr(ms, "set_context", lambda **settings: said.append(settings))
    for name in ("precision_mode", "conv_allow_hf32", "matmul_allow_hf32"):
        monkeypatch.setattr(op_precision, name, lambda value, name=name: said.append((name, value)))
    device.setup_device("Ascend", 3, 1, False, "O2", "force_fp32", True)
    assert said[1:] == [
        ("Ascend", 3),
        {"jit_config": {"jit_level": "O2"}},
        ("precision_mode", "force_fp32"),
        ("conv_allow_hf32", True),
        ("matmul_allow_hf32", True),
    ]
    said.clear()
    device.setup_device("Ascend", 0, 1)  # what runs a network leaves the types to MindSpore: not every device has all
    assert [word for word in said if isinstance(word, tuple) and word[0] != "Ascend"] == []


def test_jit_level_that_the_cpu_has_not():
    with pytest.raises(UsageError, match="jit_level: expected auto, O0 or O1 on CPU, found O2"):
        device.setup_device("CPU", 0, 1, jit_level="O2")


def test_mindspore_starts_quietly(repo, tmp_path):
    script = tmp_path / "script.py"  # a graph that is kept depends on files
    script.write_text(f"""
from pathlib import Path
from src.common.device import keep_compiled_graphs, setup_device
setup_device("CPU", 0, 1)
keep_compiled_graphs(Path({str(tmp_path)!r}))
import mindspore as ms
from mindspore import nn
layer = nn.Dense(2, 2)
nn.Adam(layer.trainable_params())
layer(ms.ops.ones((1, 2)))
ms.log.warning("a warning of its own")
""")
    environment = {name: value for name, value in os.environ.items() if name not in ("GLOG_v", "MS_SUBMODULE_LOG_v")}
    told = []
    for wanted in ({}, {"GLOG_v": "2"}):
        result = subprocess.run(
            [sys.executable, str(script)],
            env={**environment, "PYTHONPATH": str(repo), **wanted},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr
        told.append(result.stderr)
        assert list(tmp_path.rglob("*.mindir"))
        shutil.rmtree(tmp_path / "rank_0")
    assert told[0].count("WARNING") == 1
    assert "a warning of its own" in told[0]
    assert "FusedSparseAdam" in told[1]
    assert "PIPELINE" in told[1]


def test_who_is_awaited_is_said(monkeypatch, capsys):
    group = {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "4", "MS_SCHED_HOST": "10.0.0.1", "MS_SCHED_PORT": "8118"}
    for name, value in {**group, "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(communication, "init", lambda: (_ for _ in ()).throw(RuntimeError("no way\n\n---- more")))
    for rank in range(4):
        monkeypatch.setenv("MS_NODE_ID", str(rank))
        with pytest.raises(MidasError, match=r"expected a group of processes, found none to join: no way$"):
            device.setup_device("CPU", 0, 1, run_distribute=True)
    assert capsys.readouterr().err.splitlines() == [
        "rank 0: joins 4 processes at 10.0.0.1:8118",
        "rank 2: joins 4 processes at 10.0.0.1:8118",
    ]
