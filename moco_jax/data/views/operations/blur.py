"""Blur: half of all views lose detail.

SimCLR's blur (Chen et al. 2020, appendix A), which MoCo v2 takes over (section 3): PIL's
GaussianBlur with sigma from 0.1 to 2, as in the authors' `moco/loader.py`. MoCo v3 blurs all query
views and a tenth of the key views (Grill et al. 2020, appendix B).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp

from moco_jax.data.views.arrays import Arrays, of_jax, of_tensorflow
from moco_jax.data.views.operations.stage import Operation, between

if TYPE_CHECKING:
    import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Blur(Operation):
    """Blurs as PIL's GaussianBlur does.

    Attributes:
        blur_probability: in the query view, and in the key view.
        blur_sigma: least and greatest sigma in pixels.
    """

    name: ClassVar = "blur"
    fields: ClassVar = {"blur": ("bool",), "sigma": ("float32",)}
    uniforms: ClassVar = 2
    own_programs: ClassVar = True
    symmetric: ClassVar = True

    blur_probability: tuple[float, float] = (0.5, 0.5)
    blur_sigma: tuple[float, float] = (0.1, 2.0)

    def draw(
        self, arrays: Arrays, uniforms: Any, number: int, size: tuple[Any, Any]
    ) -> dict[str, Any]:
        """Draw whether the view is blurred, and how much."""
        return {
            "blur": uniforms[0] < self.blur_probability[number],
            "sigma": between(*self.blur_sigma, uniforms[1]),
        }

    def on_host(self, x: "tf.Tensor", view: Any) -> "tf.Tensor":
        """Blur planes by the drawn sigma."""
        return gaussian_on_host(x, view.sigma)

    def on_device(self, planes: jax.Array, view: Any) -> jax.Array:
        """Blur planes by the drawn sigma."""
        return gaussian_on_device(planes, view.sigma)


def _widen(planes: "tf.Tensor", axis: int) -> "tf.Tensor":
    """Repeat the first and the last line along `axis` twice more at each end."""
    import tensorflow as tf

    first = tf.gather(planes, [0, 0], axis=axis)
    last = tf.gather(planes, [tf.shape(planes)[axis] - 1] * 2, axis=axis)
    return tf.concat([first, planes, last], axis)


@functools.cache
def _compiled_box() -> Callable:
    """Compile one box pass to planes that are two lines wider at each end.

    It has five taps in PIL's fixed point.
    """
    import tensorflow as tf

    def box(planes: tf.Tensor, weights: tf.Tensor, axis: int) -> tf.Tensor:
        x = tf.cast(planes, tf.uint32)
        length = x.shape[axis] - 4
        a, b, c, d, e = (
            x[:, k : k + length] if axis == 1 else x[:, :, k : k + length] for k in range(5)
        )
        total = weights[0] * c + weights[1] * (b + d) + weights[2] * (a + e)
        half, bits = tf.constant(2**23, tf.uint32), tf.constant(24, tf.uint32)
        return tf.cast(tf.bitwise.right_shift(total + half, bits), tf.uint8)

    return tf.function(box, jit_compile=True, autograph=False)


def _box_radius(arrays: Arrays, sigma: Any) -> tuple[Any, Any]:
    """Return the radius of the box for `sigma`: whole pixels (0 or 1), and the weight of the edge.

    Three passes of the box have the variance sigma^2.
    """
    variance = sigma * sigma / 3
    whole = arrays.floor((arrays.sqrt(12 * variance + 1) - 1) / 2)
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    return whole, fraction / (6 * (variance - (whole + 1) ** 2))


def gaussian_on_host(planes: "tf.Tensor", sigma: "tf.Tensor") -> "tf.Tensor":
    """Blur uint8 `[C, W, H]` as PIL's GaussianBlur(radius=sigma), sigma up to 2.8.

    It is three box passes in each direction, rounded to uint8 after each. Each pass is compiled
    alone: XLA would otherwise compute the passes again for every tap of the next.
    """
    import tensorflow as tf

    whole, fraction = _box_radius(of_tensorflow(), sigma)
    # PIL's weights are whole multiples of 2^-24, and PIL divides in float32.
    total = 2**24
    center = tf.cast(tf.floor(tf.cast(total, tf.float32) / (2 * (whole + fraction) + 1)), tf.int32)
    edge = (total - center * (2 * tf.cast(whole, tf.int32) + 1)) // 2
    near, far = tf.where(whole < 1, edge, center), tf.where(whole < 1, tf.zeros_like(edge), edge)
    weights = tf.cast(tf.stack([center, near, far]), tf.uint32)
    for axis in (1, 2):
        for _ in range(3):
            planes = _compiled_box()(_widen(planes, axis), weights, axis)
    return planes


def _box(planes: jax.Array, weights: tuple[jax.Array, ...], axis: int) -> jax.Array:
    """Apply one box pass along `axis` of whole numbers in float32.

    It has five taps, edges repeated, and rounds ties down as PIL does.
    """
    pad = [(2, 2) if a == axis else (0, 0) for a in range(3)]
    wide = jnp.pad(planes, pad, mode="edge")
    a, b, c, d, e = (
        jax.lax.slice_in_dim(wide, k, k + planes.shape[axis], axis=axis) for k in range(5)
    )
    center, near, far = weights
    return jnp.floor(center * c + near * (b + d) + far * (a + e) + 0.4999)


def gaussian_on_device(planes: jax.Array, sigma: jax.Array) -> jax.Array:
    """Blur uint8 `[C, H, W]` as `gaussian_on_host` does, in float32.

    The passes are a loop: unrolled, the compiler would fuse them and compute each pixel again
    for all that read it.
    """
    whole, fraction = _box_radius(of_jax(), sigma)
    center = 1 / (2 * (whole + fraction) + 1)
    edge = (1 - center * (2 * whole + 1)) / 2
    weights = center, jnp.where(whole < 1, edge, center), jnp.where(whole < 1, 0, edge)
    x = planes.astype(jnp.float32)
    for axis in (2, 1):
        x = jax.lax.fori_loop(0, 3, lambda _, x, axis=axis: _box(x, weights, axis), x)
    return x.astype(jnp.uint8)
