"""Data-parallel training through scripts/run_distribute_train.sh, with two processes on the CPU."""

import csv
import os
import re
import socket
import subprocess
import sys

from conftest import TINY_FLAGS


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes(repo, train_data, tmp_path):
    words = [*TINY_FLAGS, "--img_width", "64", "--img_height", "64", "--batch_size", "2", "--epoch_size", "2"]
    words += ["--train_data_dir", str(train_data), "--train_output_path", str(tmp_path / "run")]
    result = subprocess.run(
        ["bash", str(repo / "scripts" / "run_distribute_train.sh"), "2", "", *words],
        env={**os.environ, "PYTHON": sys.executable, "LOG_DIR": str(tmp_path / "log"), "MASTER_PORT": str(free_port())},
        capture_output=True,
        text=True,
        timeout=300,
    )
    log = (tmp_path / "log" / "worker_0.log").read_text()
    assert result.returncode == 0, log
    assert "batch size 2 on 2 x CPU" in log
    # 10 images: 2 global batches of 2 x 2; the first process alone keeps the run folder
    with open(tmp_path / "run" / "loss.csv", newline="") as file:
        assert [(row["epoch"], row["step"]) for row in csv.DictReader(file)] == [
            ("1", "1"),
            ("1", "2"),
            ("2", "1"),
            ("2", "2"),
        ]
    assert (tmp_path / "run" / "Midas_0-2_2.ckpt").is_file()
    # The processes have seen different images; averaged gradients keep their weights equal.
    logs = [(tmp_path / "log" / f"worker_{rank}.log").read_text() for rank in (0, 1)]
    crcs = [re.search(r"weights of process \d: CRC-32 (\w+)", log)[1] for log in logs]
    assert crcs[0] == crcs[1]
