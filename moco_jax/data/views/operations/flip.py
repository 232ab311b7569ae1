"""Flip: half of all views are mirrored.

torchvision's RandomHorizontalFlip, as in the authors' `main_moco.py` (MoCo v1, section 3.3).
"""

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import jax

from moco_jax.data.views.arrays import Arrays
from moco_jax.data.views.operations.stage import Operation, Probability

if TYPE_CHECKING:
    import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Flip(Operation):
    """Exchanges left and right, with `flip_probability`."""

    name: ClassVar = "flip"
    fields: ClassVar = {"flip": ("bool",)}
    uniforms: ClassVar = 1
    pixels: ClassVar = "either"
    symmetric: ClassVar = True

    flip_probability: Probability = 0.5

    def draw(
        self, arrays: Arrays, uniforms: Any, number: int, size: tuple[Any, Any]
    ) -> dict[str, Any]:
        """Draw whether the view is mirrored."""
        return {"flip": uniforms[0] < self.chance(number)}

    def on_host(self, x: "tf.Tensor", view: Any) -> "tf.Tensor":
        """Exchange first and last columns, of planes or packed pixels."""
        return x[..., ::-1, :]

    def on_device(self, planes: jax.Array, view: Any) -> jax.Array:
        """Exchange first and last columns of planes."""
        return planes[:, :, ::-1]
