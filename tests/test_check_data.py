"""preprocess/check_data.py on small data folders: what it says, and its exit status."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from preprocess.check_data import main
from src.util import write_dpt, write_png16

SCRIPT = Path(__file__).resolve().parents[1] / "preprocess" / "check_data.py"


def write_image(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, array)[1].tobytes())


def write_training(root, count=3):
    (root / "mixdata.json").write_text(
        json.dumps({"img": {"RW": "/ReDWeb_V1/Imgs/*"}, "depth": {"RW": "/ReDWeb_V1/RDs/*"}})
    )
    for number in range(count):
        write_image(root / "ReDWeb_V1" / "Imgs" / f"{number}.jpg", np.full((6, 8, 3), 99, np.uint8))
        write_image(root / "ReDWeb_V1" / "RDs" / f"{number}.png", np.arange(48, dtype=np.uint8).reshape(6, 8))


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
        assert "3 samples; 0.jpg: 6 x 8, inverse depth 0..47 (uint8)" in output
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
    (tmp_path / "ReDWeb_V1" / "Imgs" / "1.jpg").unlink()
    assert main([str(tmp_path)]) == 1
    output = capsys.readouterr().out
    found = statuses(output)
    assert (found["Kitti"], found["training"]) == ("broken", "broken")
    assert f"    {drive / 'image' / '2.png'}: expected a file" in output
    assert f"    {tmp_path / 'ReDWeb_V1' / 'RDs' / '1.png'}: no image" in output


@pytest.mark.parametrize("victim", ["Kitti_raw_data/2011_09_26_drive_0002_sync/depth/2.png", "ReDWeb_V1/RDs/2.png"])
def test_damage_inside_files_needs_all(tmp_path, capsys, victim):
    write_training(tmp_path)
    write_kitti(tmp_path)
    path = tmp_path / victim
    path.write_bytes(path.read_bytes()[:-5])
    assert main([str(tmp_path)]) == 0
    capsys.readouterr()
    assert main([str(tmp_path), "--all"]) == 1
    output = capsys.readouterr().out
    assert list(statuses(output).values()).count("broken") == 1
    assert f"    {path}: expected an image, found" in output


def test_ground_truth_without_values_is_broken(tmp_path, capsys):
    drive = write_kitti(tmp_path, count=1)
    write_png16(drive / "depth" / "0.png", np.full((6, 8), 80 * 256, np.uint16))
    write_training(tmp_path, count=1)
    write_image(tmp_path / "ReDWeb_V1" / "RDs" / "0.png", np.full((6, 8), 7, np.uint8))
    assert main([str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "expected depth between 0 and 80 m, found none" in output
    assert "expected inverse depth, found 7 everywhere" in output


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
