"""What the tests of the training data share: writing images and lists, and two small sets."""

import json

import cv2
import numpy as np

from src.util import write_pfm


def write_image(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


def write_truth(path, array):
    """Writes ground truth in the format that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".pfm":
        write_pfm(path, array)
    else:
        write_image(path, array)


def write_mixdata(folder, content):
    path = folder / "mixdata.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def write_two_sets(tmp_path):
    """Two sets of three pairs; sizes, extensions and kinds differ. Returns (data root, mixdata.json)."""
    root = tmp_path / "data [1]"  # brackets mean something to glob
    rng = np.random.default_rng(0)
    for name, suffix, low in (("A", ".jpg", 0), ("B", ".PNG", 300)):
        for i in range(3):
            image = cv2.resize(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8), (60 + i, 50))
            depth = rng.integers(low, low + 200, (25, 30)).astype(np.uint8 if name == "A" else np.uint16)
            depth[:5] = 0
            write_image(root / name / "Imgs" / f"{2 - i}.x{suffix}", image)
            write_image(root / name / "RDs" / f"{2 - i}.x.png", depth)
    tables = {
        "img": {"B": "/B/Imgs/*", "A": "/A/Imgs/*"},
        "depth": {"A": "/A/RDs/*", "B": "/B/RDs/*.png"},
        "kind": {"B": "depth"},
        "invalid": {"B": 0},
    }
    return root, write_mixdata(tmp_path, tables)
