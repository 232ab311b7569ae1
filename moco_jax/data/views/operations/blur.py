"""Blur: half of all views lose detail.

SimCLR's blur (Chen et al. 2020, appendix A), which MoCo v2 takes over (section 3): PIL's
GaussianBlur with sigma from 0.1 to 2, as in the authors' `moco/loader.py`. MoCo v3 blurs all query
views and a tenth of the key views (Grill et al. 2020, appendix B).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp

from moco_jax.data.views.arrays import Arrays, of_jax, of_tensorflow
from moco_jax.data.views.operations.stage import Operation, Probability, between

if TYPE_CHECKING:
    import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Blur(Operation):
    """Blurs as PIL's GaussianBlur does.

    Attributes:
        blur_probability: how often.
        blur_sigma: least and greatest sigma in pixels.
    """

    name: ClassVar = "blur"
    fields: ClassVar = {"blur": ("bool",), "sigma": ("float32",)}
    uniforms: ClassVar = 2
    own_programs: ClassVar = True
    symmetric: ClassVar = True

    blur_probability: Probability = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)

    def draw(
        self, arrays: Arrays, uniforms: Any, number: int, size: tuple[Any, Any]
    ) -> dict[str, Any]:
        """Draw whether the view is blurred, and how much."""
        return {
            "blur": uniforms[0] < self.chance(number),
            "sigma": between(*self.blur_sigma, uniforms[1]),
        }

    def on_host(self, x: "tf.Tensor", view: Any) -> "tf.Tensor":
        """Blur planes by the drawn sigma."""
        return gaussian_on_host(x, view.sigma, reach_of(self.blur_sigma[1]))

    def on_device(self, planes: jax.Array, view: Any) -> jax.Array:
        """Blur planes by the drawn sigma."""
        return gaussian_on_device(planes, view.sigma, reach_of(self.blur_sigma[1]))


def _widen(planes: "tf.Tensor", axis: int, reach: int) -> "tf.Tensor":
    """Repeat the first and the last line along `axis` `reach` times more at each end."""
    import tensorflow as tf

    first = tf.gather(planes, [0] * reach, axis=axis)
    last = tf.gather(planes, [tf.shape(planes)[axis] - 1] * reach, axis=axis)
    return tf.concat([first, planes, last], axis)


@functools.cache
def _compiled_box(reach: int) -> Callable:
    """Compile one box pass to planes that are `reach` lines wider at each end.

    It has a tap for each line within reach, in PIL's fixed point.
    """
    import tensorflow as tf

    def box(planes: tf.Tensor, weights: tf.Tensor, axis: int) -> tf.Tensor:
        x = tf.cast(planes, tf.uint32)
        length = x.shape[axis] - 2 * reach
        taps = [
            x[:, k : k + length] if axis == 1 else x[:, :, k : k + length]
            for k in range(2 * reach + 1)
        ]
        total = weights[0] * taps[reach]
        for away in range(1, reach + 1):
            total += weights[away] * (taps[reach - away] + taps[reach + away])
        half, bits = tf.constant(2**23, tf.uint32), tf.constant(24, tf.uint32)
        return tf.cast(tf.bitwise.right_shift(total + half, bits), tf.uint8)

    return tf.function(box, jit_compile=True, autograph=False)


def _box_radius(arrays: Arrays, sigma: Any) -> tuple[Any, Any]:
    """Return the radius of the box for `sigma`: whole pixels, and the weight of the edge.

    Three passes of the box have the variance sigma^2.
    """
    variance = sigma * sigma / 3
    whole = arrays.floor((arrays.sqrt(12 * variance + 1) - 1) / 2)
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    return whole, fraction / (6 * (variance - (whole + 1) ** 2))


def reach_of(sigma: float) -> int:
    """Return how many lines a box pass for `sigma` or less reaches to either side, at least 1."""
    return math.floor((math.sqrt(4 * sigma * sigma + 1) - 1) / 2) + 1


def gaussian_on_host(planes: "tf.Tensor", sigma: "tf.Tensor", reach: int = 2) -> "tf.Tensor":
    """Blur uint8 `[C, W, H]` as PIL's GaussianBlur(radius=sigma).

    `reach` is that of the largest sigma, see `reach_of`; 2 does up to 2.4.

    It is three box passes in each direction, rounded to uint8 after each. Each pass is compiled
    alone: XLA would otherwise compute the passes again for every tap of the next.
    """
    import tensorflow as tf

    whole, fraction = _box_radius(of_tensorflow(), sigma)
    # PIL's weights are whole multiples of 2^-24, and PIL divides in float32.
    total = 2**24
    center = tf.cast(tf.floor(tf.cast(total, tf.float32) / (2 * (whole + fraction) + 1)), tf.int32)
    edge = (total - center * (2 * tf.cast(whole, tf.int32) + 1)) // 2
    away = tf.range(reach + 1, dtype=tf.float32)
    outside = tf.where(away > whole + 1, tf.zeros_like(edge), edge)
    weights = tf.cast(tf.where(away <= whole, center, outside), tf.uint32)
    for axis in (1, 2):
        for _ in range(3):
            planes = _compiled_box(reach)(_widen(planes, axis, reach), weights, axis)
    return planes


def _box(planes: jax.Array, weights: tuple[jax.Array, ...], axis: int) -> jax.Array:
    """Apply one box pass along `axis` of whole numbers in float32.

    It has a tap for each of the weights on either side, edges repeated, and rounds ties down as
    PIL does.
    """
    reach = len(weights) - 1
    pad = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
    wide = jnp.pad(planes, pad, mode="edge")
    taps = [
        jax.lax.slice_in_dim(wide, k, k + planes.shape[axis], axis=axis)
        for k in range(2 * reach + 1)
    ]
    total = weights[0] * taps[reach]
    for away in range(1, reach + 1):
        total += weights[away] * (taps[reach - away] + taps[reach + away])
    return jnp.floor(total + 0.4999)


def gaussian_on_device(planes: jax.Array, sigma: jax.Array, reach: int = 2) -> jax.Array:
    """Blur uint8 `[C, H, W]` as `gaussian_on_host` does, in float32.

    The passes are a loop: unrolled, the compiler would fuse them and compute each pixel again
    for all that read it.
    """
    whole, fraction = _box_radius(of_jax(), sigma)
    center = 1 / (2 * (whole + fraction) + 1)
    edge = (1 - center * (2 * whole + 1)) / 2
    weights = tuple(
        jnp.where(away <= whole, center, jnp.where(away > whole + 1, 0, edge))
        for away in range(reach + 1)
    )
    x = planes.astype(jnp.float32)
    for axis in (2, 1):
        x = jax.lax.fori_loop(0, 3, lambda _, x, axis=axis: _box(x, weights, axis), x)
    return x.astype(jnp.uint8)
