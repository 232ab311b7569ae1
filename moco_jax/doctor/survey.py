"""Looks at images of a dataset one by one: size, hashes, format, and whether each can be decoded.

One pass reads and decodes with the code that training uses and keeps under a hundred bytes an
image, so that a whole dataset can be looked at.
"""

import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from moco_jax.data import images
from moco_jax.data.sources import Source, pil_decode
from moco_jax.data.sources.conversion import RGB, Decoding
from moco_jax.data.sources.refusals import refusal, why
from moco_jax.parallel import hosts

CHUNK = 64  # images that are read at once
PIXELS = 1 << 14  # at most of an image that its mean is taken over, a grid of them

# By the first bytes: what a content is called and which endings a file of it has.
FORMATS = (
    (b"\xff\xd8\xff", "JPEG", (".jpg", ".jpeg", ".jfif")),
    (b"\x89PNG\r\n\x1a\n", "PNG", (".png",)),
    (b"GIF8", "GIF", (".gif",)),
    (b"BM", "BMP", (".bmp",)),
    (b"RIFF", "WebP", (".webp",)),
    (b"II*\x00", "TIFF", (".tif", ".tiff")),
    (b"MM\x00*", "TIFF", (".tif", ".tiff")),
    (b"II+\x00", "BigTIFF", (".tif", ".tiff")),
    (b"MM\x00+", "BigTIFF", (".tif", ".tiff")),
    (b"\0\0\0\x0cjP  ", "JPEG 2000", (".jp2",)),
    (b"P1", "PBM", (".pbm",)),
    (b"P4", "PBM", (".pbm",)),
    (b"P2", "PGM", (".pgm",)),
    (b"P5", "PGM", (".pgm",)),
    (b"P3", "PPM", (".ppm",)),
    (b"P6", "PPM", (".ppm",)),
    (b"\x93NUMPY", "NumPy array", (".npy",)),
)
UNKNOWN = len(FORMATS)


class Survey(NamedTuple):
    """Properties of `n` images of a dataset.

    Attributes:
        total: images in the dataset.
        indices: int64 `[n]`, which were looked at.
        good: bool `[n]`, whether it could be decoded.
        sides: int32 `[n, 2]`, height and width in pixels; 1, 1 where it could not.
        bytes: int64 `[n]`, length of the record.
        content, pixels: uint64 `[n]`, hashes of the record and of the decoded image.
        format: uint8 `[n]`, place in `FORMATS`, or `UNKNOWN`.
        transparent: bool `[n]`, whether pixels of it are transparent, so that the colours hidden
            there are seen.
        refused: row -> why an image that is whole is refused, as one of other channels, or a file
            cannot be opened.
        mean, std: float64 `[C]` of each channel scaled to 0..1, every image counted alike; NaN
            without images.
    """

    total: int
    indices: np.ndarray
    good: np.ndarray
    sides: np.ndarray
    bytes: np.ndarray
    content: np.ndarray
    pixels: np.ndarray
    format: np.ndarray
    transparent: np.ndarray
    refused: dict[int, str]
    mean: np.ndarray
    std: np.ndarray


def spread(size: int, count: int, seed: int) -> np.ndarray:
    """Draw `count` different places int64 `[count]` in range(`size`), ascending.

    One is drawn in each of `count` equal parts.
    """
    count = min(count, size)
    edges = np.arange(count + 1) * size // count
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


def format_of(content: bytes) -> int:
    """Return the place in `FORMATS` of what `content` begins as, or `UNKNOWN`."""
    for number, (magic, _, _) in enumerate(FORMATS):
        if content.startswith(magic):
            return number
    return UNKNOWN


def is_transparent(content: bytes, decoding: Decoding = RGB) -> bool:
    """Return whether a PNG, GIF or WebP has pixels that are not opaque.

    Decoding to gray or RGB shows the colours hidden there.
    """
    return content.startswith((b"\x89PNG", b"GIF8", b"RIFF")) and pil_decode.is_transparent(
        content, decoding
    )


def _hash(*parts: bytes) -> np.uint64:
    return np.frombuffer(hashlib.blake2b(b"".join(parts), digest_size=8).digest(), np.uint64)[0]


def _moments(image: np.ndarray) -> np.ndarray:
    """Return mean and mean square of each channel, scaled to 0..1: float64 `[2, C]`."""
    every = max(math.ceil(math.sqrt(image.shape[0] * image.shape[1] / PIXELS)), 1)
    some = (
        image[::every, ::every].astype(np.float64).transpose(2, 0, 1).reshape(image.shape[-1], -1)
    )
    return np.stack([some.mean(1) / 255, np.square(some).mean(1) / 255**2])


