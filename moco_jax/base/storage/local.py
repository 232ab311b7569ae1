"""Files of this machine, read by the operating system."""

import contextlib
import errno
import os
import stat
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, TypeVar

READERS = 16  # threads that wait for bytes
# Files of a `LocalRanges` that stay open; systems permit 1,024 a process, some fewer.
KEPT_OPEN = 256
T = TypeVar("T")
R = TypeVar("R")
_POOL = ThreadPoolExecutor(READERS)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file of this machine to read its bytes; anything else is refused at once.

    A named pipe would wait for a writer, and a device can be read for ever: neither is opened.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise OSError(code, "is no regular file (a folder, pipe, socket or device)", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise


def each(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Apply `function` to `items`, many at a time, and return the results in order."""
    return list(_POOL.map(function, items))


def _close_all(opened: list[BinaryIO]) -> None:
    for file in opened:
        file.close()


class LocalRanges:
    """Reads parts of many files of this machine, from any thread."""

    def __init__(self, paths: Sequence[str]):
        """Open as many of the first files of `paths` as may stay open."""
        self._paths = paths
        self._open = [open_regular(path) for path in paths[:KEPT_OPEN]]
        weakref.finalize(self, _close_all, self._open)

    def read(self, file: int, offset: int, length: int) -> bytes:
        """Read `length` bytes of the file number `file` from `offset` on; fewer at its end."""
        if file < len(self._open):
            return os.pread(self._open[file].fileno(), length, offset)
        with open_regular(self._paths[file]) as opened:
            return os.pread(opened.fileno(), length, offset)
