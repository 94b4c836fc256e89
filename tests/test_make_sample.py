"""preprocess/make_sample.py and scenes.py: depth against formulas, files against the readers, and what is replaced."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import preprocess.make_sample as maker
from preprocess.make_sample import hidden_from_right, make_sample, redweb_values
from preprocess.scenes import MAX_DEPTH_M, Camera, Scene, Solid, draw_scene, render, render_scene
from src.common.errors import UsageError
from src.evaluation.datasets import DATASETS, Diw, Kitti, Nyu, Sintel, Tum
from src.evaluation.metric import WHDR
from src.util import read_gray, read_image
from src.utils.mixdata import check_pairs, list_pairs, warnings_of
from src.utils.truth import inverse_depth_of

SIZE = (96, 72)
FOLDERS = {"Kitti": "Kitti_raw_data"}


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    output = tmp_path_factory.mktemp("sample") / "made"
    assert make_sample(output, train=3, eval_count=2, seed=5, size=SIZE)
    return output


def _plain(centre, half_size, colour, yaw=0.0, is_round=False):
    """A solid without texture."""
    return Solid(np.array(centre), np.array(half_size), yaw, np.array(colour), np.inf, is_round)


def _ball(*centre, colour=(1.0, 0.0, 0.0)):
    return _plain(centre, [1.0, 1.0, 1.0], colour, is_round=True)


def _scene(solids, camera):
    """A grey hall, 20 m wide, 10 m high, from 5 m behind the camera to 30 m before it, lit from above."""
    hull = _plain([0.0, -5.0, 12.5], [10.0, 5.0, 17.5], [0.5, 0.5, 0.5])
    return Scene(hull, solids, np.array([0.0, -9.9, 5.0]), camera)


def _camera(yaw=0.0, pitch=0.0, height=1.5, focal=60.0):
    return Camera(np.array([0.0, -height, 0.0]), yaw, pitch, focal)


def test_depth_of_ground_ceiling_and_end_wall_follow_the_formula():
    height_m, pitch, focal = 1.5, np.radians(10), 60.0
    _, depth, _ = render(_scene([], _camera(0.0, pitch, height_m, focal)), 60, 80)
    below_axis = (np.arange(60) + 0.5 - 30) / focal
    # A ray of slope v below the axis of a camera pitched down by p falls v cos p + sin p and advances cos p - v sin p
    # per metre along the axis: it meets the ground at h / fall, the ceiling at (10 - h) / -fall, the wall at
    # 30 / advance, whichever comes first.
    fall = below_axis * np.cos(pitch) + np.sin(pitch)
    advance = np.cos(pitch) - below_axis * np.sin(pitch)
    expected = np.minimum(30 / advance, np.where(fall > 0, height_m, 10 - height_m) / np.abs(fall))
    assert (expected == height_m / fall).sum() > 20
    assert (expected == 30 / advance).sum() > 5
    assert (expected == (10 - height_m) / -fall).sum() > 0
    np.testing.assert_allclose(depth[:, 40], expected, rtol=1e-6)


def test_depth_of_a_sphere_on_the_axis():
    _, depth, _ = render(_scene([_ball(0.0, -1.5, 8.0)], _camera()), 61, 81)  # odd: the middle pixel lies on the axis
    assert depth[30, 40] == pytest.approx(7.0)
    # Six pixels to the right: x = 0.1 z and x^2 + (z - 8)^2 = 1.
    assert depth[30, 46] == pytest.approx((8 - np.sqrt(64 - 1.01 * 63)) / 1.01, rel=1e-6)
    # Its outline is where the ray is tangent: radius of the disc = f / sqrt(8^2 - 1) pixels.
    columns = np.flatnonzero(depth[30] < 8)
    radius = 60 / np.sqrt(63)
    assert (columns.min(), columns.max()) == (int(np.ceil(40 - radius)), int(40 + radius))


def test_pixels_reproject_onto_the_surfaces_that_the_picture_shows():
    ball, turn = _ball(1.0, -1.0, 9.0), 0.5
    crate = _plain([-1.0, -1.0, 7.0], [0.8, 1.0, 0.5], [0.0, 0.0, 1.0], turn)
    egg = _plain([2.5, -1.2, 7.0], [0.4, 1.2, 0.7], [0.0, 1.0, 0.0], turn, is_round=True)
    yaw, pitch = np.radians(5), np.radians(7)
    image, depth, seen = render(_scene([ball, crate, egg], _camera(yaw, pitch)), 60, 80)
    x, y = np.meshgrid((np.arange(80) + 0.5 - 40) / 60, (np.arange(60) + 0.5 - 30) / 60)
    in_camera = np.stack([x, y, np.ones_like(x)]) * depth
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    points = np.einsum("ij,jhw->hwi", about_y @ about_x, in_camera) + np.array([0, -1.5, 0])
    np.testing.assert_allclose(points, seen.T.reshape(60, 80, 3), atol=1e-5)

    red, green, blue = (image[..., channel] > image[..., channel - 1] for channel in range(3))
    assert min(red.sum(), green.sum(), blue.sum()) > 50
    np.testing.assert_allclose(np.linalg.norm(points[red] - ball.centre, axis=1), 1.0, atol=1e-5)

    def in_axes_of(solid, points):
        local = points - solid.centre
        sideways = np.cos(turn) * local[:, 0] - np.sin(turn) * local[:, 2]
        forward = np.sin(turn) * local[:, 0] + np.cos(turn) * local[:, 2]
        return np.stack([sideways, local[:, 1], forward], axis=1) / solid.half_size

    np.testing.assert_allclose(np.abs(in_axes_of(crate, points[blue])).max(axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(in_axes_of(egg, points[green]), axis=1), 1.0, atol=1e-5)
    rest = points[~red & ~green & ~blue]
    hall = np.stack([np.abs(rest[:, 0]) / 10, np.abs(rest[:, 1] + 5) / 5, np.abs(rest[:, 2] - 12.5) / 17.5])
    np.testing.assert_allclose(hall.max(axis=0), 1.0, atol=1e-5)


def test_surfaces_facing_the_light_are_brighter_and_things_cast_shadows():
    ball = _ball(0.0, -2.0, 5.0, colour=(0.5, 0.5, 0.5))  # straight below the lamp
    image, _, points = render(_scene([ball], _camera(pitch=np.radians(15), focal=40)), 60, 80)
    points = points.T.reshape(60, 80, 3)
    brightness = image[..., 0].astype(int)
    on_ball = np.abs(np.linalg.norm(points - ball.centre, axis=-1) - 1) < 1e-6
    up = -(points[..., 1] + 2.0)
    assert brightness[on_ball & (up > 0.6)].min() > brightness[on_ball & (up < 0)].max()
    on_ground = np.abs(points[..., 1]) < 1e-9
    # The lamp is 9.9 m up, the ball's outline as the lamp sees it spans asin(1 / 7.9) about the vertical.
    from_foot = np.hypot(points[..., 0], points[..., 2] - 5.0)
    edge = 9.9 * np.tan(np.arcsin(1 / 7.9))
    shade, lit = on_ground & (from_foot < edge - 0.01), on_ground & (from_foot > edge + 0.01) & (from_foot < 3)
    assert shade.sum() > 20
    assert brightness[shade].max() < 0.8 * brightness[lit].min()


def test_only_what_stands_between_hides():
    scene = _scene([_ball(0.0, -5.0, 10.0)], _camera())
    points = np.array([[0.0, -5.0, z] for z in (2.0, 8.9, 9.0, 11.0, 11.1, 20.0)]).T  # 9 and 11: on the ball
    before, behind = np.array([0.0, -5.0, 5.0]), np.array([0.0, -5.0, 25.0])  # the ball is beyond `before` for z = 2
    assert scene.is_hidden(points, before).tolist() == [False, False, False, True, True, True]
    assert scene.is_hidden(points, behind).tolist() == [True, True, True, False, False, False]


def test_hidden_from_the_right_eye_agrees_with_rendering_the_right_view():
    height, width = 120, 240
    compared = hidden_pixels = 0
    for seed in range(3):
        scene = draw_scene(np.random.default_rng(seed), height, width, "street")
        left = scene.camera
        _, depth, points = render(scene, height, width)
        hidden = hidden_from_right(scene, points).reshape(height, width)
        right_eye = left.position + maker.STEREO_BASELINE_M * left.axes()[:, 0]
        _, other, _ = render(replace(scene, camera=replace(left, position=right_eye)), height, width)
        rows, columns = np.indices((height, width))
        disparity = left.focal_px * maker.STEREO_BASELINE_M / depth
        low = np.floor(columns - disparity).astype(int)
        seen = low >= 0
        # The neighbours of where the point would appear: clearly in front of it on both sides, or at its depth.
        pair = np.stack([other[rows, np.maximum(low, 0)], other[rows, np.minimum(np.maximum(low, 0) + 1, width - 1)]])
        covered = seen & (pair.max(axis=0) < 0.97 * depth)
        open_ = seen & (np.abs(pair / depth - 1).max(axis=0) < 0.01)
        assert hidden[covered].mean() > 0.98
        assert hidden[open_].mean() < 0.002
        compared += (covered | open_).sum()
        hidden_pixels += covered.sum()
    assert compared > 0.8 * 3 * height * width
    assert hidden_pixels > 300


@pytest.mark.parametrize("setting", ["room", "street"])
@pytest.mark.parametrize(("height", "width"), [(30, 40), (20, 66), (40, 30)])
def test_depths_stay_below_the_cap_of_the_setting(setting, height, width):
    for seed in range(40):
        image, depth = render_scene(np.random.default_rng(seed), height, width, setting)
        assert image.shape == (height, width, 3)
        assert image.dtype == np.uint8
        assert depth.shape == (height, width)
        assert depth.dtype == np.float32
        assert depth.min() > 0.2
        assert depth.max() < MAX_DEPTH_M[setting]
        assert depth.max() > 1.5 * depth.min()
        assert image.std() > 10


def test_same_seed_same_arrays():
    first, again, other = (render_scene(np.random.default_rng(seed), 48, 64) for seed in (3, 3, 4))
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1].tobytes() == again[1].tobytes()
    assert (first[0] != other[0]).mean() > 0.5


def test_same_settings_same_files_whatever_the_counts(sample, tmp_path):
    make_sample(tmp_path, train=1, eval_count=1, seed=5, size=SIZE)
    compared = 0
    for path in tmp_path.rglob("*.*"):
        if path.suffix in (".jpg", ".png", ".JPG", ".dpt", ".thumb"):
            assert path.read_bytes() == (sample / path.relative_to(tmp_path)).read_bytes()
            compared += 1
    assert compared == 2 + 2 + 2 + 3 + 2 + 1
    one, two = Nyu(tmp_path / "NYU")[0], Nyu(sample / "NYU")[0]
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.depth, two.depth)


def test_no_picture_occurs_twice(sample):
    pictures = [path.read_bytes() for path in sample.rglob("*.*") if path.suffix in (".jpg", ".JPG", ".thumb")]
    assert len(pictures) == 3 + 4 + 2
    assert len(set(pictures)) == len(pictures)


def test_redweb_values_by_hand():
    depth = np.array([[1.0, 2.0], [4.0, 4.0], [0.1, 99]], np.float32)
    holes = np.array([[False, False], [False, False], [True, True]])
    values = redweb_values(depth, holes)
    assert values.dtype == np.uint8
    # 1, 0.5 and 0.25 on 0.25..1 are 1, 1/3 and 0; 254 times what they lack is 0, 169.3 and 254.
    np.testing.assert_array_equal(values, [[0, 169], [254, 254], [255, 255]])


def test_training_pairs(sample):
    pairs, unpaired = list_pairs(sample, sample / "mixdata.json")
    assert len(pairs) == 3
    for pair in pairs:
        assert read_image(pair.image_path).shape == (SIZE[1], SIZE[0], 3)
        values = read_gray(pair.depth_path)
        assert values.dtype == np.uint8
        assert (values[values != 255].min(), values[values != 255].max()) == (0, 254)
        assert 0.05 < (values == 255).mean() < 0.15
    checked = check_pairs(pairs, 1)
    assert unpaired + checked.faults + warnings_of(pairs, checked) == []
    assert [one.upright for one in checked.statistics] == [True] * 3


def test_training_target_is_inverse_depth(tmp_path, monkeypatch):
    depths = []

    def recording(*arguments):
        image, depth = render_scene(*arguments)
        depths.append(depth)
        return image, depth

    monkeypatch.setattr(maker, "render_scene", recording)
    make_sample(tmp_path, train=2, eval_count=0, seed=3, size=SIZE)
    pairs, _ = list_pairs(tmp_path, tmp_path / "mixdata.json")
    for pair, depth in zip(pairs, depths):
        target, valid = inverse_depth_of(read_gray(pair.depth_path), pair.truth)
        inverse = 1 / depth[valid]
        expected = np.interp(inverse, (inverse.min(), inverse.max()), (1, 255))
        np.testing.assert_allclose(target[valid], expected, rtol=0, atol=0.51)  # half a unit and float32


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("protocol", ["paper", "modelzoo"])
def test_every_reader_reads_its_set(sample, name, protocol):
    dataset = DATASETS[name](sample / FOLDERS.get(name, name), protocol)
    assert len(dataset) == 2
    for index in range(2):
        item = dataset[index]
        assert item.image.std() > 5
        if dataset.metric != WHDR:
            assert item.valid.sum() > 20


def test_real_gaps_and_sizes(sample):
    kitti = Kitti(sample / "Kitti_raw_data")[0]
    assert kitti.image.shape[1] / kitti.image.shape[0] == pytest.approx(1242 / 375, rel=0.03)
    assert 0.05 < kitti.valid.mean() < 0.3
    for dataset in (Tum(sample / "TUM"), Nyu(sample / "NYU")):
        assert 0.8 < dataset[0].valid.mean() < 0.95
    assert Sintel(sample / "Sintel")[0].valid.all()


def test_nyu_test_pictures_are_counted_from_one(sample):
    assert [Nyu(sample / "NYU")[index].name for index in range(2)] == ["0001", "0002"]


def test_diw_relations_agree_with_depth(tmp_path, monkeypatch):
    depths = []

    def recording(*arguments):
        image, depth = render_scene(*arguments)
        depths.append(depth)
        return image, depth

    monkeypatch.setattr(maker, "render_scene", recording)
    make_sample(tmp_path, train=0, eval_count=0, diw_count=8, seed=2, size=SIZE)
    dataset = Diw(tmp_path / "DIW")
    relations = []
    for item, depth in zip(dataset, depths):
        assert item.image.shape[:2] == depth.shape
        (y1, x1, y2, x2), relation = item.points[0], item.relation[0]
        assert (depth[y1, x1] / depth[y2, x2]) ** relation > 1.1
        relations.append(relation)
    assert set(relations) == {1, -1}
    assert len(relations) == 8


def test_diw_has_its_own_count(tmp_path):
    settings = {"train": 0, "eval_count": 1, "seed": 5, "size": (40, 32)}
    pictures = tmp_path / "DIW" / "DIW_test"
    assert make_sample(tmp_path, **settings)
    first = (pictures / "sample_00000.thumb").read_bytes()
    assert not make_sample(tmp_path, **settings, diw_count=1)  # the default: as many as the other sets
    assert make_sample(tmp_path, **settings, diw_count=3)
    assert len(Diw(tmp_path / "DIW")) == len(list(pictures.iterdir())) == 3
    assert len(Nyu(tmp_path / "NYU")) == 1
    assert (pictures / "sample_00000.thumb").read_bytes() == first
    assert make_sample(tmp_path, **settings, diw_count=0)
    assert not make_sample(tmp_path, **settings, diw_count=0)
    assert not (tmp_path / "DIW").exists()
    assert make_sample(tmp_path, **{**settings, "eval_count": 0}, diw_count=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["DIW", "sample.json"]


def test_a_complete_sample_is_reused_and_another_replaced(tmp_path):
    settings = {"train": 2, "eval_count": 0, "seed": 1, "size": (40, 32)}
    assert make_sample(tmp_path, **settings)
    picture = tmp_path / "ReDWeb_V1" / "Imgs" / "sample_00000.jpg"
    foreign = tmp_path / "val.json"
    foreign.write_text("{}")
    before = picture.stat().st_mtime_ns
    assert not make_sample(tmp_path, **settings)
    assert picture.stat().st_mtime_ns == before
    assert make_sample(tmp_path, **{**settings, "train": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ReDWeb_V1", "mixdata.json", "sample.json", "val.json"]
    assert len(list(picture.parent.iterdir())) == 1
    (tmp_path / "mixdata.json").unlink()
    assert make_sample(tmp_path, **{**settings, "train": 1})  # no longer complete
    assert (tmp_path / "mixdata.json").is_file()


def test_a_failed_run_leaves_the_old_sample(tmp_path, monkeypatch):
    make_sample(tmp_path, train=1, eval_count=0, size=(40, 32))
    before = (tmp_path / "ReDWeb_V1/Imgs/sample_00000.jpg").read_bytes()

    def fail(*_):
        raise RuntimeError("killed")

    monkeypatch.setitem(maker.WRITERS, "ReDWeb_V1", fail)
    with pytest.raises(RuntimeError):
        make_sample(tmp_path, train=2, eval_count=0, size=(40, 32))
    assert (tmp_path / "ReDWeb_V1/Imgs/sample_00000.jpg").read_bytes() == before
    assert not make_sample(tmp_path, train=1, eval_count=0, size=(40, 32))
    assert not list(tmp_path.glob(".sample*"))


def test_real_data_is_never_replaced(tmp_path):
    real = tmp_path / "TUM" / "real.txt"
    real.parent.mkdir()
    real.write_text("mine")
    with pytest.raises(UsageError, match=r"found TUM without sample\.json"):
        make_sample(tmp_path, train=1, eval_count=0)
    assert [path.name for path in tmp_path.iterdir()] == ["TUM"]
    assert real.read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": -1}, "--train: expected at least 0, found -1"),
        ({"eval_count": -2}, "--eval: expected at least 0, found -2"),
        ({"diw_count": -1}, "--diw: expected at least 0, found -1"),
        ({"seed": -1}, "--seed"),
        ({"size": (320, 8)}, "--size: expected at least 32, found 8"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        make_sample(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_script_runs_from_any_folder(tmp_path):
    script = Path(__file__).parents[1] / "preprocess" / "make_sample.py"
    options = ["--output", "made", "--train", "1", "--eval", "0", "--diw", "1", "--size", "40x32"]
    run = subprocess.run([sys.executable, script, *options], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (0, "made: made\n")
    assert (tmp_path / "made" / "ReDWeb_V1" / "RDs" / "sample_00000.png").is_file()
    assert (tmp_path / "made" / "DIW" / "DIW_test" / "sample_00000.thumb").is_file()


def test_malformed_size_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stop:
        maker.main(["--size", "320"])
    assert stop.value.code == 2
    assert "expected WIDTHxHEIGHT such as 320x240, found '320'" in capsys.readouterr().err
