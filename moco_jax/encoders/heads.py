"""Projection heads: from pooled features to the space in which queries and keys are compared.

One linear layer in MoCo v1, two layers in v2 (section 3). Both start as torch's `Linear` does.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from moco_jax.encoders.layers import Dense


def linear(fan_in: int, dim: int, dtype: Any, reduce: str, name: str) -> Dense:
    """A dense layer whose weights and biases start uniform within +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def uniform(rng: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.uniform(rng, shape, dtype, -bound, bound)

    return Dense(dim, dtype, reduce, uniform, name=name)


class LinearHead(nn.Module):
    """The head of MoCo v1: one linear layer to `dim` features."""

    dim: int
    dtype: Any = jnp.float32
    reduce: str = "parameter"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, D]` -> `[B, dim]`, computed in `dtype`, returned in at least float32."""
        x = linear(x.shape[-1], self.dim, self.dtype, self.reduce, "fc")(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))


class MLPHead(nn.Module):
    """The head of MoCo v2: D hidden units, ReLU, then `dim` features; no BatchNorm."""

    dim: int
    dtype: Any = jnp.float32
    reduce: str = "parameter"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, D]` -> `[B, dim]`, computed in `dtype`, returned in at least float32."""
        x = nn.relu(linear(x.shape[-1], x.shape[-1], self.dtype, self.reduce, "fc1")(x))
        x = linear(x.shape[-1], self.dim, self.dtype, self.reduce, "fc2")(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))
