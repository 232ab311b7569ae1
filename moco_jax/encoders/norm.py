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

        self._check_groups(x)
        normalized, group_mean, group_var = normalize(x, scale, bias, self.groups, self.epsilon)
        if not self.is_initializing():
            count = math.prod(x.shape[:-1]) // self.groups
            new_mean, new_var = group_mean.mean(0), group_var.mean(0) * (count / (count - 1))
            mean.value = self.momentum * mean.value + (1 - self.momentum) * new_mean
            var.value = self.momentum * var.value + (1 - self.momentum) * new_var
        return normalized.astype(self.dtype)

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


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float):
    """Normalise each of `groups` equal parts of `x` `[B, ..., C]` by its own statistics.

    Returns:
        `x` normalised, times `scale` and plus `bias`, both `[C]`; the means of each group and its
        biased variances, both `[G, C]`. All are in the dtype of `scale`, as is the arithmetic.
        Gradients flow through the first alone.
    """
    return _for_platform(partial(_normalize, epsilon=epsilon), groups, x, scale, bias)


def _for_platform(function, groups: int, x: jax.Array, *others):
    """Call `function` with the shape in which it is to see `x`, then with `x` and the others.

    XLA for CPUs sums over one axis two to four times as fast as over three; on a TPU to put the
    axes of an image together would move all of its pixels.
    """
    batch, *rest, channels = x.shape
    as_images = (groups, batch // groups, *rest, channels)
    as_rows = (groups, math.prod((batch, *rest)) // groups, channels)
    if as_rows == as_images:
        return function(as_rows, x, *others)
    rows, images = partial(function, as_rows), partial(function, as_images)
    return jax.lax.platform_dependent(x, *others, cpu=rows, default=images)


def _normalize(
    shape: tuple[int, ...], x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
):
    grouped = x.reshape(shape).astype(scale.dtype)
    inner = tuple(range(1, grouped.ndim - 1))
    mean = jnp.mean(grouped, inner, keepdims=True)
    square = jnp.mean(grouped * grouped, inner, keepdims=True)
    var = jnp.maximum(square - mean * mean, 0)
    factor = scale * jax.lax.rsqrt(var + epsilon)
    normalized = grouped * factor + (bias - mean * factor)
    return normalized.reshape(x.shape), mean.reshape(-1, len(scale)), var.reshape(-1, len(scale))


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float):
    return normalize(x, scale, bias, groups, epsilon), (x, scale, bias)


def _backward(groups: int, epsilon: float, saved, cotangents):
    """Let JAX derive the gradient, in the shape that the forward pass has on the platform."""

    def gradients(shape: tuple[int, ...], x, scale, bias, g):
        def normalized(x, scale, bias):
            return _normalize(shape, x, scale, bias, epsilon)[0]

        return jax.vjp(normalized, x, scale, bias)[1](g)

    return _for_platform(gradients, groups, *saved, cotangents[0])


normalize.defvjp(_forward, _backward)
