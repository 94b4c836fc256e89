"""The order of the training samples: shuffled, resumed, shared by processes."""

import tracemalloc

import numpy as np
import pytest

from src.common.errors import DataError
from src.utils.order import Position, SampleOrder, turn_order


def sequence(order, first, count):
    starts = range(first * order.images_per_step, (first + count) * order.images_per_step, order.images_per_step)
    return np.concatenate([order.samples(start) for start in starts])


def test_turn_order():
    order = turn_order(50, seed=3, turn=7)
    assert sorted(order) == list(range(50))
    np.testing.assert_array_equal(order, turn_order(50, seed=3, turn=7))
    assert (order != turn_order(50, seed=3, turn=8)).any()
    assert (order != turn_order(50, seed=4, turn=7)).any()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_sample_comes_once_an_epoch_whatever_the_number_of_processes(world):
    """23 samples in steps of 4 a process: no number of processes divides an epoch."""
    ranks = [SampleOrder(23, batch_size=4, seed=5, rank=rank, world=world) for rank in range(world)]
    position, steps = Position(), []
    while ranks[0].steps_left(position, 3):
        steps.append([order.samples(position.samples) for order in ranks])
        position = ranks[0].after(position)
    assert {len(samples) for step in steps for samples in step} == {4}  # the same number of equal steps on each
    seen = np.concatenate([np.concatenate(step) for step in steps])
    stream = np.concatenate([turn_order(23, 5, epoch) for epoch in range(3)])
    assert len(stream) - len(seen) < 4 * world  # what does not fill a step of all processes
    for epoch in range(3):
        part = seen[23 * epoch : 23 * (epoch + 1)]
        assert len({*part}) == len(part)  # none twice
        assert epoch == 2 or sorted(part) == list(range(23))
    np.testing.assert_array_equal(seen, stream[: len(seen)])


def test_epochs_end_with_the_step_after_which_too_little_of_them_is_left():
    order = SampleOrder(10, batch_size=4, seed=0)  # the stream: 4 8 | 12 16 20 | 24 28
    position, seen = Position(), []
    while order.steps_left(position, 3):
        position = order.after(position)
        is_end = order.steps_left(position, position.epoch) == 0
        seen.append((position.epoch, position.step, order.steps_in_epoch(position), is_end))
    assert seen == [
        (1, 1, 2, False), (1, 2, 2, True),
        (2, 1, 3, False), (2, 2, 3, False), (2, 3, 3, True),
        (3, 1, 2, False), (3, 2, 2, True),
    ]  # fmt: skip
    assert position == Position(epoch=3, step=2, samples=28, steps=7)
    assert order.before(position) == 24


@pytest.mark.parametrize(("world", "batch_size"), [(1, 6), (2, 1), (3, 2), (1, 7)])
def test_other_processes_or_batches_go_on_with_the_same_stream(world, batch_size):
    then, position = SampleOrder(15, batch_size=2, seed=4, world=2), Position()
    for _ in range(5):  # 20 of the 45 samples of three epochs
        position = then.after(position)
    now = [SampleOrder(15, batch_size, 4, rank, world) for rank in range(world)]
    rest = []
    while now[0].steps_left(position, 3):
        rest += [order.samples(position.samples) for order in now]
        after = now[0].after(position)
        assert (after.epoch, after.step) > (position.epoch, position.step)  # so that names of checkpoints stay in order
        position = after
    stream = np.concatenate([turn_order(15, 4, epoch) for epoch in range(3)])
    rest = np.concatenate(rest)
    np.testing.assert_array_equal(rest, stream[20 : 20 + len(rest)])
    assert 25 - len(rest) < world * batch_size


def test_nothing_is_made_for_the_whole_run():
    """Two million samples and a million epochs: the order of one epoch is all that is in memory."""
    order = SampleOrder(2_000_000, batch_size=8, seed=1)
    tracemalloc.start()
    last = order.samples(10**6 * order.size - 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert last.shape == (8,)
    assert peak < 50e6  # two million numbers of 8 bytes, and a copy while they are shuffled


def test_ranks_share_every_global_batch():
    alone = sequence(SampleOrder(40, batch_size=6, seed=1), 0, 12)
    ranks = [sequence(SampleOrder(40, 2, 1, rank, world=3), 0, 12).reshape(-1, 2) for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate(ranks, axis=1).ravel(), alone)
    one = SampleOrder(40, 2, 1, rank=2, world=3)
    np.testing.assert_array_equal(one.all_samples(4 * 6), alone[4 * 6 : 5 * 6])


def test_sets_have_equal_shares_and_smaller_ones_repeat():
    """Sets of 7 and 3 samples in steps of 4, epochs of 12."""
    order, seen = SampleOrder(12, batch_size=4, seed=2, sets=(7, 3)), []
    for start in range(0, 84, 4):
        seen.append(order.visits(start))
        assert (seen[-1][:, 0] < 7).tolist() == [True, False, True, False]
    seen = np.concatenate(seen)
    assert len({*map(tuple, seen.tolist())}) == len(seen)  # a set's turn has every sample once
    large, small = seen[::2], seen[1::2]
    np.testing.assert_array_equal(large[:, 1], np.arange(42) // 7)
    np.testing.assert_array_equal(small[:, 1], np.arange(42) // 3)
    for turn in range(6):
        np.testing.assert_array_equal(large[7 * turn :][:7, 0], turn_order(7, 2, turn, 0))
    for turn in range(14):
        np.testing.assert_array_equal(small[3 * turn :][:3, 0], 7 + turn_order(3, 2, turn, 1))
    ranks = [SampleOrder(12, 2, 2, rank, world=2, sets=(7, 3)) for rank in range(2)]
    both = [order.visits(start) for start in range(0, 84, 4) for order in ranks]
    np.testing.assert_array_equal(np.concatenate(both), seen)
    position = order.after(order.after(order.after(Position())))
    assert (position.epoch, order.steps_left(position, 1)) == (1, 0)


def test_one_set_is_the_stream_without_sets():
    alone, one = SampleOrder(9, 4, seed=3), SampleOrder(9, 4, seed=3, sets=(9,))
    for start in range(0, 60, 4):
        np.testing.assert_array_equal(alone.visits(start), one.visits(start))
        assert alone.visits(start)[:, 1].tolist() == [place // 9 for place in range(start, start + 4)]


def test_too_few_samples_for_a_step():
    with pytest.raises(
        DataError,
        match=r"at least the 8 samples that one step takes \(batch_size x accumulate_steps 4 x devices 2\), found 7",
    ):
        SampleOrder(7, batch_size=4, seed=0, world=2)
