"""From the bytes of an encoded image to uint8 pixels, in a TensorFlow graph.

TensorFlow decodes RGB where it does so as PIL does; `pixels.py` takes what is left (TIFF, animated WebP, palette BMP,
.npy) and all other numbers of channels; what none can read is flagged, so that one damaged file ends no run.
"""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import tensorflow as tf

from moco_jax.data.sources import pixels
from moco_jax.data.sources.pixels import RGB, Decoding
from moco_jax.errors import UserError

if TYPE_CHECKING:
    from moco_jax.data.sources import Source

RATIOS = (1, 2, 4, 8)  # by which JPEGs can be shrunk in decoding, at a part of the cost
Shrink = Callable[[tf.Tensor], tf.Tensor]  # from height and width to the number of one of `RATIOS`
_EXIF_REACH = 1 << 17  # bytes from a JPEG's start in which its Exif block is looked for
_ORIENTATION = 0x0112
# By a background: GIF, WebP of the kinds that may have alpha, PNG of other than eight bits, whose alpha has another scale.
_LEFT_IF_BLENDED = r"(GIF|RIFF\C{8}VP8[XL]|\CPNG\C{20}[\x01\x02\x04\x10])\C*"


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

    if content.startswith((pixels.NUMPY, *pixels.TIFF)):
        return True
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


