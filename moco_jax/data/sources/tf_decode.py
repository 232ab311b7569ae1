"""Decodes encoded images to uint8 pixels in a TensorFlow graph.

`pixels.rule` decides by the header who decodes: TensorFlow what it decodes as PIL does, nobody
what lies there as pixels, Python the rest. What neither can read is flagged, so that one damaged
file ends no run.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from moco_jax.data.sources import pixels
from moco_jax.data.sources.records import ENCODED

if TYPE_CHECKING:
    from moco_jax.data.sources import Source

# By these JPEGs can be shrunk as they are decoded, at a part of the cost.
RATIOS = (1, 2, 4, 8)
Shrink = Callable[[tf.Tensor], tf.Tensor]  # height and width -> place of a ratio in `RATIOS`
# Orientations whose image is turned so.
TRANSPOSED, UPSIDE_DOWN, MIRRORED = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)


def turn(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turn `image` `[H, W, 3]` as `PIL.ImageOps.exif_transpose` does for this orientation.

    `orientation`: int32, 1 to 8.
    """

    def turned(number: int) -> tf.Tensor:
        swapped = tf.transpose(image, [1, 0, 2]) if number in TRANSPOSED else image
        axes = [axis for axis, those in ((0, UPSIDE_DOWN), (1, MIRRORED)) if number in those]
        return tf.reverse(swapped, axes) if axes else swapped

    ways = [lambda n=n: turned(n) for n in range(1, 9)]
    return tf.cond(orientation > 1, lambda: tf.switch_case(orientation - 1, ways), lambda: image)


def _jpeg(content: tf.Tensor, shrunk: tf.Tensor | None) -> tf.Tensor:
    ways = [
        lambda r=r: tf.io.decode_jpeg(content, 3, r, dct_method="INTEGER_ACCURATE") for r in RATIOS
    ]
    return ways[0]() if shrunk is None else tf.switch_case(shrunk, ways)


def decode_image(content: tf.Tensor, shrunk: tf.Tensor | None = None) -> tf.Tensor:
    """Decode a JPEG or PNG that `pixels.rule` leaves to TensorFlow to PIL's uint8 `[H, W, 3]`.

    JPEG uses the accurate inverse transform.
    `shrunk`: place of a ratio in `RATIOS`, an int32 scalar: a JPEG's height and width come
    divided by the ratio and rounded up.
    """
    jpeg, png = (lambda: _jpeg(content, shrunk)), (lambda: tf.io.decode_png(content, 3))
    return tf.ensure_shape(tf.cond(tf.io.is_jpeg(content), jpeg, png), [None, None, 3])


class Decoded(NamedTuple):
    """An image in a graph.

    Attributes:
        pixels: uint8 `[H, W, C]`; black `[1, 1, C]` where the record is damaged.
        size: int32 `[2]`, height and width in the file.
        ratio: int32, one of `RATIOS`: `size` by H and W, rounded up.
        ok: bool, false where the record is damaged.
    """

    pixels: tf.Tensor
    size: tf.Tensor
    ratio: tf.Tensor
    ok: tf.Tensor


def _whole(image: tf.Tensor, ok: bool | tf.Tensor = True, ratio: int = 1) -> Decoded:
    return Decoded(image, tf.shape(image)[:2], tf.constant(ratio), tf.convert_to_tensor(ok))


def _encoded(source: "Source", record: bytes | np.ndarray) -> bytes:
    """Take the encoded image out of a record.

    A graph gives Python the bytes; TensorFlow outside a graph, an array without axes of them.
    """
    return source.encoded(record.item() if isinstance(record, np.ndarray) else record)


def _ruled(source: "Source", record: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Take the encoded image out of a record, in a graph, and apply `pixels.rule` to it.

    Returns the image's bytes, int32 its way, orientation, and height with width, and its pixels
    uint8 `[H, W, 3]` where they lie there as they are.
    """
    nothing = np.zeros((1, 1, 3), np.uint8)

    def take(record: bytes | np.ndarray) -> tuple[bytes, np.ndarray, np.ndarray]:
        content = _encoded(source, record)
        ruling = pixels.rule(content, source.decoding)
        image = nothing
        if ruling.way == pixels.PIXELS:
            image = pixels.pixels(content, source.decoding)
            content = b""  # is not copied for those who need the pixels
        return content, np.asarray(ruling, np.int32), image

    kinds = tf.string, tf.int32, tf.uint8
    content, ruling, image = tf.numpy_function(take, [record], kinds, stateful=False)
    ruling, image = tf.ensure_shape(ruling, [4]), tf.ensure_shape(image, [None, None, 3])
    return tf.ensure_shape(content, []), ruling[0], ruling[1], ruling[2:], image


def _in_python(source: "Source", record: tf.Tensor) -> Decoded:
    decoding = source.decoding

    def decode(record: bytes | np.ndarray) -> tuple[np.ndarray, np.bool_]:
        try:
            return pixels.pixels(_encoded(source, record), decoding), np.True_
        except Exception:  # libraries raise all kinds on damaged files
            return np.zeros((1, 1, decoding.channels), np.uint8), np.False_

    image, ok = tf.numpy_function(decode, [record], (tf.uint8, tf.bool), stateful=False)
    image = tf.ensure_shape(image, [None, None, decoding.channels])
    return _whole(image, tf.ensure_shape(ok, []))


def decode_or_flag(source: "Source", record: tf.Tensor, shrink: Shrink | None = None) -> Decoded:
    """Decode the image in `record`, in a graph, or flag it as damaged.

    `shrink`: says of a JPEG of this height and width, before it is decoded, by which of `RATIOS`
    to shrink it.
    """
    if source.record_spec.dtype != ENCODED.dtype:
        return _whole(record)
    decoding = source.decoding

    def as_ruled(record: tf.Tensor) -> Decoded:
        content, way, orientation, size, array = _ruled(source, record)

        def upright(image: tf.Tensor) -> tf.Tensor:
            image = tf.ensure_shape(image, [None, None, 3])
            return turn(image, orientation) if decoding.exif_rotation else image

        def jpeg() -> Decoded:
            if shrink is None:
                return _whole(upright(_jpeg(content, None)))
            shrunk = shrink(size)
            image = upright(_jpeg(content, shrunk))
            return Decoded(image, size, tf.gather(RATIOS, shrunk), tf.constant(True))

        def png() -> Decoded:
            return _whole(upright(tf.io.decode_png(content, 3)))

        # In the order of the numbers `PYTHON`, `JPEG`, `PNG` and `PIXELS`.
        ways = [lambda: _in_python(source, record), jpeg, png, lambda: _whole(array)]
        return tf.switch_case(way, ways)

    def attempt(decoder: Callable[[tf.Tensor], Decoded], otherwise: Decoded) -> Decoded:
        """Decode the record; return `otherwise` where an operation fails."""
        made = tf.data.Dataset.from_tensors(record).map(decoder)
        failed = tf.data.Dataset.from_tensors(otherwise)
        return made.ignore_errors().concatenate(failed).take(1).get_single_element()

    damaged = _whole(tf.zeros([1, 1, decoding.channels], tf.uint8), ok=False)
    if decoding.channels != 3:
        return _in_python(source, record)
    decoded = attempt(as_ruled, damaged._replace(ratio=tf.constant(0)))
    # PIL may read damaged data at which TensorFlow fails. A dataset costs as much as a small
    # operation, so the second is made only then, not where Python has refused.
    return tf.cond(decoded.ratio > 0, lambda: decoded, lambda: _in_python(source, record))
