"""Files on this machine, through the operating system, and in buckets (gs://), by TensorFlow.

Whatever goes wrong is an OSError here, for both.
"""

import errno
import io
import logging
import os
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

import numpy as np

from moco_jax.base import packages
from moco_jax.base.files import is_remote, open_regular
from moco_jax.base.text import is_utf8, printable
from moco_jax.data.sources.names import HIDDEN, NO_FILE, SYSTEM, TWICE, UNLISTED, is_systems

READERS = 16  # threads that wait for bytes
# Files of a `Ranges` that stay open; systems permit 1,024 a process, some fewer.
KEPT_OPEN = 256
REMOTE_BLOCK = 1 << 22  # bytes of one request to a remote file that is read front to back
T = TypeVar("T")
R = TypeVar("R")
_POOL = ThreadPoolExecutor(READERS)


def _tf() -> Any:
    """Load TensorFlow, which only paths with a scheme need."""
    return packages.load_tensorflow("a place in a bucket", "a place on this machine")


@contextmanager
def _os_errors(path: str) -> Iterator[None]:
    if not is_utf8(path):
        raise OSError(errno.EILSEQ, "is no name in UTF-8, as a bucket's are", path)
    try:
        yield
    except _tf().errors.OpError as error:
        number = errno.ENOENT if isinstance(error, _tf().errors.NotFoundError) else errno.EIO
        raise OSError(number, error.message or type(error).__name__, path) from error


def is_folder(path: str) -> bool:
    """Whether `path` is a folder."""
    if not is_remote(path):
        return os.path.isdir(path)
    return is_utf8(path) and _tf().io.gfile.isdir(path)


def is_file(path: str) -> bool:
    """Whether `path` is there and no folder."""
    if not is_remote(path):
        return os.path.isfile(path)
    return is_utf8(path) and _tf().io.gfile.exists(path) and not _tf().io.gfile.isdir(path)


def exists(path: str) -> bool:
    """Whether anything is at `path`, even if it is no file that can be read."""
    if not is_remote(path):
        return os.path.lexists(path)
    return is_utf8(path) and _tf().io.gfile.exists(path)


def matching(pattern: str) -> list[str]:
    """List what in a bucket the * and ? of `pattern` stand for, sorted."""
    return sorted(_tf().io.gfile.glob(pattern)) if is_utf8(pattern) else []


def size(path: str) -> int:
    """Return the number of bytes in the file `path`."""
    if not is_remote(path):
        return os.stat(path).st_size
    with _os_errors(path):
        return _tf().io.gfile.stat(path).length


def read(path: str) -> bytes:
    """Read the whole file `path`."""
    with open_binary(path) as file:
        return file.read()


class _RemoteFile(io.RawIOBase):
    """Wraps a remote file as Python's own file objects are."""

    def __init__(self, path: str):
        # The file first: what Python closes, also after a failure here, must have it.
        self._file = _tf().io.gfile.GFile(path, "rb")
        self._path, self._place, self._size = path, 0, size(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer) -> int:
        with _os_errors(self._path):
            self._file.seek(self._place)
            content = self._file.read(min(len(buffer), max(self._size - self._place, 0)))
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_binary(path: str) -> BinaryIO:
    """Open the file `path` to read and to seek in.

    Raises:
        OSError: it cannot be opened, or is a pipe or device, which may never end.
    """
    if is_remote(path):
        return io.BufferedReader(_RemoteFile(path), REMOTE_BLOCK)
    if "\0" in path:
        raise OSError(errno.EINVAL, "is no path, as it holds a NUL", path)
    return open_regular(path)


def listing(folder: str) -> list[str]:
    """List the names in `folder`, sorted."""
    if not is_remote(folder):
        return sorted(os.listdir(folder))
    with _os_errors(folder):
        return sorted(name.rstrip("/") for name in _tf().io.gfile.listdir(folder))


def _is_folder(entry: os.DirEntry) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry) -> bool:
    if not entry.is_symlink():
        return entry.is_file()
    # A link to nothing counts as a file, which will be reported as damaged.
    return os.path.isfile(entry.path) or not os.path.exists(entry.path)


