"""The scripts that bring downloaded data sets into the documented layout: associate.py, deal.py and sintel.py."""

import math
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from preprocess import associate as associate_script
from preprocess import deal as deal_script
from preprocess import sintel as sintel_script
from preprocess.associate import associate, associate_files, read_listing
from preprocess.deal import Frame, read_frames
from preprocess.place import place_file
from src.common.errors import DataError, UsageError
from src.util import read_fields

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 120


def _write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _closest_first(first, second, max_difference):
    """The definition: all pairs, closest first (ties: earlier ones first), each stamp once."""
    pairs = sorted(
        (abs(a - b), a, b, i, j)
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        if abs(a - b) <= max_difference
    )
    used_first, used_second, taken = set(), set(), []
    for *_, i, j in pairs:
        if i not in used_first and j not in used_second:
            used_first.add(i)
            used_second.add(j)
            taken.append((i, j))
    return sorted(taken, key=lambda pair: first[pair[0]])


def test_associate_agrees_with_its_definition():
    rng = np.random.default_rng(0)
    found = 0
    for trial in range(300):
        first, second = (
            (1311870426 + rng.choice(200, rng.integers(0, 25), replace=trial % 3 == 0) / 8).tolist() for _ in range(2)
        )
        if trial % 2:
            first = [stamp + rng.uniform(-1, 1) for stamp in first]  # without ties
        window = float(rng.choice([0, 0.25, 1, 3, math.inf]))
        pairs = associate(first, second, window)
        assert pairs == _closest_first(first, second, window)
        found += len(pairs)
    assert found > 1000


def test_associate_by_hand():
    # 0.9 goes to 1.0, so 0.5 has to take 0.0; 3.0 finds nothing within the window.
    assert associate([0.5, 0.9, 3.0], [1.0, 0.0], 0.5) == [(0, 1), (1, 0)]
    assert associate([0.5, 0.9, 3.0], [1.0, 0.0], 0.4) == [(1, 0)]
    assert associate([0.5, 0.9, 3.0], [1.0, 0.0], 5.0) == [(0, 1), (1, 0)]


def test_associate_takes_a_pair_at_the_very_edge_of_the_window():
    rng = np.random.default_rng(2)
    for _ in range(1000):
        first, second = rng.uniform(0, 1), rng.uniform(0, 3)  # the difference may be rounded
        window = abs(first - second)
        assert associate([first], [second], window) == [(0, 0)]
        assert associate([first], [second], math.nextafter(window, 0)) == []


def test_associate_pairs_100000_stamps():
    rng = np.random.default_rng(1)
    first = 1e9 + np.arange(100_000) / 30
    second = first + rng.uniform(-0.01, 0.01, first.size)
    order = rng.permutation(first.size)
    pairs = associate(first.tolist(), second[order].tolist(), 0.02)
    assert pairs == list(enumerate(np.argsort(order).tolist()))


def test_read_listing_skips_comments_and_blank_lines(tmp_path):
    path = _write(tmp_path / "rgb.txt", "# color images\n# timestamp filename\n\n1.5 rgb/1.5.png\n  \n0.5\trgb/a.png\n")
    assert read_listing(path) == [(1.5, "rgb/1.5.png"), (0.5, "rgb/a.png")]


