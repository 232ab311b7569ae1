"""NCE against its closed form, and its constant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.method import nce
from moco_jax.method.info_nce import normalize


def closed_form(q, k, n, tau, z, size):
    noise = n.shape[0] / size
    total = 0.0
    for query, key in zip(q, k, strict=True):
        p = np.exp(query @ key / tau) / z
        total -= np.log(p / (p + noise))
        for other in n:
            p = np.exp(query @ other / tau) / z
            total -= np.log(1 - p / (p + noise))
    return total / len(q)


def test_loss_gradient_and_constant_equal_the_closed_form(float64):
    rng, tau, size = np.random.default_rng(0), 0.2, 50
    q, k = (np.asarray(normalize(jnp.asarray(rng.normal(size=(4, 6))))) for _ in range(2))
    n = np.asarray(normalize(jnp.asarray(rng.normal(size=(9, 6)))))
    every = np.exp(np.concatenate([q @ n.T, np.sum(q * k, 1)[:, None]], 1) / tau)
    z = size * every.mean()

    def loss(q, constant):
        return nce.nce(q, k, n[None], tau, constant, size)[0]

    def expected(q, constant):
        return closed_form(q, k, n, tau, constant, size)

    _, found, metrics = nce.nce(q, k, n[None], tau, jnp.zeros(()), size)
    np.testing.assert_allclose(found, z, rtol=1e-12)
    np.testing.assert_allclose(loss(q, jnp.zeros(())), expected(q, z), rtol=1e-12)
    np.testing.assert_allclose(loss(q, jnp.asarray(7.0)), expected(q, 7.0), rtol=1e-12)
    assert float(nce.nce(q, k, n[None], tau, jnp.asarray(7.0), size)[1]) == 7
    gradient = np.asarray(jax.grad(loss)(jnp.asarray(q), jnp.zeros(())))
    step = 1e-6
    for place in ((0, 0), (2, 3), (3, 5)):
        up, down = q.copy(), q.copy()
        up[place] += step
        down[place] -= step
        slope = (expected(up, z) - expected(down, z)) / (2 * step)
        np.testing.assert_allclose(gradient[place], slope, rtol=1e-6)
    np.testing.assert_allclose(metrics["positive"], np.sum(q * k, 1).mean(), rtol=1e-12)
    np.testing.assert_allclose(metrics["negative"], (q @ n.T).mean(), rtol=1e-12)


def test_a_querys_own_entry_among_the_noise_is_no_rival_in_rank():
    """It counts in the loss as all noise does."""
    rng = np.random.default_rng(4)
    unit = rng.normal(size=(2, 40, 8))
    query, bank = (jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in unit)
    drawn = jnp.asarray(rng.integers(0, 40, 30))
    own_noise = jnp.arange(40)[:, None] == drawn
    arguments = query, bank, bank[drawn][None], 0.1, jnp.asarray(5.0), 40
    loss, _, metrics = nce.nce(*arguments, own_noise=own_noise)
    assert own_noise.any()
    assert loss == nce.nce(*arguments)[0]
    cosine = np.asarray(query @ bank.T)
    rivals = [[c for c in drawn.tolist() if c != row] for row in range(40)]
    ranks = [np.sum(cosine[row, rivals[row]] >= cosine[row, row]) for row in range(40)]
    assert metrics["top1"] == pytest.approx(np.mean(np.equal(ranks, 0)))
    assert metrics["top5"] == pytest.approx(np.mean(np.less(ranks, 5)))
