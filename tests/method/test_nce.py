"""NCE against its closed form, and its constant."""

import jax
import jax.numpy as jnp
import numpy as np

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
