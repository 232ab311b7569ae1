"""Draws the parameters of views and applies them in recipe order, in a TensorFlow graph.

Everything random is drawn from (seed, epoch, example, view) alone, by a counter-based generator:
threads, hosts and resumes change nothing. The operations themselves are in `operations`.
"""

import functools
from collections.abc import Callable

import tensorflow as tf

from moco_jax.data.sources import tf_decode
from moco_jax.data.views import arrays, centre, drawing, host_pixels, resize
from moco_jax.data.views.operations import Flip, Operation
from moco_jax.data.views.recipes import UNIFORMS, Recipe, View

# Crops of shrunk images are this many times as large as the view, which else loses detail.
SPARE = 2


def draw_view(
    uniforms: tf.Tensor, height: tf.Tensor, width: tf.Tensor, recipe: Recipe, number: int
) -> View:
    """Draw the parameters of one view in a graph; see `drawing.draw_view`."""
    return drawing.draw_view(arrays.of_tensorflow(), uniforms, height, width, recipe, number)


def _programs(recipe: Recipe) -> list[list[Operation]]:
    """Group the operations after the crop: each group becomes one XLA program, or compiles itself.

    Where a flip does the same in any place, it goes to the first program, so that it needs none
    of its own.
    """
    operations, moves = list(recipe.operations), all(o.symmetric for o in recipe.operations)
    flips = [o for o in operations if moves and isinstance(o, Flip)]
    groups: list[list[Operation]] = [[]]
    for operation in operations:
        if operation.own_programs:
            groups += [[operation], []]
        elif operation not in flips:
            groups[-1].append(operation)
    groups[0] += flips
    return [group for group in groups if group]


def _apply(operation: Operation, x: tf.Tensor, view: View) -> tf.Tensor:
    """Apply one operation where it was drawn."""
    chosen = getattr(view, operation.name)
    return tf.cond(chosen, lambda: operation.on_host(x, view), lambda: x)


@functools.cache
def _compiled(operations: tuple[Operation, ...]) -> Callable:
    """Compile operations in a row to one XLA program, of planes uint8 `[C, W, H]` and a view."""

    def run(x: tf.Tensor, view: View) -> tf.Tensor:
        packed = False
        for operation in operations:
            if operation.pixels != "either" and packed != (operation.pixels == "packed"):
                x = host_pixels.unpack(x) if packed else host_pixels.pack(x)
                packed = not packed
            x = _apply(operation, x, view)
        return host_pixels.unpack(x) if packed else x

    return tf.function(run, jit_compile=True, autograph=False)


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
        crop_only: leave those after the crop to `device_views.finish`.
        ratio: by which the image was shrunk in decoding; the view's box is of the image as it
            was.
    """
    size = recipe.image_size
    square = tf.constant([size, size])
    box = tf.cast(view.box, tf.float32) / tf.cast(ratio, tf.float32)
    planes = resize.resize(padded, box, square, tf.zeros_like(square), size)
    for operations in () if crop_only else _programs(recipe):
        if operations[0].own_programs:
            planes = _apply(operations[0], planes, view)
        else:
            planes = _compiled(tuple(operations))(planes, view)
    return host_pixels.to_pixels(planes)


@functools.cache
def _compiled_draw(recipe: Recipe) -> Callable:
    """Compile all that draws both views' parameters to one program.

    It takes `uniforms` float32 `[UNIFORMS]`, height and width.
    """

    def draw(uniforms: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tuple[View, View]:
        return drawing.draw_pair(arrays.of_tensorflow(), uniforms, height, width, recipe)

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
    """Decide how far an image may be shrunk for these views: place in `tf_decode.RATIOS`.

    The shorter side of either crop keeps `SPARE` times the view's.
    """
    shorter = tf.reduce_min([tf.reduce_min(view.box[2:]) for view in views])
    enough = shorter >= [SPARE * ratio * recipe.image_size for ratio in tf_decode.RATIOS[1:]]
    return tf.reduce_sum(tf.cast(enough, tf.int32))


def evaluation_view(image: tf.Tensor, recipe: Recipe) -> tf.Tensor:
    """Cut the evaluation view uint8 `[S, S, C]` from uint8 `[H, W, C]`: see `centre.view`."""
    size, side = recipe.image_size, recipe.evaluation_resize
    view = tf.numpy_function(
        lambda pixels: centre.view(pixels, side, size), [image], tf.uint8, stateful=False
    )
    return tf.ensure_shape(view, [size, size, image.shape[-1]])
