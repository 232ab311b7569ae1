"""Embeds images in the page: single ones, many as one sheet, and the recipe's view pairs."""

import base64
import dataclasses
import io

import numpy as np
from etils import epath
from PIL import Image

from moco_jax.base import files
from moco_jax.base.errors import UserError
from moco_jax.base.figures import shown
from moco_jax.base.text import printable
from moco_jax.data import images
from moco_jax.data.configured import open_images, recipe_of
from moco_jax.monitoring.view_pairs import first_pairs
from moco_jax.report.page.run import Run

SIDE = 96  # of a small picture, in pixels
LOSSLESS = 64  # pictures up to this side are encoded without loss
MOST = 2 * 10**7  # pixels of a picture in a file at most; those that a run draws have a million


def thumbnail(image: np.ndarray, side: int) -> Image.Image:
    """Shrink uint8 `[H, W, C]` to RGB whose longer side is at most `side` pixels."""
    picture = Image.fromarray(shown(image)).convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def uri(picture: Image.Image, lossless: bool) -> str:
    """Encode `picture` as a `data:` address (WebP)."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=lossless, quality=80, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture_file(path: epath.Path) -> Image.Image:
    """Read the picture at `path`, as RGB.

    Raises:
        UserError: it is damaged, or of more than `MOST` pixels.
    """
    try:
        with (
            io.BytesIO(path.read_bytes()) if files.is_remote(path) else files.open_regular(path)
        ) as file:
            picture = Image.open(file)
            if picture.width * picture.height > MOST:
                raise ValueError(
                    f"{picture.width} x {picture.height} pixels; {MOST:,} are shown at most"
                )
            return picture.convert("RGB")
    except Exception as error:  # what a decoder raises on damage is of many kinds
        raise UserError(f"{path} is damaged ({error})") from error


def small(image: np.ndarray, side: int = SIDE) -> str:
    """Return the address of a small picture of uint8 `[H, W, C]`."""
    return uri(thumbnail(image, side), max(image.shape[:2]) <= LOSSLESS)


def sprite(images: np.ndarray, side: int, columns: int) -> str:
    """Lay out uint8 `[N, S, S, C]` as one picture, and return its address.

    Image n is in row n // `columns`, each a square of `side` pixels.
    """
    rows = -(-len(images) // columns)
    whole = Image.new("RGB", (columns * side, rows * side))
    for number, image in enumerate(images):
        picture = Image.fromarray(shown(image)).convert("RGB").resize((side, side))
        whole.paste(picture, (number % columns * side, number // columns * side))
    return uri(whole, images.shape[1] <= LOSSLESS)


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and the two views drawn of it, as addresses, and the image's name for people."""

    name: str
    image: str
    query: str
    key: str


def view_pairs(run: Run, count: int = 6) -> list[Pair]:
    """Draw the first view pairs of `run`.

    Raises:
        UserError: its images are not there.
    """
    config = run.config
    source = open_images(config, config.split, str(run.place / "index"))
    batch = first_pairs(
        source,
        recipe_of(config),
        seed=config.seed,
        batch_size=min(config.batch_size, len(source)),
        workers=config.workers,
        augment_on=config.augment_on,
        scaled_decoding=config.scaled_decoding,
    )
    chosen = batch["index"][:count]
    pairs, names = [], source.names(chosen)
    for row, record in enumerate(source.read(chosen)):
        image = images.decode(source, record)
        assert image is not None  # a view was drawn of it
        views = (small(batch[name][row]) for name in ("query", "key"))
        pairs.append(Pair(printable(names[row]), small(image), *views))
    return pairs
