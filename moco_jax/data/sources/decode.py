"""From the bytes of an encoded image to uint8 RGB pixels, in a TensorFlow graph.

TensorFlow decodes what it decodes as PIL does; PIL takes what is left (TIFF, animated WebP, palette BMP); what
neither can read is flagged, so that one damaged file ends no run.
"""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from moco_jax.data.sources import Source

RATIOS = (1, 2, 4, 8)  # by which JPEGs can be shrunk in decoding, at a part of the cost
Shrink = Callable[[tf.Tensor], tf.Tensor]  # from height and width to the number of one of `RATIOS`
_EXIF_REACH = 1 << 17  # bytes from a JPEG's start in which its Exif block is looked for
_ORIENTATION = 0x0112


def jpeg_is_complete(content: bytes) -> bool:
    """Whether an end marker follows the first scan; TensorFlow fills what a cut file lacks with gray, silently."""
    place = 2
    while content[place : place + 1] == b"\xff" and content[place + 1 : place + 2] != b"\xda":
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return content.find(b"\xff\xd9", place) >= 0


def exif_orientation(content: tf.Tensor) -> tf.Tensor:
    """The orientation 1 to 8, int32, that the Exif block of a JPEG asks for; 1 where it has none."""
    head = tf.strings.split([tf.strings.substr(content, 0, _EXIF_REACH)], b"Exif\0\0", 1).values
    data = tf.cast(tf.io.decode_raw(head[-1], tf.uint8), tf.int32)
    small_first = data[0] == ord("I")

    def u16(place: tf.Tensor) -> tf.Tensor:
        place = tf.clip_by_value(place, 0, tf.size(data) - 2)
        first, second = tf.gather(data, place), tf.gather(data, place + 1)
        return tf.where(small_first, first + 256 * second, 256 * first + second)

    def read() -> tf.Tensor:
        directory = tf.where(small_first, u16(4), u16(6))  # a block has less than 2**16 bytes
        entries = directory + 2 + 12 * tf.range(u16(directory))
        values = tf.boolean_mask(u16(entries + 8), u16(entries) == _ORIENTATION)
        value = tf.concat([values, [1]], 0)[0]
        return tf.where((value >= 1) & (value <= 8), value, 1)

    return tf.cond(tf.size(head) > 1, read, lambda: tf.constant(1))


def turn(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """`image` `[H, W, 3]` as `PIL.ImageOps.exif_transpose` turns it for this orientation."""

    def turned() -> tf.Tensor:
        swapped = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        upside = tf.reduce_any(orientation == [3, 4, 7, 8])
        mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
        rows = tf.cond(upside, lambda: swapped[::-1], lambda: swapped)
        return tf.cond(mirrored, lambda: rows[:, ::-1], lambda: rows)

    return tf.cond(orientation > 1, turned, lambda: image)


def is_image(content: bytes) -> bool:
    """Whether `content` begins as an encoded image does."""
    from PIL import Image, UnidentifiedImageError

    try:
        Image.open(io.BytesIO(content)).close()
    except (UnidentifiedImageError, OSError, ValueError):
        return False
    return True


def _jpeg_size(content: tf.Tensor, exif_rotation: bool) -> tf.Tensor:
    size = tf.io.extract_jpeg_shape(content)[:2]
    if not exif_rotation:
        return size
    return tf.where(exif_orientation(content) >= 5, size[::-1], size)


def _jpeg(content: tf.Tensor, exif_rotation: bool, shrunk: tf.Tensor | None) -> tf.Tensor:
    complete = tf.cond(
        tf.strings.substr(content, -2, 2) == b"\xff\xd9",
        lambda: True,
        # Rare: something follows the end marker, or it is missing.
        lambda: tf.ensure_shape(tf.numpy_function(jpeg_is_complete, [content], tf.bool), []),
    )
    with tf.control_dependencies([tf.debugging.Assert(complete, ["cut JPEG"])]):
        ways = [
            lambda r=r: tf.io.decode_jpeg(content, 3, r, dct_method="INTEGER_ACCURATE")
            for r in RATIOS
        ]
        image = ways[0]() if shrunk is None else tf.switch_case(shrunk, ways)
    return turn(image, exif_orientation(content)) if exif_rotation else image


def _png_16(content: tf.Tensor) -> tf.Tensor:
    deep = tf.cast(tf.io.decode_png(content, channels=3, dtype=tf.uint16), tf.int32)
    return tf.cast((deep + 128) // 257, tf.uint8)


def _contains(content: tf.Tensor, mark: bytes) -> tf.Tensor:
    return tf.size(tf.strings.split([content], mark, 1).values) > 1


def _not_jpeg(content: tf.Tensor, exif_rotation: bool) -> tf.Tensor:
    start = tf.strings.substr(content, 0, 2)
    # TensorFlow takes a palette's numbers for grays: only BMPs of 24 bits without compression are left to it.
    plain = (start != b"BM") | (tf.strings.substr(content, 28, 6) == b"\x18\0\0\0\0\0")
    if exif_rotation:
        plain &= ~(_contains(content, b"eXIf") | _contains(content, b"EXIF"))  # PNG's and WebP's
    with tf.control_dependencies([tf.debugging.Assert(plain, ["left to PIL"])]):
        return tf.cond(
            (start == b"\x89P") & (tf.strings.substr(content, 24, 1) == b"\x10"),
            lambda: _png_16(content),
            lambda: tf.io.decode_image(content, channels=3, expand_animations=False),
        )


def decode_image(
    content: tf.Tensor, exif_rotation: bool = False, shrunk: tf.Tensor | None = None
) -> tf.Tensor:
    """Encoded bytes, a string scalar -> uint8 `[H, W, 3]`; an error where TensorFlow cannot do it as PIL does.

    JPEG with the accurate inverse transform (the pixels PIL gives); sixteen bits as in `pil_pixels`. `shrunk`: the
    number of one of `RATIOS`, an int32 scalar: a JPEG's height and width come divided by it and rounded up.
    """
    image = tf.cond(
        tf.io.is_jpeg(content),
        lambda: _jpeg(content, exif_rotation, shrunk),
        lambda: _not_jpeg(content, exif_rotation),
    )
    image = tf.ensure_shape(image, [None, None, 3])
    with tf.control_dependencies([tf.debugging.assert_positive(tf.size(image))]):
        return tf.identity(image)


def pil_pixels(content: bytes, exif_rotation: bool = False) -> np.ndarray:
    """Encoded bytes -> uint8 `[H, W, 3]` by PIL: the first frame or page, without transparency.

    Sixteen-bit gray v becomes v / 257, rounded, whatever part of the range an image fills: one scale for all,
    so twelve bits kept in sixteen look dark. Of sixteen-bit colour in TIFF the high byte is kept.

    Raises:
        ValueError, OSError: damaged, or 32-bit pixels, whose white is not defined.
    """
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content)) as file:
        image = ImageOps.exif_transpose(file) if exif_rotation else file
        if image.mode.startswith("I;16"):
            gray = (np.asarray(image).astype(np.uint32) + 128) // 257
            return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=-1)
        if image.mode in ("I", "F"):
            raise ValueError(f"{image.mode}: pixels of 32 bits")
        return np.asarray(image.convert("RGB"))


