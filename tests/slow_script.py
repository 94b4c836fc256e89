"""Stopping a script while its network is at work."""

import signal
import subprocess
import sys
import time

SLOW = """
import time
import {script}
from src.common.errors import run_script
from src.inference.mindspore import MindSporePredictor

run = MindSporePredictor._run

def run_slowly(predictor, prepared):
    time.sleep({seconds})
    return run(predictor, prepared)

MindSporePredictor._run = run_slowly
run_script({script}.main)
"""


def stop(repo, script, seconds, words, is_time, number):
    """Runs a script that takes so long for a prediction, and sends it a signal when it is time; returns its stderr."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(script=script, seconds=seconds), *map(str, words)],
        cwd=repo,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 120
        while not is_time():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, stderr  # SIGTERM; MindSpore has made it of SIGINT
    assert "Traceback" not in stderr
    return stderr
