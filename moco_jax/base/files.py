"""Paths here and in buckets; files that are written whole or not at all, however a run ends."""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from etils import epath

from moco_jax.base import storage
from moco_jax.base.errors import UserError
from moco_jax.base.storage import is_remote, open_regular
from moco_jax.base.text import printable

__all__ = ["is_remote", "open_regular"]
# etils, and so Orbax, would reach gs:// by TensorFlow where that is installed, and without this
# package's tries and refusals. etils looks at this once, when the first file is asked for.
os.environ.setdefault("EPATH_USE_TF", "0")
BUCKETS = ("gs", "s3")  # schemes of places that are read and written where they are


def full_name(path: str) -> str:
    """Make the name `path` absolute; an address in a bucket stays as it is."""
    return path if is_remote(path) else os.path.abspath(path)


def require_place(path: str) -> None:
    """Refuse an address on the web, or of anything else that is neither a file nor in a bucket.

    Raises:
        UserError: `path` is one.
    """
    if is_remote(path) and str(path).partition("://")[0] not in BUCKETS:
        raise UserError(
            f"{printable(str(path))} is an address from which nothing is downloaded here; "
            "download it, and give the path of the file"
        )


def absolute(path: str) -> epath.Path:
    """Make `path` absolute; an address in a bucket stays as it is.

    Raises:
        UserError: it is an address, and none in a bucket; or it is in gs://, and the package
            gcsfs is missing.
    """
    if not is_remote(path):
        return epath.Path(os.path.abspath(path))
    require_place(path)
    if str(path).startswith("gs://"):
        storage.lend()
    return epath.Path(path)


def describe_bucket_error(error: Exception) -> str:
    """Describe in one line why a bucket cannot be reached; '' where `error` is of another kind."""
    said = " ".join(str(error).split())
    if not type(error).__module__.startswith("tensorflow.") or not is_remote(said):
        return ""
    return printable(f"a bucket cannot be reached: {said[:300]}")


def open_to_read(path: str) -> BinaryIO:
    """Open the file `path`, here or in a bucket, to read its bytes.

    Raises:
        UserError: it is an address, and none in a bucket.
        OSError: it cannot be opened, or is no regular file.
    """
    require_place(path)
    return storage.open_binary(full_name(path))


def read(path: epath.Path) -> bytes:
    """Read the file `path`, here or in a bucket.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    return storage.read(os.fspath(path))


@contextlib.contextmanager
def draft(path: epath.Path, shared: bool = True) -> Iterator[epath.Path]:
    """Give a file to write to, which becomes `path` when the block ends well.

    It lies beside `path`. For a `path` in a bucket it is a file of this machine, which is sent
    when it is whole: nobody sees an object before all of it has arrived.

    Args:
        path: the file to write in the end, here or in a bucket.
        shared: whether other processes may write `path` too; each then has a draft of its own.
            Otherwise the draft that a killed process left is written over.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            place = epath.Path(folder) / path.name
            yield place
            storage.upload(place, os.fspath(path))
        return
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
    if is_remote(path):
        storage.write(os.fspath(path), content)
        return
    with draft(path) as place:
        place.write_bytes(content)


def move(path: epath.Path, target: epath.Path) -> None:
    """Move the file or folder `path` to `target`, where nothing is; its folder is made."""
    if is_remote(path):
        storage.move(os.fspath(path), os.fspath(target))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)


def size_of(folder: str) -> int:
    """Return the bytes of all files below the `folder` of this machine."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def send(folder: str, place: epath.Path) -> None:
    """Put all files below the `folder` of this machine into the folder `place` of a bucket."""
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            storage.upload(path, os.fspath(place / str(path.relative_to(folder))))
