"""Damaged lists, HDF5 and MATLAB files of the evaluation sets: read or refused in words; no crash, no long wait.

By hand: python tests/test_mutated_sets.py KIND FOLDER COUNT SEED reads so many damaged copies.
"""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np
import scipy.io
from mutations import mutations, read_damaged

from preprocess.associate import read_listing
from preprocess.deal import read_frames
from src.common.errors import DataError
from src.evaluation.datasets import nyu, open_dataset
from src.utils.mixdata import read_mixdata

DRIVE = "2011_09_26_drive_0002_sync"
TEXTS = {
    "rgb.txt": "# color images\n1.5 rgb/1.5.png\n2.5,rgb/2.5.png\n3.5\trgb/3.5.png 0.1\n",
    "associate.txt": "1.5 rgb/1.5.png 1.6 depth/1.6.png\nrgb/2.5.png depth/2.6.png\n",
    "frames.txt": f"2011_09_26/{DRIVE} 0000000069 l\n2011_09_26/{DRIVE}/image_02/data/0000000070.png None 7.5\n",
    "DIW_test.csv": "./DIW_test/a.thumb\n1,1,2,2,>,2,2\n./DIW_test/b.thumb\n1,1,2,2,<,2,2\n",
    "mixdata.json": '{"img": {"RW": "/a/*"}, "depth": {"RW": "/b/*"}, "kind": {"RW": "depth"}, "invalid": {"RW": 255}}',
}


def read_set(name, folder):
    dataset = open_dataset(name, folder)
    faults = [*dataset.listing_faults().values()]
    for index in range(len(dataset)):
        try:
            dataset[index]
        except DataError as error:
            faults.append(str(error))
    assert not any("\n" in fault for fault in faults)
    return f"{name} {bool(faults)}"


READERS = {
    "rgb.txt": lambda folder: read_listing(folder / "rgb.txt"),
    "associate.txt": lambda folder: read_set("TUM", folder),
    "frames.txt": lambda folder: read_frames(folder / "frames.txt"),
    "DIW_Annotations/DIW_test.csv": lambda folder: read_set("DIW", folder),
    "mixdata.json": lambda folder: read_mixdata(folder / "mixdata.json"),
    "frame.h5": lambda folder: read_set("TUM", folder),
    "packed.h5": lambda folder: read_set("TUM", folder),
    "nyu.mat": lambda folder: read_set("NYU", folder),
    "splits.mat": lambda folder: read_set("NYU", folder),
}


def write(kind, folder):
    """Writes what the reader of ``kind`` wants; returns the file to damage."""
    rng = np.random.default_rng(0)
    path = folder / kind
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name in TEXTS:
        path.write_text(TEXTS[path.name])
    elif path.suffix == ".h5":
        options = {"compression": "gzip", "chunks": True} if kind == "packed.h5" else {}
        with h5py.File(path, "w") as file:
            file.create_dataset("gt/img_1", data=rng.random((12, 16, 3), np.float32), **options)
            file.create_dataset("gt/gt_depth", data=rng.random((12, 16), np.float32), **options)
    else:
        with h5py.File(folder / "nyu.mat", "w") as file:
            pictures = rng.integers(0, 256, (3, 3, 16, 12), np.uint8)
            file.create_dataset("images", data=pictures, chunks=True, compression="gzip")
            file["rawDepths"] = rng.random((3, 16, 12), np.float32)
        scipy.io.savemat(folder / "splits.mat", {"trainNdxs": [[2]], "testNdxs": [[1], [3]]})
    return path


def read_all(kind, folder, count, seed):
    """Reads damaged copies; prints how many were read and refused, and ends with status 1 for a fault."""
    path = write(kind, folder)
    if kind == "nyu.mat":  # the process that reads splits.mat takes longer than a thousand reads
        nyu._test_indices = lambda path: [1.0, 3.0]
    variants = mutations(path.read_bytes(), count, seed)
    outcomes = read_damaged(variants, path, lambda number: READERS[kind](folder), DataError, folder)
    print(dict(outcomes))
    sys.exit(1 if outcomes["fault"] or outcomes["bad text"] else 0)


def pytest_generate_tests(metafunc):
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", READERS)


def test_damaged_files(tmp_path, kind):
    count = "20" if kind == "splits.mat" else "1000"  # it is read in a process of its own, half a second for each
    run = subprocess.run(
        [sys.executable, __file__, kind, str(tmp_path), count, "1"], capture_output=True, text=True, timeout=250
    )
    assert run.returncode == 0, f"{run.stdout[-5000:]}\n{run.stderr[-5000:]}"
    assert run.stderr == ""


if __name__ == "__main__":
    read_all(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
