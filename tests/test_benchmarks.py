"""The benchmark scripts run; what they measure is for a quiet machine."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["bench_data.py", "--max_pairs", "2", "--rounds", "1", "--steps", "3"], "2 worker processes, batches of 2: "),
        (["bench_network.py", "--help"], "{forward,train}"),  # the full network takes too long here, and below
        (["bench_infer.py", "--help"], "--runner_model"),
        (["bench_cold.py", "--help"], "--photo"),
    ],
)
def test_benchmark(repo, words, expected):
    result = subprocess.run(
        [sys.executable, repo / "benchmarks" / words[0], *words[1:]], capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr
    assert expected in result.stdout
