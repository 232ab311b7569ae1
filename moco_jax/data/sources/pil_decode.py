"""Decodes pictures with PIL to uint8 pixels; every other decoder is compared with this one.

PIL keeps four bytes a pixel of RGB. Large pictures are converted some rows at a time, so that
little more memory is needed.
"""

import contextlib
import io
import re
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from moco_jax.data.sources import headers
from moco_jax.data.sources.conversion import (
    AT_ONCE,
    Decoding,
    Unfit,
    blended,
    by_rows,
    colours,
    exactly,
    to_eight_bits,
    turn,
)

_ORIENTATION, _PHOTOMETRIC = 0x0112, 0x0106  # tags of TIFF and Exif
_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def quiet() -> None:
    """Keep PIL's warnings about odd files from the console: damaged ones are named elsewhere."""
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", category=Warning, module=r"PIL\.")


def _raise_limit(max_pixels: int) -> None:
    """Let PIL open pictures up to `max_pixels`: it refuses those above twice its own limit."""
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)


@contextlib.contextmanager
def opened(content: bytes, decoding: Decoding) -> Iterator[Any]:
    """Open an encoded picture as a PIL image, none of its pixels read yet.

    Raises:
        Unfit: it has more than `decoding.max_pixels`.
        Exception: of any kind, where it is no picture.
    """
    from PIL import Image

    quiet()
    _raise_limit(decoding.max_pixels)
    try:
        picture = Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise Unfit(f"{error}, and it is above max_pixels={decoding.max_pixels}") from error
    with picture:
        decoding.require_room(picture.height, picture.width)
        yield picture


def is_picture(content: bytes) -> bool:
    """Whether PIL knows the kind of picture that `content` begins as."""
    from PIL import Image, UnidentifiedImageError

    quiet()
    try:
        Image.open(io.BytesIO(content)).close()
    except Image.DecompressionBombError:
        return True
    except (UnidentifiedImageError, OSError, ValueError):
        return False
    return True


def orientation(content: bytes) -> int:
    """Return the orientation 1 to 8 that an encoded picture asks for anywhere; 1 for none."""
    from PIL import Image

    quiet()
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return orientation_of(picture)
    # Libraries raise all kinds on damaged files, which are named where they are decoded.
    except Exception:
        return 1


def orientation_of(picture: Any) -> int:
    """Return the orientation 1 to 8 that a PIL image asks for."""
    value = picture.getexif().get(_ORIENTATION, 1)
    return int(value) if value in range(1, 9) else 1


def _on_background(picture: Any, background: int) -> Any:
    """Put a PIL image with transparency on a gray background, as RGB; others stay as they are."""
    from PIL import Image

    if not picture.has_transparency_data:
        return picture
    image = picture.convert("RGBA")
    canvas = Image.new("RGB", image.size, (background,) * 3)
    canvas.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return canvas


def _zero_is_white(picture: Any) -> bool:
    """Whether 0 is white in a TIFF: PIL does not see to it in samples of more than eight bits."""
    return picture.format == "TIFF" and picture.tag_v2.get(_PHOTOMETRIC) == 0


def _rows(image: Any, decoding: Decoding, inverted: bool, sixteen: bool) -> np.ndarray:
    """Convert some rows of a picture, a PIL image of their own, to uint8 `[n, W, C]`."""
    channels = decoding.channels
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image)
        gray = to_eight_bits(values.astype(np.uint16) if sixteen else values, decoding.white)
        return colours((255 - gray if inverted else gray)[..., None], channels)
    if channels in (1, 3):
        image = _on_background(image, decoding.background) if decoding.blends else image
        converted = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        return converted[..., None] if channels == 1 else converted
    pixels = np.asarray(image)
    return exactly(pixels[..., None] if pixels.ndim == 2 else pixels, channels)


