"""The one way to files: of this machine, in gs://, and in any other store that fsspec knows.

A path without a scheme is read by the operating system (`local.py`). All else goes through one
thread that keeps hundreds of requests in flight (`bucket.py`), makes each again where that helps
(`retries.py`), and turns what libraries raise into errors of the operating system (`failures.py`).
Reading from gs:// is first tried the quick way (`quick_reads.py`).
What reaches buckets is loaded when the first path with a scheme is met.
"""

import contextlib
import errno
import io
import os
import re
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from moco_jax.base.storage import bucket, failures, local, ranges, remote_file
from moco_jax.base.storage.bucket import Info
from moco_jax.base.storage.failures import OF_STORES, Refused, Unreachable, told, translate
from moco_jax.base.storage.gcs import lend
from moco_jax.base.storage.local import each, open_regular
from moco_jax.base.storage.ranges import Ranges
from moco_jax.base.text import is_utf8

__all__ = [
    "OF_STORES",
    "Info",
    "Ranges",
    "Refused",
    "Unreachable",
    "each",
    "lend",
    "open_regular",
    "told",
    "translate",
]

AHEAD = 3  # blocks that are fetched ahead of whoever reads a file in a bucket front to back


def is_remote(path: object) -> bool:
    """Return whether `path` has a scheme, as gs://bucket/folder has."""
    return "://" in str(path)


def is_folder(path: str) -> bool:
    """Whether `path` is a folder."""
    return bucket.kind(path) == "folder" if is_remote(path) else os.path.isdir(path)


def is_file(path: str) -> bool:
    """Whether `path` is there and no folder."""
    return isinstance(bucket.kind(path), Info) if is_remote(path) else os.path.isfile(path)


def exists(path: str) -> bool:
    """Whether anything is at `path`, even if it is no file that can be read."""
    return bool(bucket.kind(path)) if is_remote(path) else os.path.lexists(path)


def size(path: str) -> int:
    """Return the number of bytes in the file `path`."""
    if not is_remote(path):
        return os.stat(path).st_size
    if not is_utf8(path):
        raise failures.not_utf8(path)
    found = bucket.kind(path)
    if not isinstance(found, Info):
        raise failures.missing(path)
    return found.size


def _local_info(path: str) -> Info | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return Info(status.st_size, str(status.st_mtime_ns)) if os.path.isfile(path) else None


def infos(paths: Sequence[str]) -> list[Info | None]:
    """Return size and version of each of `paths`; None for one that is no file.

    It takes few requests where many are in one folder of a bucket.
    """
    remote = [path for path in paths if is_remote(path)]
    known = iter(bucket.infos(remote) if remote else [])
    return [next(known) if is_remote(path) else _local_info(path) for path in paths]


def listing(folder: str) -> list[str]:
    """List the names in `folder`, sorted."""
    return list(bucket.listing(folder)) if is_remote(folder) else sorted(os.listdir(folder))


def find(folder: str) -> dict[str, Info]:
    """Return all objects below the `folder` of a bucket: names relative to it, sorted.

    Raises:
        OSError: there is no such folder.
    """
    return bucket.find(folder)


def matching(pattern: str) -> list[str]:
    """List the objects of a bucket that the * and ? of `pattern` stand for, sorted.

    As in a shell, neither stands for a slash, nor for the dot before a hidden name.
    """
    if not is_utf8(pattern):
        return []
    folder, _, rest = pattern[: re.search(r"[*?]|\Z", pattern).start()].rpartition("/")  # type: ignore[union-attr]
    rest = pattern[len(folder) + 1 :]
    parts = {"*": "[^/]*", "?": "[^/]"}
    written = "".join(parts.get(c, re.escape(c)) for c in rest)
    form = re.compile(re.sub(r"(^|/)(?=\[\^/\])", r"\1(?!\\.)", written), re.S)
    try:
        deep = "/" in rest
        there = bucket.find(folder) if deep else bucket.listing(folder)
    except FileNotFoundError:
        return []
    return [f"{folder}/{name}" for name, info in there.items() if info and form.fullmatch(name)]


def read(path: str) -> bytes:
    """Read the whole file `path`."""
    if not is_remote(path):
        with open_binary(path) as file:
            return file.read()
    (result,) = bucket.read_many([path], [None], [None])
    if isinstance(result, Exception):
        raise result
    return result


def read_files(paths: Sequence[str]) -> np.ndarray:
    """Read many whole files at a time: object `[n]` of bytes, empty where one cannot be read.

    Raises:
        Refused, Unreachable: a bucket refuses access, or does not answer.
    """
    remote = [path for path in paths if is_remote(path)]
    here = iter(local.attempt_each(read, [path for path in paths if not is_remote(path)]))
    there: Any = iter(())
    if remote:
        there = iter(bucket.read_many(remote, [None] * len(remote), [None] * len(remote)))
    return ranges.as_contents([next(there if is_remote(path) else here) for path in paths])


def open_binary(path: str, ahead: int = 0) -> BinaryIO:
    """Open the file `path` to read and to seek in.

    `ahead`: blocks of a file in a bucket that are fetched beforehand, for readers front to back.

    Raises:
        OSError: it cannot be opened, or is a pipe or device, which may never end.
    """
    if is_remote(path):
        return io.BufferedReader(remote_file.RemoteFile(path, ahead), 1 << 16)
    if "\0" in path:
        raise OSError(errno.EINVAL, "is no path, as it holds a NUL", path)
    return open_regular(path)


def write(path: str, content: bytes) -> None:
    """Put `content` at `path` in a bucket; readers find the old object or the new one."""
    bucket.write(path, content)


def create(path: str, content: bytes) -> bool:
    """Put `content`, the caller's alone, at `path` in a bucket if nothing is there.

    Returns:
        whether it was put there; of several that do so at once one succeeds.
    """
    return bucket.create(path, content)


def remove_folder(path: str) -> None:
    """Remove all that is below the folder `path` of a bucket."""
    bucket.remove([f"{path}/{name}" for name in bucket.find(path)])


def move(source: str, target: str) -> None:
    """Move the file or folder `source` of a bucket to `target`, where nothing is."""
    bucket.move(source, target)


def upload(local_file: str | os.PathLike, path: str) -> None:
    """Put the file `local_file` of this machine at `path` in a bucket, whole or not at all."""
    bucket.upload(local_file, path)


def remove(path: str) -> None:
    """Remove the file `path`; it is no error where it is not there."""
    if is_remote(path):
        bucket.remove([path])
        return
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
