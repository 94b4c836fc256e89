"""preprocess/check_data.py on small data folders: what it says, and its exit status."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from preprocess.check_data import main, spread_sample
from src.util import read_gray, write_dpt, write_png16
from src.utils.mixdata import Pair, check_pairs, list_pairs, warnings_of
from src.utils.truth import Truth

SCRIPT = Path(__file__).resolve().parents[1] / "preprocess" / "check_data.py"


def write_image(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, array)[1].tobytes())


def write_training(root, count=3, truth=None, **tables):
    """Writes pairs of one picture each; by default the ground truth grows from 0 in the first row to 58 in the last."""
    globs = {"img": {"RW": "/ReDWeb_V1/Imgs/*"}, "depth": {"RW": "/ReDWeb_V1/RDs/*"}}
    (root / "mixdata.json").write_text(json.dumps({**globs, **tables}))
    truth = np.repeat(np.arange(0, 60, 2, dtype=np.uint8)[:, None], 40, axis=1) if truth is None else truth
    for number in range(count):
        write_image(root / "ReDWeb_V1" / "Imgs" / f"{number:03}.jpg", np.full((30, 40, 3), 99, np.uint8))
        write_image(root / "ReDWeb_V1" / "RDs" / f"{number:03}.png", truth)


def write_kitti(root, count=3):
    drive = root / "Kitti_raw_data" / "2011_09_26_drive_0002_sync"
    for number in range(count):
        write_image(drive / "image" / f"{number}.png", np.full((6, 8, 3), 99, np.uint8))
        (drive / "depth").mkdir(exist_ok=True)
        units = np.zeros((6, 8), np.uint16)
        units[:3] = 512
        units[0, 0] = 1280
        write_png16(drive / "depth" / f"{number}.png", units)
    return drive


def statuses(output):
    """Data set -> status, from the printed report."""
    rows = [line.split() for line in output.splitlines() if not line.startswith(" ")]
    return {row[0]: row[1] for row in rows}


def test_sound_sets(tmp_path, capsys):
    write_training(tmp_path)
    write_kitti(tmp_path)
    (tmp_path / "DIW").mkdir()  # empty: not downloaded yet
    for arguments in ([str(tmp_path)], [str(tmp_path), "--all"]):
        assert main(arguments) == 0
        output = capsys.readouterr().out
        assert statuses(output) == {
            "training": "ready",
            "Kitti": "ready",
            **dict.fromkeys(("Sintel", "TUM", "NYU", "ETH3D", "DIW"), "missing"),
        }
        assert "training  ready    3 pairs, 3 read\n" in output
        summary = "RW: 3 pairs, 8 bit, 0..58, 100 % valid, inverse_depth; the lower part is nearer in 3 of 3 pictures"
        assert f"    {summary}\n" in output
        assert "warning" not in output
        sample = "2011_09_26_drive_0002_sync/0: 6 x 8, depth 2.00..5.00 m on 50.0 % of the pixels"
        assert f"3 samples; {sample}" in output
        assert f"{tmp_path / 'Sintel'}: expected" in output


def test_nothing_there(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert set(statuses(capsys.readouterr().out).values()) == {"missing"}
    (tmp_path / "mixdata.json").write_text(json.dumps({"img": {"RW": "/a/*"}, "depth": {"RW": "/b/*"}}))
    assert main([str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert set(statuses(output).values()) == {"missing"}
    assert "no file matches /a/*, /b/*" in output


def test_gone_files_are_found_without_decoding(tmp_path, capsys):
    write_training(tmp_path)
    drive = write_kitti(tmp_path)
    (drive / "image" / "2.png").unlink()
    (tmp_path / "ReDWeb_V1" / "Imgs" / "001.jpg").unlink()
    assert main([str(tmp_path)]) == 1
    output = capsys.readouterr().out
    found = statuses(output)
    assert (found["Kitti"], found["training"]) == ("broken", "broken")
    assert f"    {drive / 'image' / '2.png'}: expected a file" in output
    assert f"    {tmp_path / 'ReDWeb_V1/RDs/001.png'}: no image" in output


@pytest.mark.parametrize("victim", ["Kitti_raw_data/2011_09_26_drive_0002_sync/depth/2.png", "ReDWeb_V1/RDs/001.png"])
def test_damage_inside_files_that_are_not_read_needs_all(tmp_path, capsys, victim):
    write_training(tmp_path, count=30)  # the pairs 0, 1.25, 2.5 and so on are read
    write_kitti(tmp_path)
    path = tmp_path / victim
    damaged = path.read_bytes()[:-5]
    path.write_bytes(damaged)
    if path.stem == "001":
        path.write_bytes((path.parent / "000.png").read_bytes())
        path = path.with_name("004.png")
        path.write_bytes(damaged)
    assert main([str(tmp_path)]) == 0
    assert "training  ready    30 pairs, 24 read\n    RW: 30 pairs (24 read), 8 bit," in capsys.readouterr().out
    assert main([str(tmp_path), "--all"]) == 1
    output = capsys.readouterr().out
    assert list(statuses(output).values()).count("broken") == 1
    assert f"    {path}: expected an image, found" in output


def test_a_sample_of_each_training_set_is_spread_over_it():
    pairs = [Pair(name, str(i), "", "") for name, count in (("A", 48), ("B", 3), ("C", 25)) for i in range(count)]
    chosen = spread_sample(pairs)
    assert [index for index in chosen if index < 48] == list(range(0, 48, 2))
    assert [index for index in chosen if 48 <= index < 51] == [48, 49, 50]
    assert [index - 51 for index in chosen if index >= 51] == [*range(24)]  # 25 n / 24, rounded down


def test_a_set_that_is_upside_down_is_ready_but_warned_of(tmp_path, capsys):
    redweb = np.repeat(np.arange(58, -2, -2, dtype=np.uint8)[:, None], 40, axis=1)
    redweb[:, :4] = 255  # a tenth
    write_training(tmp_path, truth=redweb)
    assert main([str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert statuses(output)["training"] == "ready"
    assert "    warning: RW: in 3 of 3 pictures the upper part is nearer;" in output
    assert 'probably "kind": {"RW": "negative_disparity"}\n' in output
    assert 'if that means no ground truth: "invalid": {"RW": 255}\n' in output
    write_training(tmp_path, truth=redweb, kind={"RW": "negative_disparity"}, invalid={"RW": 255})
    assert main([str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "warning" not in output
    assert "0..58, 90 % valid, negative_disparity; the lower part is nearer in 3 of 3 pictures" in output


def as_redweb(folder, realdata):
    """Brings the real pairs into the convention of ReDWeb: 0 is nearest, 255 no ground truth."""
    shutil.copytree(realdata / "ReDWeb_V1", folder / "ReDWeb_V1")
    for path in (folder / "ReDWeb_V1/RDs").iterdir():
        write_image(path, 255 - read_gray(path))


def test_real_pairs_in_the_convention_of_redweb(repo, realdata, tmp_path, capsys):
    tables = json.loads((repo / "data/mixdata.json").read_text())
    as_redweb(tmp_path, realdata)
    (tmp_path / "mixdata.json").write_text(json.dumps(tables))
    assert main([str(tmp_path)]) == 0
    assert "warning" not in capsys.readouterr().out
    del tables["kind"]
    (tmp_path / "mixdata.json").write_text(json.dumps(tables))
    assert main([str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "warning: RW: in 10 of 10 pictures the upper part is nearer" in output
    assert output.count("warning") == 1


@pytest.mark.parametrize(
    ("images", "depths", "tables"),
    [
        ("/ReDWeb_V1/Imgs/*", "/ReDWeb_V1/RDs/*", {"invalid": {"X": 0}}),
        ("/Kitti_raw_data/*/image/*", "/Kitti_raw_data/*/depth/*", {"kind": {"X": "depth"}}),
        ("/TUM/*/rgb/*.000000.png", "/TUM/*/depth/*.010000.png", {"kind": {"X": "depth"}}),
    ],
)
def test_real_data_gives_no_false_alarm(realdata, tmp_path, images, depths, tables):
    path = tmp_path / "mixdata.json"
    path.write_text(json.dumps({"img": {"X": images}, "depth": {"X": depths}, **tables}))
    pairs, unpaired = list_pairs(realdata, path)
    checked = check_pairs(pairs, 2)
    assert (unpaired, checked.faults) == ([], [])
    assert warnings_of(pairs, checked) == []
    assert all(one.upright for one in checked.statistics)
    if images.startswith("/Kitti"):  # "kind" forgotten; of TUM two pictures are too few to say
        pairs = [replace(pair, truth=Truth("inverse_depth", 0)) for pair in pairs]
        (line,) = warnings_of(pairs, check_pairs(pairs, 2))
        assert line.endswith('probably "kind": {"X": "depth"}')


def test_a_mixture_of_another_list(tmp_path, capsys):
    write_training(tmp_path, count=3)
    for number in range(6):
        depth = np.repeat(np.arange(3000, 0, -100, dtype=np.uint16)[:, None], 40, axis=1)
        depth[:3] = 0
        write_image(tmp_path / f"phone/i/{number}.png", np.full((30, 40, 3), 99, np.uint8))
        write_image(tmp_path / f"phone/d/{number}.png", depth)
    tables = {
        "img": {"RW": "/ReDWeb_V1/Imgs/*", "phone": "/phone/i/*"},
        "depth": {"RW": "/ReDWeb_V1/RDs/*", "phone": "/phone/d/*"},
        "kind": {"phone": "depth"},
        "sky": {"phone": 0},
        "scale": {"phone": 0.001},
    }
    path = tmp_path / "other.json"
    path.write_text(json.dumps(tables))
    (tmp_path / "mixdata.json").unlink()
    assert main([str(tmp_path), "--mixdata", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "training  ready    9 pairs, 9 read"
    assert lines[1].startswith(
        "    RW: 3 pairs, 8 bit, 0..58, 100 % valid, inverse_depth; the lower part is nearer in 3"
    )
    assert lines[2].startswith(
        "    phone: 6 pairs, 16 bit, 0.1..2.7 after scaling by 0.001, 100 % valid (10 % sky), depth"
    )
    assert (
        lines[3]
        == "    mixture: 2 sets of equal shares; an epoch of 9 images goes through RW 1.5 times, phone 0.75 times"
    )
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "--mixdata", "gone.json"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr == "error: --mixdata gone.json: expected a list of training sets, found no such file\n"


def test_names_that_are_not_text(tmp_path):
    write_training(tmp_path, count=1)
    for folder, suffix in (("Imgs", b"jpg"), ("RDs", b"png")):
        (path,) = (tmp_path / "ReDWeb_V1" / folder).iterdir()
        os.rename(path, bytes(path.parent) + b"/caf\xe9." + suffix)
        if folder == "RDs":
            shutil.copy(bytes(path.parent) + b"/caf\xe9.png", bytes(path.parent) + b"/caf\xea.png")
    run = [sys.executable, str(SCRIPT), str(tmp_path)]
    result = subprocess.run(run, capture_output=True, check=False, timeout=60)
    assert (result.returncode, b"Traceback" in result.stderr) == (1, False)
    assert b'no image of "caf' in result.stdout
    assert b"RW: 1 pairs, 8 bit" in result.stdout


def test_ground_truth_without_values_is_broken(tmp_path, capsys):
    drive = write_kitti(tmp_path, count=1)
    write_png16(drive / "depth" / "0.png", np.full((6, 8), 80 * 256, np.uint16))
    write_training(tmp_path, count=1)
    write_image(tmp_path / "ReDWeb_V1" / "RDs" / "000.png", np.full((30, 40), 7, np.uint8))
    assert main([str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "expected depth between 0 and 80 m, found none" in output
    assert "RW: expected ground truth that varies, found 7 everywhere" in output


def test_ground_truth_of_one_value_and_sky_varies(tmp_path, capsys):
    truth = np.full((30, 40), 7, np.uint8)
    truth[:9] = 200
    write_training(tmp_path, count=1, truth=truth, sky={"RW": 200})
    assert main([str(tmp_path)]) == 0
    assert statuses(capsys.readouterr().out)["training"] == "ready"


def test_ground_truth_without_a_valid_pixel_is_no_constant(tmp_path, capsys):
    write_training(tmp_path, count=1, truth=np.full((30, 40), 7, np.uint8), invalid={"RW": 7})
    assert main([str(tmp_path)]) == 0
    assert "1 of 1 pictures have hardly a valid pixel" in capsys.readouterr().out


def test_wrong_layout_is_broken_not_missing(tmp_path, capsys):
    """Sintel unpacked without its scene folders: something is there, and the line says what was expected."""
    write_kitti(tmp_path)
    (tmp_path / "Sintel" / "depth").mkdir(parents=True)
    write_dpt(tmp_path / "Sintel" / "depth" / "frame_0001.dpt", np.ones((2, 2)))
    (tmp_path / "mixdata.json").write_text("{")
    assert main([str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert statuses(output)["Sintel"] == "broken"
    assert "expected Sintel as depth/SCENE/FRAME.dpt" in output
    assert statuses(output)["training"] == "broken"
    assert statuses(output)["Kitti"] == "ready"


def test_long_lists_of_faults_are_cut(tmp_path, capsys):
    drive = write_kitti(tmp_path, count=25)
    for number in range(23):
        (drive / "image" / f"{number}.png").unlink()
    main([str(tmp_path)])
    output = capsys.readouterr().out
    assert output.count("expected a file for sample") == 20
    assert "    ... and 3 more" in output


def test_as_a_script_from_another_folder(tmp_path):
    write_kitti(tmp_path)
    run = [sys.executable, str(SCRIPT)]
    result = subprocess.run([*run, "."], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    assert statuses(result.stdout)["Kitti"] == "ready"
    result = subprocess.run([*run, "gone"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 2
    assert result.stderr == "error: gone: expected the data folder, found none\n"
