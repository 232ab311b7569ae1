"""How a host holds the pixels of a view while its operations are applied, in TensorFlow.

Planes `[C, W, H]` have columns first, as `resize.py` leaves them. Where an operation mixes
colours, planes are packed to one int32 a pixel: XLA then compiles each operation (or several in
a row) to one loop over contiguous values.
"""

from collections.abc import Sequence

import tensorflow as tf


def to_planes(image: tf.Tensor) -> tf.Tensor:
    """Transpose `[H, W, C]` to `[C, W, H]`."""
    return tf.transpose(image, (2, 1, 0))


# XLA takes a third of the time of TensorFlow's own loop.
@tf.function(jit_compile=True, reduce_retracing=True, autograph=False)
def to_pixels(planes: tf.Tensor) -> tf.Tensor:
    """Transpose `[C, W, H]` to `[H, W, C]`."""
    return tf.transpose(planes, (2, 1, 0))


def pack(planes: tf.Tensor) -> tf.Tensor:
    """Pack uint8 `[3, W, H]` into int32 `[W, H]`: red in the lowest byte, then green, then blue."""
    return join(tf.unstack(tf.cast(planes, tf.int32)))


def unpack(packed: tf.Tensor) -> tf.Tensor:
    """Unpack int32 `[W, H]` to uint8 `[3, W, H]`."""
    return tf.cast(tf.stack(split(packed)), tf.uint8)


def join(channels: Sequence[tf.Tensor]) -> tf.Tensor:
    """Pack three channels, int32 `[W, H]` of 0 to 255 each."""
    red, green, blue = channels
    return red | tf.bitwise.left_shift(green, 8) | tf.bitwise.left_shift(blue, 16)


def split(packed: tf.Tensor) -> list[tf.Tensor]:
    """Return red, green and blue of packed pixels, int32 `[W, H]` each."""
    return [tf.bitwise.right_shift(packed, 8 * channel) & 255 for channel in range(3)]
