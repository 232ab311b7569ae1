"""The crop: a random part of the image, resized to the size of the view.

torchvision's RandomResizedCrop (Szegedy et al. 2015), with which each view of MoCo begins (v1,
section 3.3). The host's form is `resize.resize`.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from moco_jax.data.views.arrays import Arrays
from moco_jax.data.views.operations.stage import Stage, between

ATTEMPTS = 10  # attempts at a crop that fits
# Added to a quotient before it is cut to a whole number: ties go up, also where a division is a
# little too small.
HALF = 0.5 + 2**-14


@dataclasses.dataclass(frozen=True)
class Crop(Stage):
    """The crop of a view.

    Attributes:
        crop_scale: smallest and largest crop as a share of the image's area.
        crop_ratio: narrowest and widest crop, width over height.
    """

    name: ClassVar = "crop"
    fields: ClassVar = {"box": ("int32", 4)}  # top, left, height and width
    uniforms: ClassVar = 2 * ATTEMPTS + 2

    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def draw(
        self, arrays: Arrays, uniforms: Any, number: int, size: tuple[Any, Any]
    ) -> dict[str, Any]:
        """Draw the box: ten attempts at area and aspect.

        If none fits, it is the largest centred crop of a permitted aspect.
        """
        (height, width), (low, high) = size, self.crop_ratio
        tall, wide = arrays.cast(height, "float32"), arrays.cast(width, "float32")
        area = tall * wide * between(*self.crop_scale, uniforms[:ATTEMPTS])
        logs = math.log(low), math.log(high)
        aspect = arrays.exp(between(*logs, uniforms[ATTEMPTS : 2 * ATTEMPTS]))
        w = arrays.cast(arrays.round(arrays.sqrt(area * aspect)), "int32")
        h = arrays.cast(arrays.round(arrays.sqrt(area / aspect)), "int32")
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        first, any_fits = arrays.argmax(arrays.cast(fits, "int32")), arrays.any(fits)

        w_fall = arrays.cast(arrays.round(arrays.minimum(wide, tall * high)), "int32")
        narrow = arrays.where(wide / tall < low, wide / low, tall)
        h_fall = arrays.cast(arrays.round(narrow), "int32")
        w = arrays.where(any_fits, arrays.take(w, first), arrays.maximum(w_fall, 1))
        h = arrays.where(any_fits, arrays.take(h, first), arrays.maximum(h_fall, 1))
        room = arrays.stack([height - h, width - w])
        drawn = arrays.floor(uniforms[2 * ATTEMPTS :] * arrays.cast(room + 1, "float32"))
        fitting = arrays.minimum(arrays.cast(drawn, "int32"), room)
        corner = arrays.where(any_fits, fitting, room // 2)
        return {"box": arrays.concatenate([corner, arrays.stack([h, w])])}


def _weights(begin: jax.Array, extent: jax.Array, lines: int, size: int) -> jax.Array:
    """Compute PIL's bilinear weights before they are divided by their sum: `[size, lines]`.

    They say, in float32, what each of `lines` adds to each of `size` that replace `extent` of
    them from `begin` on; places are in parts of a line, as in `resize.py`.
    """
    extent = extent.astype(jnp.float32)
    line = (jnp.arange(lines)[None] - begin).astype(jnp.float32)
    center = (jnp.arange(size, dtype=jnp.float32)[:, None] + 0.5) * extent
    away = jnp.abs((line + 0.5) * size - center)
    inside = (line >= 0) & (line < extent)
    return jnp.where(inside, jnp.maximum(jnp.maximum(extent, size) - away, 0), 0)


def _pass(weights: jax.Array, lines: jax.Array) -> jax.Array:
    """Average lines `[L, ...]` of whole numbers by `weights` `[S, L]`, and round: `[S, ...]`."""
    total = jnp.tensordot(weights, lines, axes=1, precision="highest")
    norm = jnp.sum(weights, axis=1).reshape(-1, *[1] * (lines.ndim - 1))
    return jnp.floor(total / norm + HALF)


def on_device(image: jax.Array, box: jax.Array, size: int) -> jax.Array:
    """Resize the pixels in `box` int32 `[4]` of uint8 `[H, W, C]` to uint8 `[size, size, C]`.

    These are the two passes of `resize.resize`, in its order and rounded as there, as products
    with small dense matrices.
    """
    height, width, _ = image.shape
    rows = _pass(_weights(box[0], box[2], height, size), image.astype(jnp.float32))
    columns = _pass(_weights(box[1], box[3], width, size), rows.swapaxes(0, 1))
    return columns.swapaxes(0, 1).astype(jnp.uint8)
