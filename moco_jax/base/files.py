"""Paths here and in buckets; files that are written whole or not at all, however a run ends."""

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from typing import BinaryIO

from etils import epath

from moco_jax.base import packages
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable


def is_remote(path: object) -> bool:
    """Return whether `path` has a scheme, as gs://bucket/folder has."""
    return "://" in str(path)


BUCKETS = ("gs", "s3")  # schemes of places that are read and written where they are


def absolute(path: str) -> epath.Path:
    """Make `path` absolute; an address in a bucket stays as it is.

    Raises:
        UserError: it is an address on the web, or of anything else that is neither a file nor in a
            bucket; or in a bucket, and TensorFlow, which reaches buckets, is missing.
    """
    if not is_remote(path):
        return epath.Path(os.path.abspath(path))
    if str(path).partition("://")[0] not in BUCKETS:
        raise UserError(
            f"{printable(str(path))} is an address from which nothing is downloaded here; "
            "download it, and give the path of the file"
        )
    packages.load_tensorflow(printable(str(path)), "a folder of this machine")
    return epath.Path(path)


def describe_bucket_error(error: Exception) -> str:
    """Describe in one line why a bucket cannot be reached; '' where `error` is of another kind."""
    said = " ".join(str(error).split())
    if not type(error).__module__.startswith("tensorflow.") or not is_remote(said):
        return ""
    return printable(f"a bucket cannot be reached: {said[:300]}")


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


def open_to_read(path: str) -> BinaryIO:
    """Open the file `path`, here or in a bucket, to read its bytes.

    Raises:
        UserError, OSError: as `absolute` and `open_regular` do.
    """
    place = absolute(path)
    return place.open("rb") if is_remote(path) else open_regular(place)


def read(path: epath.Path) -> bytes:
    """Read the file `path`, here or in a bucket.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    if is_remote(path):
        return path.read_bytes()
    with open_regular(path) as file:
        return file.read()


@contextlib.contextmanager
def draft(path: epath.Path, shared: bool = True) -> Iterator[epath.Path]:
    """Give a file beside `path` to write to, which becomes `path` when the block ends well.

    Args:
        path: the file to write in the end, here or in a bucket.
        shared: whether other processes may write `path` too; each then has a draft of its own.
            Otherwise the draft that a killed process left is written over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Numbers of processes are the same on several hosts, above all in containers.
    owner = f".{uuid.uuid4().hex}" if shared else ""
    place = path.parent / f"{path.name}{owner}.part"
    try:
        yield place
        place.replace(path)
    except BaseException:
        place.unlink(missing_ok=True)
        raise


def write(path: epath.Path, content: bytes) -> None:
    """Put `content` at `path`; readers find the old file or the new one, also after a crash."""
    with draft(path) as place:
        place.write_bytes(content)
