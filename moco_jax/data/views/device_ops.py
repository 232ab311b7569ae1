"""The operations after the crop on batches of uint8 images in a jitted step, with PIL's pixels.

They are the operations of `image_ops.py`, on planes `[C, H, W]`, in JAX: rounded or cut to uint8
after each. What reads its neighbours, or is done several times, is a loop: unrolled, the
compiler would fuse it and compute each pixel again for all that read it.
"""

import jax
import jax.numpy as jnp

from moco_jax.data.views.recipes import Recipe, View


def _luma(x: jax.Array) -> jax.Array:
    """Compute PIL's mode L: int32 `[1, H, W]` from ITU-R 601 weights in 16-bit fixed point."""
    x = x.astype(jnp.int32)
    return (x[0:1] * 19595 + x[1:2] * 38470 + x[2:3] * 7471 + 0x8000) >> 16


def _to_uint8(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0, 255).astype(jnp.uint8)


def _blend(start: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    start = start.astype(jnp.float32)
    return _to_uint8(start + factor * (image.astype(jnp.float32) - start))


def adjust_brightness(planes: jax.Array, factor: jax.Array) -> jax.Array:
    """Move uint8 `[3, H, W]` towards black (factor 0) or away from it."""
    return _blend(jnp.zeros((), jnp.float32), planes, factor)


def adjust_contrast(planes: jax.Array, factor: jax.Array) -> jax.Array:
    """Move uint8 `[3, H, W]` towards the image's rounded mean luma (factor 0) or away from it."""
    gray = _luma(planes)
    mean = jnp.sum(gray).astype(jnp.float32) / gray.size
    return _blend(jnp.floor(mean + 0.5), planes, factor)


def adjust_saturation(planes: jax.Array, factor: jax.Array) -> jax.Array:
    """Move uint8 `[3, H, W]` towards grayscale (factor 0) or away from it."""
    return _blend(_luma(planes), planes, factor)


def adjust_hue(planes: jax.Array, factor: jax.Array) -> jax.Array:
    """Turn the hue of uint8 `[3, H, W]` by `factor` of the circle, through PIL's 8-bit HSV."""
    r, g, b = planes.astype(jnp.float32)
    high, low = jnp.maximum(jnp.maximum(r, g), b), jnp.minimum(jnp.minimum(r, g), b)
    span = high - low
    red, green, blue = ((high - c) / jnp.maximum(span, 1) for c in (r, g, b))
    hue = jnp.where(r == high, blue - green, jnp.where(g == high, 2 + red - blue, 4 + green - red))
    hue = hue / 6 + 1
    hue = jnp.where(span > 0, jnp.floor(jnp.where(hue >= 1, hue - 1, hue) * 255), 0)
    saturation = jnp.floor(span / jnp.maximum(high, 1) * 255) / 255
    turned = hue + (factor * 255).astype(jnp.int32).astype(jnp.float32) + 256
    sector = (turned - 256 * jnp.floor(turned / 256)) * 6 / 255

    def channel(offset: int) -> jax.Array:
        """Compute a channel: full in a sixth of the circle, absent a third away, linear between."""
        place = sector + offset
        place = place - 6 * jnp.floor(place / 6)
        lack = jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
        return jnp.floor(high * (1 - saturation * lack) + 0.5)

    return jnp.stack([channel(5), channel(3), channel(1)]).astype(jnp.uint8)


def grayscale(planes: jax.Array) -> jax.Array:
    """Replace the channels of uint8 `[3, H, W]` by luma."""
    return jnp.repeat(_luma(planes).astype(jnp.uint8), 3, axis=0)


def solarize(planes: jax.Array) -> jax.Array:
    """Invert the values from 128 on of uint8 `[C, H, W]`."""
    return jnp.where(planes < 128, planes, 255 - planes)


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


def gaussian_blur(planes: jax.Array, sigma: jax.Array) -> jax.Array:
    """Blur uint8 `[C, H, W]` as PIL's GaussianBlur(radius=sigma), sigma up to 2.8.

    It is three box passes in each direction. The box has radius l + a: sigma^2 / 3 is matched by
    a whole part l (0 or 1) and an edge of weight a.
    """
    variance = sigma * sigma / 3
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    fraction = fraction / (6 * (variance - (whole + 1) ** 2))
    center = 1 / (2 * (whole + fraction) + 1)
    edge = (1 - center * (2 * whole + 1)) / 2
    weights = center, jnp.where(whole < 1, edge, center), jnp.where(whole < 1, 0, edge)
    x = planes.astype(jnp.float32)
    for axis in (2, 1):
        x = jax.lax.fori_loop(0, 3, lambda _, x, axis=axis: _box(x, weights, axis), x)
    return x.astype(jnp.uint8)


_JITTER = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def _jitter(planes: jax.Array, view: View, recipe: Recipe) -> jax.Array:
    def apply_next(planes: jax.Array, chosen: jax.Array) -> tuple[jax.Array, None]:
        changed = planes
        for number, operation in enumerate(_JITTER):
            if recipe.jitter[number]:
                result = operation(planes, view.factors[number])
                changed = jnp.where(chosen == number, result, changed)
        return changed, None

    return jax.lax.scan(apply_next, planes, view.order)[0]


def _finish(planes: jax.Array, view: View, recipe: Recipe) -> jax.Array:
    operations = {
        "color": (view.color, lambda x: _jitter(x, view, recipe)),
        "grayscale": (view.grayscale, grayscale),
        "blur": (view.blur, lambda x: gaussian_blur(x, view.sigma)),
        "solarize": (view.solarize, solarize),
        "flip": (view.flip, lambda x: x[:, :, ::-1]),
    }
    planes = planes.transpose(2, 0, 1)
    for stage in recipe.stages[1:]:
        chosen, operation = operations[stage]
        planes = jnp.where(chosen, operation(planes), planes)
    return planes.transpose(1, 2, 0)


def finish(images: jax.Array, views: View, recipe: Recipe) -> jax.Array:
    """Apply all operations of `recipe` but the crop to crops uint8 `[B, S, S, C]`.

    `views`: drawn by `augment.draw_view`, every field with a leading axis `[B]`.
    """
    return jax.vmap(lambda image, view: _finish(image, view, recipe))(images, views)
