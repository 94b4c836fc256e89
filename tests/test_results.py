"""The files of an evaluation: resumed, backed up, refused when they are of another one; its table and remarks."""

import csv
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import replace

import pytest

from evaluation import open_one
from src.common.errors import DataError, MidasError, UsageError
from src.common.names import PREDICTIONS, PROTOCOLS
from src.evaluation import results as eval_results
from src.evaluation.datasets import DATASETS
from src.evaluation.datasets.base import DatasetMissing
from src.evaluation.datasets.tum import FRAMES, SEQUENCE
from src.evaluation.evaluator import Record, SetResult, summarise
from src.evaluation.metric import BAD_SHARE
from src.evaluation.report import (
    faults,
    network_is_inverted,
    predictions_are_inverted,
    remarks,
    warnings_of,
)
from src.evaluation.results import ResultFiles, details_path, settings_path
from src.evaluation.table import PUBLISHED, format_table

NAN = float("nan")

SETTINGS = {"eval_protocol": "paper", "layers": (1, 2), "ckpt_sha256": "ab", "checkpoint": "w.ckpt"}


def record(number, value, scale=1.0, shift=0.0, compared=9, ms=3.0):
    details = (0.25, 0.75, 1.5) if compared else (NAN, NAN, NAN)
    constant = 60.0 if compared else NAN
    image = f"2011_09_26_drive_0001_sync/{number:010}"
    return Record(value, constant, scale, shift, compared, *details, "Kitti", image, BAD_SHARE, ms, number)


def result(dataset, value, scored, **others):
    fields = {"version": "", "constant": 60.0, "benchmark_images": DATASETS[dataset].benchmark_images}
    counts = {"empty": (), "inverted": 0, "faulty": 0}
    return SetResult(dataset, metric=DATASETS[dataset].metric, value=value, scored=scored, **fields | counts | others)


RECORDS = [record(1, 1 / 3, -2 / 3, 1e-17, 7, 12.5), record(2, NAN, NAN, NAN, 0), record(3, 0.1 + 0.2)]


@pytest.fixture(scope="module")
def kitti(eval_data):
    return open_one(eval_data, "Kitti")


@pytest.fixture
def ann_file(tmp_path, kitti):
    """What is left of an evaluation killed in the third image of KITTI; Sintel was finished before."""
    path = tmp_path / "results" / "val.json"
    with ResultFiles(path, SETTINGS, [kitti]) as files:
        files.finish(result("Sintel", 0.3, 5))
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
        files.finish(result("Sintel", 0.3, 5))
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
    assert rows[0] == {
        "set": "Kitti", "image": RECORDS[0].image, "metric": "delta>1.25", "value": repr(1 / 3), "constant": "60.0",
        "scale": repr(-2 / 3), "shift": "1e-17", "valid_pixels": "7", "AbsRel": "0.25", "delta<1.25": "0.75",
        "RMSE_m": "1.5", "ms": "12.5", "number": "1",
    }  # fmt: skip
    settings = json.loads(settings_path(ann_file).read_text())
    sintel = settings["sets"].pop("Sintel")
    assert settings == {
        "eval_protocol": "paper", "layers": [1, 2], "ckpt_sha256": "ab", "checkpoint": "w.ckpt",
        "data": {"Kitti": kitti.fingerprint()}, "sets": {},
    }  # fmt: skip
    assert {key: sintel[key] for key in ("metric", "value", "constant", "scored", "benchmark_images")} == {
        "metric": "AbsRel", "value": 0.3, "constant": 60.0, "scored": 5, "benchmark_images": 1064
    }  # fmt: skip


def test_a_resumed_evaluation_may_have_its_weights_elsewhere(ann_file, kitti):
    with ResultFiles(ann_file, {**SETTINGS, "checkpoint": "moved/w.ckpt"}, [kitti], resume=True) as files:
        assert len(files.records_of(kitti)) == 2
    settings = json.loads(settings_path(ann_file).read_text())
    assert settings["checkpoint"] == "moved/w.ckpt"
    assert list(settings["sets"]) == ["Sintel"]


def test_new_evaluation_backs_up_the_files_of_the_last_one(ann_file, kitti):
    before = contents(ann_file)
    with ResultFiles(ann_file, SETTINGS, [kitti]) as files:
        assert files.records_of(kitti) == []
        assert not ann_file.exists()
        files.finish(result("Kitti", NAN, 0, faulty=3))
    assert ann_file.read_text() == "{}\n"  # no value is no number
    assert len(details_path(ann_file).read_text().splitlines()) == 1
    assert [path.name for path in files.backed_up] == ["val.1.json", "val_details.1.csv", "val_settings.1.json"]
    assert [path.read_bytes() for path in files.backed_up] == before


