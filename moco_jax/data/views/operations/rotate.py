"""Quarter turns: for images that have no up, such as those of microscopes and satellites.

A view is turned by 0, 90, 180 or 270 degrees, each as often, as albumentations' RandomRotate90
does: pixels move and are not computed anew. No recipe of MoCo has it; the setting
`rotate_probability` adds it to any.
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
class Rotate(Operation):
    """Turns by quarters, with `rotate_probability`; with 1 all four directions are as frequent."""

    name: ClassVar = "rotate"
    fields: ClassVar = {"rotate": ("bool",), "quarters": ("int32",)}  # counter-clockwise
    uniforms: ClassVar = 2
    pixels: ClassVar = "either"

    rotate_probability: Probability = 0.0

    def draw(
        self, arrays: Arrays, uniforms: Any, number: int, size: tuple[Any, Any]
    ) -> dict[str, Any]:
        """Draw whether the view is turned, and by how many quarters: 0 to 3."""
        return {
            "rotate": uniforms[0] < self.chance(number),
            "quarters": arrays.cast(uniforms[1] * 4, "int32"),
        }

    def on_host(self, x: "tf.Tensor", view: Any) -> "tf.Tensor":
        """Turn planes or packed pixels, which have columns before rows."""
        import tensorflow as tf

        half = tf.where(view.quarters >= 2, x[..., ::-1, ::-1], x)
        quarter = tf.linalg.matrix_transpose(half[..., ::-1, :])
        return tf.where(view.quarters % 2 == 1, quarter, half)

    def on_device(self, planes: jax.Array, view: Any) -> jax.Array:
        """Turn planes."""
        half = jnp.where(view.quarters >= 2, planes[:, ::-1, ::-1], planes)
        quarter = half[:, :, ::-1].swapaxes(1, 2)
        return jnp.where(view.quarters % 2 == 1, quarter, half)
