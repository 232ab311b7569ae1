"""Settings of decoding, and conversion of any number type to eight bits.

Nothing is guessed: an image with other channels than asked for, or with values whose white is
not defined, is refused.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

MAX_PIXELS = 178_956_970  # Pillow's own limit
AT_ONCE = 1 << 20  # values converted at once, so that a large image needs no large copies


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How bytes become pixels.

    Attributes:
        exif_rotation: whether images are turned as their Exif orientation says; TIFF always is,
            as PIL does it.
        channels: C; three are red, green and blue.
        white: what becomes 255 in pixels of more than eight bits; 0: 65535 in unsigned sixteen
            bits, and no other kind is read.
        background: gray level 0 to 255 that transparent pixels are blended with; -1:
            transparency is dropped, and the colours hidden there are seen.
        max_pixels: height times width of the largest image that is decoded; a larger one counts
            as damaged.
    """

    exif_rotation: bool = False
    channels: int = 3
    white: float = 0.0
    background: int = -1
    max_pixels: int = MAX_PIXELS

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Decoding":
        """Take the decoding settings of a run or of a table of features.

        A setting that an older one does not name has its default.
        """
        named = (field.name for field in dataclasses.fields(cls))
        return cls(**{name: settings[name] for name in named if name in settings})

    @property
    def plain(self) -> bool:
        """Whether TensorFlow and PIL suffice: neither C nor white is out of the ordinary."""
        return self.channels == 3 and not self.white

    @property
    def blends(self) -> bool:
        """Whether transparent pixels are blended with `background`: alpha is no channel."""
        return self.background >= 0 and self.channels in (1, 3)

    def require_room(self, height: int, width: int) -> None:
        """Refuse an image of more than `max_pixels`, before memory is taken for it.

        Raises:
            Unfit: it has more.
        """
        if height * width > self.max_pixels:
            raise Unfit(
                f"{width} x {height} pixels are {height * width:,}, above "
                f"max_pixels={self.max_pixels}"
            )


RGB = Decoding()


class Unfit(ValueError):
    """Raised for an image that is whole but not what the settings ask for; the text says why."""


def by_rows(values: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply `convert` to `values` `[H, ...]`, some rows at a time: uint8 `[H, ...]`."""
    rows = max(1, AT_ONCE * len(values) // max(values.size, 1))
    if rows >= len(values):
        return convert(values)
    parts = range(0, len(values), rows)
    first = convert(values[:rows])
    made = np.empty((len(values), *first.shape[1:]), np.uint8)
    for start in parts:
        made[start : start + rows] = convert(values[start : start + rows]) if start else first
    return made


def _scaled(values: np.ndarray, white: float) -> np.ndarray:
    shares = np.clip(values.astype(np.float64) / white, 0, 1)
    return np.floor(np.nan_to_num(shares, nan=0) * 255 + 0.5).astype(np.uint8)


@functools.cache
def _of_sixteen_bits(white: float) -> np.ndarray:
    """Build the table of what each sixteen-bit value becomes, uint8 `[65536]`.

    A look-up takes a third of the time.
    """
    values = np.arange(1 << 16)
    return _scaled(values, white) if white else ((values + 128) // 257).astype(np.uint8)


def to_eight_bits(values: np.ndarray, white: float) -> np.ndarray:
    """Convert pixels of any number type to uint8.

    `white` and above become 255, negative ones and NaN 0; uint8 stays as it is.

    Raises:
        Unfit: `white` is 0, which stands for 65535, and the pixels are no unsigned sixteen bits.
    """
    kind, bits = values.dtype.kind, 8 * values.dtype.itemsize
    if values.dtype == np.uint8:
        return values
    if (kind, bits) == ("u", 16):
        table = _of_sixteen_bits(white)
        return by_rows(values, lambda some: table[some])
    if kind not in "biuf":
        raise Unfit(f"pixels of {values.dtype}")
    if not white:
        raise Unfit(f"pixels of {values.dtype}: --config.white must say which value is white")
    return by_rows(values, lambda some: _scaled(some, white))


def blended(image: np.ndarray, alpha: np.ndarray, background: int) -> np.ndarray:
    """Blend a uint8 `image` `[H, W, C]` with a gray background, rounded as PIL's paste.

    `alpha`: uint8 `[H, W]`, the opacity of each pixel.
    """
    share = alpha.astype(np.int32)[..., None]
    total = image * share + background * (255 - share) + 128
    return ((total + (total >> 8)) >> 8).astype(np.uint8)


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn `image` `[H, W, C]` as `PIL.ImageOps.exif_transpose` does for this orientation."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image[:, ::-1] if orientation in (2, 3, 6, 7) else image


def exactly(image: np.ndarray, channels: int) -> np.ndarray:
    """Return `image` `[H, W, C]` if C is `channels`; else raise Unfit."""
    if image.shape[-1] != channels:
        raise Unfit(f"channels={channels} is asked for, it has {image.shape[-1]}")
    return image


def colours(image: np.ndarray, channels: int) -> np.ndarray:
    """Convert uint8 gray or RGB, perhaps with alpha, `[H, W, 1 to 4]` to `channels` as PIL does."""
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
    return exactly(image, channels)
