"""Images of a source as pixels: read and decoded by threads, ahead of whoever takes them.

PIL decodes and releases Python's interpreter lock meanwhile, so that threads run in parallel.
`pipeline.py` has the same pixels from tf.data.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from moco_jax.data.sources import Source, pixels
from moco_jax.data.sources.records import ENCODED

AHEAD = 2  # reads that are under way while the images of one are used, at least
T = TypeVar("T")


def decode(source: Source, record: Any) -> np.ndarray | None:
    """Decode one record of `source` to uint8 `[H, W, C]`; None where it is damaged."""
    if source.record_spec.dtype != ENCODED.dtype:
        return record
    try:
        return pixels.pixels(source.encoded(record), source.decoding)
    except Exception:  # libraries raise all kinds on damaged files
        return None


def stream(
    source: Source,
    reads: Iterable[tuple[int, np.ndarray]],
    make: Callable[[int, int, Any], T],
    workers: int,
) -> Generator[list[T], None, None]:
    """Yield for each of `reads` what `make` makes of its images, in order.

    Args:
        source: the images.
        reads: for each read an epoch, and the images int `[n]`.
        make: called in a thread with epoch, index and record of one image.
        workers: threads; 0 for as many as cores.
    """
    threads = workers or os.cpu_count() or 1
    pool, reader = ThreadPoolExecutor(threads), ThreadPoolExecutor(AHEAD)

    def start(epoch: int, indices: np.ndarray) -> list[Future]:
        some = zip(indices.tolist(), source.read(indices), strict=True)
        return [pool.submit(make, epoch, index, record) for index, record in some]

    def finished(read: Future) -> list[T]:
        return [image.result() for image in read.result()]

    waiting: deque[tuple[int, Future]] = deque()
    try:
        for epoch, indices in reads:
            waiting.append((len(indices), reader.submit(start, epoch, indices)))
            later = sum(count for count, _ in waiting) - waiting[0][0]
            # So many that no thread waits, also where each read is of one image.
            if len(waiting) > AHEAD and later >= 2 * threads:
                yield finished(waiting.popleft()[1])
        while waiting:
            yield finished(waiting.popleft()[1])
    finally:
        # The reader first, as it gives work to the pool.
        reader.shutdown(cancel_futures=True)
        pool.shutdown(cancel_futures=True)
