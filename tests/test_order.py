"""The order of the training samples: shuffled, resumed, shared by processes."""

import tracemalloc

import numpy as np
import pytest

from src.common.errors import DataError
from src.utils.order import SampleOrder, epoch_order


def sequence(order, first, count):
    return np.concatenate([order.samples(step) for step in range(first, first + count)])


def test_epoch_order():
    order = epoch_order(50, seed=3, epoch=7)
    assert sorted(order) == list(range(50))
    np.testing.assert_array_equal(order, epoch_order(50, seed=3, epoch=7))
    assert (order != epoch_order(50, seed=3, epoch=8)).any()
    assert (order != epoch_order(50, seed=4, epoch=7)).any()


def test_every_epoch_is_a_shuffled_pass():
    order = SampleOrder(23, batch_size=4, seed=5)  # 23 samples make 5 batches of 4
    assert order.steps_per_epoch == 5
    for epoch in range(3):
        np.testing.assert_array_equal(sequence(order, 5 * epoch, 5), epoch_order(23, 5, epoch)[:20])


def test_nothing_is_made_for_the_whole_run():
    """Two million samples and a million epochs: the order of one epoch is all that is in memory."""
    order = SampleOrder(2_000_000, batch_size=8, seed=1)
    tracemalloc.start()
    last = order.samples(10**6 * order.steps_per_epoch - 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert last.shape == (8,)
    assert peak < 50e6  # two million numbers of 8 bytes, and a copy while they are shuffled


def test_ranks_share_every_global_batch():
    alone = sequence(SampleOrder(40, batch_size=6, seed=1), 0, 12)
    ranks = [sequence(SampleOrder(40, 2, 1, rank, world=3), 0, 12).reshape(-1, 2) for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate(ranks, axis=1).ravel(), alone)
    one = SampleOrder(40, 2, 1, rank=2, world=3)
    np.testing.assert_array_equal(one.all_samples(4), alone[4 * 6 : 5 * 6])


def test_too_few_samples_for_a_step():
    with pytest.raises(DataError, match=r"7 samples are fewer than one step takes \(batch size 4 x 2 devices\)"):
        SampleOrder(7, batch_size=4, seed=0, world=2)