def _facts(record, image: np.ndarray, decoding: Decoding) -> tuple[np.ndarray, ...]:
    content = record if isinstance(record, bytes) else record.tobytes()
    clear = is_transparent(content, decoding)
    return (
        np.asarray([len(content), *image.shape[:2], format_of(content), clear], np.int64),
        np.asarray([_hash(content), _hash(repr(image.shape).encode(), image.tobytes())], np.uint64),
        _moments(image),
    )


class _Look(NamedTuple):
    """What one record of a source is, in the order of `Survey`'s fields."""

    good: bool
    numbers: np.ndarray
    hashes: np.ndarray
    moments: np.ndarray
    reason: str


def _look(source: Source, epoch: int, index: int, record: Any) -> _Look:
    """Decode and examine one record of `source`."""
    image = images.decode(source, record)
    good = image is not None
    if image is None:
        image = np.zeros((1, 1, source.decoding.channels), np.uint8)
    numbers, hashes, moments = _facts(record, image, source.decoding)
    reason = "" if good else refusal(source, record)
    return _Look(good, numbers, hashes, moments, reason)


def survey(
    source: Source, indices: np.ndarray, workers: int, progress: Callable[[int], None]
) -> Survey:
    """Examine the images `indices` int64 `[n]` of `source` with `workers` threads (0: all cores).

    `progress` is told again and again how many were examined.
    """
    n, done = len(indices), 0
    good, numbers = np.zeros(n, bool), np.zeros((n, 5), np.int64)
    hashes = np.zeros((n, 2), np.uint64)
    sums = np.zeros((2, source.decoding.channels))
    refused: dict[int, str] = {}

    reads = ((0, indices[k : k + CHUNK]) for k in range(0, n, CHUNK))
    for some in images.stream(source, reads, functools.partial(_look, source), workers):
        for row, found in enumerate(some, start=done):
            good[row], numbers[row], hashes[row] = found.good, found.numbers, found.hashes
            sums += found.moments * found.good
            if found.reason:
                refused[row] = found.reason
        done += len(some)
        progress(done)
    for row in np.flatnonzero(~good & (numbers[:, 0] == 0)).tolist():
        reason = why(source, int(indices[row]))
        if reason:
            refused[row] = reason
    mean, square = sums / (good.sum() or np.nan)
    return Survey(
        total=len(source),
        indices=indices,
        good=good,
        sides=numbers[:, 1:3].astype(np.int32),
        bytes=numbers[:, 0],
        content=hashes[:, 0],
        pixels=hashes[:, 1],
        format=numbers[:, 3].astype(np.uint8),
        transparent=numbers[:, 4].astype(bool),
        refused=refused,
        mean=mean,
        std=np.sqrt(np.maximum(square - mean**2, 0)),
    )


def survey_together(
    source: Source, indices: np.ndarray, workers: int, progress: Callable[[int], None]
) -> Survey:
    """Examine images as `survey` does, each process its share of `indices`; all get the whole."""
    own = np.array_split(indices, hosts.count())
    with hosts.together():
        part = survey(source, own[hosts.number()], workers, progress)
    return part if hosts.is_alone() else _joined(hosts.gather_arrays(_arrays(part)))


_COUNTED = ("indices", "good", "sides", "bytes", "content", "pixels", "format", "transparent")


def _arrays(part: Survey) -> dict[str, np.ndarray]:
    arrays = {name: getattr(part, name) for name in (*_COUNTED, "mean", "std")}
    reasons = np.asarray(list(part.refused.values()), np.str_)
    rows = np.asarray(list(part.refused), np.int64)
    return arrays | {"total": np.asarray(part.total), "rows": rows, "reasons": reasons}


def _joined(parts: list[dict[str, np.ndarray]]) -> Survey:
    """Join surveys that follow each other, as arrays of `_arrays`."""
    whole = {name: np.concatenate([part[name] for part in parts]) for name in _COUNTED}
    firsts = np.cumsum([0, *(len(part["good"]) for part in parts)])
    refused = {
        int(first + row): str(reason)
        for first, part in zip(firsts[:-1], parts, strict=True)
        for row, reason in zip(part["rows"], part["reasons"], strict=True)
    }
    sound = [part for part in parts if part["good"].any()] or parts[:1]
    weights = [max(part["good"].sum(), 1) for part in sound]
    mean = np.average([part["mean"] for part in sound], axis=0, weights=weights)
    squares = [part["std"] ** 2 + part["mean"] ** 2 for part in sound]
    square = np.average(squares, axis=0, weights=weights)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    total = int(parts[0]["total"])
    return Survey(total=total, refused=refused, mean=mean, std=std, **whole)
