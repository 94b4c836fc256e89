"""Random views of training samples: what is drawn, what is cut out, and that all of a sample is cut out alike."""

from dataclasses import replace

import numpy as np
import pytest
from training_data import write_image

from src.util import read_truth
from src.utils.augmentation import Augmentation, View
from src.utils.loadImgDepth import Batches, LoadImagesDepth, create_dataset
from src.utils.mixdata import Pair, list_pairs
from src.utils.order import SampleOrder
from src.utils.truth import Truth

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VISITS = [(number, turn) for number in range(20) for turn in range(20)]


def test_views_depend_on_seed_number_and_turn_alone():
    augmentation = Augmentation(7, flip=0.5, crop=0.4)
    views = {visit: augmentation.view(*visit) for visit in VISITS}
    again = Augmentation(7, flip=0.5, crop=0.4)
    assert views == {visit: again.view(*visit) for visit in reversed(VISITS)}
    assert len({view.x for view in views.values()}) == len(VISITS)
    assert views[3, 4] != Augmentation(8, 0.5, 0.4).view(3, 4)
    # Neither draw changes the other.
    assert [Augmentation(7, flip=0.5).view(*visit).is_mirrored for visit in VISITS] == [
        view.is_mirrored for view in views.values()
    ]
    assert Augmentation(7, crop=0.4).view(3, 4) == View(False, views[3, 4].side, views[3, 4].x, views[3, 4].y)


def test_what_is_drawn_is_distributed_as_asked_for():
    views = [Augmentation(0, 0.5, 0.4).view(*visit) for visit in VISITS]
    assert np.mean([view.is_mirrored for view in views]) == pytest.approx(0.5, abs=0.08)
    assert np.mean([Augmentation(0, 0.1).view(*visit).is_mirrored for visit in VISITS]) == pytest.approx(0.1, abs=0.05)
    for values, low in (
        ([view.side for view in views], 0.4),
        ([view.x for view in views], 0),
        ([view.y for view in views], 0),
    ):
        # Uniform: the largest distance to the straight line that a sample of 400 has in all but 1 of 1000 cases.
        steps = (np.sort(values) - low) / (1 - low)
        assert np.abs(steps - np.linspace(0, 1, len(steps))).max() < 1.95 / np.sqrt(len(steps))
    assert all(Augmentation(0, flip=1).view(*visit) == View(True) for visit in VISITS)
    assert Augmentation(0).view(3, 4) == View()
    assert {Augmentation(0, crop=1).view(*visit).side for visit in VISITS} == {1.0}


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 480), (37, 1000), (384, 384)])
@pytest.mark.parametrize("aspect", [1.0, 1.5, 0.5])
def test_part_has_the_aspect_ratio_and_stays_in_the_image(height, width, aspect):
    image = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=2)
    largest = min(width, aspect * height)  # width of the largest such part
    for visit in VISITS[:100]:
        view = Augmentation(0, crop=0.3).view(*visit)
        part = view.crop(image, aspect, (height, width))
        rows, columns = part.shape[:2]
        assert abs(columns - view.side * largest) <= 1
        assert abs(rows - view.side * largest / aspect) <= 1
        first = part[0, 0]
        assert first[0] == pytest.approx(view.y * (height - view.side * largest / aspect), abs=0.5)
        assert first[1] == pytest.approx(view.x * (width - view.side * largest), abs=0.5)
    whole = View(side=1.0, x=1.0, y=1.0).crop(image, aspect, (height, width))
    assert tuple(whole[-1, -1]) == (height - 1, width - 1)
    assert View(side=1e-9, x=1.0, y=1.0).crop(image, aspect, (height, width)).shape == (1, 1, 2)
    assert View().crop(image, aspect, (height, width)) is image


@pytest.fixture(scope="module")
def coordinates(tmp_path_factory):
    """A picture whose red is its column and whose green its row, and ground truth of half the size that tells them."""
    folder = tmp_path_factory.mktemp("coordinates")
    rows, columns = np.meshgrid(np.arange(240), np.arange(200), indexing="ij")
    write_image(folder / "i.png", np.stack([0 * rows, rows, columns], axis=2).astype(np.uint8))
    rows, columns = rows[::2, ::2], columns[::2, ::2]
    truth = 256 * rows + columns  # from 0 to 256 * 238 + 198
    truth[10, 10] = 65535
    truth[80:] = 65535
    write_image(folder / "d.png", truth.astype(np.uint16))
    return Pair("A", "1", str(folder / "i.png"), str(folder / "d.png"), Truth("inverse_depth", 65535))