def _parts(picture: Any) -> Iterator[tuple[int, Any]]:
    """Cut a large PIL image into parts of some rows, each with its first row's number."""
    width, height = picture.size
    rows = max(1, AT_ONCE // max(width, 1))
    if rows >= height:
        yield 0, picture
        return
    for top in range(0, height, rows):
        yield top, picture.crop((0, top, width, min(top + rows, height)))


def is_transparent(content: bytes, decoding: Decoding) -> bool:
    """Whether an encoded picture has pixels that are not opaque; false if PIL cannot read it."""
    try:
        with opened(content, decoding) as picture:
            if not picture.has_transparency_data:
                return False
            picture.load()
            alphas = (part.convert("RGBA").getchannel("A") for _, part in _parts(picture))
            return any(alpha.getextrema()[0] < 255 for alpha in alphas)
    # Libraries raise all kinds on damaged files, which are named where they are decoded.
    except Exception:
        return False


def of_picture(picture: Any, decoding: Decoding) -> np.ndarray:
    """Convert the first frame of a PIL image to uint8 `[H, W, C]`.

    Gray and RGB are converted into each other, other modes are kept.

    Raises:
        Unfit: it has more than `max_pixels`, or other channels or bits than `decoding` asks for.
    """
    quiet()
    decoding.require_room(picture.height, picture.width)
    _raise_limit(decoding.max_pixels)
    picture.load()
    width, height = picture.size
    inverted = _zero_is_white(picture)
    # PIL scales PGM to sixteen bits.
    sixteen = picture.format == "PPM" and picture.mode == "I"
    made = None
    for top, part in _parts(picture):
        some = _rows(part, decoding, inverted, sixteen)
        if len(some) == height:
            made = some
            break
        if made is None:
            made = np.empty((height, width, decoding.channels), np.uint8)
        made[top : top + len(some)] = some
    if made is None or not made.size:
        raise ValueError(f"no pixels: {width} x {height}")
    # PIL has turned a TIFF as it loaded it, and then reports no orientation.
    return turn(made, orientation_of(picture)) if decoding.exif_rotation else made


def with_pil(content: bytes, decoding: Decoding) -> np.ndarray:
    """Decode an encoded picture to uint8 `[H, W, C]`, as `of_picture` does."""
    with opened(content, decoding) as picture:
        return of_picture(picture, decoding)


def _bytes_of_deep_png(content: bytes, decoding: Decoding, mode: str, raw: str) -> np.ndarray:
    """Decode one byte of each sample, uint8 `[H, W, C]`, by PIL from the layout it calls `raw`."""
    with opened(content, decoding) as picture:
        decoder, extents, offset, _ = picture.tile[0]
        picture.tile = [(decoder, extents, offset, raw)]
        picture.load()
        return np.asarray(picture)


def deep_values(content: bytes, decoding: Decoding) -> tuple[np.ndarray, np.ndarray]:
    """Read the samples of a PNG of sixteen bits, of which PIL alone would keep eight.

    Returns:
        High and low bytes of the samples, uint8 `[H, W, C]` each; C is 1 to 4.
    """
    colour = content[25]
    if colour in (2, 6):
        mode = "RGB" if colour == 2 else "RGBA"
        pair = (_bytes_of_deep_png(content, decoding, mode, f"{mode};16{o}") for o in "BL")
        return next(pair), next(pair)
    # In the file a gray value with alpha, of sixteen bits, lies as an eight-bit pixel of RGBA,
    # and a gray value as an eight-bit one with alpha.
    kind = b"IHDR" + content[16:24] + bytes([8, 4 if colour == 0 else 6]) + content[26:29]
    other = content[:12] + kind + zlib.crc32(kind).to_bytes(4, "big") + content[33:]
    with opened(other, decoding) as picture:
        picture.load()
        samples = np.asarray(picture)
    return samples[..., 0::2], samples[..., 1::2]


def deep_png(content: bytes, decoding: Decoding) -> np.ndarray:
    """Decode a PNG of sixteen bits to uint8 `[H, W, C]`, from all of them."""
    with opened(content, decoding) as picture:
        transparent = picture.info.get("transparency")
        turned = orientation_of(picture) if decoding.exif_rotation else 1
    high, low = deep_values(content, decoding)
    clear = None if transparent is None else np.atleast_1d(np.asarray(transparent, np.uint16))

    def eight(pair: np.ndarray) -> np.ndarray:
        values = pair[..., 0].astype(np.uint16) << 8 | pair[..., 1]
        image = to_eight_bits(values, decoding.white)
        bands = image.shape[-1]
        if decoding.blends and (bands in (2, 4) or clear is not None):
            if bands in (2, 4):
                alpha = to_eight_bits(values[..., -1], 0)
                image = image[..., :-1]
            else:
                alpha = np.where((values == clear).all(-1), 0, 255).astype(np.uint8)
            image = blended(colours(image, 3), alpha, decoding.background)
        return colours(image, decoding.channels)

    return turn(by_rows(np.stack([high, low], -1), eight), turned)


def is_deep_png(content: bytes) -> bool:
    """Whether `content` is a PNG of sixteen bits."""
    return content.startswith(headers.PNG) and content[24:25] == b"\x10"
