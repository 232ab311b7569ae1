"""Training views of an image and its label: scaled, cropped, padded and flipped together.

Images are resized bilinearly, as PIL does it; labels take the nearest pixel, so that no class
arises between two.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from moco_jax.evaluation.segmentation.data import IGNORED

SCALES = (0.5, 2.0)  # MoCo v1, appendix A.5
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class InputSettings:
    """Settings of how images are read, drawn and normalised.

    Attributes:
        mean, std: of the pretraining's images, per channel.
        workers: threads that read; 0 for as many as cores.
        seed: of order and views, which do not depend on `workers`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    workers: int = 0
    seed: int = 0


def _resized(image: np.ndarray, box: tuple[float, ...], size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    def one(plane: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR, box=box))

    if image.shape[-1] == 3:
        return one(image)
    return np.stack([one(np.ascontiguousarray(x)) for x in np.moveaxis(image, -1, 0)], axis=-1)


def nearest(start: int, count: int, new: int, old: int) -> np.ndarray:
    """Return which old pixel each of `count` resized pixels from `start` on is, int64.

    The side is resized from `old` to `new` pixels.
    """
    return (2 * np.arange(start, start + count) + 1) * old // (2 * new)


def training_view(
    image: np.ndarray,
    label: np.ndarray,
    crop: int,
    fill: Sequence[int],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one view: scaled by 0.5 to 2, a square cut out, perhaps mirrored.

    MoCo v1, appendix A.5, has these views. Where the scaled image is smaller than the square,
    `fill` follows below and on the right, and does not count.

    Args:
        image: uint8 `[H, W, C]`.
        label: uint8 `[H, W]`.
        crop: side of the square.
        fill: a colour, C values.
        rng: the generator to draw from.

    Returns:
        Image uint8 `[crop, crop, C]` and label uint8 `[crop, crop]`.
    """
    old = label.shape
    ratio = rng.uniform(*SCALES)
    new = [max(round(ratio * side), 1) for side in old]
    start = [int(rng.integers(max(side - crop, 0) + 1)) for side in new]
    count = [min(side, crop) for side in new]
    top, left = (s * o / n for s, o, n in zip(start, old, new, strict=True))
    below, right = ((s + c) * o / n for s, c, o, n in zip(start, count, old, new, strict=True))
    # Only what the square shows of a large image is resized.
    part = _resized(
        image, (left, top, min(right, old[1]), min(below, old[0])), (count[1], count[0])
    )
    rows, columns = (nearest(*numbers) for numbers in zip(start, count, new, old, strict=True))
    out = np.full((crop, crop, image.shape[-1]), fill, np.uint8)
    truth = np.full((crop, crop), IGNORED, np.uint8)
    out[: count[0], : count[1]] = part
    truth[: count[0], : count[1]] = label[rows[:, None], columns]
    return (out[:, ::-1], truth[:, ::-1]) if rng.random() < 0.5 else (out, truth)


def ahead(make: Callable[[T], Any], items: Iterable[T], threads: int, depth: int) -> Iterator[Any]:
    """Call `make` on `items` in `threads` threads, up to `depth` ahead; yield results in order."""
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()
