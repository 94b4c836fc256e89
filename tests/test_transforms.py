"""Transforms against plain OpenCV and NumPy, and the resizing of predictions against PyTorch."""

import cv2
import numpy as np
import pytest

from src.utils.transforms import NormalizeImage, PrepareForNet, Resize, resize_bicubic, resize_prediction

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISED_RANGE = 1 / 0.224  # of the widest channel
SIZES = [((12, 15), (37, 52)), ((37, 52), (12, 15)), ((64, 64), (32, 32)), ((9, 30), (30, 9)), ((5, 1), (3, 4))]
METHODS = ("lower_bound", "upper_bound", "minimal")


def texture(height, width, seed=0):
    """A picture-like uint8 image: random structure at several scales, edges included."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for cell, amplitude in ((32, 60), (8, 25), (3, 6)):
        coarse = rng.normal(size=(height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        image += amplitude * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    image[:, width // 3 :] += 40
    return np.clip(image + 120, 0, 255).astype(np.uint8)


def reference_size(width, height, target_width, target_height, keep, multiple, method):
    """The documented rule, written as a choice among multiples."""
    across, down = target_width / width, target_height / height
    if keep:
        both = {
            "lower_bound": sorted((across, down))[1],
            "upper_bound": sorted((across, down))[0],
            "minimal": across if abs(across - 1) < abs(down - 1) else down,
        }[method]
        across = down = both
    sides = []
    for length, bound in ((across * width, target_width), (down * height, target_height)):
        multiples = np.arange(1, int(length / multiple) + 3)
        if method == "lower_bound":
            multiples = multiples[multiples * multiple >= bound]
        elif method == "upper_bound":
            multiples = multiples[multiples * multiple <= bound]
        distance = np.abs(multiples - length / multiple)
        nearest = multiples[distance == distance.min()]
        best = nearest[nearest % 2 == 0][0] if len(nearest) > 1 else nearest[0]  # a tie goes to the even one
        sides.append(int(best) * multiple)
    return tuple(sides)


def cubic_matrix(source, target):
    """Rows of the cubic convolution (a = -0.75, half-pixel centres, edge repeated) from source to target length."""
    a = -0.75
    centre = (np.arange(target) + 0.5) * (source / target) - 0.5
    taps = np.floor(centre).astype(int)[:, None] + np.arange(-1, 3)
    distance = np.abs(centre[:, None] - taps)
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    matrix = np.zeros((target, source))
    rows = np.repeat(np.arange(target), 4)
    np.add.at(matrix, (rows, taps.clip(0, source - 1).ravel()), np.where(distance <= 1, near, far).ravel())
    return matrix


def reference_pipeline(image, size):
    """Cubic resize and normalisation in float64 arithmetic; (3, H, W)."""
    width, height = size
    down, across = cubic_matrix(image.shape[0], height), cubic_matrix(image.shape[1], width)
    resized = np.stack([down @ (image[..., c] / 255.0) @ across.T for c in range(3)])
    return (resized - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))


def opencv_pipeline(image, size):
    """The plain float64 OpenCV pipeline; (3, H, W)."""
    resized = cv2.resize(image / 255.0, size, interpolation=cv2.INTER_CUBIC)
    return ((resized - MEAN) / STD).transpose(2, 0, 1)


def run(sample, resize):
    for transform in (resize, NormalizeImage(MEAN, STD), PrepareForNet()):
        sample = transform(sample)
    return sample


@pytest.mark.parametrize(
    ("method", "source", "target", "multiple", "expected"),
    [
        ("upper_bound", (640, 480), (384, 384), 32, (384, 288)),  # scale 0.6
        ("lower_bound", (640, 480), (384, 384), 32, (512, 384)),  # scale 0.8
        ("minimal", (640, 480), (384, 384), 32, (512, 384)),  # 0.8 is nearer to 1 than 0.6
        ("minimal", (300, 100), (384, 384), 32, (384, 128)),  # 1.28 is nearer to 1 than 3.84
        ("lower_bound", (1242, 375), (384, 384), 32, (1280, 384)),  # scale 1.024: 1271.8 is 39.7 multiples
        ("upper_bound", (6048, 4032), (384, 384), 32, (384, 256)),
        ("lower_bound", (640, 480), (390, 390), 32, (512, 416)),  # 390 would round to 384 < 390
        ("upper_bound", (640, 480), (410, 410), 32, (384, 320)),  # 410 would round to 416 > 410
        ("upper_bound", (500, 480), (480, 384), 32, (384, 384)),  # 400 is 12.5 multiples: to the even one
        ("upper_bound", (1000, 10), (384, 384), 32, (384, 32)),  # never nothing
    ],
)
def test_size_worked_by_hand(method, source, target, multiple, expected):
    resize = Resize(*target, keep_aspect_ratio=True, ensure_multiple_of=multiple, resize_method=method)
    assert resize.get_size(*source) == expected


@pytest.mark.parametrize("method", METHODS)
def test_size_is_exactly_the_given_one_without_keeping_the_aspect_ratio(method):
    resize = Resize(384, 256, ensure_multiple_of=32, resize_method=method)
    assert {resize.get_size(width, height) for width in range(1, 1500, 37) for height in (1, 77, 2000)} == {(384, 256)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [False, True])
def test_size_follows_the_rule_for_many_sizes(method, keep):
    rng = np.random.default_rng(1)
    for width, height, target_width, target_height in rng.integers(64, 2000, (300, 4)).tolist():
        for multiple in (1, 32):
            resize = Resize(target_width, target_height, True, keep, multiple, method)
            expected = reference_size(width, height, target_width, target_height, keep, multiple, method)
            assert resize.get_size(width, height) == expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("source", [(640, 480), (479, 641), (384, 384), (97, 61), (1000, 333), (200, 700)])
def test_pipeline_agrees_with_float64(method, source):
    image = texture(source[1], source[0])
    original = image.copy()
    resize = Resize(384, 224, keep_aspect_ratio=True, ensure_multiple_of=32, resize_method=method)
    size = reference_size(*source, 384, 224, True, 32, method)
    result = run({"image": image}, resize)["image"]
    assert result.dtype == np.float32
    assert result.flags["C_CONTIGUOUS"]
    assert result.shape == (3, size[1], size[0])
    tolerance = 1e-5 * NORMALISED_RANGE
    np.testing.assert_allclose(result, reference_pipeline(image, size), rtol=0, atol=tolerance)
    np.testing.assert_allclose(result, opencv_pipeline(image, size), rtol=0, atol=tolerance)
    np.testing.assert_array_equal(image, original)


def test_type_says_scale():
    image = texture(60, 80)
    unit = (image / 255.0).astype(np.float32)
    original = unit.copy()
    for size in ((64, 32), (80, 60)):  # (80, 60): nothing to resize
        resize = Resize(*size)
        expected = run({"image": image}, resize)["image"]
        np.testing.assert_allclose(run({"image": unit}, resize)["image"], expected, rtol=0, atol=2e-6)
        np.testing.assert_allclose(
            run({"image": unit.astype(np.float64)}, resize)["image"], expected, rtol=0, atol=2e-6
        )
    np.testing.assert_array_equal(unit, original)


def test_normalisation_alone():
    normalise = NormalizeImage((0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    image = np.array([[[255, 0, 51]]], np.uint8)
    for sample in (image, image / 255.0):
        result = normalise({"image": sample})["image"]
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, [[[1.0, -1.0, 0.1]]], atol=1e-7)


def test_target_and_mask_take_nearest_pixels():
    depth = np.arange(36, dtype=np.uint16).reshape(6, 6) + 65500
    mask = (depth % 2).astype(np.float32)
    sample = {"image": texture(8, 8), "depth": depth, "mask": mask, "name": "x"}
    result = run(sample, Resize(2, 2))
    expected = depth[1::3, 1::3]  # the middle of each 3 x 3 block, whatever the size of the image
    np.testing.assert_array_equal(result["depth"], expected)
    np.testing.assert_array_equal(result["mask"], expected % 2)
    assert result["depth"].dtype == result["mask"].dtype == np.float32
    assert result["name"] == "x"
    assert sample["depth"] is depth


@pytest.mark.parametrize(("old", "new"), [(640, 384), (1000, 384), (111, 384), (383, 384), (640, 320)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_target_is_not_shifted_against_the_image(old, new, dtype):
    columns = np.arange(old, dtype=np.uint16)
    depth = np.repeat([columns % 200], 2, axis=0).astype(dtype)
    result = run({"image": texture(2, old), "depth": depth}, Resize(new, 2))
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    shift = (result["depth"][0] - centres + 100) % 200 - 100
    assert np.abs(shift).max() <= 0.501
    if old != 2 * new:  # where two pixels are as near, one of them it must be
        assert abs(shift.mean()) < 0.01
        mirrored = run({"image": texture(2, old), "depth": depth[:, ::-1]}, Resize(new, 2))
        assert np.abs(mirrored["depth"] - result["depth"][:, ::-1]).mean() < 0.02


def test_target_stays_without_resize_target():
    depth = np.arange(16, dtype=np.uint8).reshape(4, 4)
    result = run({"image": texture(8, 8), "depth": depth}, Resize(2, 2, resize_target=False))
    assert result["image"].shape == (3, 2, 2)
    np.testing.assert_array_equal(result["depth"], depth)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"resize_method": "upper"}, "resize_method.*'upper'"),
        ({"ensure_multiple_of": 0}, "ensure_multiple_of.*found 0"),
        ({"ensure_multiple_of": 64}, "at least 64.*found 100 x 50"),
    ],
)
def test_resize_refuses(arguments, text):
    with pytest.raises(ValueError, match=text):
        Resize(100, 50, **arguments)


def test_normalisation_and_layout_refuse():
    with pytest.raises(ValueError, match="three values"):
        NormalizeImage((0.5,), (0.5,))
    with pytest.raises(ValueError, match="above 0"):
        NormalizeImage(MEAN, (0.1, 0.0, 0.1))
    with pytest.raises(ValueError, match="floating-point"):
        PrepareForNet()({"image": texture(4, 4)})


@pytest.mark.parametrize(("old", "new"), [*SIZES, ((384, 1280), (375, 1242))])
def test_resize_prediction_equals_pytorch(old, new):
    torch = pytest.importorskip("torch")
    array = np.random.default_rng(6).random(old, dtype=np.float32)
    resized = resize_prediction(array, *new)
    # in float64: PyTorch's float32 coordinates are off by up to 1e-4 pixels on wide images
    tensor = torch.from_numpy(array).double()[None, None]
    expected = torch.nn.functional.interpolate(tensor, new, mode="bilinear", align_corners=False)[0, 0]
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected, atol=2e-6)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_resize_prediction_asymmetric(old, new):
    array = np.random.default_rng(7).random(old, dtype=np.float32)
    expected = np.empty(new)
    for i in range(new[0]):
        for j in range(new[1]):
            y, x = i * old[0] / new[0], j * old[1] / new[1]
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, old[0] - 1), min(x0 + 1, old[1] - 1)
            top = (1 - (x - x0)) * array[y0, x0] + (x - x0) * array[y0, x1]
            bottom = (1 - (x - x0)) * array[y1, x0] + (x - x0) * array[y1, x1]
            expected[i, j] = (1 - (y - y0)) * top + (y - y0) * bottom
    resized = resize_prediction(array, *new, half_pixel=False)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected, atol=1e-6)


def test_resize_modes_by_hand():
    row = np.array([[0.0, 4.0]], np.float32)
    np.testing.assert_array_equal(resize_prediction(row, 1, 4), [[0, 1, 3, 4]])
    np.testing.assert_array_equal(resize_prediction(row, 1, 4, half_pixel=False), [[0, 2, 4, 4]])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *SIZES,
        ((384, 256), (6000, 4000)),
        ((288, 384), (333, 517)),
        ((384, 384), (101, 77)),
        ((1000, 1501), (333, 517)),
        ((1, 1), (5, 7)),
        ((2, 3), (9, 4)),
        ((7, 5), (1, 1)),
        ((32, 64), (32, 64)),
    ],
)
def test_bicubic_equals_pytorch(old, new):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(8)
    for scale in (1, 1e4):  # networks put out values of thousands, too
        array = (scale * rng.random(old)).astype(np.float32)
        resized = resize_bicubic(array, *new)
        assert resized.dtype == np.float32
        assert resized.shape == new
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(array)[None, None], new, mode="bicubic", align_corners=False
        )[0, 0].numpy()
        # Without fused multiply-add, on old CPUs, PyTorch itself gives values that differ from these by up to 2e-5.
        fused = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        np.testing.assert_allclose(resized, expected, rtol=0, atol=scale * (1e-5 if fused else 3e-5))


def test_bicubic_by_hand():
    """Half-way between two pixels the weights are -3/32, 19/32, 19/32, -3/32; the borders are repeated."""
    resized = resize_bicubic(np.float32([[0, 0, 1, 1]]), 1, 2)
    np.testing.assert_array_equal(resized, [[-3 / 32, 35 / 32]])
    constant = resize_bicubic(np.full((5, 3), 7, np.float32), 50, 31)
    np.testing.assert_allclose(constant, 7, rtol=2e-6)
    same = np.random.default_rng(9).random((6, 5), dtype=np.float32)
    np.testing.assert_array_equal(resize_bicubic(same, 6, 5), same)