def test_results_of_every_evaluation_are_kept(tmp_path, kitti):
    for value in range(12):
        with ResultFiles(tmp_path / "val.json", SETTINGS, [kitti]) as files:
            files.finish(result("Kitti", value, 3))
    assert files.backed_up[0].name == "val.11.json"
    kept = {int(path.name.split(".")[1]): json.loads(path.read_text()) for path in tmp_path.glob("val.*.json")}
    assert kept == {number: {"Kitti": number - 1} for number in range(1, 12)}
    # A number is that of one evaluation, in all three files.
    (tmp_path / "val.11.json").unlink()
    (tmp_path / "val_settings.11.json").unlink()
    with ResultFiles(tmp_path / "val.json", SETTINGS, [kitti]) as files:
        assert [path.name for path in files.backed_up] == ["val.12.json", "val_details.12.csv", "val_settings.12.json"]


def test_inverted_predictions_are_counted_after_a_resume(tmp_path, kitti):
    scales = [-1e-300, 0.0, -2.0]
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
    with pytest.raises(
        UsageError, match=r"expected the files of Kitti as they were .* without --resume True they are evaluated anew"
    ):
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

    with ResultFiles(tmp_path / "val.json", SETTINGS, [kitti]) as files, open("/dev/full", "a") as full:
        files._file.close()
        files._file, files._writer = full, csv.writer(full)
        with pytest.raises(MidasError, match=r"val_details\.csv: cannot be written: No space left on device$"):
            files.append(RECORDS[0])
        with suppress(OSError):
            full.close()
        monkeypatch.setattr(eval_results, "write_text", refuse)
        with pytest.raises(MidasError, match=r"val_settings\.json: cannot be written: Read-only file system$"):
            files.finish(result("Kitti", 1.0, 1))


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
        (lambda path: settings_path(path).write_text('{"data": {}, "sets": 1}'), "settings and data, found others"),
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
    with pytest.raises(UsageError, match="the results cannot be written there"):
        ResultFiles(tmp_path / "file" / "val.json", SETTINGS, [kitti])


def test_folder_in_the_place_of_the_results_is_left_alone(tmp_path, kitti):
    folder = tmp_path / "results"
    folder.mkdir()
    with pytest.raises(UsageError, match="expected a file for the results, found a folder"):
        ResultFiles(folder, SETTINGS, [kitti])
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_dots_in_a_name_belong_to_it(tmp_path, kitti):
    assert details_path("a/val.JSON").name == "val_details.csv"
    assert settings_path("a/val.2.json").name == "val.2_settings.json"
    for name in ("net.v1", "net.v2"):
        with ResultFiles(tmp_path / name, SETTINGS, [kitti], resume=True) as files:
            assert files.records_of(kitti) == []
            files.append(RECORDS[0])
            files.finish(result("Kitti", 1.0, 1))
        assert files.backed_up == []
    with ResultFiles(tmp_path / "net.v1", SETTINGS, [kitti]) as files:
        assert [path.name for path in files.backed_up] == ["net.1.v1", "net.v1_details.1.csv", "net.v1_settings.1.json"]


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


def cells(table):
    """First column -> the other cells of every line of a table above its notes."""
    rows = [re.split(r"\s{2,}", line.rstrip()) for line in table.partition("\nLess is better")[0].splitlines()]
    return {row[0]: row[1:] for row in rows}


def notes(table):
    return table[table.index("Less is better") :].splitlines()[1:]


def test_table():
    results = [
        result("Kitti", 25.1234, 161),
        result("DIW", 0.131, 74440, empty=("a",), constant=1.0),
        result("NYU", NAN, 0, faulty=1, constant=NAN),
    ]
    table = format_table(results, "paper")
    assert cells(table) == {
        "": ["Kitti", "DIW", "NYU"],
        "metric": ["delta>1.25, %", "WHDR, share", "delta>1.25, %"],
        "images": ["161 of 161", "74440 of 74441", "0 of 654"],
        "-" * len(table.splitlines()[3]): [],
        "this run": ["25.12", "0.131", "-"],
        "a constant prediction": ["60", "1", "-"],
        "MiDaS v2.1 large": ["16.08", "0.1295", "(8.71)"],
        "paper, MIX 5": ["23.9", "0.1246", "(9.55)"],
        "paper, ReDWeb alone": ["27.95", "(0.1459)", "(18.74)"],
        "2021 suite, Ascend 910": ["(24.222)", "-", "-"],
        "2021 suite, V100": ["(23.87)", "-", "-"],
    }
    assert notes(table)[:5] == [
        "A constant prediction makes ties of all pairs, which count as wrong; guessing gets 0.5.",
        "Figures in brackets do not compare with this run:",
        "- NYU: this run has 0 images, the benchmark 654",
        "- DIW: the paper scored its network of ReDWeb alone on a validation subset of it",
        "- the 2021 suite scored by its own protocol (eval_protocol modelzoo)",
    ]
    assert "not reproduced here" in notes(table)[5]
    resized = format_table(results, "paper", fixed_size=True)
    assert cells(resized)["paper, MIX 5"] == ["(23.9)", "(0.1246)", "(9.55)"]
    assert "- this run resized all images to one size, the others kept their aspect ratio" in notes(resized)
    for published in PUBLISHED.values():
        assert set(published.figures) in (set(DATASETS), {"Kitti", "Sintel", "TUM"})


