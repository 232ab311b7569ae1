"""InfoNCE, the contrastive loss (MoCo v1, equation 1), and the statistics that tell how a run goes.

The queries travel to the keys: every device scores all queries against its own part of the
dictionary, and only sums of exponents cross between devices (`streamed.py`). The dictionary is
never gathered, and the logits of all keys are never in memory at once.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from moco_jax.method import streamed
from moco_jax.parallel import mesh as mesh_lib


def normalize(x: jax.Array) -> jax.Array:
    """Scale `x` `[..., C]` to unit L2 norm in at least float32 (torch's `normalize`, eps 1e-12)."""
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
    """Compute the cross-entropy of queries over their own key and all negatives, mean of the batch.

    `L_q = -log exp(q.k+ / tau) / sum_{i=0..K} exp(q.k_i / tau)` with tau = `temperature`.

    Args:
        query: `[B, C]`, unit vectors, at least float32.
        key: `[B, C]`, the positive of each query, unit vectors.
        negatives: `[S, n, C]`, the dictionary, divided over devices on its middle axis.
        temperature: tau.
        mesh: the device mesh, or None on one device.
        counts: bool `[S, n]`, which negatives count; None: all.
        query_index: int32 `[B]`, with `negative_index`: a negative whose index is the query's is
            left out for it.
        negative_index: int32 `[S, n]`.

    Returns:
        The loss, a scalar in nats, and scalars: `top1` and `top5` (share of queries whose own key
        is the nearest, or among the five nearest; neither a tie nor a NaN is a hit), `positive` and
        `negative` (mean cosine), and `effective_negatives` (as how many equal ones they weigh,
        `(sum e)^2 / sum e^2` with e = exp(q.k / tau)).
    """
    everyone = mesh_lib.replicate(query, mesh)
    own = mesh_lib.replicate(jnp.sum(query * key, axis=-1), mesh)
    if query_index is not None:
        query_index = mesh_lib.replicate(query_index, mesh)
    dictionary = streamed.KeySet(negatives, counts, negative_index)
    losses, found = streamed.losses(everyone, own, query_index, dictionary, temperature, mesh)
    loss = jnp.mean(losses)
    metrics = {
        "top1": hits(own, found.closer, 1, loss.dtype),
        "top5": hits(own, found.closer, 5, loss.dtype),
        "positive": jnp.mean(own),
        "negative": jnp.sum(found.cosine) / jnp.maximum(jnp.sum(found.counted), 1),
        "effective_negatives": jnp.mean(found.effective),
    }
    return loss, jax.lax.stop_gradient(metrics)


def hits(own: jax.Array, closer: jax.Array, most: int, dtype) -> jax.Array:
    """Compute the share of queries whose own key is among the `most` nearest, a scalar of `dtype`.

    Args:
        own: `[B]`, cosine of each query and its own key; where it is NaN nothing was found.
        closer: int32 `[B]`, negatives that are not farther than it.
        most: how many places count.
        dtype: of the result.
    """
    return jnp.mean((closer < most) & ~jnp.isnan(own), dtype=dtype)


def spread(features: jax.Array) -> jax.Array:
    """Measure how far `features` `[B, C]` (unit vectors) fill the sphere: 1 evenly, 0 collapsed.

    The square root of the total variance, which for unit vectors is 1 - |mean|^2.
    """
    center = jnp.mean(features, axis=0)
    return jnp.sqrt(jnp.maximum(1 - jnp.sum(center * center), 0))
