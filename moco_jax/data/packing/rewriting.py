"""Writes images anew on their way into shards: smaller, as JPEG or as pixels, and upright.

What an image shows is decided by the one rule of decoding, `tf_decode.decode_or_flag`. Images that
are not written anew are decoded all the same, which tells sound ones from damaged ones.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from moco_jax.base.errors import UserError
from moco_jax.config import check_background
from moco_jax.data.sources import Source, arrays, pixels
from moco_jax.data.sources.pixels import Decoding
from moco_jax.data.sources.tf_decode import (
    MIRRORED,
    RATIOS,
    UPSIDE_DOWN,
    Decoded,
    decode_or_flag,
)

QUALITY = 90  # of JPEGs where none is given
LONGEST = 65_500  # pixels of a JPEG's side, by libjpeg
# JPEGs are shrunk as they are decoded while this many times the pixels are left that are kept.
SPARE = 2


@dataclasses.dataclass(frozen=True)
class Rewriting:
    """What becomes of images on their way into shards.

    Attributes:
        shorter_side: pixels to which an image's shorter side is shrunk; 0: none is shrunk.
        quality: of the JPEGs that are written, 1 to 100; 0: none is.
        raw: whether pixels are written, as NumPy arrays.
    """

    shorter_side: int = 0
    quality: int = 0
    raw: bool = False

    @property
    def as_they_are(self) -> bool:
        """Whether images keep their bytes."""
        return not self.shorter_side and not self.raw

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of what is written of an image; never more than it has."""
        short = min(height, width)
        if not 0 < self.shorter_side < short:
            return height, width
        share = self.shorter_side / short
        return max(round(height * share), 1), max(round(width * share), 1)


AS_THEY_ARE = Rewriting()


def chosen(shorter_side: int, quality: int | None, raw: bool, decoding: Decoding) -> Rewriting:
    """Return what becomes of images by these settings; `quality` of None is `QUALITY`.

    Raises:
        UserError: one of them cannot work, or not with another.
    """
    check_background(decoding.background, decoding.channels)
    if shorter_side < 0:
        raise UserError(f"shorter_side={shorter_side} must be at least 0; 0 shrinks no image")
    if quality is not None and not 1 <= quality <= 100:
        raise UserError(f"quality={quality} must be from 1 to 100; try {QUALITY}")
    if quality is not None and (raw or not shorter_side):
        instead = "format='raw' keeps pixels; leave it out" if raw else "try --shorter_side=256"
        raise UserError(
            f"quality={quality} is of the JPEGs that are written with --shorter_side=N: {instead}"
        )
    made = Rewriting(shorter_side, 0 if raw or not shorter_side else quality or QUALITY, raw)
    if made.quality and decoding.channels not in (1, 3):
        raise UserError(
            f"shorter_side={shorter_side} writes JPEGs, which hold no channels={decoding.channels};"
            " --format=raw does"
        )
    if made.as_they_are and decoding.background >= 0:
        raise UserError(
            f"background={decoding.background} is for images that are written anew, with"
            " --shorter_side=N or --format=raw; others keep their transparency, and training's"
            " --config.background blends it"
        )
    return made


def content(source: Source, rewriting: Rewriting, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Make, in a graph, what shards hold of the image in `record` of a folder.

    Returns:
        The encoded image, a string, and whether it is sound.
    """
    if rewriting.as_they_are:
        return record, decode_or_flag(source, record).ok

    def shrink(size: tf.Tensor) -> tf.Tensor:
        enough = tf.reduce_min(size) >= [SPARE * r * rewriting.shorter_side for r in RATIOS[1:]]
        return tf.reduce_sum(tf.cast(enough, tf.int32))

    image = decode_or_flag(source, record, shrink if rewriting.shorter_side else None)
    if rewriting.raw:
        return _array(source, rewriting, record, image)
    return _jpeg(source, rewriting, record, image)


def _array(
    source: Source, rewriting: Rewriting, record: tf.Tensor, image: Decoded
) -> tuple[tf.Tensor, tf.Tensor]:
    """Write the pixels of the decoded `image` as they are; too many of them count as damaged."""

    def finish(record: bytes, *some: np.ndarray) -> tuple[bytes, np.bool_]:
        small = _resized(source, rewriting, record, *some)
        if small.size > arrays.MOST:
            return b"", np.False_
        return arrays.encode(small), np.True_

    made, fits = tf.numpy_function(
        finish, [record, *image[:3]], (tf.string, tf.bool), stateful=False
    )
    return tf.ensure_shape(made, []), tf.ensure_shape(fits, []) & image.ok


def _jpeg(
    source: Source, rewriting: Rewriting, record: tf.Tensor, image: Decoded
) -> tuple[tf.Tensor, tf.Tensor]:
    """Make a JPEG of the decoded `image`, or return `record` where that is as it should be.

    The colours keep their full resolution: with half of it the views of ImageNet's pictures are
    further from the original's by another half a gray level.
    """

    def finish(record: bytes, *some: np.ndarray) -> tuple[np.ndarray, np.bool_]:
        if _is_as_it_should_be(source, rewriting, record):
            return some[0], np.True_
        return _resized(source, rewriting, record, *some), np.False_

    small, kept = tf.numpy_function(
        finish, [record, *image[:3]], (tf.uint8, tf.bool), stateful=False
    )
    small = tf.ensure_shape(small, [None, None, source.decoding.channels])
    kept = tf.ensure_shape(kept, []) & image.ok
    fits = image.ok & (tf.reduce_max(tf.shape(small)) <= LONGEST)

    def encode() -> tf.Tensor:
        return tf.io.encode_jpeg(
            small, quality=rewriting.quality, optimize_size=True, chroma_downsampling=False
        )

    return tf.cond(kept | ~fits, lambda: record, encode), kept | fits


def _is_as_it_should_be(source: Source, rewriting: Rewriting, record: bytes) -> bool:
    """Whether `record` is a plain JPEG, upright and small enough, so that it keeps its bytes."""
    ruling = pixels.rule(source.encoded(record), source.decoding)
    sides = ruling.height, ruling.width
    plain = ruling.way == pixels.JPEG and ruling.orientation == 1
    return plain and sides == rewriting.target(*sides)


def _resized(
    source: Source,
    rewriting: Rewriting,
    record: bytes,
    image: np.ndarray,
    size: np.ndarray,
    ratio: np.ndarray,
) -> np.ndarray:
    """Shrink a decoded image to what `rewriting` keeps of it, uint8 `[h, w, C]`.

    `image`: uint8 `[H, W, C]`, upright; `size` and `ratio` as in `tf_decode.Decoded`.
    """
    from PIL import Image

    height, width = rewriting.target(*size.tolist())
    if (height, width) == image.shape[:2]:
        return image
    # A side that the ratio does not divide has been rounded up at its end, wherever that lies now.
    down, across = (size / int(ratio)).tolist()
    top, left = image.shape[0] - down, image.shape[1] - across
    orientation = pixels.rule(source.encoded(record), source.decoding).orientation
    top, left = top * (orientation in UPSIDE_DOWN), left * (orientation in MIRRORED)
    box = (left, top, left + across, top + down)

    def shrunk(part: np.ndarray) -> np.ndarray:
        whole = Image.fromarray(np.ascontiguousarray(part))
        return np.asarray(whole.resize((width, height), Image.Resampling.LANCZOS, box))

    if image.shape[-1] == 3:
        return shrunk(image)
    return np.stack([shrunk(image[..., n]) for n in range(image.shape[-1])], -1)
