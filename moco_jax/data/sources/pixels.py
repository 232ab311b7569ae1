"""Decodes one image to uint8 pixels in Python, and rules when TensorFlow does it instead.

`headers.py` reads the header, `pil_decode.py` and `tiff_decode.py` decode, `conversion.py` has the
settings.
"""

import io
from typing import NamedTuple

import numpy as np

from moco_jax.data.sources import arrays, dicom_decode, headers, pil_decode
from moco_jax.data.sources.arrays import NUMPY
from moco_jax.data.sources.conversion import (
    RGB,
    Decoding,
    Unfit,
    exactly,
    to_eight_bits,
    turn,
)
from moco_jax.data.sources.pil_decode import of_picture
from moco_jax.data.sources.tiff_decode import (
    TIFF,
    lacks_tifffile,
    of_tiff,
    tifffile,
    wants_tifffile,
)

__all__ = ["RGB", "Decoding", "Unfit", "lacks_tifffile", "of_picture", "tifffile", "turn"]

# Who decodes: this module, one of TensorFlow's decoders, or nobody where pixels lie as they are.
PYTHON, JPEG, PNG, PIXELS = range(4)


_ENDINGS: tuple[str, ...] = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
)
_ENDINGS += (".ppm", ".pgm", ".pbm", ".jp2")


def _extensions() -> tuple[str, ...]:
    try:
        from PIL import AvifImagePlugin

        avif = (".avif",) if AvifImagePlugin.SUPPORTED else ()
    except ImportError:  # before Pillow 11.3
        avif = ()
    return (*_ENDINGS, *avif, ".npy", *dicom_decode.ENDINGS)


EXTENSIONS = _extensions()


class Ruling(NamedTuple):
    """The decision, from a file's header, on who decodes it.

    Attributes:
        way: who decodes it, `PYTHON`, TensorFlow as `JPEG` or `PNG`, or nobody, `PIXELS`.
        orientation: 1 to 8, how TensorFlow's pixels are to be turned.
        height, width: of the image, once it is turned; 0 where Python decodes it.
    """

    way: int = PYTHON
    orientation: int = 1
    height: int = 0
    width: int = 0


def rule(content: bytes, decoding: Decoding) -> Ruling:
    """Decide who decodes `content`: TensorFlow what it decodes as PIL does, Python the rest."""
    if decoding.channels != 3:
        return Ruling()
    if (array := as_it_is(content, decoding)) is not None:
        return Ruling(PIXELS, 1, *array.shape[:2])
    header = headers.read(content)
    if not header.plain or header.height * header.width > decoding.max_pixels:
        return Ruling()
    if header.alpha and decoding.blends:
        return Ruling()
    way = JPEG if content.startswith(headers.JPEG) else PNG
    orientation = 1
    if header.tagged and decoding.exif_rotation:
        orientation = pil_decode.orientation(content)
    sides = (header.height, header.width)
    return Ruling(way, orientation, *(sides[::-1] if orientation >= 5 else sides))


def as_it_is(content: bytes, decoding: Decoding) -> np.ndarray | None:
    """Return the pixels uint8 `[H, W, C]` of content that needs no decoder, read-only; else None.

    None also where `decoding` asks for other channels, or fewer pixels.
    """
    array = arrays.pixels_in(content)
    if array is None or array.shape[2] != decoding.channels:
        return None
    return array if array.shape[0] * array.shape[1] <= decoding.max_pixels else None


def is_image(content: bytes) -> bool:
    """Whether `content` begins as an encoded image does."""
    known = content.startswith((NUMPY, *TIFF)) or dicom_decode.is_dicom(content)
    return known or pil_decode.is_picture(content)


def _array(content: bytes, decoding: Decoding) -> np.ndarray:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    head = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in head:
        raise ValueError(f"NumPy's format {version}")
    shape, _, dtype = head[version](file)
    if len(shape) not in (2, 3):
        raise Unfit(f"an array of shape {shape}, neither [H, W, C] nor [H, W]")
    decoding.require_room(shape[0], shape[1])
    if not dtype.hasobject and int(np.prod(shape, dtype=object)) * dtype.itemsize > len(content):
        raise ValueError(f"cut off: an array of shape {shape}")
    array = np.load(io.BytesIO(content), allow_pickle=False)
    return array[..., None] if array.ndim == 2 else array


def _require_an_end(content: bytes) -> None:
    """Refuse a JPEG without an end: PIL may take the zeros of a half-written file for pixels."""
    if not headers.read(content).whole:
        raise ValueError("a JPEG that is cut off: nothing marks its end")


def pixels(content: bytes, decoding: Decoding) -> np.ndarray:
    """Decode the bytes of an image to uint8 `[H, W, C]`.

    Sixteen-bit values v become v / 257, rounded, or as `decoding.white` says; with three
    channels and without white the high byte of a sixteen-bit colour TIFF is kept. Where C is 1
    or 3 transparency is dropped, or blended with `decoding.background`. A TIFF is turned as it
    asks for, other images with `exif_rotation`.

    Raises:
        Unfit: it is whole, but has other channels or bits than `decoding` asks for, or more
            pixels.
        UserError: it needs a package that is missing.
        Exception: of any kind, where it is damaged.
    """
    if (array := as_it_is(content, decoding)) is not None:
        return array
    _require_an_end(content)
    if dicom_decode.is_dicom(content):
        image = dicom_decode.of_dicom(content, decoding)
    elif content.startswith(NUMPY):
        image = exactly(to_eight_bits(_array(content, decoding), decoding.white), decoding.channels)
    elif wants_tifffile(content, decoding):
        image = of_tiff(content, decoding)
    elif pil_decode.is_deep_png(content):
        image = pil_decode.deep_png(content, decoding)
    else:
        image = pil_decode.with_pil(content, decoding)
    if not image.size:
        raise ValueError(f"no pixels: {image.shape}")
    return np.ascontiguousarray(image)
