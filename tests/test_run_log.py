"""train.log: what a run prints, whatever happens to it."""

import logging
import os
import subprocess
import sys

import pytest

from src.common.errors import DataError
from src.training.run_log import tee_to


def body(path):
    """The lines of a log without those that say when and where."""
    return [line for line in path.read_text().splitlines() if not line.startswith("-----")]


def test_what_is_printed_is_shown_and_kept(tmp_path, capsys):
    log = tmp_path / "train.log"
    streams = sys.stdout, sys.stderr
    handler = logging.StreamHandler()  # as a library makes one long before
    logger = logging.getLogger("test_run_log")
    logger.addHandler(handler)
    with tee_to(log):
        print("epoch 1", "loss 3")
        print("warning", file=sys.stderr)
        assert body(log) == ["epoch 1 loss 3", "warning"]  # at once, a line is never torn
        logger.warning("of a library")
        sys.stderr.write("\r10 %\r")
        sys.stderr.write("20 %")
        print("between")
        sys.stderr.write("\r30 %\n")
        sys.stdout.write("no end")
        assert sys.stdout.isatty() is streams[0].isatty()
    assert (sys.stdout, sys.stderr, handler.stream) == (*streams, streams[1])
    logger.removeHandler(handler)
    print("afterwards")
    assert body(log) == ["epoch 1 loss 3", "warning", "of a library", "between", "30 %", "no end"]
    shown = capsys.readouterr()
    assert shown.out == "epoch 1 loss 3\nbetween\nno endafterwards\n"
    assert shown.err == "warning\nof a library\n\r10 %\r20 %\r30 %\n"


def test_resumed_run_goes_on_in_its_log(tmp_path, capsys):
    log = tmp_path / "train.log"
    for is_resumed in (False, True):
        with tee_to(log, is_resumed):
            print("step", int(is_resumed))
    first, step, second, another = log.read_text().splitlines()
    assert first.startswith("----- started 20")
    assert second.startswith("----- resumed 20")
    assert first.endswith(second[second.index(", process") :])
    assert (step, another) == ("step 0", "step 1")
    assert "started" not in capsys.readouterr().out


@pytest.mark.parametrize("place", ["/dev/full", "{}/absent/train.log"])
def test_log_that_cannot_be_written_costs_one_warning(tmp_path, capsys, place):
    path = place.format(tmp_path)
    with tee_to(path):
        for step in range(3):
            print("step", step)
    shown = capsys.readouterr()
    assert shown.out == "step 0\nstep 1\nstep 2\n"
    reason = "No space left on device" if "full" in place else "No such file or directory"
    assert shown.err == f"warning: {path} cannot be written: {reason}; the run goes on, its log has a gap\n"


SCRIPT = """
import os, sys, time
from src.common.errors import DataError, end_at_once, run_script
from src.training.run_log import tee_to

def main():
    with tee_to(sys.argv[1]):
        print("step 1")
        end(sys.argv[2])

def end(how):
    if how == "fault":
        raise DataError("a.png: expected a picture")
    if how == "disk":
        raise OSError(28, "No space left on device", "a.ckpt")
    if how == "bug":
        raise ValueError("a bug")
    if how == "dead loader":
        end_at_once(DataError("loader 3"))
    if how == "kill":
        os.kill(os.getpid(), 9)
    os.kill(os.getpid(), 15)
    time.sleep(20)

run_script(main)
"""


@pytest.mark.parametrize(
    ("how", "status", "last"),
    [
        ("fault", 1, "error: a.png: expected a picture"),
        ("disk", 1, "error: a.ckpt: No space left on device"),
        ("bug", 1, "ValueError: a bug"),
        ("dead loader", 1, "error: loader 3"),
        ("stop", 143, "stopped on request"),
        ("kill", -9, "step 1"),
    ],
)
def test_log_ends_with_what_ended_the_run(repo, tmp_path, how, status, last):
    log = tmp_path / "train.log"
    words = [sys.executable, "-c", SCRIPT, str(log), how]
    done = subprocess.run(words, cwd=repo, capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    lines = body(log)
    assert lines[0] == "step 1"
    assert lines[-1] == last
    assert how == "kill" or done.stderr.splitlines()[-1] == last
    assert how == "bug" or lines[1:] == done.stderr.splitlines()  # nothing twice


def test_file_names_that_are_no_text(tmp_path):
    log = tmp_path / "train.log"
    name = os.fsdecode(b"\xff.png")
    with pytest.raises(DataError), tee_to(log):
        raise DataError(f"{name}: expected a picture")
    assert body(log) == ["error: \\udcff.png: expected a picture"]
