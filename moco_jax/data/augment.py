"""Which views are drawn of an image: the recipes, the random parameters of a view, and the chain that applies them.

Everything random is drawn from (seed, epoch, example, view) alone, by a counter-based generator: threads,
hosts and resumes change nothing. The operations themselves are in `image_ops.py`.
"""

import dataclasses
import itertools
import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from moco_jax.data import image_ops

ATTEMPTS = 10
_ORDERS = np.asarray(list(itertools.permutations(range(4))), np.int32)
_UNIFORMS = 2 * ATTEMPTS + 12


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How views are drawn.

    Attributes:
        image_size: side of a view in pixels.
        stages: the operations in order, of 'crop', 'color', 'grayscale', 'blur', 'flip'.
        crop_scale: smallest and largest crop as a share of the image's area.
        crop_ratio: narrowest and widest crop, width over height.
        jitter: strengths of brightness, contrast, saturation and hue; one of 0 is left out.
        jitter_probability, grayscale_probability, blur_probability, flip_probability: of each operation.
        blur_sigma: least and greatest sigma in pixels.
        evaluation_resize: length of the shorter side before the centre crop; 0: no resize beyond the crop's need.
    """

    image_size: int
    stages: tuple[str, ...]
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: float = 1.0
    grayscale_probability: float = 0.2
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    flip_probability: float = 0.5
    evaluation_resize: int = 0


RECIPES: dict[str, Recipe] = {
    "v1": Recipe(224, ("crop", "grayscale", "color", "flip"), jitter=(0.4, 0.4, 0.4, 0.4)),
    "v2": Recipe(
        224,
        ("crop", "color", "grayscale", "blur", "flip"),
        jitter=(0.4, 0.4, 0.4, 0.1),
        jitter_probability=0.8,
    ),
    "cifar": Recipe(
        32,
        ("crop", "flip", "color", "grayscale"),
        crop_scale=(0.08, 1.0),
        jitter=(0.4, 0.4, 0.4, 0.1),
        jitter_probability=0.8,
    ),
    "digits": Recipe(32, ("crop",), crop_scale=(0.3, 1.0)),
}


def recipe(name: str, image_size: int, crop_min: float | None = None) -> Recipe:
    """The recipe `name` at `image_size` pixels; `crop_min` replaces its smallest crop.

    ImageNet recipes are evaluated on the centre of images resized by 256 / 224 of the view's side.
    """
    if name not in RECIPES:
        raise ValueError(f"augment={name!r} is unknown; known are {', '.join(RECIPES)}")
    base = RECIPES[name]
    return dataclasses.replace(
        base,
        image_size=image_size,
        crop_scale=(crop_min or base.crop_scale[0], base.crop_scale[1]),
        evaluation_resize=round(image_size * 256 / 224) if name in ("v1", "v2") else image_size,
    )


class View(NamedTuple):
    """The drawn parameters of one view, scalars but for the box and the order.

    Attributes:
        box: int32 `[4]`, top, left, height and width of the crop.
        color, grayscale, blur, flip: bool, whether each is applied.
        factors: float32 `[4]`, of brightness, contrast, saturation and hue.
        order: int32 `[4]`, in which these four are applied.
        sigma: float32, of the blur.
    """

    box: tf.Tensor
    color: tf.Tensor
    factors: tf.Tensor
    order: tf.Tensor
    grayscale: tf.Tensor
    blur: tf.Tensor
    sigma: tf.Tensor
    flip: tf.Tensor


def _between(low: float, high: float, uniform: tf.Tensor) -> tf.Tensor:
    return low + (high - low) * uniform


def draw_box(uniforms: tf.Tensor, height: tf.Tensor, width: tf.Tensor, recipe: Recipe) -> tf.Tensor:
    """The crop that torchvision's RandomResizedCrop draws: int32 `[4]` top, left, height, width.

    Ten attempts at area and aspect; if none fits, the largest centred crop of a permitted aspect.
    `uniforms`: float32 `[22]` in 0..1; `height` and `width`: int32, the image's.
    """
    tall, wide = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    area = tall * wide * _between(*recipe.crop_scale, uniforms[:ATTEMPTS])
    logs = (math.log(recipe.crop_ratio[0]), math.log(recipe.crop_ratio[1]))
    aspect = tf.exp(_between(*logs, uniforms[ATTEMPTS : 2 * ATTEMPTS]))
    w = tf.cast(tf.round(tf.sqrt(area * aspect)), tf.int32)
    h = tf.cast(tf.round(tf.sqrt(area / aspect)), tf.int32)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = tf.argmax(tf.cast(fits, tf.int32))
    found = tf.reduce_any(fits)

    ratio, (low, high) = wide / tall, recipe.crop_ratio
    w_fall = tf.cast(tf.round(tf.minimum(wide, tall * high)), tf.int32)
    h_fall = tf.cast(tf.round(tf.where(ratio < low, wide / low, tall)), tf.int32)
    w, h = tf.where(found, w[first], w_fall), tf.where(found, h[first], h_fall)
    room = tf.stack([height - h, width - w])
    drawn = tf.cast(tf.floor(uniforms[2 * ATTEMPTS :] * tf.cast(room + 1, tf.float32)), tf.int32)
    corner = tf.where(found, tf.minimum(drawn, room), room // 2)
    return tf.concat([corner, [h, w]], 0)


def draw_view(uniforms: tf.Tensor, height: tf.Tensor, width: tf.Tensor, recipe: Recipe) -> View:
    """The parameters of one view of an image of this height and width, from `uniforms` float32 `[32]`."""
    crop, u = uniforms[: 2 * ATTEMPTS + 2], uniforms[2 * ATTEMPTS + 2 :]
    strengths = np.asarray(recipe.jitter, np.float32)
    centers = np.asarray([1, 1, 1, 0], np.float32)
    low = np.where(centers > 0, np.maximum(centers - strengths, 0), -strengths)
    return View(
        box=draw_box(crop, height, width, recipe),
        color=u[0] < recipe.jitter_probability,
        factors=low + (centers + strengths - low) * u[1:5],
        order=tf.gather(_ORDERS, tf.cast(tf.minimum(u[5] * 24, 23), tf.int32)),
        grayscale=u[6] < recipe.grayscale_probability,
        blur=u[7] < recipe.blur_probability,
        sigma=_between(*recipe.blur_sigma, u[8]),
        flip=u[9] < recipe.flip_probability,
    )


def _jitter(image: tf.Tensor, view: View, recipe: Recipe) -> tf.Tensor:
    operations = (
        image_ops.adjust_brightness,
        image_ops.adjust_contrast,
        image_ops.adjust_saturation,
        image_ops.adjust_hue,
    )

    def branch(number: int, image: tf.Tensor):
        if not recipe.jitter[number]:
            return lambda: image
        return lambda: operations[number](image, view.factors[number])

    for place in range(4):
        image = tf.switch_case(view.order[place], [branch(n, image) for n in range(4)])
    return image


def apply_view(image: tf.Tensor, view: View, recipe: Recipe) -> tf.Tensor:
    """uint8 `[H, W, 3]` -> uint8 `[S, S, 3]`, the operations of `recipe` in its order with the parameters drawn."""
    size = (recipe.image_size, recipe.image_size)
    for stage in recipe.stages:
        if stage == "crop":
            image = image_ops.crop_and_resize(image, view.box, size)
            continue
        chosen, operation = {
            "color": (view.color, lambda x: _jitter(x, view, recipe)),
            "grayscale": (view.grayscale, image_ops.grayscale),
            "blur": (view.blur, lambda x: image_ops.gaussian_blur(x, view.sigma)),
            "flip": (view.flip, image_ops.horizontal_flip),
        }[stage]
        kept = image
        image = tf.cond(chosen, lambda op=operation, x=kept: op(x), lambda x=kept: x)
    return tf.ensure_shape(image, [*size, 3])


def two_views(
    image: tf.Tensor, seed: int, epoch: tf.Tensor, index: tf.Tensor, recipe: Recipe
) -> tuple[tf.Tensor, tf.Tensor]:
    """Query and key view, uint8 `[S, S, 3]` each, of the example `index` in `epoch` (int64 scalars).

    Both come from one draw of Philox keyed by (`seed`, `epoch`, `index`).
    """
    counter = tf.stack([tf.constant(seed, tf.int64), epoch * 2**31 + index])
    uniforms = tf.random.stateless_uniform([2, _UNIFORMS], counter, alg="philox")
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    query, key = (
        apply_view(image, draw_view(uniforms[view], height, width, recipe), recipe)
        for view in (0, 1)
    )
    return query, key


def evaluation_view(image: tf.Tensor, recipe: Recipe) -> tf.Tensor:
    """uint8 `[H, W, 3]` -> uint8 `[S, S, 3]`: the shorter side resized, then the centre (torchvision's rounding)."""
    size, side = recipe.image_size, recipe.evaluation_resize
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    short = tf.minimum(height, width)
    new_height, new_width = side * height // short, side * width // short
    whole = tf.stack([0, 0, height, width])
    image = tf.cond(
        short == side,
        lambda: image,
        lambda: image_ops.crop_and_resize(image, whole, tf.stack([new_height, new_width])),
    )
    # torchvision rounds half to even, as tf.round does.
    top = tf.cast(tf.round(tf.cast(new_height - size, tf.float32) / 2), tf.int32)
    left = tf.cast(tf.round(tf.cast(new_width - size, tf.float32) / 2), tf.int32)
    return tf.ensure_shape(tf.slice(image, [top, left, 0], [size, size, 3]), [size, size, 3])
