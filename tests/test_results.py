"""The files of an evaluation: resumed, backed up, refused when they are of another one; its table and remarks."""

import csv
import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace

import pytest

from evaluation import open_one
from src.common.errors import DataError, MidasError, UsageError
from src.evaluation import results as eval_results
from src.evaluation.datasets import DATASETS
from src.evaluation.datasets.base import DatasetMissing
from src.evaluation.evaluator import Record, SetResult, summarise
from src.evaluation.report import faults, remarks
from src.evaluation.results import ResultFiles, details_path, settings_path
from src.evaluation.table import PUBLISHED, format_table

NAN = float("nan")

SETTINGS = {"eval_protocol": "paper", "layers": (1, 2), "ckpt_sha256": "ab"}
RECORDS = [
    Record(1 / 3, -2 / 3, 1e-17, 7, "Kitti", "2011_09_26_drive_0001_sync/0000000000", "delta1", 12.5, 1),
    Record(NAN, NAN, NAN, 0, "Kitti", "2011_09_26_drive_0001_sync/0000000001", "delta1", 3.0, 2),
    Record(0.1 + 0.2, 1.0, 0.0, 9, "Kitti", "2011_09_26_drive_0002_sync/0000000000", "delta1", 3.0, 3),
]


@pytest.fixture(scope="module")
def kitti(eval_data):
    return open_one(eval_data, "Kitti")


@pytest.fixture
def ann_file(tmp_path, kitti):
    """What is left of an evaluation killed in the third image of KITTI; Sintel was finished before."""
    path = tmp_path / "results" / "val.json"
    with ResultFiles(path, SETTINGS, [kitti]) as files:
        files.finish(SetResult("Sintel", "absrel", 0.3, 5, (), 0, 0))
        files.append(RECORDS[0])
        files.append(RECORDS[1])
    with open(details_path(path), "a") as file:
        file.write("Kitti,3,2011_09_26_dri")
    return path


def contents(ann_file):
    paths = (ann_file, details_path(ann_file), settings_path(ann_file))
    return [path.read_bytes() for path in paths if path.exists()]


def test_resumed_files_are_bit_equal(tmp_path, ann_file, kitti):
    with ResultFiles(ann_file, SETTINGS, [kitti], resume=True) as files:
        assert repr(files.records_of(kitti)) == repr(RECORDS[:2])  # repr: NaN is not equal to itself
        files.append(RECORDS[2])
        files.finish(summarise(kitti, [*files.records_of(kitti), RECORDS[2]], 0))
    other = tmp_path / "other" / "val.json"
    with ResultFiles(other, SETTINGS, [kitti]) as files:
        files.finish(SetResult("Sintel", "absrel", 0.3, 5, (), 0, 0))
        for record in RECORDS:
            files.append(record)
        files.finish(summarise(kitti, RECORDS, 0))
    assert contents(ann_file) == contents(other)
    assert json.loads(ann_file.read_text()) == {"Kitti": (1 / 3 + (0.1 + 0.2)) / 2, "Sintel": 0.3}
    assert list(json.loads(ann_file.read_text())) == ["Kitti", "Sintel"]
    assert (details_path(ann_file).name, settings_path(ann_file).name) == ("val_details.csv", "val_settings.json")