def _with_pil(content: tf.Tensor, exif_rotation: bool) -> tf.Tensor:
    pixels = tf.numpy_function(
        lambda c: pil_pixels(c, exif_rotation), [content], tf.uint8, stateful=False
    )
    return tf.ensure_shape(pixels, [None, None, 3])


class Decoded(NamedTuple):
    """An image in a graph.

    Attributes:
        pixels: uint8 `[H, W, 3]`; black `[1, 1, 3]` where the record is damaged.
        size: int32 `[2]`, height and width in the file.
        ratio: int32, one of `RATIOS`: `size` by H and W, rounded up.
        ok: bool, false where the record is damaged.
    """

    pixels: tf.Tensor
    size: tf.Tensor
    ratio: tf.Tensor
    ok: tf.Tensor


def _whole(pixels: tf.Tensor, ok: bool = True) -> Decoded:
    return Decoded(pixels, tf.shape(pixels)[:2], tf.constant(1), tf.constant(ok))


def decode_or_flag(source: "Source", record: tf.Tensor, shrink: Shrink | None = None) -> Decoded:
    """In a graph: the image in `record`, whether or not it can be decoded.

    `shrink`: says of a JPEG of this height and width, before it is decoded, by which of `RATIOS` to shrink it.
    """
    if source.record_spec.dtype != tf.string:
        return _whole(record)
    rotation = source.exif_rotation

    def with_tensorflow(content: tf.Tensor) -> Decoded:
        if shrink is None:
            return _whole(decode_image(content, rotation))
        jpeg = tf.io.is_jpeg(content)
        shrunk = tf.cond(
            jpeg, lambda: shrink(_jpeg_size(content, rotation)), lambda: tf.constant(0)
        )
        image = decode_image(content, rotation, shrunk)
        size = tf.cond(jpeg, lambda: _jpeg_size(content, rotation), lambda: tf.shape(image)[:2])
        return Decoded(image, size, tf.gather(RATIOS, shrunk), tf.constant(True))

    def attempt(decoder: Callable[[tf.Tensor], Decoded], otherwise: Decoded) -> Decoded:
        """The decoded record; `otherwise` where the decoder fails."""
        made = tf.data.Dataset.from_tensors(record).map(lambda r: decoder(source.encoded(r)))
        failed = tf.data.Dataset.from_tensors(otherwise)
        return made.ignore_errors().concatenate(failed).take(1).get_single_element()

    found = attempt(with_tensorflow, _whole(tf.zeros([1, 1, 3], tf.uint8), ok=False))
    # A dataset costs as much as a small operation: the second is made only where the first gave nothing.
    return tf.cond(
        found.ok, lambda: found, lambda: attempt(lambda c: _whole(_with_pil(c, rotation)), found)
    )
