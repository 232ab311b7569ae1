"""Grayscale: now and then a view loses its colours.

torchvision's RandomGrayscale with probability 0.2, as in the authors' `main_moco.py` (MoCo v1,
section 3.3), with the luma of PIL's mode L.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp

from moco_jax.data.views.arrays import Arrays
from moco_jax.data.views.operations.stage import Operation, Probability

if TYPE_CHECKING:
    import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Grayscale(Operation):
    """Replaces the channels by luma, with `grayscale_probability`."""

    name: ClassVar = "grayscale"
    fields: ClassVar = {"grayscale": ("bool",)}
    uniforms: ClassVar = 1
    colours: ClassVar = True
    pixels: ClassVar = "packed"
    symmetric: ClassVar = True

    grayscale_probability: Probability = 0.2

    def draw(
        self, arrays: Arrays, uniforms: Any, number: int, size: tuple[Any, Any]
    ) -> dict[str, Any]:
        """Draw whether the view loses its colours."""
        return {"grayscale": uniforms[0] < self.chance(number)}

    def on_host(self, x: "tf.Tensor", view: Any) -> "tf.Tensor":
        """Replace red, green and blue of packed pixels by luma."""
        return luma_on_host(x) * 0x010101

    def on_device(self, planes: jax.Array, view: Any) -> jax.Array:
        """Replace red, green and blue of planes by luma."""
        return jnp.repeat(luma_on_device(planes).astype(jnp.uint8), 3, axis=0)


def luma_on_host(packed: "tf.Tensor") -> "tf.Tensor":
    """Compute PIL's mode L: int32 `[W, H]` from ITU-R 601 weights in 16-bit fixed point."""
    import tensorflow as tf

    from moco_jax.data.views import host_pixels

    red, green, blue = host_pixels.split(packed)
    return tf.bitwise.right_shift(red * 19595 + green * 38470 + blue * 7471 + 0x8000, 16)


def luma_on_device(planes: jax.Array) -> jax.Array:
    """Compute the same from uint8 `[3, H, W]`: int32 `[1, H, W]`."""
    x = planes.astype(jnp.int32)
    return (x[0:1] * 19595 + x[1:2] * 38470 + x[2:3] * 7471 + 0x8000) >> 16
