"""InfoNCE with all logits in one array, with which tests and benchmarks compare `info_nce`."""

import jax
import jax.numpy as jnp


def plain_info_nce(
    query, key, negatives, temperature, *, counts=None, query_index=None, negative_index=None
):
    """Arguments and results of `info_nce.info_nce`, without a mesh."""
    own = jnp.sum(query * key, axis=-1)
    cosine = jnp.einsum("bc,snc->bsn", query, negatives, precision="highest")
    keep = jnp.broadcast_to(True if counts is None else counts, cosine.shape)
    if query_index is not None:
        keep &= negative_index != query_index[:, None, None]
    logits = jnp.where(keep, cosine / temperature, -jnp.inf)
    own_logit = own / temperature
    top = jax.lax.stop_gradient(jnp.maximum(logits.max((1, 2)), own_logit))
    weights = jnp.exp(logits - top[:, None, None])
    exponents = weights.sum((1, 2)) + jnp.exp(own_logit - top)
    loss = jnp.mean(jnp.log(exponents) + top - own_logit)
    closer = jnp.sum(keep & (cosine >= own[:, None, None]), axis=(1, 2))
    metrics = {
        "top1": jnp.mean(closer < 1, dtype=loss.dtype),
        "top5": jnp.mean(closer < 5, dtype=loss.dtype),
        "positive": jnp.mean(own),
        "negative": jnp.sum(jnp.where(keep, cosine, 0)) / jnp.maximum(keep.sum(), 1),
        "effective_negatives": jnp.mean(weights.sum((1, 2)) ** 2 / (weights**2).sum((1, 2))),
    }
    return loss, jax.lax.stop_gradient(metrics)
