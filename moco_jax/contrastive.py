"""InfoNCE, the contrastive loss (MoCo v1, equation 1), and the statistics that tell how a run goes.

The queries travel to the keys: every device scores all queries against its own part of the dictionary, and
only sums of exponents cross between devices. The dictionary is never gathered.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from moco_jax import mesh as mesh_lib


def normalize(x: jax.Array) -> jax.Array:
    """`x` `[..., C]` scaled to unit L2 norm in at least float32 (torch's `normalize`, eps 1e-12)."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def info_nce(
    query: jax.Array,
    key: jax.Array,
    negatives: jax.Array,
    temperature: float,
    mesh: Mesh | None = None,
    *,
    counts: jax.Array | None = None,
    query_index: jax.Array | None = None,
    negative_index: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of each query over its own key and all negatives, mean over the batch.

    `L_q = -log exp(q.k+ / tau) / sum_{i=0..K} exp(q.k_i / tau)` with tau = `temperature`.

    Args:
        query: `[B, C]`, unit vectors, at least float32.
        key: `[B, C]`, the positive of each query, unit vectors.
        negatives: `[S, n, C]`, the dictionary, divided over devices on its middle axis.
        temperature: tau.
        mesh: the device mesh, or None on one device.
        counts: bool `[S, n]`, which negatives count; None: all.
        query_index: int32 `[B]`, with `negative_index`: a negative whose index is the query's is left out for it.
        negative_index: int32 `[S, n]`.

    Returns:
        The loss, a scalar in nats, and scalars: `top1` and `top5` (share of queries whose own key is the
        nearest, or among the five nearest; a tie is no hit), `positive` and `negative` (mean cosine).
    """
    everyone = mesh_lib.replicate(query, mesh)
    own = mesh_lib.replicate(jnp.sum(query * key, axis=-1), mesh)
    cosine = jnp.einsum("bc,snc->bsn", everyone, negatives, precision="highest")
    keep = (
        jnp.ones(cosine.shape, bool) if counts is None else jnp.broadcast_to(counts, cosine.shape)
    )
    if query_index is not None and negative_index is not None:
        keep &= negative_index != mesh_lib.replicate(query_index, mesh)[:, None, None]
    logits = jnp.where(keep, cosine / temperature, -jnp.inf)
    own_logit = own / temperature
    top = jax.lax.stop_gradient(jnp.maximum(logits.max((1, 2)), own_logit))
    exponents = jnp.exp(logits - top[:, None, None]).sum((1, 2)) + jnp.exp(own_logit - top)
    loss = jnp.mean(jnp.log(exponents) + top - own_logit)
    closer = jnp.sum(keep & (cosine >= own[:, None, None]), axis=(1, 2))
    metrics = {
        "top1": jnp.mean(closer < 1, dtype=loss.dtype),
        "top5": jnp.mean(closer < 5, dtype=loss.dtype),
        "positive": jnp.mean(own),
        "negative": jnp.sum(jnp.where(keep, cosine, 0)) / jnp.maximum(keep.sum(), 1),
    }
    return loss, jax.lax.stop_gradient(metrics)


def spread(features: jax.Array) -> jax.Array:
    """How far `features` `[B, C]` (unit vectors) fill the sphere: 1 when evenly spread, 0 when collapsed.

    The square root of the total variance, which for unit vectors is 1 - |mean|^2.
    """
    center = jnp.mean(features, axis=0)
    return jnp.sqrt(jnp.maximum(1 - jnp.sum(center * center), 0))
