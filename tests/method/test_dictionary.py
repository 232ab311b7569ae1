"""Queue and memory bank against lists kept by hand, for any size and batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.method import info_nce
from moco_jax.method.dictionary import BANK_ROWS, MemoryBank, Queue

DIM = 3
SIZES = [(12, 4), (13, 4), (3, 4), (4, 4), (1, 5), (17, 6), (18, 1)]


def keys_of(index):
    """A vector of its own for each example."""
    return np.stack([np.cos(index), np.sin(index), np.zeros_like(index, float)], 1).astype("f4")


def counted(queue, **options):
    """Indices of the keys that count, sorted, and that the keys are those of the indices."""
    negatives = queue.negatives(**options)
    counts = np.ones(negatives.index.shape, bool) if negatives.counts is None else negatives.counts
    index = np.asarray(negatives.index)[np.asarray(counts)]
    real = index >= 0
    np.testing.assert_array_equal(
        np.asarray(negatives.keys)[np.asarray(counts)][real], keys_of(index[real])
    )
    return sorted(index.tolist())


def fill(queue, batch, steps, start=0, history=()):
    history = list(history)
    for step in range(start, start + steps):
        index = np.arange(step * batch, (step + 1) * batch, dtype=np.int32)
        queue = queue.enqueue(jnp.asarray(keys_of(index)), jnp.asarray(index))
        history += index.tolist()
    return queue, history


@pytest.mark.parametrize(("size", "batch"), SIZES)
def test_the_newest_k_keys_count_and_no_others(size, batch):
    queue, history = Queue.create(jax.random.key(0), size, batch, DIM), []
    assert queue.negatives().index.shape[0] == -(-size // batch)
    for step in range(2 * -(-size // batch) + 1):
        assert counted(queue) == sorted(([-1] * size + history)[-size:])
        assert counted(queue, real_only=True) == sorted(history[-size:])
        assert int(queue.count) == min(len(history), size)
        queue, history = fill(queue, batch, 1, step, history)


@pytest.mark.parametrize(("size", "batch"), SIZES)
@pytest.mark.parametrize("other", [1, 3, 4, 7])
def test_another_batch_size_keeps_keys_and_their_order(size, batch, other):
    queue, history = fill(Queue.create(jax.random.key(0), size, batch, DIM), batch, 3)
    queue = queue.for_batch_size(other)
    assert counted(queue) == sorted(([-1] * size + history)[-size:])
    for step in range(3):  # the oldest leave first
        index = np.arange(other, dtype=np.int32) + 1000 * (step + 1)
        queue = queue.enqueue(jnp.asarray(keys_of(index)), jnp.asarray(index))
        history += index.tolist()
        assert counted(queue) == sorted(([-1] * size + history)[-size:])
        assert int(queue.count) == min(len(history), size)


def test_a_queue_starts_with_unit_vectors_in_all_directions():
    keys = Queue.create(jax.random.key(0), 4096, 64, DIM).keys.reshape(-1, DIM)
    np.testing.assert_allclose(jnp.linalg.norm(keys, axis=1), 1, rtol=1e-5)
    assert jnp.abs(keys.mean(0)).max() < 0.05


def test_a_step_that_is_not_applied_leaves_the_queue():
    queue, _ = fill(Queue.create(jax.random.key(0), 8, 4, DIM), 4, 1)
    same = queue.enqueue(jnp.ones((4, DIM)), jnp.arange(4), accept=False)
    for a, b in zip(jax.tree.leaves(queue), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(a, b)


def test_masked_keys_weigh_nothing_in_the_loss(float64):
    rng = np.random.default_rng(0)
    q, k, n = (
        info_nce.normalize(jnp.asarray(rng.normal(size=s))) for s in ((5, 4), (5, 4), (3, 6, 4))
    )
    counts = jnp.asarray(rng.random((3, 6)) < 0.6)
    mine, theirs = jnp.asarray([7, 1, 2, 3, 9], jnp.int32), jnp.asarray(rng.integers(0, 4, (3, 6)))
    loss, metrics = info_nce.info_nce(
        q, k, n, 0.1, counts=counts, query_index=mine, negative_index=theirs
    )
    expected, cosines = [], []
    for row in range(5):
        keep = np.asarray(counts & (theirs != mine[row]))
        negative = np.asarray(n)[keep] @ np.asarray(q)[row]
        positive = float(jnp.dot(q[row], k[row]))
        cosines += negative.tolist()
        every = np.exp(positive / 0.1) + np.exp(negative / 0.1).sum()
        expected.append(np.log(every) - positive / 0.1)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-12)
    np.testing.assert_allclose(metrics["negative"], np.mean(cosines), rtol=1e-12)


def test_an_empty_queue_costs_nothing_and_is_finite():
    q = info_nce.normalize(jnp.ones((2, 4)))
    negatives = Queue.create(jax.random.key(0), 4, 2, 4).negatives(real_only=True)

    def loss(q):
        return info_nce.info_nce(q, q, negatives.keys, 0.1, counts=negatives.counts)[0]

    value, gradient = jax.value_and_grad(loss)(q)
    assert float(value) == 0
    assert not gradient.any()


@pytest.mark.parametrize("size", [5, BANK_ROWS, BANK_ROWS + 1])
def test_a_bank_has_one_entry_an_example_and_moves_it_by_half(size):
    bank = MemoryBank.create(jax.random.key(0), size, DIM)
    assert bank.keys.shape[0] % BANK_ROWS == 0
    assert bank.keys.shape[0] >= size
    np.testing.assert_allclose(jnp.linalg.norm(bank.keys, axis=1), 1, rtol=1e-5)
    index = jnp.asarray([0, 3, size - 1], jnp.int32)
    features = jnp.asarray(keys_of(np.arange(3)))
    rows = bank.moved(index, features, 0.5)
    moved = bank.renew(index, rows, accept=True)
    expected = np.array(bank.keys)
    for place, feature in zip(np.asarray(index), np.asarray(features), strict=True):
        entry = 0.5 * expected[place] + 0.5 * feature
        expected[place] = entry / np.linalg.norm(entry)
    np.testing.assert_allclose(moved.keys, expected, rtol=1e-6)
    np.testing.assert_array_equal(bank.renew(index, rows, accept=False).keys, bank.keys)
    np.testing.assert_array_equal(moved.entries(index), moved.keys[index])


def test_draws_reach_every_example_evenly_and_no_padding():
    stats = pytest.importorskip("scipy.stats", reason="chi-squared test: pip install '.[test]'")
    size = 100
    bank = MemoryBank.create(jax.random.key(0), size, DIM)
    negatives = bank.draw(jax.random.key(1), 40_000)
    found = np.bincount(np.asarray(negatives.index).ravel(), minlength=size)
    assert len(found) == size
    assert stats.chisquare(found).pvalue > 1e-3
    np.testing.assert_array_equal(negatives.keys[0], bank.keys[negatives.index[0]])
    other = bank.draw(jax.random.key(2), 40_000)
    assert (other.index != negatives.index).mean() > 0.9