def _png_16(content: tf.Tensor, white: float) -> tf.Tensor:
    """As `pixels.to_eight_bits`."""
    deep = tf.io.decode_png(content, channels=3, dtype=tf.uint16)
    if not white:
        return tf.cast((tf.cast(deep, tf.int32) + 128) // 257, tf.uint8)
    shares = tf.minimum(tf.cast(deep, tf.float64) / white, 1)
    return tf.cast(tf.floor(shares * 255 + 0.5), tf.uint8)


def _contains(content: tf.Tensor, mark: bytes) -> tf.Tensor:
    return tf.size(tf.strings.split([content], mark, 1).values) > 1


def _blended_png(content: tf.Tensor, background: int) -> tf.Tensor:
    """As `pixels.blended`, whose two shifts are one of 257 times the sum."""
    image = tf.cast(tf.io.decode_png(content, channels=4), tf.int32)
    colours, alpha = tf.split(image, [3, 1], -1)
    total = (colours - background) * (257 * alpha) + 257 * (255 * background + 128)
    return tf.cast(tf.bitwise.right_shift(total, 16), tf.uint8)


def _on_background(content: tf.Tensor, background: int) -> tf.Tensor:
    """What `_LEFT_IF_BLENDED` does not name. In few operations: their number costs every image some time, also a JPEG."""
    channel = tf.strings.regex_full_match(content, r"\CPNG\C{21}[\x04\x06]\C*")
    one_colour = tf.raw_ops.StringSplitV2(input=[content], sep=b"tRNS", maxsplit=1).values
    return tf.cond(
        channel | (tf.size(one_colour) > 1),
        lambda: _blended_png(content, background),
        lambda: tf.io.decode_image(content, channels=3, expand_animations=False),
    )


def _not_jpeg(content: tf.Tensor, decoding: Decoding) -> tf.Tensor:
    start = tf.strings.substr(content, 0, 2)
    # TensorFlow takes a palette's numbers for grays: only BMPs of 24 bits without compression are left to it.
    plain = (start != b"BM") | (tf.strings.substr(content, 28, 6) == b"\x18\0\0\0\0\0")
    if decoding.exif_rotation:
        plain &= ~(_contains(content, b"eXIf") | _contains(content, b"EXIF"))  # PNG's and WebP's
    if decoding.blends:
        plain &= ~tf.strings.regex_full_match(content, _LEFT_IF_BLENDED)
    with tf.control_dependencies([tf.debugging.Assert(plain, ["left to PIL"])]):
        if decoding.blends:
            return _on_background(content, decoding.background)
        return tf.cond(
            (start == b"\x89P") & (tf.strings.substr(content, 24, 1) == b"\x10"),
            lambda: _png_16(content, decoding.white),
            lambda: tf.io.decode_image(content, channels=3, expand_animations=False),
        )


def decode_image(
    content: tf.Tensor, decoding: Decoding = RGB, shrunk: tf.Tensor | None = None
) -> tf.Tensor:
    """Encoded bytes, a string scalar -> uint8 RGB `[H, W, 3]`; an error where TensorFlow cannot do it as PIL does.

    JPEG with the accurate inverse transform (the pixels PIL gives); sixteen bits as in `pixels.to_eight_bits`,
    transparency as `decoding.background` says.
    `shrunk`: the number of one of `RATIOS`, an int32 scalar: a JPEG's height and width come divided by it and rounded up.
    """
    image = tf.cond(
        tf.io.is_jpeg(content),
        lambda: _jpeg(content, decoding.exif_rotation, shrunk),
        lambda: _not_jpeg(content, decoding),
    )
    image = tf.ensure_shape(image, [None, None, 3])
    with tf.control_dependencies([tf.debugging.assert_positive(tf.size(image))]):
        return tf.identity(image)


def _in_python(content: tf.Tensor, decoding: Decoding) -> tf.Tensor:
    image = tf.numpy_function(
        lambda c: pixels.pixels(c, decoding), [content], tf.uint8, stateful=False
    )
    return tf.ensure_shape(image, [None, None, decoding.channels])


def refusal(source: "Source", record: bytes) -> str:
    """Why `source` refuses an image that is whole (its channels, its bits, a missing package); '' if it is damaged."""
    try:
        pixels.pixels(source.encoded(tf.constant(record)).numpy(), source.decoding)
    except (pixels.Unfit, UserError) as error:
        return str(error)
    except Exception:  # libraries raise all kinds on damaged files
        return ""
    return ""


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


def _whole(image: tf.Tensor, ok: bool = True) -> Decoded:
    return Decoded(image, tf.shape(image)[:2], tf.constant(1), tf.constant(ok))


def decode_or_flag(source: "Source", record: tf.Tensor, shrink: Shrink | None = None) -> Decoded:
    """In a graph: the image in `record`, whether or not it can be decoded.

    `shrink`: says of a JPEG of this height and width, before it is decoded, by which of `RATIOS` to shrink it.
    """
    if source.record_spec.dtype != tf.string:
        return _whole(record)
    decoding = source.decoding

    def with_tensorflow(content: tf.Tensor) -> Decoded:
        if shrink is None:
            return _whole(decode_image(content, decoding))
        jpeg, rotation = tf.io.is_jpeg(content), decoding.exif_rotation
        shrunk = tf.cond(
            jpeg, lambda: shrink(_jpeg_size(content, rotation)), lambda: tf.constant(0)
        )
        image = decode_image(content, decoding, shrunk)
        size = tf.cond(jpeg, lambda: _jpeg_size(content, rotation), lambda: tf.shape(image)[:2])
        return Decoded(image, size, tf.gather(RATIOS, shrunk), tf.constant(True))

    def in_python(content: tf.Tensor) -> Decoded:
        return _whole(_in_python(content, decoding))

    def attempt(decoder: Callable[[tf.Tensor], Decoded], otherwise: Decoded) -> Decoded:
        """The decoded record; `otherwise` where the decoder fails."""
        made = tf.data.Dataset.from_tensors(record).map(lambda r: decoder(source.encoded(r)))
        failed = tf.data.Dataset.from_tensors(otherwise)
        return made.ignore_errors().concatenate(failed).take(1).get_single_element()

    black = _whole(tf.zeros([1, 1, decoding.channels], tf.uint8), ok=False)
    if decoding.channels != 3:
        return attempt(in_python, black)
    found = attempt(with_tensorflow, black)
    # A dataset costs as much as a small operation: the second is made only where the first gave nothing.
    return tf.cond(found.ok, lambda: found, lambda: attempt(in_python, found))
