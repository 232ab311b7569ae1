"""Vertical flip: for images that have no up, such as those of microscopes and satellites.

torchvision's RandomVerticalFlip. No recipe of MoCo has it; the setting `vertical_flip_probability`
adds it to any.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import jax

from moco_jax.data.views.arrays import Arrays
from moco_jax.data.views.operations.stage import Operation, Probability

if TYPE_CHECKING:
    import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class VerticalFlip(Operation):
    """Exchanges top and bottom, with `vertical_flip_probability`."""

    name: ClassVar = "vertical_flip"
    fields: ClassVar = {"vertical_flip": ("bool",)}
    uniforms: ClassVar = 1
    pixels: ClassVar = "either"
    symmetric: ClassVar = True

    vertical_flip_probability: Probability = 0.0

    def draw(
        self, arrays: Arrays, uniforms: Any, number: int, size: tuple[Any, Any]
    ) -> dict[str, Any]:
        """Draw whether top and bottom are exchanged."""
        return {"vertical_flip": uniforms[0] < self.chance(number)}

    def on_host(self, x: "tf.Tensor", view: Any) -> "tf.Tensor":
        """Exchange first and last rows, of planes or packed pixels."""
        return x[..., ::-1]

    def on_device(self, planes: jax.Array, view: Any) -> jax.Array:
        """Exchange first and last rows of planes."""
        return planes[:, ::-1]
