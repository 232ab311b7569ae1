"""Solarization: now and then bright values of a view are inverted.

BYOL's (Grill et al. 2020, appendix B), which MoCo v3 takes over: threshold 128, probability 0.2,
in key views only. PIL's ImageOps.solarize, as in the authors' `moco/loader.py`.
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
class Solarize(Operation):
    """Inverts the values from 128 on, with `solarize_probability`."""

    name: ClassVar = "solarize"
    fields: ClassVar = {"solarize": ("bool",)}
    uniforms: ClassVar = 1
    pixels: ClassVar = "either"
    symmetric: ClassVar = True

    solarize_probability: Probability = 0.0

    def draw(
        self, arrays: Arrays, uniforms: Any, number: int, size: tuple[Any, Any]
    ) -> dict[str, Any]:
        """Draw whether the view is solarized."""
        return {"solarize": uniforms[0] < self.chance(number)}

    def on_host(self, x: "tf.Tensor", view: Any) -> "tf.Tensor":
        """Invert bright values of planes or packed pixels."""
        import tensorflow as tf

        one = tf.cast(0x010101, x.dtype)  # 1 in every channel of a packed pixel
        bright = tf.bitwise.right_shift(x, 7) & one
        return tf.bitwise.bitwise_xor(x, bright * 255)

    def on_device(self, planes: jax.Array, view: Any) -> jax.Array:
        """Invert bright values of planes."""
        return jnp.where(planes < 128, planes, 255 - planes)
