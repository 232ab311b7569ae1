"""From the bytes of one encoded image to uint8 pixels, in Python: NumPy arrays, any number of channels, and what
TensorFlow does not decode as PIL does.

Nothing is guessed: an image with other channels than asked for, or with values whose white is not defined, is refused.
"""

import dataclasses
import functools
import importlib.util
import io
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from moco_jax.errors import UserError

NUMPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".npy")
_PNG = b"\x89PNG"
_ORIENTATION, _BITS = 0x0112, 0x0102  # of TIFF and Exif


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How bytes become pixels.

    Attributes:
        exif_rotation: whether images are turned as their Exif orientation says.
        channels: C; three are red, green and blue.
        white: what becomes 255 in pixels of more than eight bits; 0: 65535 in unsigned sixteen bits, and no other
            kind is read.
        background: gray level 0 to 255 that transparent pixels are blended with; -1: transparency is dropped, and the
            colours hidden there are seen.
    """

    exif_rotation: bool = False
    channels: int = 3
    white: float = 0.0
    background: int = -1

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Decoding":
        """As `settings` say, those of a run or of a table of features; what older ones do not name is as by default."""
        named = (field.name for field in dataclasses.fields(cls))
        return cls(**{name: settings[name] for name in named if name in settings})

    @property
    def plain(self) -> bool:
        """Whether TensorFlow and PIL suffice for every encoded image, as neither C nor white is out of the ordinary."""
        return self.channels == 3 and not self.white

    @property
    def blends(self) -> bool:
        """Whether transparent pixels are blended with `background`, as alpha is no channel of its own."""
        return self.background >= 0 and self.channels in (1, 3)


RGB = Decoding()


class Unfit(ValueError):
    """An image that is whole, but not what the settings ask for; the text says what it is."""


def _scaled(values: np.ndarray, white: float) -> np.ndarray:
    shares = np.clip(values.astype(np.float64) / white, 0, 1)
    return np.floor(np.nan_to_num(shares, nan=0) * 255 + 0.5).astype(np.uint8)


@functools.cache
def _of_sixteen_bits(white: float) -> np.ndarray:
    """What each value becomes, uint8 `[65536]`: looked up in a third of the time that working it out takes."""
    values = np.arange(1 << 16)
    return _scaled(values, white) if white else ((values + 128) // 257).astype(np.uint8)


def to_eight_bits(values: np.ndarray, white: float) -> np.ndarray:
    """Pixels of any number type -> uint8: `white` and above become 255, negative ones and NaN 0; uint8 stays as it is.

    Raises:
        Unfit: `white` is 0, which stands for 65535, and they are no unsigned sixteen bits.
    """
    kind, bits = values.dtype.kind, 8 * values.dtype.itemsize
    if values.dtype == np.uint8:
        return values
    if (kind, bits) == ("u", 16):
        return _of_sixteen_bits(white)[values]
    if kind not in "biuf":
        raise Unfit(f"pixels of {values.dtype}")
    if not white:
        raise Unfit(f"pixels of {values.dtype}: --config.white must say which value is white")
    return _scaled(values, white)


def blended(image: np.ndarray, alpha: np.ndarray, background: int) -> np.ndarray:
    """uint8 `image` `[H, W, C]`, opaque as uint8 `alpha` `[H, W]` says, on a gray background; rounded as PIL's paste."""
    share = alpha.astype(np.int32)[..., None]
    total = image * share + background * (255 - share) + 128
    return ((total + (total >> 8)) >> 8).astype(np.uint8)


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """`[H, W, C]` as `PIL.ImageOps.exif_transpose` turns it for this orientation."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image[:, ::-1] if orientation in (2, 3, 6, 7) else image


def _exactly(image: np.ndarray, channels: int) -> np.ndarray:
    if image.shape[-1] != channels:
        raise Unfit(f"channels={channels} is asked for, it has {image.shape[-1]}")
    return image


def _colours(image: np.ndarray, channels: int) -> np.ndarray:
    """uint8 gray or RGB `[H, W, 1 to 4]`, perhaps with transparency, in as many channels, as PIL converts them."""
    from PIL import Image

    bands = image.shape[-1]
    if channels == 1 and bands in (3, 4):
        return np.asarray(Image.fromarray(image[..., :3].copy()).convert("L"))[..., None]
    if channels == 1 and bands == 2:
        return image[..., :1]
    if channels == 3 and bands in (1, 2):
        return np.repeat(image[..., :1], 3, axis=-1)
    if channels == 3 and bands == 4:
        return image[..., :3]
    return _exactly(image, channels)


def _array(content: bytes) -> np.ndarray:
    found = np.load(io.BytesIO(content), allow_pickle=False)
    if found.ndim not in (2, 3):
        raise Unfit(f"an array of shape {found.shape}, neither [H, W, C] nor [H, W]")
    return found[..., None] if found.ndim == 2 else found


def lacks_tifffile() -> bool:
    """Whether the package that reads TIFF of many channels is missing."""
    return importlib.util.find_spec("tifffile") is None


def tifffile(decoding: Decoding):
    """The package tifffile; UserError where it is missing."""
    try:
        import tifffile
    except ImportError as error:
        raise UserError(
            f"TIFF files are read by the package tifffile where channels={decoding.channels} and "
            f"white={decoding.white:g}, and it is missing: pip install 'moco_jax[tiff]'"
        ) from error
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # damaged images are named elsewhere
    return tifffile


def wants_tifffile(content: bytes, decoding: Decoding) -> bool:
    """Whether `content` is a TIFF that PIL would not read, or not with all its bits, as `decoding` asks for it."""
    from PIL import Image, UnidentifiedImageError

    if not content.startswith(TIFF) or decoding.plain:
        return False
    if decoding.channels not in (1, 3):
        return True
    try:
        with Image.open(io.BytesIO(content)) as file:
            bits = file.tag_v2.get(_BITS, (1,))
    except UnidentifiedImageError:
        return True
    return len(bits) > 1 and max(bits) > 8


def _tiff(content: bytes, decoding: Decoding) -> np.ndarray:
    """The first image of a TIFF: samples of one page, interleaved or in planes, or pages of one sample each."""
    library = tifffile(decoding)
    with library.TiffFile(io.BytesIO(content)) as file:
        series, page = file.series[0], file.pages[0]
        kept = [n for n, a in enumerate(series.axes) if a in "YX" or series.shape[n] > 1]
        axes = "".join(series.axes[n] for n in kept)
        others = axes.replace("Y", "").replace("X", "")
        if len(others) > 1 or len(axes) != len(others) + 2:
            raise Unfit(f"a TIFF of axes {series.axes} and shape {series.shape}, not one image")
        try:
            found = series.asarray().reshape([series.shape[n] for n in kept])
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise UserError(f"{error}: pip install 'moco_jax[tiff]'") from error
            raise
        coloured = page.photometric == library.PHOTOMETRIC.RGB
        transparent = tuple(page.extrasamples) == (library.EXTRASAMPLE.UNASSALPHA,)
        orientation = page.tags.valueof(_ORIENTATION, 1)
    found = np.moveaxis(found, axes.index(others), -1) if others else found[..., None]
    fit = _colours if coloured else _exactly
    image = to_eight_bits(found, decoding.white)
    if decoding.blends and coloured and transparent and image.shape[-1] == 4:
        opaque = np.iinfo(found.dtype).max if found.dtype.kind in "iu" else 1
        alpha = to_eight_bits(found[..., 3], float(opaque))
        image = blended(image[..., :3], alpha, decoding.background)
    image = fit(image, decoding.channels)
    return turn(image, orientation) if decoding.exif_rotation else image


def _deep_png(content: bytes, decoding: Decoding) -> np.ndarray:
    """A PNG of sixteen bits, of which PIL would keep eight where it has several channels, and no transparent gray."""
    import tensorflow as tf
    from PIL import Image

    values = tf.io.decode_png(content, 4 if decoding.blends else 0, tf.uint16).numpy()
    image = to_eight_bits(values, decoding.white)
    if decoding.blends:
        image = blended(image[..., :3], to_eight_bits(values[..., 3], 0), decoding.background)
    image = _colours(image, decoding.channels)
    if not decoding.exif_rotation:
        return image
    with Image.open(io.BytesIO(content)) as file:
        return turn(image, file.getexif().get(_ORIENTATION, 1))


def _on_background(picture, background: int):
    """A PIL image -> the same, or where it has transparency an RGB image on a gray background."""
    from PIL import Image

    if not picture.has_transparency_data:
        return picture
    image = picture.convert("RGBA")
    canvas = Image.new("RGB", image.size, (background,) * 3)
    canvas.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return canvas


def of_picture(picture, decoding: Decoding) -> np.ndarray:
    """A PIL image -> uint8 `[H, W, C]`, its first frame; gray and RGB are converted into each other, others are kept."""
    from PIL import ImageOps

    channels = decoding.channels
    image = ImageOps.exif_transpose(picture) if decoding.exif_rotation else picture
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        gray = to_eight_bits(np.asarray(image), decoding.white)[..., None]
        return _colours(gray, channels)
    if channels in (1, 3):
        image = _on_background(image, decoding.background) if decoding.blends else image
        converted = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        return converted[..., None] if channels == 1 else converted
    found = np.asarray(image)
    return _exactly(found[..., None] if found.ndim == 2 else found, channels)


def _with_pil(content: bytes, decoding: Decoding) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as file:
        return of_picture(file, decoding)


def pixels(content: bytes, decoding: Decoding) -> np.ndarray:
    """Encoded bytes -> uint8 `[H, W, C]`.

    Sixteen-bit values v become v / 257, rounded, or as `decoding.white` says; with three channels and without white
    the high byte of a sixteen-bit colour TIFF is kept. Where C is 1 or 3 transparency is
    dropped, or blended with `decoding.background`.

    Raises:
        Unfit: it is whole, but has other channels or bits than `decoding` asks for.
        UserError: it needs a package that is missing.
        Exception: of any kind, where it is damaged.
    """
    if content.startswith(NUMPY):
        image = _exactly(to_eight_bits(_array(content), decoding.white), decoding.channels)
    elif wants_tifffile(content, decoding):
        image = _tiff(content, decoding)
    elif (
        content.startswith(_PNG)
        and content[24:25] == b"\x10"
        and (decoding.blends or not decoding.plain)
    ):
        image = _deep_png(content, decoding)
    else:
        image = _with_pil(content, decoding)
    if not image.size:
        raise ValueError(f"no pixels: {image.shape}")
    return np.ascontiguousarray(image)