@pytest.mark.parametrize(
    "line",
    [
        "1.5 rgb/1.png",
        "1.5\trgb/1.png",
        "1.5,rgb/1.png",
        "1.5 , rgb/1.png ,",
        "rgb/1.png 1.5",
        "1.5 rgb/1.png 0.1 -0.2 nan",
        "1.5 rgb\\1.png",
        '"1.5";"rgb/1.png"',
        "\N{ZERO WIDTH NO-BREAK SPACE}1.5 rgb/1.png",
        "1.5e0 rgb/1.png\r",
        "1 1.5 rgb/1.png",
        "1;1.5;rgb/1.png;2.5",
        '"1.5,rgb/1.png"',
        "1.5 'rgb/1.png",
        "1.5 rgb/1.png infinity",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_other_programs(tmp_path, line, encoding):
    path = tmp_path / "rgb.txt"
    path.write_text(f"# head\n0.5 rgb/0.png\n{line}\n", encoding=encoding)
    assert read_listing(path) == [(0.5, "rgb/0.png"), (1.5, "rgb/1.png")]


def test_names_of_files_keep_what_belongs_to_them(tmp_path):
    path = _write(tmp_path / "rgb.txt", "1.5 rgb/it's.png\n2.5,\"my rgb/2, 3.png\"\n'3.5' 'a b.png' 1\n")
    assert read_listing(path) == [(1.5, "rgb/it's.png"), (2.5, "my rgb/2, 3.png"), (3.5, "a b.png")]


def test_a_list_that_was_joined_to_itself_names_no_picture_twice(tmp_path):
    for kind in ("rgb", "depth"):
        _write(tmp_path / f"{kind}.txt", f"# {kind}\n1.00 {kind}/1.png\n2.00 {kind}/2.png\n" * 2)
    associate_script.main([str(tmp_path)])
    assert (tmp_path / "associate.txt").read_text() == "rgb/1.png depth/1.png\nrgb/2.png depth/2.png\n"


def test_names_with_blanks_get_through_associate_txt(tmp_path):
    _write(tmp_path / "rgb.txt", '1.00 "my rgb/1.png"\n2.00 rgb/2.png\n')
    _write(tmp_path / "depth.txt", '1.01 "my depth/1,0.png"\n2.01 depth/2.png\n')
    associate_script.main([str(tmp_path)])
    lines = (tmp_path / "associate.txt").read_text().splitlines()
    assert lines == ['"my rgb/1.png" "my depth/1,0.png"', "rgb/2.png depth/2.png"]
    assert [fields for _, fields in read_fields(tmp_path / "associate.txt")] == [
        ["my rgb/1.png", "my depth/1,0.png"],
        ["rgb/2.png", "depth/2.png"],
    ]


@pytest.mark.parametrize(("case", "pairs"), [("bom", 1), ("comma", 2), ("extra", 1)])
def test_lists_that_once_failed(cases, tmp_path, capsys, case, pairs):
    folder = cases / "tum_listings" / case
    associate_script.main([str(folder), "--output", str(tmp_path / "associate.txt")])
    assert f"{pairs} pairs" in capsys.readouterr().out
    lines = (tmp_path / "associate.txt").read_text().splitlines()
    assert len(lines) == pairs
    assert lines[0] == "rgb/1311868164.363181.png depth/1311868164.373557.png"


@pytest.mark.parametrize(
    "line", ["1.5", "1.5 2.5", "rgb/1.png", "nan rgb/1.png", "inf rgb/1.png", "-1 rgb/1.png", ",;"]
)
def test_malformed_line_names_file_and_line(tmp_path, line):
    path = _write(tmp_path / "rgb.txt", f"# head\n1.0 rgb/1.png\n{line}\n")
    with pytest.raises(DataError, match=r"rgb\.txt: line 3: expected 'TIME FILE', found"):
        read_listing(path)


def test_listing_that_is_missing_empty_or_no_text(tmp_path):
    with pytest.raises(DataError, match=r"rgb\.txt: cannot be read: No such file"):
        read_listing(tmp_path / "rgb.txt")
    with pytest.raises(DataError, match="found none"):
        read_listing(_write(tmp_path / "rgb.txt", "# only this\n"))
    (tmp_path / "rgb.txt").write_bytes(b"\x89PNG\r\n\x1a\n\xff 1.0")
    with pytest.raises(DataError, match="line 1: expected 'TIME FILE'"):
        read_listing(tmp_path / "rgb.txt")


@pytest.fixture
def sequence(tmp_path):
    _write(tmp_path / "rgb.txt", "# c\n1.00 rgb/1.00.png\n2.00 rgb/2.00.png\n3.00 rgb/3.00.png\n")
    _write(tmp_path / "depth.txt", "# d\n1.01 depth/1.01.png\n2.05 depth/2.05.png\n2.99 depth/2.99.png\n")
    return tmp_path


def test_associate_script(sequence, capsys):
    associate_script.main([str(sequence)])
    expected = "rgb/1.00.png depth/1.01.png\nrgb/3.00.png depth/2.99.png\n"
    assert (sequence / "associate.txt").read_text() == expected
    assert "2 pairs of 3 colour and 3 depth pictures" in capsys.readouterr().out

    lists = [str(sequence / "rgb.txt"), str(sequence / "depth.txt")]
    output = sequence / "sub" / "pairs.txt"
    associate_script.main([*lists, "--offset", "-0.05", "--max_difference", "0.015", "--output", str(output)])
    assert output.read_text() == "rgb/2.00.png depth/2.05.png\n"


def test_associate_without_pairs_says_what_it_found(sequence):
    output = sequence / "associate.txt"
    with pytest.raises(DataError, match=r"found 101\.010000\.\.102\.990000 .* against 1\.000000\.\.3\.000000"):
        associate_files(sequence / "rgb.txt", sequence / "depth.txt", output, offset=100.0)
    assert not output.exists()


@pytest.mark.parametrize("arguments", [["a", "b", "c"], ["a", "--max_difference", "-1"], ["a", "--offset", "nan"]])
def test_associate_wrong_usage(arguments):
    with pytest.raises(UsageError, match="expected"):
        associate_script.main(arguments)


def test_place_file_copies_and_links(tmp_path):
    source, target = _write(tmp_path / "source.png", "one"), tmp_path / "sub" / "target.png"
    place_file(source, target, link=False)
    assert target.read_text() == "one"
    assert not target.is_symlink()
    place_file(source, target, link=True)
    assert target.is_symlink()
    assert target.samefile(source)
    place_file(source, target, link=False)  # a copy takes the place of the link, not of what it points to
    assert not target.is_symlink()
    target.write_text("two")
    assert source.read_text() == "one"


@pytest.mark.parametrize("link", [False, True])
def test_place_file_onto_itself_keeps_it(tmp_path, link):
    source = _write(tmp_path / "source.png", "one")
    place_file(source, source, link)
    assert not source.is_symlink()
    assert source.read_text() == "one"


def test_place_file_links_survive_another_working_folder(tmp_path, monkeypatch):
    _write(tmp_path / "raw" / "a.png", "one")
    monkeypatch.chdir(tmp_path)
    place_file(Path("raw/a.png"), Path("out/deep/a.png"), link=True)
    monkeypatch.chdir("/")
    assert (tmp_path / "out/deep/a.png").read_text() == "one"


def test_place_file_reports_the_system(tmp_path):
    with pytest.raises(DataError, match=r"b\.png: cannot be made from .*a\.png: No such file"):
        place_file(tmp_path / "a.png", tmp_path / "b.png", link=False)


DRIVE = "2011_09_26_drive_0002_sync"


@pytest.mark.parametrize(
    "line",
    [
        f"2011_09_26/{DRIVE} 0000000069 l",
        f"2011_09_26/{DRIVE} 69 l",
        f"{DRIVE} 69",
        f"2011_09_26/{DRIVE}/image_02/data/0000000069.png",
        f"2011_09_26/{DRIVE}/image_02/data/0000000069.jpg 2011_09_26/{DRIVE}/image_03/data/0000000069.jpg",
        f"2011_09_26/{DRIVE}/image_02/data/0000000069.png None 721.5377",
        f"kitti/raw/2011_09_26/{DRIVE}/image_02/data/0000000069.png",
        f"2011_09_26/{DRIVE},0000000069,l",
        f"2011_09_26/{DRIVE}/\t69\tl\t721.5",
        f"0000000069 2011_09_26/{DRIVE} l",
        f"l,69,{DRIVE}",
        f"2011_09_26\\{DRIVE}\\image_02\\data\\0000000069.png",
        f"2011_09_26/{DRIVE}/image_03/data/0000000069.png 2011_09_26/{DRIVE}/image_02/data/0000000069.png",
        f"{DRIVE}/proj_depth/groundtruth/image_02/0000000069.png 2011_09_26/{DRIVE}/image_02/data/0000000069.jpg",
        f'"{DRIVE}","0000000069.png"',
    ],
)
def test_every_form_of_a_list_line(tmp_path, line):
    path = _write(tmp_path / "list.txt", f"# list\n\n{line}\n{line}\n")
    assert read_frames(path) == [Frame(DRIVE, "0000000069")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (DRIVE, "expected 'DATE/DRIVE FRAME l'"),
        ("2011_09_26_drive_0002 69 l", "expected 'DATE/DRIVE FRAME l'"),
        (f"{DRIVE} x l", "expected 'DATE/DRIVE FRAME l'"),
        (f"{DRIVE} 12345678901 l", "expected 'DATE/DRIVE FRAME l'"),
        (f"2011_09_26/{DRIVE} 69 r", "expected the left camera .* found r"),
        (f"2011_09_26/{DRIVE}/image_03/data/0000000069.png", "expected the left camera .* found image_03"),
    ],
)
def test_malformed_list_line_names_file_and_line(tmp_path, line, message):
    path = _write(tmp_path / "list.txt", f"{DRIVE} 1\n{line}\n")
    with pytest.raises(DataError, match=rf"list\.txt: line 2: {message}"):
        read_frames(path)


@pytest.fixture
def kitti(tmp_path):
    """Frame 1 complete (val), 2 complete (train), 3 without depth, 4 with depth but without picture."""
    truth = "proj_depth/groundtruth/image_02"
    for number in (1, 2, 3):
        _write(tmp_path / f"raw/2011_09_26/{DRIVE}/image_02/data/{number:010d}.png", f"picture {number}")
    for split, number in (("val", 1), ("train", 2), ("train", 4)):
        _write(tmp_path / f"annotated/{split}/{DRIVE}/{truth}/{number:010d}.png", f"depth {number}")
    return tmp_path


def _deal(folder, lines, *options):
    frames = _write(folder / "list.txt", lines)
    paths = {"--raw": folder / "raw", "--annotated": folder / "annotated", "--frames": frames}
    arguments = [text for pair in paths.items() for text in map(str, pair)]
    return deal_script.main([*arguments, "--output", str(folder / "out"), *options])


@pytest.mark.parametrize("link", [False, True])
def test_deal_makes_the_layout(kitti, capsys, link):
    lines = f"{DRIVE} 1\n{DRIVE} 2\n{DRIVE} 3\n"
    status = _deal(kitti, lines, "--splits", "val", "train", *(["--link"] if link else []))
    made = {path.relative_to(kitti / "out" / DRIVE).as_posix(): path for path in (kitti / "out").rglob("*.png")}
    assert {name: path.read_text() for name, path in made.items()} == {
        "image/0000000001.png": "picture 1",
        "image/0000000002.png": "picture 2",
        "depth/0000000001.png": "depth 1",
        "depth/0000000002.png": "depth 2",
    }
    assert all(path.is_symlink() == link for path in made.values())
    out = capsys.readouterr().out
    assert f"no annotated depth for {DRIVE}: 0000000003\n" in out
    assert "3 frames listed, 2 with annotated depth in val, train\n" in out
    assert "2 frames made, 0 have depth but no picture" in out
    assert status == 0


def test_deal_takes_the_official_validation_set_unless_told_otherwise(kitti, capsys):
    assert _deal(kitti, f"{DRIVE} 1\n{DRIVE} 2\n{DRIVE} 3\n") == 0
    assert [path.name for path in (kitti / "out").rglob("*.png")] == ["0000000001.png"] * 2
    out = capsys.readouterr().out
    assert f"no annotated depth for {DRIVE}: 0000000002 0000000003\n" in out
    assert "3 frames listed, 1 with annotated depth in val\n" in out


def test_deal_names_frames_of_an_earlier_run(kitti, capsys):
    assert _deal(kitti, f"{DRIVE} 1\n{DRIVE} 2\n", "--splits", "val", "train") == 0
    capsys.readouterr()
    assert _deal(kitti, f"{DRIVE} 1\n{DRIVE} 2\n") == 1  # frame 2 has no depth in val, but is still there
    out = capsys.readouterr().out
    assert f"not made by this run, but in {kitti / 'out' / DRIVE}: 0000000002\n" in out
    assert f"{kitti / 'out'}: 1 other frames, which would be scored too: remove them\n" in out
    for kind in ("image", "depth"):
        (kitti / "out" / DRIVE / kind / "0000000002.png").unlink()
    assert _deal(kitti, f"{DRIVE} 1\n{DRIVE} 2\n") == 0
    assert "other frames" not in capsys.readouterr().out


def test_deal_names_missing_pictures(kitti, capsys):
    assert _deal(kitti, f"{DRIVE} 1\n{DRIVE} 4\n", "--splits", "train", "val") == 1
    out = capsys.readouterr().out
    assert f"no picture in {kitti}/raw/2011_09_26/{DRIVE}/image_02/data: 0000000004\n" in out
    assert "1 frames made, 1 have depth but no picture" in out


def test_deal_takes_pictures_as_jpeg(kitti):
    data = kitti / f"raw/2011_09_26/{DRIVE}/image_02/data"
    (data / "0000000001.png").rename(data / "0000000001.jpg")
    assert _deal(kitti, f"{DRIVE} 1\n") == 0
    made = sorted(path.relative_to(kitti / "out" / DRIVE).as_posix() for path in (kitti / "out").rglob("*.*g"))
    assert made == ["depth/0000000001.png", "image/0000000001.jpg"]


def test_deal_says_that_there_is_no_val_folder(kitti):
    annotated = kitti / "annotated"
    (annotated / "val").rename(kitti / "val")
    with pytest.raises(DataError, match=r"expected val/ with .*, found train/ \(--splits train takes it\)"):
        _deal(kitti, f"{DRIVE} 1\n")
    assert _deal(kitti, f"{DRIVE} 2\n", "--splits", "train", "val") == 0
    (annotated / "train").rename(kitti / "train")
    with pytest.raises(DataError, match=r"annotated: expected val/ with the annotated depth, found none"):
        _deal(kitti, f"{DRIVE} 1\n")
    annotated.rmdir()
    (kitti / "val").rename(annotated)
    with pytest.raises(DataError, match=rf"found drives such as {DRIVE}: --annotated wants the folder above"):
        _deal(kitti, f"{DRIVE} 1\n")


def test_deal_fails_when_nothing_was_made(kitti):
    assert _deal(kitti, f"{DRIVE} 3\n") == 1
    assert not (kitti / "out").exists()
    (kitti / "raw").rename(kitti / "another")
    with pytest.raises(DataError, match="raw: expected a folder, found none"):
        _deal(kitti, f"{DRIVE} 1\n")


def _fill_sintel(folder, frames="12"):
    for number in frames:
        frame = f"alley_1/frame_000{number}"
        _write(folder / f"depth/training/depth/{frame}.dpt", f"depth {number}")
        _write(folder / f"depth/training/depth_viz/{frame}.png")
        for kind in ("final_left", "final_right", "occlusions"):
            _write(folder / f"stereo/training/{kind}/{frame}.png", f"{kind} {number}")


def _zip(folder):
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))
    return path


