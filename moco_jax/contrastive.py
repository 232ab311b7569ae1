"""InfoNCE, the contrastive loss (MoCo v1, equation 1), and the statistics that tell how a run goes.

The queries travel to the keys: every device scores all queries against its own part of the dictionary, and
only sums of exponents cross between devices. The dictionary is never gathered.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from moco_jax import mesh as mesh_lib


def normalize(x: jax.Array) -> jax.Array:
    """`x` `[..., C]` scaled to unit L2 norm in at least float32 (torch's `normalize`, eps 1e-12)."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def chance_level(queue_size: int, symmetric: bool) -> float:
    """The loss in nats of a query that is as close to every key: log(1 + K), twice that when symmetric."""
    return math.log1p(queue_size) * (2 if symmetric else 1)


def info_nce(
    query: jax.Array,
    key: jax.Array,
    negatives: jax.Array,
    temperature: float,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of each query over its own key and all negatives, mean over the batch.

    `L_q = -log exp(q.k+ / tau) / sum_{i=0..K} exp(q.k_i / tau)` with tau = `temperature`.

    Args:
        query: `[B, C]`, unit vectors, at least float32.
        key: `[B, C]`, the positive of each query, unit vectors.
        negatives: `[S, B, C]`, the dictionary, divided over devices on its middle axis.
        temperature: tau; at least 0.03 keeps float32 exponents in range.
        mesh: the device mesh, or None on one device.

    Returns:
        The loss, a scalar in nats, and scalars: `top1` and `top5` (share of queries whose own key is the
        nearest, or among the five nearest, of 1 + K; a tie is no hit), `positive` and `negative` (mean cosine).
    """
    positive = jnp.sum(query * key, axis=-1)
    everyone = mesh_lib.replicate(query, mesh)
    own = mesh_lib.replicate(positive, mesh)
    cosine = jnp.einsum("bc,snc->bsn", everyone, negatives, precision="highest")
    # Unit vectors bound every exponent by 1 / tau: subtracting it is the one-pass form of logsumexp.
    exponents = jnp.exp((cosine - 1) / temperature).sum((1, 2)) + jnp.exp((own - 1) / temperature)
    loss = jnp.mean(jnp.log(exponents) + (1 - own) / temperature)
    closer = jnp.sum(cosine >= own[:, None, None], axis=(1, 2))
    metrics = {
        "top1": jnp.mean(closer < 1, dtype=loss.dtype),
        "top5": jnp.mean(closer < 5, dtype=loss.dtype),
        "positive": jnp.mean(own),
        "negative": jnp.mean(cosine),
    }
    return loss, jax.lax.stop_gradient(metrics)


def spread(features: jax.Array) -> jax.Array:
    """How far `features` `[B, C]` (unit vectors) fill the sphere: 1 when evenly spread, 0 when collapsed.

    The square root of the total variance, which for unit vectors is 1 - |mean|^2.
    """
    center = jnp.mean(features, axis=0)
    return jnp.sqrt(jnp.maximum(1 - jnp.sum(center * center), 0))
