"""Heads map pooled features to the space in which queries and keys are compared.

MoCo v1 has one linear layer, v2 two layers (section 3), v3 layers with BatchNorm, and
predictors. All start as torch's `Linear`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from moco_jax.encoders.layers import Dense
from moco_jax.encoders.norm import BatchNorm


def linear(
    fan_in: int, dim: int, dtype: Any, reduce: str, name: str, use_bias: bool = True
) -> Dense:
    """Create a dense layer whose weights and biases start uniform within +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def uniform(rng: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.uniform(rng, shape, dtype, -bound, bound)

    return Dense(dim, dtype, reduce, uniform, use_bias, name=name)


class LinearHead(nn.Module):
    """The head of MoCo v1: one linear layer to `dim` features."""

    dim: int
    hidden: int = 0
    bn_groups: int = 1
    dtype: Any = jnp.float32
    reduce: str = "parameter"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map `[B, D]` to `[B, dim]`, computed in `dtype`, returned in at least float32."""
        x = linear(x.shape[-1], self.dim, self.dtype, self.reduce, "fc")(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))


class MLPHead(nn.Module):
    """The head of MoCo v2: `hidden` units (0: D), ReLU, then `dim` features; no BatchNorm."""

    dim: int
    hidden: int = 0
    bn_groups: int = 1
    dtype: Any = jnp.float32
    reduce: str = "parameter"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map `[B, D]` to `[B, dim]`, computed in `dtype`, returned in at least float32."""
        hidden = self.hidden or x.shape[-1]
        x = nn.relu(linear(x.shape[-1], hidden, self.dtype, self.reduce, "fc1")(x))
        x = linear(x.shape[-1], self.dim, self.dtype, self.reduce, "fc2")(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))


class BatchNormHead(nn.Module):
    """Projector or predictor of MoCo v3: linear layers without bias, each with BatchNorm.

    Between them is ReLU.

    Attributes:
        layers: number of linear layers.
        last_norm: whether BatchNorm, without scale and bias, follows the last one.
        dim, dtype, reduce: as in the other heads.
        hidden: features between the layers; 0: 4096, as published.
        bn_groups: see `BatchNorm`.
    """

    layers: int
    last_norm: bool
    dim: int
    hidden: int = 0
    bn_groups: int = 1
    dtype: Any = jnp.float32
    reduce: str = "parameter"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map `[B, D]` to `[B, dim]`, computed in `dtype`, returned in at least float32."""
        for number in range(self.layers):
            last = number == self.layers - 1
            width = self.dim if last else self.hidden or 4096
            x = linear(x.shape[-1], width, self.dtype, self.reduce, f"fc{number + 1}", False)(x)
            if not last or self.last_norm:
                norm = BatchNorm(
                    self.bn_groups, dtype=self.dtype, affine=not last, name=f"bn{number + 1}"
                )
                x = norm(x, train)
            if not last:
                x = nn.relu(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))
