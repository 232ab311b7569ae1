"""Two forms of self-attention for Vision Transformers: the same values, other memory.

Both map queries, keys and values `[B, N, heads, d]` to `[B, N, heads, d]` in their dtype; logits
and softmax are computed in at least float32. `jax.nn.dot_product_attention` is no third form: in
XLA it keeps all logits and rounds a float64 softmax to float32, and in cuDNN it trains on no odd
number of tokens, which a class token makes of most grids.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

LEAN_QUERIES = 128  # queries that `lean` scores at once


def plain(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Compute softmax(Q K' / sqrt d) V, keeping `[B, heads, N, N]` for the backward pass."""
    exact = jnp.promote_types(queries.dtype, jnp.float32)
    logits = jnp.einsum("bqhd,bkhd->bhqk", queries, keys, preferred_element_type=exact)
    weights = jax.nn.softmax(logits * queries.shape[-1] ** -0.5, axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(values.dtype), values)


def lean(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Compute `plain` for one block of queries after the other, again in the backward pass.

    Nothing larger than `[B, heads, LEAN_QUERIES, N]` exists at any time, and none of it is kept.
    """
    batch, tokens, *head = queries.shape
    blocks = -(-tokens // LEAN_QUERIES)
    size = -(-tokens // blocks)
    padded = jnp.pad(queries, ((0, 0), (0, blocks * size - tokens), (0, 0), (0, 0)))
    parts = padded.reshape(batch, blocks, size, *head).swapaxes(0, 1)
    recomputed = jax.checkpoint(plain)
    out = jax.lax.map(lambda part: recomputed(part, keys, values), parts)
    return out.swapaxes(0, 1).reshape(padded.shape)[:, :tokens]


ATTENTIONS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "plain": plain,
    "lean": lean,
}