def _join(depth, stereo, output, *options):
    return sintel_script.main(["--depth", str(depth), "--stereo", str(stereo), "--output", str(output), *options])


@pytest.mark.parametrize("form", ["folder", "training folder", "zip", "link"])
def test_sintel_joins_archives(tmp_path, capsys, form):
    _fill_sintel(tmp_path)
    sources = [tmp_path / "depth", tmp_path / "stereo"]
    if form == "zip":
        sources = [_zip(source) for source in sources]
    elif form == "training folder":
        sources = [source / "training" for source in sources]
    output = tmp_path / "out"
    assert _join(*sources, output, *(["--link"] if form == "link" else [])) == 0
    assert {path.relative_to(output).as_posix(): path.read_text() for path in output.rglob("*.*")} == {
        f"{kind}/alley_1/frame_000{number}.{suffix}": f"{kind} {number}"
        for number in "12"
        for kind, suffix in (("depth", "dpt"), ("final_left", "png"), ("occlusions", "png"))
    }
    assert all(path.is_symlink() == (form == "link") for path in output.rglob("*.*"))
    assert "2 frames joined, 0 left out" in capsys.readouterr().out


def test_sintel_names_unmatched_frames(tmp_path, capsys):
    _fill_sintel(tmp_path, "123")
    (tmp_path / "stereo/training/occlusions/alley_1/frame_0002.png").unlink()
    (tmp_path / "depth/training/depth/alley_1/frame_0003.dpt").unlink()
    assert _join(tmp_path / "depth", tmp_path / "stereo", tmp_path / "out") == 1
    out = capsys.readouterr().out
    assert "left out: alley_1/frame_0002 has no occlusions\nleft out: alley_1/frame_0003 has no depth\n" in out
    assert "1 frames joined, 2 left out" in out
    assert len(list((tmp_path / "out").rglob("*.*"))) == 3


