"""Decodes TIFF of which PIL would lose channels or bits, by the package tifffile."""

import importlib.util
import io
import logging
from typing import Any

import numpy as np

from moco_jax.base import packages
from moco_jax.base.errors import UserError
from moco_jax.data.sources import pil_decode
from moco_jax.data.sources.conversion import (
    Decoding,
    blended,
    by_rows,
    colours,
    exactly,
    to_eight_bits,
    turn,
)
from moco_jax.data.sources.conversion import Unfit as Unfit

PACKAGES = ("tifffile", "imagecodecs")  # that read TIFF files of any kind
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION, _BITS = 0x0112, 0x0102


def lacks_tifffile() -> bool:
    """Whether the package that reads TIFF of many channels is missing."""
    return importlib.util.find_spec("tifffile") is None


def tifffile(decoding: Decoding) -> Any:
    """Import the package tifffile; raises UserError where it is missing."""
    try:
        import tifffile
    except ImportError as error:
        raise UserError(
            f"TIFF files are read by the package tifffile where channels={decoding.channels} and "
            f"white={decoding.white:g}, and it is missing: {packages.how_to_have(PACKAGES)}"
        ) from error
    # Damaged images are named elsewhere.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    return tifffile


def wants_tifffile(content: bytes, decoding: Decoding) -> bool:
    """Whether `content` is a TIFF of which PIL would lose what `decoding` asks for."""
    from PIL import UnidentifiedImageError

    if not content.startswith(TIFF) or decoding.plain:
        return False
    if decoding.channels not in (1, 3):
        return True
    try:
        with pil_decode.opened(content, decoding) as file:
            bits = file.tag_v2.get(_BITS, (1,))
    except UnidentifiedImageError:
        return True
    return len(bits) > 1 and max(bits) > 8


def of_tiff(content: bytes, decoding: Decoding) -> np.ndarray:
    """Decode the first image of a TIFF, upright.

    It is one page, its samples interleaved or in planes, or pages of one sample each.
    """
    library = tifffile(decoding)
    with library.TiffFile(io.BytesIO(content)) as file:
        series, page = file.series[0], file.pages[0]
        kept = [n for n, a in enumerate(series.axes) if a in "YX" or series.shape[n] > 1]
        axes = "".join(series.axes[n] for n in kept)
        others = axes.replace("Y", "").replace("X", "")
        if len(others) > 1 or len(axes) != len(others) + 2:
            raise Unfit(f"a TIFF of axes {series.axes} and shape {series.shape}, not one image")
        shape = [series.shape[n] for n in kept]
        decoding.require_room(shape[axes.index("Y")], shape[axes.index("X")])
        try:
            samples = series.asarray().reshape(shape)
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise UserError(f"{error}: {packages.how_to_have(PACKAGES)}") from error
            raise
        coloured = page.photometric == library.PHOTOMETRIC.RGB
        inverted = page.photometric == library.PHOTOMETRIC.MINISWHITE and page.samplesperpixel == 1
        transparent = tuple(page.extrasamples) == (library.EXTRASAMPLE.UNASSALPHA,)
        orientation = page.tags.valueof(_ORIENTATION, 1)
    samples = np.moveaxis(samples, axes.index(others), -1) if others else samples[..., None]
    blends = decoding.blends and coloured and transparent and samples.shape[-1] == 4
    opaque = float(np.iinfo(samples.dtype).max if samples.dtype.kind in "iu" else 1)

    def eight(some: np.ndarray) -> np.ndarray:
        image = to_eight_bits(some, decoding.white)
        if blends:
            alpha = to_eight_bits(some[..., 3], opaque)
            image = blended(image[..., :3], alpha, decoding.background)
        image = 255 - image if inverted else image
        return (colours if coloured else exactly)(image, decoding.channels)

    return turn(by_rows(samples, eight), orientation)
