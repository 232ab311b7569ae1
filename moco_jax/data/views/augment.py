"""Draws the parameters of views and applies them in recipe order, in a TensorFlow graph.

Everything random is drawn from (seed, epoch, example, view) alone, by a counter-based generator:
threads, hosts and resumes change nothing. The operations themselves are in `image_ops.py`.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from moco_jax.data.sources import decode
from moco_jax.data.views import centre, image_ops, resize
from moco_jax.data.views.recipes import ATTEMPTS, COLOURS, EACH, ORDERS, UNIFORMS, Recipe, View

SPARE = (
    2  # crops of shrunk images are this many times as large as the view, which else loses detail
)


def _between(low: float, high: float, uniform: tf.Tensor) -> tf.Tensor:
    return low + (high - low) * uniform


def draw_box(uniforms: tf.Tensor, height: tf.Tensor, width: tf.Tensor, recipe: Recipe) -> tf.Tensor:
    """Draw the crop of torchvision's RandomResizedCrop: int32 `[4]` top, left, height, width.

    Ten attempts at area and aspect; if none fits, the largest centred crop of a permitted
    aspect.
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
    any_fits = tf.reduce_any(fits)

    ratio, (low, high) = wide / tall, recipe.crop_ratio
    w_fall = tf.cast(tf.round(tf.minimum(wide, tall * high)), tf.int32)
    h_fall = tf.cast(tf.round(tf.where(ratio < low, wide / low, tall)), tf.int32)
    w, h = (
        tf.where(any_fits, tf.gather(w, first), w_fall),
        tf.where(any_fits, tf.gather(h, first), h_fall),
    )
    room = tf.stack([height - h, width - w])
    drawn = tf.cast(tf.floor(uniforms[2 * ATTEMPTS :] * tf.cast(room + 1, tf.float32)), tf.int32)
    corner = tf.where(any_fits, tf.minimum(drawn, room), room // 2)
    return tf.concat([corner, [h, w]], 0)


def draw_view(
    uniforms: tf.Tensor, height: tf.Tensor, width: tf.Tensor, recipe: Recipe, number: int
) -> View:
    """Draw the parameters of one view of an image of this height and width.

    `uniforms`: float32 `[66]`, the example's; `number`: 0 is its query view, 1 its key view.
    """
    own, last = uniforms[EACH * number :][:EACH], uniforms[2 * EACH + number]
    crop, u = own[: 2 * ATTEMPTS + 2], own[2 * ATTEMPTS + 2 :]
    strengths = np.asarray(recipe.jitter, np.float32)
    centers = np.asarray([1, 1, 1, 0], np.float32)
    low = np.where(centers > 0, np.maximum(centers - strengths, 0), -strengths)
    return View(
        box=draw_box(crop, height, width, recipe),
        color=u[0] < recipe.jitter_probability,
        factors=low + (centers + strengths - low) * u[1:5],
        order=tf.gather(ORDERS, tf.cast(tf.minimum(u[5] * 24, 23), tf.int32)),
        grayscale=u[6] < recipe.grayscale_probability,
        blur=u[7] < recipe.blur_probability[number],
        sigma=_between(*recipe.blur_sigma, u[8]),
        solarize=last < recipe.solarize_probability[number],
        flip=u[9] < recipe.flip_probability,
    )


_JITTER = (
    image_ops.adjust_brightness,
    image_ops.adjust_contrast,
    image_ops.adjust_saturation,
    image_ops.adjust_hue,
)


def _jitter(packed: tf.Tensor, view: View, recipe: Recipe) -> tf.Tensor:
    def branch(number: int, packed: tf.Tensor):
        if not recipe.jitter[number]:
            return lambda: packed
        return lambda: _JITTER[number](packed, view.factors[number])

    for place in range(4):
        packed = tf.switch_case(view.order[place], [branch(n, packed) for n in range(4)])
    return packed


@functools.cache
def _compiled(recipe: Recipe) -> tuple[Callable, Callable | None]:
    """Compile the operations before and after the blur to one XLA program each; None for none."""
    # The flip commutes with every operation, so it needs no program of its own.
    stages = [stage for stage in recipe.stages[1:] if stage != "flip"]
    blur = stages.index("blur") if "blur" in stages else len(stages)
    first, last = stages[:blur], stages[blur + 1 :]
    if "flip" in recipe.stages:
        first.append("flip")

    def apply(stages: Sequence[str], planes: tf.Tensor, view: View) -> tf.Tensor:
        mixes = any(stage in COLOURS for stage in stages)
        x = image_ops.pack(planes) if mixes else planes
        for stage in stages:
            chosen, operation = {
                "color": (view.color, lambda x: _jitter(x, view, recipe)),
                "grayscale": (view.grayscale, image_ops.grayscale),
                "solarize": (view.solarize, image_ops.solarize),
                "flip": (view.flip, image_ops.horizontal_flip),
            }[stage]
            x = tf.cond(chosen, lambda op=operation, x=x: op(x), lambda x=x: x)
        return image_ops.unpack(x) if mixes else x

    def program(stages: Sequence[str]) -> Callable:
        def run(planes: tf.Tensor, view: View) -> tf.Tensor:
            return apply(stages, planes, view)

        return tf.function(run, jit_compile=True, autograph=False)

    return program(first), program(last) if last else None


def apply_view(
    padded: tf.Tensor,
    view: View,
    recipe: Recipe,
    crop_only: bool = False,
    ratio: tf.Tensor | int = 1,
) -> tf.Tensor:
    """Apply the drawn operations of `recipe` in its order: the view uint8 `[S, S, C]`.

    Args:
        padded: uint8 `[H', W', C]`, the image from `resize.pad`.
        view: the parameters.
        recipe: the operations.
        crop_only: leave those after the crop to `device_ops.finish`.
        ratio: by which the image was shrunk in decoding; the view's box is of the image as it
            was.
    """
    size = recipe.image_size
    square = tf.constant([size, size])
    box = tf.cast(view.box, tf.float32) / tf.cast(ratio, tf.float32)
    planes = resize.resize(padded, box, square, tf.zeros_like(square), size)
    if crop_only or len(recipe.stages) == 1:
        return image_ops.to_pixels(planes)
    before, behind = _compiled(recipe)
    planes = before(planes, view)
    if "blur" in recipe.stages:
        blurred = functools.partial(image_ops.gaussian_blur, planes, view.sigma)
        planes = tf.cond(view.blur, blurred, lambda: planes)
    if behind:
        planes = behind(planes, view)
    return image_ops.to_pixels(planes)


@functools.cache
def _compiled_draw(recipe: Recipe) -> Callable:
    """Compile the ninety operations that draw both views' parameters to one program.

    It takes `uniforms` float32 `[66]`, height and width.
    """

    def draw(uniforms: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tuple[View, View]:
        query, key = (draw_view(uniforms, height, width, recipe, number) for number in (0, 1))
        return query, key

    return tf.function(draw, jit_compile=True, autograph=False)


def draw_two_views(
    size: tf.Tensor, seed: int, epoch: tf.Tensor, index: tf.Tensor, recipe: Recipe
) -> tuple[View, View]:
    """Draw the parameters of query and key view of example `index` in `epoch` (int64 scalars).

    `size`: int32 `[2]`, height and width of the image. Both come from one draw of Philox keyed
    by (`seed`, `epoch`, `index`).
    """
    counter = tf.stack([tf.constant(seed, tf.int64), epoch * 2**31 + index])
    uniforms = tf.random.stateless_uniform([UNIFORMS], counter, alg="philox")
    return _compiled_draw(recipe)(uniforms, size[0], size[1])


def shrink(views: tuple[View, View], recipe: Recipe) -> tf.Tensor:
    """Decide how far an image may be shrunk for these views: place in `decode.RATIOS`.

    The shorter side of either crop keeps `SPARE` times the view's.
    """
    shorter = tf.reduce_min([tf.reduce_min(view.box[2:]) for view in views])
    enough = shorter >= [SPARE * ratio * recipe.image_size for ratio in decode.RATIOS[1:]]
    return tf.reduce_sum(tf.cast(enough, tf.int32))


def evaluation_view(image: tf.Tensor, recipe: Recipe) -> tf.Tensor:
    """Cut the evaluation view uint8 `[S, S, C]` from uint8 `[H, W, C]`: see `centre.view`."""
    size, side = recipe.image_size, recipe.evaluation_resize
    view = tf.numpy_function(
        lambda pixels: centre.view(pixels, side, size), [image], tf.uint8, stateful=False
    )
    return tf.ensure_shape(view, [size, size, image.shape[-1]])