def test_a_part_of_a_benchmark_does_not_compare():
    for scored, expected in ((161, "23.9"), (160, "(23.9)"), (175, "(23.9)")):
        table = format_table([result("Kitti", 25.0, scored)], "paper")
        assert cells(table)["paper, MIX 5"] == [expected]
        assert (f"- Kitti: this run has {scored} images, the benchmark 161" in notes(table)) == (scored != 161)
    table = format_table([result("Kitti", 25.0, 161, empty=("a",))], "paper")
    assert "- Kitti: this run has 162 images, the benchmark 161" in notes(table)
    assert cells(format_table([result("Kitti", 25.0, 161)], "modelzoo"))["paper, MIX 5"] == ["(23.9)"]
    assert cells(format_table([result("Kitti", 25.0, 161)], "modelzoo"))["2021 suite, V100"] == ["23.87"]


def test_figures_of_the_two_versions_of_tum_do_not_mix():
    sequence = result("TUM", 15.0, 2, version=SEQUENCE, benchmark_images=2)
    table = format_table([sequence], "modelzoo")
    assert cells(table)["images"] == ["2 of 2"]
    assert cells(table)["2021 suite, Ascend 910"] == ["(15.08)"]
    assert cells(table)["paper, MIX 5"] == ["(14.29)"]
    assert notes(table)[0] == "TUM: scored on rgbd_dataset_freiburg2_desk_with_person"
    assert f"- TUM: this run scored {SEQUENCE}, the paper {FRAMES}" in notes(table)
    assert "- TUM: images are counted against associate.txt; how many of the sequence the 2021 suite scored" in table
    frames = format_table([result("TUM", 15.0, 1815, version=FRAMES)], "paper")
    assert cells(frames)["paper, MIX 5"] == ["14.29"]
    assert cells(frames)["2021 suite, Ascend 910"] == ["(15.08)"]
    assert cells(format_table([result("TUM", 15.0, 1814, version=FRAMES)], "paper"))["paper, MIX 5"] == ["(14.29)"]


def test_table_without_published_figures():
    table = format_table([result("Kitti", 25.1234, 8)], "paper", show_published=False)
    assert list(cells(table)) == ["", "metric", "images", table.splitlines()[3], "this run", "a constant prediction"]
    assert cells(table)["images"] == ["8"]
    assert notes(table) == []


def test_remarks_and_faults():
    results = [result("Kitti", 25.0, 4, empty=("a", "b"), inverted=2), result("NYU", NAN, 0, faulty=1)]
    assert remarks(results) == ["Kitti: left out of the mean, no valid pixel: 2 images (a, b)"]
    for protocol in PROTOCOLS:
        assert warnings_of(results, protocol, "upside down") == [
            "Kitti: 2 of 4 predictions are inverted: their fit has a negative scale, with which they are scored"
        ]
    assert faults(results, {"TUM": DatasetMissing("gone"), "DIW": DataError("cut")}) == [
        "NYU: 1 samples could not be evaluated, see above",
        "NYU: no image could be scored",
        "DIW: damaged and left out, see above",
    ]


def test_warning_of_a_network_that_predicts_far_as_large():
    tum, diw = result("TUM", 25.0, 3, inverted=2), result("DIW", 0.61, 100)
    assert warnings_of([tum, diw], "paper", "upside down")[1:] == ["TUM: upside down", "DIW: upside down"]
    assert warnings_of([diw], "modelzoo", "upside down") == []  # which takes the pairs the other way round
    words = "seems to predict far as large; --invert_output"
    assert network_is_inverted(False).startswith(f"this network {words} True turns it round")
    assert network_is_inverted(True).startswith(f"the output, turned round, {words} False turns it round")
    for kind, other in (PREDICTIONS, PREDICTIONS[::-1]):
        assert f"--prediction {other}" in predictions_are_inverted(kind)
    by_chance = [replace(diw, value=0.59), replace(diw, value=1.0, scored=3), replace(diw, value=NAN, scored=0)]
    assert warnings_of(by_chance, "paper", "upside down") == []


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
