"""Requests to stop: one signal cleans up, a second one ends the process, whatever it does."""

import signal
import subprocess
import sys
import threading

import pytest

from src.common.ahead import run_ahead, thread_pool

PREAMBLE = """
import os, signal, sys, time
from src.common.errors import run_script
from src.common.stop import stop_between_items

def say(word):
    print(word, flush=True)
"""


def start(repo, code, ignored=()):
    def reset():
        for number in (signal.SIGINT, signal.SIGTERM):  # a job in the background starts with SIGINT ignored
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + code],
        cwd=repo,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=reset,
    )


def finish(process):
    try:
        return process.communicate(timeout=60)
    finally:
        process.kill()


WAITS = """
def main():
    try:
        say("ready")
        time.sleep(50)
    finally:
        say("cleaned up")

run_script(main)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_runs_what_cleans_up(repo, number, status):
    process = start(repo, WAITS)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert finish(process) == ("cleaned up\n", "stopped on request\n")
    assert process.returncode == status


ITEMS = """
def main():
    with stop_between_items("asked to stop") as requests:
        for number in range(3):
            say(f"item {number}")
            if number == 1:
                time.sleep(1)
            say("done")
            requests.check(f"{number + 1} of 3 are kept")

run_script(main)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_item_is_finished_first(repo, number, status):
    process = start(repo, ITEMS)
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(number)
    assert finish(process) == ("done\n", "asked to stop\nstopped on request: 2 of 3 are kept\n")
    assert process.returncode == status


BLOCKS = """
def main():
    with stop_between_items("asked to stop"):
        say("ready")
        time.sleep(50)  # goes on after a handler that raises nothing

run_script(main)
"""


def test_second_signal_ends_the_process_at_once(repo):
    process = start(repo, BLOCKS)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=20)
    assert process.returncode == 143
    finish(process)


FORKS = """
def main():
    child = os.fork()
    if not child:
        time.sleep(50)
        os._exit(1)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
    say("ready")
    time.sleep(50)

run_script(main)
"""


def test_forked_processes_end_as_ever_and_do_not_count(repo):
    process = start(repo, FORKS)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert finish(process) == ("", "stopped on request\n")
    assert process.returncode == 143


def test_the_same_request_once_more_interrupts_nothing(repo):
    """A launcher passes on what its processes may have got, too: what cleans up after the first must not be cut off."""
    process = start(repo, WAITS.replace('say("cleaned up")', 'say("cleans up"); time.sleep(0.5); say("cleaned up")'))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "cleans up\n"
    process.send_signal(signal.SIGTERM)
    assert finish(process) == ("cleaned up\n", "stopped on request\n")
    assert process.returncode == 130


AFTER_ITEMS = """
from src.common.errors import MidasError

def main():
    with stop_between_items("asked to stop") as requests:
        say("ready")
        while not requests:
            time.sleep(0.01)
        time.sleep(0.3)  # work on an item, while it is announced
    say("saved")
    time.sleep(0.5)
    raise MidasError("stopped, the checkpoint is ...")

run_script(main)
"""


def test_the_same_request_once_more_after_the_items_costs_no_message(repo):
    process = start(repo, AFTER_ITEMS)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "saved\n"
    process.send_signal(signal.SIGTERM)
    assert finish(process) == ("", "asked to stop\nerror: stopped, the checkpoint is ...\n")
    assert process.returncode == 1


def test_what_is_turned_off_stays_off(repo):
    process = start(repo, WAITS.replace("50", "2"), ignored=[signal.SIGINT])
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert finish(process) == ("cleaned up\n", "")
    assert process.returncode == 0


def test_names_that_are_no_text_can_be_printed(repo):
    code = """
from src.common.errors import DataError

def main():
    name = os.fsdecode(bytes([99, 0xE9]))
    say(name)
    raise DataError(name)

run_script(main)
"""
    process = start(repo, code)
    assert finish(process) == ("c\\udce9\n", "error: c\\udce9\n")
    assert process.returncode == 1


def test_a_pool_that_is_left_drops_its_queue():
    begun, at_work, go_on = [], threading.Event(), threading.Event()

    def work(item):
        begun.append(item)
        if item:
            at_work.set()
            go_on.wait(20)
        return item

    def leave():
        with thread_pool(1) as pool:
            assert next(run_ahead(pool, work, range(9), 5)) == 0
            assert at_work.wait(20)
            threading.Timer(0.2, go_on.set).start()  # item 1 is at work while the block ends
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert begun == [0, 1]
