"""Reads ahead of whoever takes what was read: several reads at a time, results in order.

A bucket answers the slowest of some hundred requests a good deal later than the others. While one
read waits for that request, the next ones are on their way.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

AT_ONCE = 4  # reads under way, of a batch each
T = TypeVar("T")
R = TypeVar("R")


def read_ahead(read: Callable[[T], R], wanted: Iterable[T]) -> Iterator[R]:
    """Yield what `read` returns for each of `wanted`, which may have no end.

    Raises:
        Exception: what `read` raises, when its turn comes.
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        for each in wanted:
            waiting.append(pool.submit(read, each))
            if len(waiting) >= AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
