"""Images that live on the devices for a whole run.

They are decoded once, and divided over the devices; each host decodes those that its devices hold.
A step is then sent only which images it takes. The order is that of `pipeline.train_batches`, and
a damaged image has the same stand-in as there.
"""

import itertools
import math
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from moco_jax.base.console import size
from moco_jax.base.errors import UserError
from moco_jax.data import images, order
from moco_jax.data.damaged import DamagedImages
from moco_jax.data.sources import Source, refusals
from moco_jax.parallel import hosts
from moco_jax.parallel import mesh as mesh_lib

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
    raise refusals.none_is_sound(len(source), source.name(0))


def memory_limit() -> int:
    """Return the bytes that one device may use, 0 where it does not say."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)


def rows_of_all(number: int, devices: int) -> int:
    """Return how many rows `devices` hold together for `number` images, each as many."""
    return -(-number // devices) * devices


def bytes_a_device(shape: Shape, devices: int = 1) -> int:
    """Return the bytes that each of `devices` holds of images of this `shape`."""
    return rows_of_all(shape[0], devices) // devices * math.prod(shape[1:])


def fits(shape: Shape, limit: int, devices: int = 1) -> bool:
    """Whether images of this `shape`, divided over `devices`, leave enough to the step.

    Enough is half of the `limit` bytes of each device; it is true where the limit is not known.
    """
    return not limit or bytes_a_device(shape, devices) <= SHARE * limit


def require_room(shape: Shape, limit: int, devices: int = 1) -> None:
    """Refuse images of this `shape` that do not fit on `devices` of `limit` bytes, see `fits`."""
    if not fits(shape, limit, devices):
        number, height, width, _ = shape
        enough = math.ceil(math.prod(shape) / (SHARE * limit))
        raise UserError(
            f"augment_on='resident' divides {number:,} images of {width} x {height} pixels over"
            f" the devices ({devices}), and the share of each is too large:"
            f" {size(bytes_a_device(shape, devices))}, more than half of the {size(limit)} that it"
            f" has; about {enough} devices hold them, and augment_on='device' works"
        )


def stand_ins(good: np.ndarray) -> np.ndarray:
    """Return for each image its own index, or that of the next good one: int64 `[N]`.

    `good` is bool `[N]`, not all false.
    """
    sound = np.flatnonzero(good)
    return sound[np.searchsorted(sound, np.arange(len(good))) % len(sound)]


def count_here(mesh: Mesh, number: int) -> int:
    """Return how many of `number` images the devices of this host hold."""
    rows = mesh_lib.local_rows(mesh, rows_of_all(number, mesh.size))
    return int((rows < number).sum())


def decode_rows(
    source: Source,
    shape: Shape,
    rows: np.ndarray,
    workers: int,
    damaged: DamagedImages,
    progress: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Decode the images `rows` int64 `[n]` of `source`, ascending; the last may be of no image.

    The other arguments are those of `load`.

    Returns:
        The images uint8 `[n, H, W, C]`, black where there is none or it is damaged, and whether
        each is sound, bool `[n]`.
    """
    total, sides, done = int((rows < shape[0]).sum()), shape[1:3], 0
    pixels, good = np.zeros((len(rows), *shape[1:]), np.uint8), np.zeros(len(rows), bool)
    reads = ((0, rows[k : min(k + CHUNK, total)]) for k in range(0, total, CHUNK))

    def decode(epoch: int, index: int, record: Any) -> np.ndarray | None:
        return images.decode(source, record)

    for some in images.stream(source, reads, decode, workers):
        for row, image in enumerate(some, start=done):
            index = int(rows[row])
            if image is None:
                damaged.add(refusals.described(source, index))
                continue
            height, width = image.shape[:2]
            if (height, width) != sides:
                raise UserError(
                    "augment_on='resident' needs images of one size:"
                    f" {source.name(index)} has {width} x {height} pixels, those"
                    f" before it {sides[1]} x {sides[0]}; augment_on='device' works with any"
                )
            pixels[row], good[row] = image, True
        done += len(some)
        progress(done)
    return pixels, good


def load(
    mesh: Mesh,
    source: Source,
    shape: Shape,
    workers: int,
    damaged: DamagedImages,
    progress: Callable[[int], None],
) -> tuple[jax.Array, np.ndarray]:
    """Decode all images of `source` to the devices; every host must call this.

    Each device holds as many rows as every other: the last may hold rows of no image, black.

    Args:
        mesh: the devices, which share the images.
        source: the images.
        shape: as `shape_of` gives it.
        workers: threads; 0 for as many as cores.
        damaged: collects each image that this host cannot decode.
        progress: told again and again how many of this host's images are decoded.

    Returns:
        The images uint8 `[rows of all devices, H * W * C]`, and the index of each one's stand-in:
        int64 `[N]`, see `stand_ins`.

    Raises:
        UserError: an image has another size, or too many are damaged; on every host.
    """
    rows = mesh_lib.local_rows(mesh, rows_of_all(shape[0], mesh.size))
    with hosts.together():
        pixels, good = decode_rows(source, shape, rows, workers, damaged, progress)
    held = mesh_lib.to_devices(mesh, (pixels.reshape(len(rows), -1), good))
    sound = mesh_lib.to_hosts(mesh, held[1])[: shape[0]]
    missing = int((~sound).sum())
    if missing > damaged.limit:
        raise UserError(
            f"the hosts found {missing} damaged images together, more than"
            f" max_bad_images={damaged.limit}; mend or remove them, or raise the limit"
        )
    return held[0], stand_ins(sound)


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
