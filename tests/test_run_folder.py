"""Run folders, devices and kept graphs: what is decided without a network."""

import os
import socket
import subprocess
import sys

import pytest

from src.common import compile_cache, device
from src.common.errors import UsageError
from src.training.run_folder import RunFolder, find_resume, folder_to_resume


def test_checkpoints_are_sorted_by_place_in_the_run_whatever_device_wrote_them(tmp_path):
    names = ["Midas_0-10_1.ckpt", "Midas_0-9_12.ckpt", "Midas_0-9_2.ckpt", "other.ckpt", ".Midas_0-11_1.1.tmp.ckpt"]
    for name in names:
        (tmp_path / name).write_text("")
    folder = RunFolder(tmp_path, device_id=3)
    assert [checkpoint.path.name for checkpoint in folder.checkpoints()] == [names[2], names[1], names[0]]
    assert folder.checkpoint_path(11, 2).name == "Midas_3-11_2.ckpt"
    folder.prune(1)
    assert folder.latest().path.name == names[0]
    assert len(folder.checkpoints()) == 1
    with pytest.raises(UsageError, match="expected no checkpoints after epoch 9 step 2"):
        folder.start("", 9, 2)
    folder.start("key: value\n", 10, 1)
    assert (tmp_path / "config.yaml").read_text() == "key: value\n"
    folder.start("key: another\n", 10, 1)
    assert (tmp_path / "config.yaml").read_text() == "key: value\n"  # that of a run stays


def test_which_checkpoint_is_resumed_and_where_the_run_goes_on(tmp_path):
    run, default, empty = (tmp_path / name for name in ("run", "default", "empty"))
    for folder in (run, default, empty):
        folder.mkdir()
    for path in (run / "Midas_0-1_1.ckpt", run / "Midas_0-2_1.ckpt", default / "Midas_0-9_1.ckpt"):
        path.write_text("")
    newest = run / "Midas_0-2_1.ckpt"
    assert find_resume(False, str(default)) is None
    assert find_resume(True, str(default)) == default / "Midas_0-9_1.ckpt"
    assert find_resume(str(run), str(default)) == newest
    assert find_resume(str(run / "Midas_0-1_1.ckpt"), str(default)) == run / "Midas_0-1_1.ckpt"
    for resume, place in ((True, str(empty)), (str(empty), str(run)), (str(tmp_path / "gone"), str(run))):
        with pytest.raises(UsageError, match=r"^resume: expected .*False starts a new"):
            find_resume(resume, place)

    with pytest.raises(UsageError, match="found the files of another run"):
        folder_to_resume(newest, str(default), is_given=False)  # no settings beside it: perhaps a copy
    (run / "config.yaml").write_text("")
    assert folder_to_resume(newest, str(default), is_given=False) == run
    assert folder_to_resume(newest, str(empty), is_given=True) == empty
    with pytest.raises(UsageError, match="found the files of another run"):
        folder_to_resume(newest, str(default), is_given=True)


def test_links_to_a_run(tmp_path):
    run, link, latest = (tmp_path / name for name in ("run", "link", "latest.ckpt"))
    run.mkdir()
    for name in ("Midas_0-1_1.ckpt", "config.yaml", "loss.csv"):
        (run / name).write_text("")
    link.symlink_to(run)
    latest.symlink_to(run / "Midas_0-1_1.ckpt")
    checkpoint = find_resume(str(latest), str(tmp_path / "default"))
    assert checkpoint == run / "Midas_0-1_1.ckpt"
    assert folder_to_resume(checkpoint, str(tmp_path / "default"), is_given=False) == run
    assert folder_to_resume(checkpoint, str(link), is_given=True) == link
    assert find_resume(str(link), str(run)) == link / "Midas_0-1_1.ckpt"
    assert folder_to_resume(link / "Midas_0-1_1.ckpt", str(run), is_given=True) == run


def test_leftovers_of_live_processes_stay(tmp_path):
    with subprocess.Popen(["sleep", "50"]) as alive:
        dead = subprocess.Popen(["true"])
        dead.wait()
        names = [f".Midas_0-1_1.{process.pid}.tmp.ckpt" for process in (alive, dead)]
        for name in names:
            (tmp_path / name).write_text("")
        RunFolder(tmp_path).start("", 1, 0)
        alive.kill()
    assert (tmp_path / names[0]).exists()
    assert not (tmp_path / names[1]).exists()


LOCK = """
import os, sys
from src.common.errors import run_script
from src.training.run_folder import RunFolder

def main():
    folder = RunFolder(sys.argv[1])
    folder.lock()
    if not os.fork():
        os.read(0, 1)  # a loader that outlives the process
        os._exit(0)
    print("locked", flush=True)
    os.read(0, 1)

run_script(main)
"""


def test_folder_belongs_to_one_live_process(repo, tmp_path):
    words = [sys.executable, "-c", LOCK, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=repo, **pipes) as first:
        assert first.stdout.readline() == "locked\n"
        second = subprocess.run(words, cwd=repo, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2
        assert second.stderr == (
            f"error: train_output_path {tmp_path}: expected a folder in which nobody trains, found a run of process "
            f"{first.pid} on {socket.gethostname()}\n"
        )
        first.kill()
        first.wait()
        RunFolder(tmp_path).lock()  # though the loader lives
        first.stdin.close()


@pytest.mark.parametrize(
    ("version", "target", "user", "expected"),
    [
        ("2.8.0", "CPU", None, None),
        ("2.9.0", "CPU", None, "AVX2"),
        ("2.10.1", "auto", None, "AVX2"),
        ("3.0.0", "auto", None, "AVX2"),
        ("2.10.0", "Ascend", None, None),
        ("2.10.0", "CPU", "AVX512_CORE", "AVX512_CORE"),
    ],
)
def test_cpu_convolution_guard(monkeypatch, capsys, version, target, user, expected):
    environment = {} if user is None else {device.ONEDNN_ISA: user}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(device, "version", lambda name: version)
    device.guard_cpu_convolution(target)
    device.guard_cpu_convolution(target)
    assert environment.get(device.ONEDNN_ISA) == expected
    assert capsys.readouterr().err.count("AVX2 is set") == (1 if expected == "AVX2" else 0)


def test_kept_graphs_are_told_apart_by_all_that_shapes_them(monkeypatch, tmp_path):
    folders = []
    monkeypatch.setattr(compile_cache, "keep_compiled_graphs", folders.append)
    monkeypatch.setattr(compile_cache, "_FOLDER", tmp_path)
    network = {"layers": (1, 1, 1, 1), "network_ops": "midas"}
    for facts in (("train", "CPU", 1, network), ("train", "CPU", 1, {**network, "network_ops": "modelzoo"})):
        for _ in range(2):
            compile_cache.enable_compile_cache(True, facts)
    compile_cache.enable_compile_cache(False, ("train", "CPU", 2, network))
    assert folders[0] == folders[1] != folders[2] == folders[3]
    assert sorted(tmp_path.iterdir()) == sorted(set(folders))


def test_graphs_of_several_static_shapes_are_not_kept(monkeypatch, capsys):
    monkeypatch.setattr(compile_cache, "keep_compiled_graphs", lambda folder: pytest.fail(f"kept in {folder}"))
    compile_cache.enable_compile_cache(True, ("predict", "CPU"), shapes_vary=True)
    assert "not used with eval_shapes static" in capsys.readouterr().err
