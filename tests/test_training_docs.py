"""docs/training.md: every list of training sets in it is read, finds its files and loads a sample that is upright."""

import io
import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from mutated_images import exr
from training_data import write_image, write_truth

from preprocess.check_data import main
from src.utils.loadImgDepth import LoadImagesDepth
from src.utils.mixdata import check_pairs, list_pairs, read_mixdata, warnings_of

DOCS = Path(__file__).resolve().parents[1] / "docs" / "training.md"
SIZE = (40, 60)
# Nearer below, from 20 to about 2 m. The first eight columns have no ground truth.
DEPTH = np.repeat(np.linspace(20, 2, SIZE[0], dtype=np.float32)[:, None], SIZE[1], axis=1)
HOLE = np.zeros(SIZE, bool)
HOLE[:, :8] = True
PICTURE = np.full((*SIZE, 3), 128, np.uint8)


def blocks():
    """Set names -> tables, of every JSON block."""
    found = [json.loads(text) for text in re.findall(r"^```json\n(.*?)^```", DOCS.read_text("utf-8"), re.M | re.S)]
    return {" and ".join(tables["img"]): tables for tables in found}


def hdf5(array):
    file = io.BytesIO()
    with h5py.File(file, "w") as writer:
        writer["depth"] = array
    return file.getvalue()


def millimetres(depth):
    return np.where(HOLE, 0, depth * 1000).astype(np.uint16)