def test_sintel_faults(tmp_path):
    _fill_sintel(tmp_path)
    depth, stereo = tmp_path / "depth", tmp_path / "stereo"
    with pytest.raises(DataError, match=r"expected training/depth/SCENE/frame_XXXX\.dpt, found none"):
        _join(stereo, depth, tmp_path / "out")
    with pytest.raises(DataError, match=r"nothing: expected a folder or a \.zip file"):
        _join(tmp_path / "nothing", stereo, tmp_path / "out")
    with pytest.raises(DataError, match=r"bad\.zip: expected a folder or a \.zip file"):
        _join(_write(tmp_path / "bad.zip"), stereo, tmp_path / "out")
    with pytest.raises(UsageError, match="--link needs an extracted folder"):
        _join(depth, _zip(stereo), tmp_path / "out", "--link")
    assert not (tmp_path / "out").exists()


def test_damaged_zip_leaves_no_half_file(tmp_path):
    _fill_sintel(tmp_path)
    path = _zip(tmp_path / "depth")
    name = "training/depth/alley_1/frame_0001.dpt"
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    content = bytearray(path.read_bytes())
    content[info.header_offset + 30 + len(name) + 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.dpt: cannot be made from .*depth\.zip/training/depth/alley_1/frame_0001"):
        place_file(zipfile.Path(path, name), tmp_path / "out" / "a.dpt", link=False)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("script", ["associate.py", "deal.py", "sintel.py"])
def test_scripts_run_from_any_folder(tmp_path, script):
    run = subprocess.run(
        [sys.executable, ROOT / "preprocess" / script, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert run.returncode == 0
    assert run.stdout.startswith("usage:")


def test_a_fault_is_one_line_and_a_status(tmp_path):
    run = subprocess.run(
        [sys.executable, ROOT / "preprocess" / "associate.py", tmp_path],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert run.returncode == 1
    assert run.stderr == f"error: {tmp_path}/rgb.txt: cannot be read: No such file or directory\n"
