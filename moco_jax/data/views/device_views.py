"""Makes whole views in a jitted step, from images that live on the devices.

The host sends only each example's number. Parameters are those that `augment.py` draws on the
host (the same formulas in float32 on the same random bits); the crop is resized as in
`resize.py`, and `device_ops.py` does what follows.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax.data.views import device_ops, philox
from moco_jax.data.views.recipes import ATTEMPTS, EACH, HALF, ORDERS, UNIFORMS, Recipe, View


def _between(low: float, high: float, uniform: jax.Array) -> jax.Array:
    return low + (high - low) * uniform


def draw_box(uniforms: jax.Array, height: int, width: int, recipe: Recipe) -> jax.Array:
    """Draw the crop int32 `[4]` that `augment.draw_box` draws from `uniforms` float32 `[22]`."""
    tall, wide = (jnp.asarray(side, jnp.float32) for side in (height, width))
    area = tall * wide * _between(*recipe.crop_scale, uniforms[:ATTEMPTS])
    logs = (math.log(recipe.crop_ratio[0]), math.log(recipe.crop_ratio[1]))
    aspect = jnp.exp(_between(*logs, uniforms[ATTEMPTS : 2 * ATTEMPTS]))
    w = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    h = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first, any_fits = jnp.argmax(fits), jnp.any(fits)

    low, high = np.float32(recipe.crop_ratio[0]), np.float32(recipe.crop_ratio[1])
    w_fall = jnp.round(jnp.minimum(wide, tall * high)).astype(jnp.int32)
    h_fall = jnp.round(jnp.where(wide / tall < low, wide / low, tall)).astype(jnp.int32)
    w, h = jnp.where(any_fits, w[first], w_fall), jnp.where(any_fits, h[first], h_fall)
    room = jnp.stack([height - h, width - w])
    drawn = (uniforms[2 * ATTEMPTS :] * (room + 1).astype(jnp.float32)).astype(jnp.int32)
    corner = jnp.where(any_fits, jnp.minimum(drawn, room), room // 2)
    return jnp.concatenate([corner, jnp.stack([h, w])])


def draw_view(uniforms: jax.Array, height: int, width: int, recipe: Recipe, number: int) -> View:
    """Draw what `augment.draw_view` draws for view `number` from `uniforms` float32 `[66]`."""
    own, last = uniforms[EACH * number :][:EACH], uniforms[2 * EACH + number]
    crop, u = own[: 2 * ATTEMPTS + 2], own[2 * ATTEMPTS + 2 :]
    strengths = np.asarray(recipe.jitter, np.float32)
    centers = np.asarray([1, 1, 1, 0], np.float32)
    low = np.where(centers > 0, np.maximum(centers - strengths, 0), -strengths)
    return View(
        box=draw_box(crop, height, width, recipe),
        color=u[0] < recipe.jitter_probability,
        factors=low + (centers + strengths - low) * u[1:5],
        order=jnp.asarray(ORDERS, jnp.int32)[jnp.minimum(u[5] * 24, 23).astype(jnp.int32)],
        grayscale=u[6] < recipe.grayscale_probability,
        blur=u[7] < recipe.blur_probability[number],
        sigma=_between(*recipe.blur_sigma, u[8]),
        solarize=last < recipe.solarize_probability[number],
        flip=u[9] < recipe.flip_probability,
    )


def draw_two_views(
    seed: int, epoch: jax.Array, index: jax.Array, height: int, width: int, recipe: Recipe
) -> tuple[View, View]:
    """Draw the parameters of query and key views, `[B, ...]` each.

    They are for the examples `index` in `epoch`, int32 `[B]` each. `height` and `width`, of all
    the images, may be traced.
    """
    # The second seed of TensorFlow is epoch * 2**31 + index, in 64 bits.
    upper, lower = epoch.astype(jnp.uint32), index.astype(jnp.uint32)
    drawn = philox.uniforms(seed, upper >> 1, (upper << 31) | lower, UNIFORMS)

    def draw(uniforms: jax.Array) -> tuple[View, View]:
        query, key = (draw_view(uniforms, height, width, recipe, number) for number in (0, 1))
        return query, key

    return jax.vmap(draw)(drawn)


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


def crop(image: jax.Array, box: jax.Array, size: int) -> jax.Array:
    """Resize the pixels in `box` int32 `[4]` of uint8 `[H, W, C]` to uint8 `[size, size, C]`.

    These are the two passes of `resize.resize`, in its order and rounded as there, as products
    with small dense matrices.
    """
    height, width, _ = image.shape
    rows = _pass(_weights(box[0], box[2], height, size), image.astype(jnp.float32))
    columns = _pass(_weights(box[1], box[3], width, size), rows.swapaxes(0, 1))
    return columns.swapaxes(0, 1).astype(jnp.uint8)


def make_two_views(
    images: jax.Array,
    shape: tuple[int, int, int],
    index: jax.Array,
    epoch: jax.Array,
    seed: int,
    recipe: Recipe,
) -> tuple[jax.Array, jax.Array]:
    """Make query and key views, uint8 `[B, S, S, C]` each, of examples `index` in `epoch`.

    Args:
        images: uint8 `[N, H * W * C]`, all images, each in one row: with more axes a TPU would
            hold the first innermost, and turn the whole array round at every step.
        shape: H, W and C.
        index, epoch: int32 `[B]`, of each example.
        seed: of the run.
        recipe: the views to draw.
    """
    chosen = images.at[index].get(mode="promise_in_bounds").reshape(-1, *shape)
    drawn = draw_two_views(seed, epoch, index, *shape[:2], recipe=recipe)

    def view(parameters: View) -> jax.Array:
        crops = jax.vmap(lambda image, box: crop(image, box, recipe.image_size))
        return device_ops.finish(crops(chosen, parameters.box), parameters, recipe)

    return view(drawn[0]), view(drawn[1])
