"""Order is a bijection that looks random, needs no memory, and drops the last partial batch."""

import tracemalloc

import numpy as np
import pytest

from moco_jax.data import order


@pytest.mark.parametrize("size", [*range(1, 40), 1797, 50_000])
def test_an_epoch_is_a_bijection(size):
    np.testing.assert_array_equal(
        np.sort(order.permute(np.arange(size), size, 1, 2)), np.arange(size)
    )


def test_places_are_uniform_over_keys():
    """Chi-square over all 25 pairs (position, place) of a set of five, 4,000 keys."""
    stats = pytest.importorskip("scipy.stats")
    drawn = np.stack(
        [order.permute(np.arange(5), 5, seed, epoch) for seed in range(80) for epoch in range(50)]
    )
    for column in drawn.T:
        assert stats.chisquare(np.bincount(column, minlength=5)).pvalue > 1e-3
    codes = np.unique(drawn @ 5 ** np.arange(5), return_counts=True)[1]
    assert len(codes) == 120
    assert stats.chisquare(codes).pvalue > 1e-3


def test_successive_positions_and_epochs_are_not_correlated():
    first, second = (order.permute(np.arange(20_000), 20_000, 0, e) for e in (0, 1))
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_a_billion_examples_need_no_memory():
    tracemalloc.start()
    epoch, positions = order.batch_positions(10**12, 256, 10**9)
    indices = order.permute(positions, 10**9, 0, epoch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000
    assert epoch == 1000
    assert len(set(indices.tolist())) == 256
    assert indices.max() < 10**9


def test_the_last_partial_batch_is_dropped():
    places = [order.batch_positions(seen, 4, 10) for seen in range(0, 24, 4)]
    assert [(e, p[0]) for e, p in places] == [(0, 0), (0, 4), (1, 0), (1, 4), (2, 0), (2, 4)]
