"""Bilinear resize with antialiasing, as PIL's, in TensorFlow: two passes that XLA compiles.

A pass adds up whole lines of contiguous values. Two things keep the programs few: images are
padded to one of a few shapes (the padding is never read), and the number of lines in a sum is
rounded up to one of a few.
"""

import functools
import math
from collections.abc import Callable

import tensorflow as tf

from moco_jax.data.views.operations.crop import HALF

_LARGE = 1 << 22  # images of more pixels are padded little
# Numbers of lines in a sum; more lines are added up in parts of the last, as long sums compile
# slowly.
_TAPS = (3, 5, 8)


def pad(image: tf.Tensor) -> tf.Tensor:
    """Pad uint8 `[H, W, C]` with zeros to uint8 `[H', W', C]`, so that there are few shapes.

    Zeros are added below and on the right. H' is a power of two, W' at most half more than W; of
    large images both are at most an eighth more, as padding takes memory.
    """
    height, width, channels = tf.unstack(tf.shape(image))
    large = tf.cast(height, tf.int64) * tf.cast(width, tf.int64) > _LARGE

    def rounded(side: tf.Tensor, parts: int) -> tf.Tensor:
        octave = tf.cast(tf.floor(tf.math.log(tf.cast(side, tf.float32)) / math.log(2)), tf.int32)
        unit = tf.bitwise.left_shift(1, octave) // tf.where(large, 8, parts)
        unit = tf.maximum(unit, 1)
        return -(-side // unit) * unit

    below, right = rounded(height, 1) - height, rounded(width, 2) - width
    lines = tf.reshape(image, [height, width * channels])
    lines = tf.pad(lines, [[0, below], [0, right * channels]])
    return tf.reshape(lines, [height + below, width + right, image.shape[-1]])


def _sum_lines(x: tf.Tensor, start: tf.Tensor, extent: tf.Tensor, window: tuple, taps: int):
    """Add up lines of uint8 `[n, L, m]` along its second axis; see `_pass`.

    Places are counted in parts of a line, as many as the resized side has lines: weights are
    then whole multiples of a half, and their sums exact, whatever their order.
    """
    length, corner, size = window
    reach = tf.maximum(extent, length)
    begin = tf.floor(start)
    lines = tf.cast(tf.math.ceil(start + extent) - begin, tf.int32)
    center = (start - begin) * length + (tf.range(size, dtype=tf.float32) + corner + 0.5) * extent
    begin = tf.cast(begin, tf.int32)
    first = tf.cast(tf.floor(tf.maximum((center - reach) / length + 0.5, 0)), tf.int32)
    end = tf.minimum(tf.cast(tf.floor((center + reach) / length + 0.5), tf.int32), lines)

    def add(done: tf.Tensor, total: tf.Tensor, norm: tf.Tensor) -> tuple:
        for tap in range(taps):
            line = first + done + tap
            away = tf.abs((tf.cast(line, tf.float32) + 0.5) * length - center)
            weight = tf.where(line < end, tf.maximum(reach - away, 0), 0)
            values = tf.gather(x, begin + tf.minimum(line, lines - 1), axis=1)
            total += weight[:, None] * tf.cast(values, tf.float32)
            norm += weight
        return done + taps, total, norm

    shape = tf.shape(x)
    nothing = tf.constant(0), tf.zeros([shape[0], size, shape[2]]), tf.zeros([size])
    if taps < _TAPS[-1]:
        _, total, norm = add(*nothing)
    else:
        needed = tf.reduce_max(end - first)
        _, total, norm = tf.while_loop(lambda done, *_: done < needed, add, nothing)
    return tf.cast(total / norm[:, None] + HALF, tf.uint8)


@functools.cache
def _compiled(size: int, taps: int) -> Callable:
    def run(
        x: tf.Tensor, start: tf.Tensor, extent: tf.Tensor, length: tf.Tensor, corner: tf.Tensor
    ):
        return _sum_lines(x, start, extent, (length, corner, size), taps)

    return tf.function(run, jit_compile=True, reduce_retracing=True, autograph=False)


def _pass(
    x: tf.Tensor,
    start: tf.Tensor,
    extent: tf.Tensor,
    length: tf.Tensor,
    corner: tf.Tensor,
    size: int,
) -> tf.Tensor:
    """Resize lines `start` to `start + extent` to `length`: uint8 `[n, L, m]` -> `[n, size, m]`.

    `size` of the resized lines, from `corner` on, are computed.
    """
    length = tf.cast(length, tf.float32)
    needed = tf.cast(tf.floor(2 * tf.maximum(extent / length, 1.0)), tf.int32) + 1
    kind = tf.reduce_sum(tf.cast(needed > tf.constant(_TAPS[:-1]), tf.int32))
    arguments = x, start, extent, length, tf.cast(corner, tf.float32)
    branches = [lambda t=t: _compiled(size, t)(*arguments) for t in _TAPS]
    return tf.switch_case(kind, branches)


def resize(
    padded: tf.Tensor, box: tf.Tensor, lengths: tf.Tensor, corner: tf.Tensor, size: int
) -> tf.Tensor:
    """Resize the pixels in `box` to `lengths`, and cut out the square of `size` at `corner`.

    PIL's two passes in the other order, each rounded to uint8: a tenth of the values differ from
    PIL's by one level where an image shrinks, a quarter where it grows.

    Args:
        padded: uint8 `[H', W', C]`, from `pad`.
        box: int32 or float32 `[4]`, top, left, height, width, within the image itself.
        lengths: int32 `[2]`, height and width after the resize.
        corner: int32 `[2]`, top and left of the square among them.
        size: its side.

    Returns:
        uint8 planes `[C, size, size]`, the columns of the image along the second axis.
    """
    height, width, channels = tf.unstack(tf.shape(padded))
    box = tf.cast(box, tf.float32)
    lines = tf.reshape(padded, [1, height, width * channels])
    lines = _pass(lines, box[0], box[2], lengths[0], corner[0], size)
    columns = tf.transpose(tf.reshape(lines, [size, width, padded.shape[-1]]), [2, 1, 0])
    planes = _pass(columns, box[1], box[3], lengths[1], corner[1], size)
    return tf.ensure_shape(planes, [padded.shape[-1], size, size])