def write_bytes(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def make_tree(name, root):
    """Writes three pairs in the layout and the convention of a set, and a file that does not belong to it."""
    for number in range(3):
        frame, disparity = f"{number:06}", 40 / DEPTH
        if name == "ReDWeb":
            write_image(root / f"ReDWeb_V1/Imgs/{frame}.jpg", PICTURE)
            write_image(root / f"ReDWeb_V1/RDs/{frame}.png", np.where(HOLE, 255, 254 - disparity * 10).astype(np.uint8))
        elif name == "MegaDepth":
            scene = root / f"MegaDepth_v1/000{number}/dense{number % 2}"
            write_image(scene / "imgs/31_o.jpg", PICTURE)
            write_bytes(scene / "depths/31_o.h5", hdf5(np.where(HOLE, 0, DEPTH)))
        elif name == "HR-WSI":
            for folder, suffix, array in (
                ("imgs", "jpg", PICTURE),
                ("gts", "png", np.where(HOLE, 90, disparity * 10).astype(np.uint8)),
                ("valid_masks", "png", np.where(HOLE, 0, 255).astype(np.uint8)),
            ):
                write_image(root / f"HR-WSI/train/{folder}/{frame}.{suffix}", array)
        elif name == "TartanAir":
            trajectory = root / f"TartanAir/office/{'office/' * (number % 2)}Easy/P00{number}"
            depth = np.where(np.arange(SIZE[0])[:, None] < 8, 10000, DEPTH)
            write_image(trajectory / f"image_left/{frame}_left.png", PICTURE)
            write_truth(trajectory / f"depth_left/{frame}_left_depth.npy", depth.astype(np.float32))
        elif name == "BlendedMVS":
            project = root / f"BlendedMVS/5a3ca9cb270f0e3f14d0eddb{number}"
            write_image(project / f"blended_images/{frame}.jpg", PICTURE)
            write_image(project / f"blended_images/{frame}_masked.jpg", PICTURE)
            write_truth(project / f"rendered_depth_maps/{frame}.pfm", np.where(HOLE, 0, DEPTH))
        elif name == "DIML":
            scene = root / f"DIML/train/LR/{number:02}_Warehouse"
            write_image(scene / f"color/in_00_{frame}_c.png", PICTURE)
            write_image(scene / f"depth_filled/in_00_{frame}_depth_filled.png", (DEPTH * 1000).astype(np.uint16))
        elif name == "NYU":
            write_image(root / f"NYU_train/basement_{number}/rgb_{frame}.jpg", PICTURE)
            write_image(root / f"NYU_train/basement_{number}/sync_depth_{frame}.png", millimetres(DEPTH * 0.45))
        else:
            assert name == "phone and render"
            for half in (0, 1):
                path = root / f"phone/depth/{2 * number + half:04}_depth.png"
                write_image(root / f"phone/rgb/{2 * number + half:04}.jpg", PICTURE)
                write_image(path, millimetres(DEPTH * 0.27 + 0.09))
            sky = np.linspace(42, 2, SIZE[0], dtype=np.float32)[:, None].repeat(SIZE[1], axis=1)
            sky[:8] = 1e10
            write_image(root / f"render/street/color/{number:04}.png", PICTURE)
            write_bytes(root / f"render/street/depth/{number:04}.exr", exr("Z", sky))


ALL = ["phone and render", "ReDWeb", "MegaDepth", "HR-WSI", "TartanAir", "BlendedMVS", "DIML", "NYU"]


def test_all_lists_are_tested():
    assert list(blocks()) == ALL
    together = {}
    for tables in blocks().values():  # joined, as the page says
        for key, table in tables.items():
            together.setdefault(key, {}).update(table)
    assert len(together["img"]) == len(ALL) + 1


@pytest.mark.parametrize("name", ALL)
def test_list_of_the_page(tmp_path, name):
    mixdata = tmp_path / "mixdata.json"
    mixdata.write_text(json.dumps(blocks()[name]))
    make_tree(name, tmp_path)
    pairs, faults = list_pairs(tmp_path, mixdata)
    assert faults == []
    assert len(pairs) == (9 if "and" in name else 3)
    checked = check_pairs(pairs, 1)
    assert checked.faults == []
    assert warnings_of(pairs, checked) == []
    assert all(one.upright for one in checked.statistics)
    for target_range in (1, 255):
        source = LoadImagesDepth(pairs, 60, 40, [0.5] * 3, [0.5] * 3, ensure_multiple_of=1, target_range=target_range)
        for number in range(len(pairs)):
            _, target, mask = source[number]
            assert 0.5 < mask.mean() <= 1
            assert (np.diff(target[:, 30]) >= 0).all()  # nearer below
            assert (target.max() == 1) if target_range == 1 else (100 < target.max() <= 255)
            if name not in ("TartanAir", "DIML", "phone and render"):
                assert not mask[:, :8].any()
                assert mask[:, 8:].all()


def test_map_of_order_among_those_of_megadepth_has_no_ground_truth(tmp_path):
    (tmp_path / "mixdata.json").write_text(json.dumps(blocks()["MegaDepth"]))
    make_tree("MegaDepth", tmp_path)
    order = np.where(DEPTH > 10, 1, -1).astype(np.float32)
    write_bytes(tmp_path / "MegaDepth_v1/0001/dense1/depths/31_o.h5", hdf5(order))
    pairs, _ = list_pairs(tmp_path, tmp_path / "mixdata.json")
    checked = check_pairs(pairs, 1)
    assert [one.valid > 0 for one in checked.statistics] == [True, False, True]
    _, target, mask = LoadImagesDepth(pairs, 60, 40, [0.5] * 3, [0.5] * 3, ensure_multiple_of=1)[1]
    assert not mask.any()
    assert not target.any()


def test_check_of_the_example_prints_what_the_page_says(tmp_path, capsys):
    (tmp_path / "mixdata.json").write_text(json.dumps(blocks()["phone and render"]))
    make_tree("phone and render", tmp_path)
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out.split("Kitti")[0]
    assert printed in DOCS.read_text("utf-8")


def test_shipped_list_is_that_of_the_page():
    (shipped,) = read_mixdata(DOCS.parents[1] / "data/mixdata.json")
    redweb = blocks()["ReDWeb"]
    assert (shipped.images, shipped.depths) == (redweb["img"]["ReDWeb"], redweb["depth"]["ReDWeb"])
    assert (shipped.truth.kind, shipped.truth.invalid) == (redweb["kind"]["ReDWeb"], redweb["invalid"]["ReDWeb"])
