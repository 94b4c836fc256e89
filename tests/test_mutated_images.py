"""A thousand damaged files of every kind: read, or refused with one line; see ``mutated_images.py``."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from mutated_images import sound_files
from mutations import mutations

SCRIPT = Path(__file__).with_name("mutated_images.py")


@pytest.mark.parametrize("kinds", [[kind for kind in sound_files() if kind != "AVIF"], ["AVIF"]], ids=["all", "AVIF"])
def test_damaged_files(kinds):
    """In a process of its own: a decoder that ends it, or that hangs, has left the file at the path that is printed."""
    try:
        result = subprocess.run([sys.executable, SCRIPT, "1000", *kinds], capture_output=True, text=True, timeout=200)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"more than 200 s at the file left at {error.stdout}")
    assert result.returncode == 0, f"ended with {result.returncode}: {result.stdout}{result.stderr}"
    if kinds != ["AVIF"]:  # whose decoder has lines of its own
        assert result.stderr == ""
    found = re.findall(r"(.*): (\d+) read, (\d+) refused, at most ([\d.]+) s, (\d+) MB", result.stdout)
    assert [line[0] for line in found] == kinds
    for kind, read, refused, seconds, megabytes in found:
        assert int(read) >= 100, kind
        assert int(refused) >= 300, kind
        assert float(seconds) < 10, kind
        assert int(megabytes) < 600, kind


def test_mutations_are_many_and_repeat():
    data = bytes(range(256)) * 4
    first, again, others = (list(mutations(data, 200, seed)) for seed in (1, 1, 2))
    assert first == again != others
    assert len(set(first)) > 190
    assert sum(variant != data for variant in first) > 190
    assert min(map(len, first)) < 200
    assert max(map(len, first)) > len(data)