def test_image_target_and_mask_show_the_same_part(coordinates):
    augmentation = Augmentation(3, flip=0.5, crop=0.3)
    source = LoadImagesDepth([coordinates], 96, 64, [0.0] * 3, [1.0] * 3, augmentation=augmentation)
    seen, compared = set(), 0
    for turn in range(30):
        view = augmentation.view(0, turn)
        seen.add(view.is_mirrored)
        image, target, mask = source.load(0, turn)
        assert (image.shape, target.shape, mask.shape) == ((3, 64, 96), (64, 96), (64, 96))
        columns, rows = 255 * image[0], 255 * image[1]
        valid = mask == 1
        # The range is that of the whole image, 0 .. the last valid value, whatever part it is.
        stored = np.rint(target[valid].astype(float) / 255 * (256 * 158 + 198))
        tolerance = 4  # a pixel of the ground truth for cutting it out, and one for nearest neighbour
        assert np.abs(stored // 256 - rows[valid]).max(initial=0) <= tolerance
        assert np.abs(stored % 256 - columns[valid]).max(initial=0) <= tolerance
        compared += len(stored)
        assert not target[~valid].any()
        assert not valid[rows > 160 + tolerance].any()
        is_hole = np.maximum(np.abs(rows - 20), np.abs(columns - 20)) <= tolerance
        assert (rows[~valid & ~is_hole] >= 160 - tolerance).all()
        assert (np.diff(columns[:, 2:-2], axis=1) < 0).all() == view.is_mirrored
        # Nothing is distorted: a pixel of the input is as wide as high.
        across, down = abs(columns[32, 80] - columns[32, 16]) / 64, abs(rows[56, 48] - rows[8, 48]) / 48
        assert across == pytest.approx(down, abs=0.05)
    assert seen == {True, False}
    assert compared > 30 * 96 * 64 / 3


def test_masks_are_cut_out_and_mirrored_with_their_sample(coordinates, tmp_path):
    """Masks that say what a value said give the same samples."""
    stored = read_truth(coordinates.depth_path)
    write_image(tmp_path / "m.png", np.where(stored == 65535, 0, 1).astype(np.uint8))
    write_image(tmp_path / "s.png", np.where(stored % 256 < 60, 9, 0).astype(np.uint8))
    sky = np.where(stored % 256 < 60, 65534, stored).astype(np.uint16)
    write_image(tmp_path / "d.png", sky)
    masked = replace(coordinates, truth=Truth(), mask_path=str(tmp_path / "m.png"), sky_path=str(tmp_path / "s.png"))
    valued = replace(coordinates, depth_path=str(tmp_path / "d.png"), truth=replace(coordinates.truth, sky=65534))
    augmentation = Augmentation(3, flip=0.5, crop=0.3)
    sources = [LoadImagesDepth([pair], 96, 64, MEAN, STD, augmentation=augmentation) for pair in (masked, valued)]
    means = []
    for turn in range(10):
        samples = [source.load(0, turn) for source in sources]
        for one, other in zip(*samples):
            np.testing.assert_array_equal(one, other)
        means.append(samples[0][2].mean())
    assert min(means) < max(means)


def test_mirrored_sample_is_the_mirror_image(coordinates):
    mirrored = LoadImagesDepth([coordinates], 96, 64, MEAN, STD, augmentation=Augmentation(0, flip=1)).load(0, 5)
    for one, other in zip(mirrored, LoadImagesDepth([coordinates], 96, 64, MEAN, STD)[0]):
        assert one.flags.c_contiguous
        np.testing.assert_array_equal(one, other[..., ::-1])


def test_without_augmentation_samples_are_the_plain_ones(two_sets):
    pairs, _ = list_pairs(*two_sets)
    augmented = LoadImagesDepth(pairs, 64, 32, MEAN, STD, augmentation=Augmentation(1, 0.5, 0.5))
    for source in (LoadImagesDepth(pairs, 64, 32, MEAN, STD, augmentation=Augmentation(1)), augmented):
        for number in range(len(pairs)):
            plain = LoadImagesDepth(pairs, 64, 32, MEAN, STD)[number]
            loaded = source[number] if source is augmented else source.load(number, 3)
            assert all((one == other).all() for one, other in zip(plain, loaded))
    assert any((augmented.load(number, 0)[1] != augmented.load(number, 1)[1]).any() for number in range(len(pairs)))


def test_samples_are_the_same_for_any_workers_ranks_and_start(two_sets):
    pytest.importorskip("mindspore")
    pairs, _ = list_pairs(*two_sets)
    source = LoadImagesDepth(pairs, 32, 32, MEAN, STD, augmentation=Augmentation(1, 0.5, 0.5))

    def batches(batch_size, rank, world, start, count, workers):
        order = SampleOrder(6, batch_size, 5, rank, world, sets=(3, 3))
        with Batches(create_dataset(source, order, start, count, workers), pytest.fail) as loaded:
            return [tuple(column.asnumpy() for column in batch) for batch in loaded]

    def assert_equal(batches, others):
        assert len(batches) == len(others)
        assert all((one == other).all() for pair in zip(batches, others) for one, other in zip(*pair))

    whole = batches(4, 0, 1, 0, 5, workers=1)  # three turns of each set
    assert_equal(whole, batches(4, 0, 1, 0, 5, workers=4))
    assert_equal(whole[2:], batches(4, 0, 1, 8, 3, workers=2))  # resumed
    halves = [batches(2, rank, 2, 0, 5, workers=1) for rank in (0, 1)]
    assert_equal(whole, [tuple(map(np.concatenate, zip(*parts))) for parts in zip(*halves)])
    first, later = SampleOrder(6, 4, 5, sets=(3, 3)).visits(0).tolist(), whole
    assert all((later[0][0][i] == source.load(*first[i])[0]).all() for i in range(4))