def walk(root: str, left_out: Counter[str] | None = None) -> Iterator[str]:
    """Find all files below `root`; yield their paths relative to it.

    Hidden files, and those in hidden or systems' own folders, are left out. Symbolic links are
    followed; a folder that is reached in several ways is visited once, by the first in order of
    names. A folder that cannot be listed is named in a warning and left out.

    `left_out`: counts what is passed over, under the words of `names.py`.

    Raises:
        OSError: `root` itself cannot be listed.
    """
    count: Counter[str] = Counter() if left_out is None else left_out
    if is_remote(root):
        yield from _walk_remote(root, count)
        return
    visited, waiting = set(), [""]
    while waiting:
        within = waiting.pop()
        folder = os.path.join(root, within)
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                count[TWICE] += 1
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listed:
                every = list(listed)
            entries = [entry for entry in every if not entry.name.startswith(".")]
            folders = [entry.name for entry in entries if _is_folder(entry)]
        except OSError as error:
            if not within:
                raise
            count[UNLISTED] += 1
            logging.warning(
                "left out, as it cannot be listed: %s (%s)", printable(folder), error.strerror
            )
            continue
        files = [entry.name for entry in entries if _is_file(entry)]
        wanted = [name for name in folders if not is_systems(name)]
        count[HIDDEN] += len(every) - len(entries)
        count[SYSTEM] += len(folders) - len(wanted)
        count[NO_FILE] += len(entries) - len(folders) - len(files)
        waiting += [os.path.join(within, name) for name in sorted(wanted, reverse=True)]
        yield from (os.path.join(within, name) for name in files)


def _walk_remote(root: str, count: Counter[str]) -> Iterator[str]:
    with _os_errors(root):
        for folder, _, names in _tf().io.gfile.walk(root):
            within = folder.removeprefix(root).strip("/")
            parts = within.split("/") if within else []
            if any(part.startswith(".") for part in parts):
                count[HIDDEN] += len(names)
            elif any(map(is_systems, parts)):
                count[SYSTEM] += len(names)
            else:
                shown = [name for name in names if not name.startswith(".")]
                count[HIDDEN] += len(names) - len(shown)
                yield from (f"{within}/{name}" if within else name for name in shown)


def _close_all(opened: list[BinaryIO]) -> None:
    for file in opened:
        file.close()


class Ranges:
    """Reads parts of many files, from any thread."""

    def __init__(self, paths: Sequence[str]):
        """Open as many of the first files of `paths` as may stay open."""
        self.paths = list(paths)
        kept = [] if any(map(is_remote, paths)) else self.paths[:KEPT_OPEN]
        self._open = [open_regular(path) for path in kept]
        weakref.finalize(self, _close_all, self._open)

    def read(self, file: int, offset: int, length: int) -> bytes:
        """Read `length` bytes of the file number `file` from `offset` on; fewer at its end."""
        if file < len(self._open):
            return os.pread(self._open[file].fileno(), length, offset)
        if is_remote(self.paths[file]):
            with (
                _os_errors(self.paths[file]),
                _tf().io.gfile.GFile(self.paths[file], "rb") as remote,
            ):
                remote.seek(offset)
                return remote.read(length)
        with open_regular(self.paths[file]) as local:
            return os.pread(local.fileno(), length, offset)


def each(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Apply `function` to `items`, many at a time, and return the results in order."""
    return list(_POOL.map(function, items))


def read_many(read_one: Callable[[int], bytes], indices: np.ndarray) -> np.ndarray:
    """Call `read_one` for each of `indices` int `[n]`, many at a time: object `[n]` of bytes.

    Empty where there was an OSError: an image that cannot be read counts as damaged.
    """

    def attempt(index: int) -> bytes:
        try:
            return read_one(index)
        except OSError:
            return b""

    out = np.empty(len(indices), object)
    out[:] = each(attempt, indices.tolist())
    return out
