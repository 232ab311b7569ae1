"""Divides work on the rows of arrays over threads, so that NumPy keeps all cores busy.

NumPy lets go of Python's lock while it computes. A part is small enough to stay in a core's cache
from one operation to the next.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

ROWS = 256  # in a part


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "rows")


def in_parts(work: Callable[[slice], object], number: int, size: int = ROWS) -> None:
    """Call `work` with slices of at most `size` that together cover `number` rows, on all cores.

    `work` must not call this itself.

    Raises:
        Exception: what `work` raises.
    """
    parts = [slice(start, min(start + size, number)) for start in range(0, number, size)]
    if len(parts) < 2:
        for part in parts:
            work(part)
    else:
        for _ in _pool().map(work, parts):
            pass