def test_details_are_plain_csv_and_settings_are_beside_them(ann_file, kitti):
    with open(details_path(ann_file), newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["set", "image", "metric", "value", "scale", "shift", "valid_pixels", "ms", "number"]
    assert list(rows[0].values()) == [
        "Kitti", RECORDS[0].image, "delta1", repr(1 / 3), repr(-2 / 3), "1e-17", "7", "12.5", "1"
    ]  # fmt: skip
    settings = json.loads(settings_path(ann_file).read_text())
    expected = {"eval_protocol": "paper", "layers": [1, 2], "ckpt_sha256": "ab", "data": {"Kitti": kitti.fingerprint()}}
    assert settings == expected


def test_new_evaluation_backs_up_the_files_of_the_last_one(ann_file, kitti):
    before = contents(ann_file)
    with ResultFiles(ann_file, SETTINGS, [kitti]) as files:
        assert files.records_of(kitti) == []
        assert not ann_file.exists()
        files.finish(SetResult("Kitti", "delta1", NAN, 0, (), 0, 3))
    assert ann_file.read_text() == "{}\n"  # no value is no number
    assert len(details_path(ann_file).read_text().splitlines()) == 1
    assert [path.name for path in files.backed_up] == [
        "val.previous.json", "val_details.previous.csv", "val_settings.previous.json"
    ]  # fmt: skip
    assert [path.read_bytes() for path in files.backed_up] == before


def test_inverted_predictions_are_counted_after_a_resume(tmp_path, kitti):
    scales = [-0.0, 0.0, -2.0]
    records = [replace(RECORDS[0], number=number, scale=scale) for number, scale in enumerate(scales, start=1)]
    samples = [kitti[index].name for index in range(3)]
    with ResultFiles(tmp_path / "val.json", SETTINGS, [kitti]) as files:
        for record, sample in zip(records, samples):
            files.append(replace(record, image=sample))
    with ResultFiles(tmp_path / "val.json", SETTINGS, [kitti], resume=True) as files:
        assert summarise(kitti, files.records_of(kitti), 0).inverted == 2


@pytest.mark.parametrize("change", ["touch", "add"])
def test_rows_are_not_used_for_other_data(copied_data, tmp_path, change):
    path = tmp_path / "val.json"
    with ResultFiles(path, SETTINGS, [open_one(copied_data, "Kitti")]) as files:
        files.append(replace(RECORDS[0], image=open_one(copied_data, "Kitti")[0].name))
    before = contents(path)
    picture = sorted((copied_data / "Kitti_raw_data").glob("*/image/*.png"))[-1]
    if change == "touch":
        os.utime(picture, ns=(0, 0))
    else:
        for kind in ("image", "depth"):
            other = picture.parents[1] / kind / picture.name
            shutil.copyfile(other, other.with_name("0000009999.png"))
    kitti, tum = open_one(copied_data, "Kitti"), open_one(copied_data, "TUM")
    with pytest.raises(UsageError, match="expected the files of Kitti as they were"):
        ResultFiles(path, SETTINGS, [kitti], resume=True)
    assert contents(path) == before
    with ResultFiles(path, SETTINGS, [tum], resume=True) as files:  # which has no rows yet
        assert files.records_of(tum) == []
    data = json.loads(settings_path(path).read_text())["data"]
    assert list(data) == ["Kitti", "TUM"]
    assert data["Kitti"] != kitti.fingerprint()


def test_a_full_disk_is_one_line(tmp_path, kitti, monkeypatch):
    def refuse(path, text):
        raise OSError(30, "Read-only file system")

    result = SetResult("Kitti", "delta1", 1.0, 1, (), 0, 0)
    with ResultFiles(tmp_path / "val.json", SETTINGS, [kitti]) as files, open("/dev/full", "a") as full:
        files._file.close()
        files._file, files._writer = full, csv.writer(full)
        with pytest.raises(MidasError, match=r"val_details\.csv: cannot be written: No space left on device$"):
            files.append(RECORDS[0])
        with suppress(OSError):
            full.close()
        monkeypatch.setattr(eval_results, "write_text", refuse)
        with pytest.raises(MidasError, match=r"val\.json: cannot be written: Read-only file system$"):
            files.finish(result)


def test_nothing_to_resume_is_a_new_evaluation(tmp_path, kitti):
    with ResultFiles(tmp_path / "val.json", SETTINGS, [kitti], resume=True) as files:
        assert files.records_of(kitti) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eval_protocol": "modelzoo"}, "found eval_protocol paper (now modelzoo)"),
        ({"ckpt_sha256": "cd"}, "found ckpt_sha256 ab (now cd)"),
        ({"layers": (1, 3)}, "found layers [1, 2] (now [1, 3])"),
        ({"added": 1}, "found added None (now 1)"),
    ],
)
def test_resume_of_another_evaluation_is_refused(ann_file, kitti, change, message):
    before = contents(ann_file)
    with pytest.raises(UsageError) as caught:
        ResultFiles(ann_file, {**SETTINGS, **change}, [kitti], resume=True)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(ann_file) == before


def damage_values(ann_file):
    ann_file.write_text('{"Kity": 1}')


def damage_settings(ann_file):
    settings_path(ann_file).write_text('{"eval_protocol": "paper"}')


def damage_header(ann_file):
    details_path(ann_file).write_text(details_path(ann_file).read_text().replace("set,", "dataset,"))


def damage_row(ann_file):
    details_path(ann_file).write_text(details_path(ann_file).read_text().replace("12.5", "quick"))


def remove_details(ann_file):
    details_path(ann_file).unlink()


def remove_settings(ann_file):
    settings_path(ann_file).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_values, "val.json: expected names of data sets and numbers, found 'Kity': 1"),
        (damage_settings, "val_settings.json: expected settings and data, found others"),
        (damage_header, "val_details.csv: line 1: expected the header set,image"),
        (damage_row, "val_details.csv: line 2: expected set,image"),
        (remove_details, "val_details.csv beside"),
        (remove_settings, "val_settings.json beside"),
    ],
)
def test_damaged_files_are_refused(ann_file, kitti, damage, message):
    damage(ann_file)
    before = contents(ann_file)
    with pytest.raises(UsageError) as caught:
        ResultFiles(ann_file, SETTINGS, [kitti], resume=True)
    assert message in str(caught.value)
    assert contents(ann_file) == before


