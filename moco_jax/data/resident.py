"""Images that live on the devices for a whole run.

They are decoded once; a step is then sent only which of them it takes. The order is that of
`pipeline.train_batches`, and a damaged image has the same stand-in as there.
"""

import itertools
import math
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np

from moco_jax.base.console import size
from moco_jax.base.errors import UserError
from moco_jax.data import images, order
from moco_jax.data.damaged import DamagedImages
from moco_jax.data.sources import Source
from moco_jax.data.sources.refusals import described

SHARE = 0.5  # of a device's memory that images may take; the step needs the rest
CHUNK = 64  # images that are read at once

Shape = tuple[int, int, int, int]


def shape_of(source: Source) -> Shape:
    """Return the shape `[N, H, W, C]` of all images of `source` together.

    Each is assumed to be as large as the first that is sound.

    Raises:
        UserError: none can be decoded.
    """
    for index in range(len(source)):
        record = source.read(np.asarray([index]))[0]
        image = images.decode(source, record)
        if image is not None:
            height, width, channels = image.shape
            return len(source), height, width, channels
    raise UserError(f"none of the {len(source)} images can be decoded")


def memory_limit() -> int:
    """Return the bytes that one device may use, 0 where it does not say."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)


def fits(shape: Shape, limit: int) -> bool:
    """Whether images of this `shape` leave enough of a device's `limit` bytes to the step.

    It is true where the limit is not known.
    """
    return not limit or math.prod(shape) <= SHARE * limit


def require_room(shape: Shape, limit: int) -> None:
    """Refuse images of this `shape` that do not fit on a device of `limit` bytes, see `fits`."""
    if not fits(shape, limit):
        number, height, width, _ = shape
        raise UserError(
            f"augment_on='resident' puts all {number:,} images of {width} x {height} pixels on"
            f" every device: {size(math.prod(shape))}, more than half of the {size(limit)} that it"
            " has; augment_on='device' works"
        )


def stand_ins(good: np.ndarray) -> np.ndarray:
    """Return for each image its own index, or that of the next good one: int64 `[N]`.

    `good` is bool `[N]`, not all false.
    """
    sound = np.flatnonzero(good)
    return sound[np.searchsorted(sound, np.arange(len(good))) % len(sound)]


def load(
    source: Source,
    shape: Shape,
    workers: int,
    damaged: DamagedImages,
    progress: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Decode all images of `source`.

    Args:
        source: the images.
        shape: as `shape_of` gives it.
        workers: threads; 0 for as many as cores.
        damaged: collects each image that cannot be decoded.
        progress: told again and again how many are decoded.

    Returns:
        The images uint8 `[N, H, W, C]`, and the index of each one's stand-in: int64 `[N]`, see
        `stand_ins`.

    Raises:
        UserError: an image has another size, or too many are damaged.
    """
    total, sides = shape[0], shape[1:3]
    pixels, good, done = np.zeros(shape, np.uint8), np.zeros(total, bool), 0
    reads = ((0, np.arange(k, min(k + CHUNK, total))) for k in range(0, total, CHUNK))

    def decode(epoch: int, index: int, record: Any) -> np.ndarray | None:
        return images.decode(source, record)

    for some in images.stream(source, reads, decode, workers):
        for index, image in enumerate(some, start=done):
            if image is None:
                damaged.add(described(source, index))
                continue
            height, width = image.shape[:2]
            if (height, width) != sides:
                raise UserError(
                    "augment_on='resident' needs images of one size:"
                    f" {source.name(index)} has {width} x {height} pixels, those"
                    f" before it {sides[1]} x {sides[0]}; augment_on='device' works with any"
                )
            pixels[index], good[index] = image, True
        done += len(some)
        progress(done)
    return pixels, stand_ins(good)


def train_batches(
    stand_in: np.ndarray, *, seed: int, batch_size: int, rows: np.ndarray, examples_seen: int
) -> Generator[dict[str, Any], None, None]:
    """Yield batches without end in the order of `pipeline.train_batches`, by the same arguments.

    `stand_in`: int64 `[N]`, the index of each image's stand-in.

    Yields:
        `index` and `epoch`, int32 `[n]` each; `query` and `key`, None.
    """
    total = len(stand_in)
    for start in itertools.count(examples_seen, batch_size):
        epoch, positions = order.batch_positions(start, batch_size, total)
        indices = stand_in[order.permute(positions[rows], total, seed, epoch)]
        yield {
            "query": None,
            "key": None,
            "index": indices.astype(np.int32),
            "epoch": np.full(len(rows), epoch, np.int32),
        }
