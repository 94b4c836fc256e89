"""preprocess/make_sample.py and scenes.py: depth against formulas, files against the readers, and what is replaced."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import preprocess.make_sample as maker
from preprocess.make_sample import draw_ordered_points, hidden_from_right, make_sample, relative_inverse_depth
from preprocess.scenes import MAX_DEPTH_M, Box, Camera, Material, Scene, Sphere, draw_scene, render, render_scene
from src.common.errors import UsageError
from src.evaluation.datasets import DATASETS, Diw, Kitti, Nyu, Sintel, Tum
from src.util import read_gray, read_image

SIZE = (96, 72)
FOLDERS = {"Kitti": "Kitti_raw_data"}


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    output = tmp_path_factory.mktemp("sample") / "made"
    assert make_sample(output, train=3, eval_count=2, seed=5, size=SIZE)
    return output


def _plain(red, green, blue):
    return Material(np.array([[red, green, blue]] * 2, dtype=float), (1.0, 1.0), (1.0, 1.0))


def _scene(solids, camera):
    """A grey hall, 20 m wide, 10 m high, from 5 m behind the camera to 30 m before it, lit from above."""
    hull = Box(np.array([0.0, -5.0, 12.5]), np.array([10.0, 5.0, 17.5]), 0.0, [_plain(0.5, 0.5, 0.5)] * 6)
    return Scene(hull, solids, np.array([0.0, -9.9, 5.0]), np.inf, np.full((64, 64), 0.5), camera)


def _camera(yaw=0.0, pitch=0.0, height=1.5, focal=60.0):
    return Camera(np.array([0.0, -height, 0.0]), yaw, pitch, focal)


def test_depth_of_ground_ceiling_and_end_wall_follow_the_formula():
    height_m, pitch, focal = 1.5, np.radians(10), 60.0
    depth = render(_scene([], _camera(0.0, pitch, height_m, focal)), 60, 80).depth
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
    ball = Sphere(np.array([0.0, -1.5, 8.0]), 1.0, [_plain(1, 0, 0)])
    view = render(_scene([ball], _camera()), 61, 81)  # odd: the middle pixel lies on the axis
    assert view.depth[30, 40] == pytest.approx(7.0)
    # Six pixels to the right: x = 0.1 z and x^2 + (z - 8)^2 = 1.
    assert view.depth[30, 46] == pytest.approx((8 - np.sqrt(64 - 1.01 * 63)) / 1.01, rel=1e-6)
    # Its outline is where the ray is tangent: radius of the disc = f / sqrt(8^2 - 1) pixels.
    columns = np.flatnonzero(view.depth[30] < 8)
    radius = 60 / np.sqrt(63)
    assert (columns.min(), columns.max()) == (int(np.ceil(40 - radius)), int(40 + radius))


def test_pixels_reproject_onto_the_surfaces_that_the_picture_shows():
    ball = Sphere(np.array([1.0, -1.0, 9.0]), 1.0, [_plain(1, 0, 0)])
    turn = 0.5
    crate = Box(np.array([-1.0, -1.0, 7.0]), np.array([0.8, 1.0, 0.5]), turn, [_plain(0, 0, 1)] * 6)
    yaw, pitch = np.radians(5), np.radians(7)
    view = render(_scene([ball, crate], _camera(yaw, pitch)), 60, 80)
    x, y = np.meshgrid((np.arange(80) + 0.5 - 40) / 60, (np.arange(60) + 0.5 - 30) / 60)
    in_camera = np.stack([x, y, np.ones_like(x)]) * view.depth
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    points = np.einsum("ij,jhw->hwi", about_y @ about_x, in_camera) + np.array([0, -1.5, 0])

    red, blue = (view.image[..., channel] > view.image[..., 1] for channel in (0, 2))
    assert red.sum() > 50
    assert blue.sum() > 50
    np.testing.assert_allclose(np.linalg.norm(points[red] - ball.centre, axis=1), 1.0, atol=1e-5)
    local = points[blue] - crate.centre
    sideways = np.cos(turn) * local[:, 0] - np.sin(turn) * local[:, 2]
    forward = np.sin(turn) * local[:, 0] + np.cos(turn) * local[:, 2]
    faces = np.abs(np.stack([sideways / 0.8, local[:, 1] / 1.0, forward / 0.5]))
    np.testing.assert_allclose(faces.max(axis=0), 1.0, atol=1e-5)
    rest = points[~red & ~blue]
    hall = np.stack([np.abs(rest[:, 0]) / 10, np.abs(rest[:, 1] + 5) / 5, np.abs(rest[:, 2] - 12.5) / 17.5])
    np.testing.assert_allclose(hall.max(axis=0), 1.0, atol=1e-5)


def test_surfaces_facing_the_light_are_brighter_and_things_cast_shadows():
    ball = Sphere(np.array([0.0, -2.0, 5.0]), 1.0, [_plain(0.5, 0.5, 0.5)])  # straight below the lamp
    view = render(_scene([ball], _camera(pitch=np.radians(15), focal=40)), 60, 80)
    points = view.points.T.reshape(60, 80, 3)
    brightness = view.image[..., 0].astype(int)
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
    ball = Sphere(np.array([0.0, -5.0, 10.0]), 1.0, [_plain(1, 0, 0)])
    scene = _scene([ball], _camera())
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
        view = render(scene, height, width)
        hidden = hidden_from_right(scene, view)
        right_eye = left.position + maker.STEREO_BASELINE_M * left.axes()[:, 0]
        other = render(scene, height, width, Camera(right_eye, left.yaw, left.pitch, left.focal_px)).depth
        rows, columns = np.indices((height, width))
        disparity = left.focal_px * maker.STEREO_BASELINE_M / view.depth
        low = np.floor(columns - disparity).astype(int)
        seen = low >= 0
        # The neighbours of where the point would appear: clearly in front of it on both sides, or at its depth.
        pair = np.stack([other[rows, np.maximum(low, 0)], other[rows, np.minimum(np.maximum(low, 0) + 1, width - 1)]])
        covered = seen & (pair.max(axis=0) < 0.97 * view.depth)
        open_ = seen & (np.abs(pair / view.depth - 1).max(axis=0) < 0.01)
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
        assert depth.max() > 2 * depth.min()
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


def test_relative_inverse_depth_by_hand():
    target = relative_inverse_depth(np.array([[1.0, 2.0], [4.0, 4.0]], np.float32))
    assert target.dtype == np.uint8
    np.testing.assert_array_equal(target, [[255, 85], [0, 0]])  # 1, 0.5, 0.25 on 0.25..1


def test_training_pairs(sample):
    mix = json.loads((sample / "mixdata.json").read_text())
    images = sorted(sample.glob(mix["img"]["RW"].lstrip("/")))
    targets = sorted(sample.glob(mix["depth"]["RW"].lstrip("/")))
    assert [path.stem for path in images] == [path.stem for path in targets] != []
    for image, target in zip(images, targets):
        assert read_image(image).shape == (SIZE[1], SIZE[0], 3)
        values = read_gray(target)
        assert values.dtype == np.uint8
        assert (values.min(), values.max()) == (0, 255)


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("protocol", ["paper", "modelzoo"])
def test_every_reader_reads_its_set(sample, name, protocol):
    dataset = DATASETS[name](sample / FOLDERS.get(name, name), protocol)
    assert len(dataset) == 2
    for index in range(2):
        item = dataset[index]
        assert item.image.std() > 5
        if dataset.metric != "whdr":
            assert item.valid.sum() > 20


def test_real_gaps_and_sizes(sample):
    kitti = Kitti(sample / "Kitti_raw_data")[0]
    assert kitti.image.shape[1] / kitti.image.shape[0] == pytest.approx(1242 / 375, rel=0.03)
    assert 0.05 < kitti.valid.mean() < 0.3
    for dataset in (Tum(sample / "TUM"), Nyu(sample / "NYU")):
        assert 0.8 < dataset[0].valid.mean() < 0.95
    assert Sintel(sample / "Sintel")[0].valid.all()


def test_nyu_test_pictures_are_counted_from_one(sample):
    assert [Nyu(sample / "NYU").sample_name(index) for index in range(2)] == ["0002", "0003"]


def test_diw_relations_agree_with_depth(tmp_path, monkeypatch):
    depths = {}

    def recording(rng, height, width, setting=None):
        image, depth = render_scene(rng, height, width, setting)
        if setting is None:
            depths[len(depths)] = depth  # only DIW and ReDWeb leave the setting open
        return image, depth

    monkeypatch.setattr(maker, "render_scene", recording)
    make_sample(tmp_path, train=0, eval_count=4, seed=2, size=SIZE)
    dataset = Diw(tmp_path / "DIW")
    relations = []
    for index in range(4):
        item = dataset[index]
        assert item.image.shape[:2] == depths[index].shape
        (y1, x1, y2, x2), relation = item.points[0], item.relation[0]
        assert np.sign(depths[index][y1, x1] - depths[index][y2, x2]) == relation
        relations.append(relation)
    assert relations == [1, -1, 1, -1]


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


def test_ordered_points_differ_clearly():
    depth = np.array([[1.0, 1.05], [1.08, 2.0]], np.float32)
    for seed in range(20):
        (first, second), relation = draw_ordered_points(np.random.default_rng(seed), depth, seed % 2 == 0)
        ratio = depth[tuple(first)] / depth[tuple(second)]
        assert ratio > 1.1 if relation == ">" else ratio < 1 / 1.1
        assert relation == (">" if seed % 2 == 0 else "<")


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