def test_folder_that_cannot_be_written(tmp_path, kitti):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="ann_file: cannot write"):
        ResultFiles(tmp_path / "file" / "val.json", SETTINGS, [kitti])


def test_image_names_may_hold_any_character(ann_file, kitti):
    odd = replace(RECORDS[2], image='a\u2028b\x0b"c",\nd')
    with ResultFiles(ann_file, SETTINGS, [kitti], resume=True) as files:
        files.append(odd)
    with ResultFiles(ann_file, SETTINGS, [kitti], resume=True) as files:
        assert files.records_of(kitti)[2] == odd


def test_records_keep_every_bit(ann_file, kitti):
    tiny = replace(RECORDS[2], value=5e-324, scale=-1.7976931348623157e308)
    with ResultFiles(ann_file, SETTINGS, [kitti], resume=True) as files:
        files.append(tiny)
    with ResultFiles(ann_file, SETTINGS, [kitti], resume=True) as files:
        assert files.records_of(kitti)[2] == tiny


def test_table():
    results = [
        SetResult("Kitti", "delta1", 25.1234, 650, (), 0, 0),
        SetResult("DIW", "whdr", 0.131, 70000, (), 0, 4),
        SetResult("NYU", "delta1", NAN, 0, (), 0, 1),
    ]
    lines = format_table(results, "paper").splitlines()
    assert lines[0].split("  ")[0] == "set"
    assert [line.split()[0] for line in lines[2:5]] == ["Kitti", "DIW", "NYU"]
    assert lines[2].split()[-4:] == ["25.12", "24.222", "23.87", "23.9"]
    assert lines[3].split()[-4:] == ["0.131", "-", "-", "0.1246"]
    assert lines[4].split()[-4:] == ["-", "-", "-", "9.55"]
    assert lines[5] == "Less is better."
    assert "not reproduced here" in lines[6]
    assert "its columns do not compare" in lines[7]
    assert "images without a valid pixel as 0" in lines[8]
    assert "compare with its columns alone" in format_table(results, "modelzoo").splitlines()[7]
    assert set(PUBLISHED["paper, MIX 5"]) == set(DATASETS)


def test_table_without_published_figures():
    results = [SetResult("Kitti", "delta1", 25.1234, 8, (), 0, 0)]
    lines = format_table(results, "paper", show_published=False).splitlines()
    assert lines[0].split() == ["set", "images", "metric", "this", "run"]
    assert lines[2].split() == ["Kitti", "8", "delta>1.25,", "%", "25.12"]
    assert lines[3:] == ["Less is better."]


def test_remarks_and_faults():
    results = [
        SetResult("Kitti", "delta1", 25.0, 4, ("a", "b"), 2, 0),
        SetResult("NYU", "delta1", NAN, 0, (), 0, 1),
    ]
    assert remarks(results, "paper") == [
        "Kitti: left out of the mean, no valid pixel: 2 images (a, b)",
        "Kitti: 2 predictions are inverted (best scale < 0), scored like constant ones",
    ]
    assert remarks(results, "modelzoo")[1].endswith("accepted as they are")
    assert len(remarks(results, "modelzoo")) == 2
    assert faults(results, {"TUM": DatasetMissing("gone"), "DIW": DataError("cut")}) == [
        "NYU: 1 samples could not be evaluated, see above",
        "NYU: no image could be scored",
        "DIW: damaged and left out, see above",
    ]


def test_remark_on_a_network_that_predicts_far_as_large():
    tum, diw = SetResult("TUM", "delta1", 25.0, 3, (), 2, 0), SetResult("DIW", "whdr", 0.51, 3, (), 0, 0)
    words = "seems to predict far as large; --invert_output"
    assert remarks([tum, diw], "paper")[1:] == [
        f"TUM: this network {words} True turns it round",
        f"DIW: this network {words} True turns it round",
    ]
    assert remarks([diw], "paper", invert_output=True) == [
        f"DIW: the output, turned round, {words} False turns it round"
    ]
    assert remarks([diw], "modelzoo") == []  # which takes the pairs the other way round
    assert remarks([replace(diw, value=0.5), replace(diw, value=NAN)], "paper") == []


def test_names_of_images_need_not_be_text(tmp_path, kitti):
    name = os.fsdecode(b"caf\xe9/\xff")
    path = tmp_path / "val.json"
    with ResultFiles(path, SETTINGS, [kitti]) as files:
        files.append(replace(RECORDS[0], image=name))
    before = details_path(path).read_bytes()
    assert b"caf\xe9/\xff" in before
    with ResultFiles(path, SETTINGS, [kitti], resume=True) as files:
        assert [record.image for record in files.records_of(kitti)] == [name]
    assert details_path(path).read_bytes() == before
