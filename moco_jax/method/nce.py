"""The memory bank's first loss: noise-contrastive estimation (InstDisc, section 3.2).

Each query is told apart from m noise entries one by one, with a normalising constant Z that is
fixed at the first step. MoCo's own memory-bank rows use InfoNCE instead (`info_nce.py`).
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from moco_jax.method.info_nce import hits
from moco_jax.parallel import mesh as mesh_lib


def nce(
    query: jax.Array,
    key: jax.Array,
    negatives: jax.Array,
    temperature: float,
    constant: jax.Array,
    size: int,
    mesh: Mesh | None = None,
    own_noise: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Compute the loss of queries told apart from noise one by one, mean over the batch.

    `L_q = -log h(k+) - sum_j log(1 - h(k_j))` with `h = P / (P + m / N)`, `P = exp(q.k / tau) / Z`.

    Args:
        query: `[B, C]`, unit vectors, at least float32.
        key: `[B, C]`, each query's own entry.
        negatives: `[1, m, C]`, the noise entries, divided over devices on the middle axis.
        temperature: tau.
        constant: Z; where it is 0 it becomes N times the mean of all `exp(q.k / tau)` of this
            batch.
        size: N, entries in the bank.
        mesh: the device mesh, or None on one device.
        own_noise: bool `[B, m]`, which of the noise is a query's own entry. It is as near as the
            entry itself, so rounding would decide which comes first: `top1` and `top5` leave it
            out. The loss does not.

    Returns:
        The loss in nats, Z, and the metrics `top1`, `top5`, `positive`, `negative` and
        `effective_negatives`, as `info_nce.info_nce`.
    """
    own = jnp.sum(query * key, axis=-1)
    everyone, own = mesh_lib.replicate(query, mesh), mesh_lib.replicate(own, mesh)
    cosine = jnp.einsum("bc,nc->bn", everyone, negatives[0], precision="highest")
    number = cosine.shape[1]
    weights, own_weight = jnp.exp(cosine / temperature), jnp.exp(own / temperature)
    first = size * (weights.sum(1) + own_weight).mean() / (number + 1)
    constant = jax.lax.stop_gradient(jnp.where(constant > 0, constant, first))
    noise = number / size
    hit = own_weight / constant
    loss = jnp.mean(jnp.log1p(noise / hit) + jnp.log1p(weights / (constant * noise)).sum(1))
    as_near = ~(cosine < own[:, None])
    closer = jnp.sum(as_near if own_noise is None else as_near & ~own_noise, axis=1)
    metrics = {
        "top1": hits(own, closer, 1, loss.dtype),
        "top5": hits(own, closer, 5, loss.dtype),
        "positive": jnp.mean(own),
        "negative": jnp.mean(cosine),
        "effective_negatives": jnp.mean(weights.sum(1) ** 2 / (weights**2).sum(1)),
    }
    return loss, constant, jax.lax.stop_gradient(metrics)
