"""Weighted nearest-neighbour classification of features, the score that needs no training (InstDisc, section 3.4)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.jit, static_argnames=("k",))
def _nearest(bank: jax.Array, queries: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    return jax.lax.top_k(jnp.matmul(queries, bank.T, precision="highest"), k)


def unit(features: np.ndarray) -> np.ndarray:
    """`features` `[N, D]` scaled to unit length, float32; a zero vector stays zero."""
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def nearest(
    bank: np.ndarray, queries: np.ndarray, k: int, block: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of `bank` `[N, D]` nearest by cosine to each row of `queries` `[M, D]`, `block` queries at once.

    Returns:
        cosines float32 `[M, k]`, descending, and rows int32 `[M, k]`.
    """
    keys = jnp.asarray(unit(bank))
    parts = [_nearest(keys, unit(queries[i : i + block]), k) for i in range(0, len(queries), block)]
    cosines, rows = zip(*jax.device_get(parts), strict=True)
    return np.concatenate(cosines), np.concatenate(rows)


def classify(
    bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int, temperature: float
) -> np.ndarray:
    """Each query's class by a vote of its k nearest bank rows, each weighing `exp(cosine / temperature)`.

    Args:
        bank: `[N, D]` features of known class.
        labels: int `[N]`.
        queries: `[M, D]`.
        k: neighbours that vote; all N where N is smaller.
        temperature: tau of the weights.

    Returns:
        int `[M]`.
    """
    cosines, rows = nearest(bank, queries, min(k, len(bank)))
    weights = np.exp((cosines - cosines[:, :1]) / temperature)
    votes = np.zeros((len(queries), int(labels.max()) + 1), np.float64)
    np.add.at(votes, (np.arange(len(queries))[:, None], labels[rows]), weights)
    return votes.argmax(1)
