"""BatchNorm whose statistics are taken within groups of samples, never "per device".

The number of groups belongs to the recipe (8 for the paper's 8 GPUs), so that one device and
eight compute the same loss. One group is synchronised BatchNorm.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from moco_jax.base.errors import UserError, nearest_multiples


class BatchNorm(nn.Module):
    """BatchNorm over `groups` consecutive, equal parts of the batch (MoCo v1, section 3.3).

    In training `[B, ..., C]` is viewed as `[G, B/G, ..., C]`: each group is normalised with its
    own mean and biased variance, and each running statistic moves towards the mean over groups
    of the group means and unbiased variances. In evaluation the running statistics normalise
    everything. An array divided over devices along the batch stays where it is when G is a
    multiple of the number of devices.

    Variables: params `scale` and `bias` (with `affine`), batch_stats `mean` and `var`, each
    `[C]`, at least float32.

    Attributes:
        groups: G.
        momentum: weight of the old running value (torch counts the weight of the new one, 0.1).
        epsilon: added to the variance.
        dtype: of the output; statistics and arithmetic use at least float32.
        scale_init: initialiser of `scale`.
        affine: whether a learnt scale and bias follow.
    """

    groups: int = 1
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    affine: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalise `x` `[B, ..., C]`, in `dtype`; raises UserError where G does not divide B."""
        exact = jnp.promote_types(self.dtype, jnp.float32)
        channels = x.shape[-1:]
        scale, bias = jnp.ones(channels, exact), jnp.zeros(channels, exact)
        if self.affine:
            scale = self.param("scale", self.scale_init, channels, exact)
            bias = self.param("bias", nn.initializers.zeros, channels, exact)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, exact)
        var = self.variable("batch_stats", "var", jnp.ones, channels, exact)

        if not train:
            factor = scale * jax.lax.rsqrt(var.value + self.epsilon)
            return (x.astype(exact) * factor + (bias - mean.value * factor)).astype(self.dtype)

        normalized, group_mean, group_var = self._normalize(x, scale, bias)
        if not self.is_initializing():
            count = math.prod(x.shape[:-1]) // self.groups
            new_mean, new_var = group_mean.mean(0), group_var.mean(0) * (count / (count - 1))
            mean.value = self.momentum * mean.value + (1 - self.momentum) * new_mean
            var.value = self.momentum * var.value + (1 - self.momentum) * new_var
        return normalized

    def _normalize(self, x: jax.Array, scale: jax.Array, bias: jax.Array):
        """Return `x` normalised, and of each group the means and the variances, `[G, C]`."""

        def in_shape(shape: tuple[int, ...], x: jax.Array, scale: jax.Array, bias: jax.Array):
            grouped = x.reshape(shape).astype(scale.dtype)
            inner = tuple(range(1, grouped.ndim - 1))
            mean = jnp.mean(grouped, inner, keepdims=True)
            square = jnp.mean(grouped * grouped, inner, keepdims=True)
            var = jnp.maximum(square - mean * mean, 0)
            factor = scale * jax.lax.rsqrt(var + self.epsilon)
            normalized = grouped * factor + (bias - mean * factor)
            statistics = (mean.reshape(-1, x.shape[-1]), var.reshape(-1, x.shape[-1]))
            return normalized.astype(self.dtype).reshape(x.shape), *statistics

        self._check_groups(x)
        batch, *rest, channels = x.shape
        as_images = (self.groups, batch // self.groups, *rest, channels)
        # XLA for CPUs sums over one axis two to four times as fast as over three; on a TPU to put
        # the axes of an image together would move all of its pixels.
        as_rows = (self.groups, math.prod(x.shape[:-1]) // self.groups, channels)
        if as_rows == as_images:
            return in_shape(as_rows, x, scale, bias)
        return jax.lax.platform_dependent(
            x, scale, bias, cpu=partial(in_shape, as_rows), default=partial(in_shape, as_images)
        )

    def _check_groups(self, x: jax.Array) -> None:
        batch, groups = x.shape[0], self.groups
        if batch % groups:
            raise UserError(
                f"batch_size={batch} does not divide into bn_groups={groups}; "
                f"{nearest_multiples(batch, groups)}"
            )
        if math.prod(x.shape[:-1]) == groups:
            raise UserError(
                f"batch_size={batch} in bn_groups={groups} leaves one value per channel, which has "
                f"no variance; batch_size={2 * groups} gives two"
            )
