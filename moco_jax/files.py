"""Paths here and in buckets, and a file written whole or not at all: a run killed at any moment leaves no half."""

import contextlib
import os
from collections.abc import Iterator

from etils import epath


def is_remote(path: object) -> bool:
    """Whether `path` has a scheme, as gs://bucket/folder has."""
    return "://" in str(path)


def absolute(path: str) -> epath.Path:
    """`path` from the root, or as it is where it names a bucket."""
    return epath.Path(path if is_remote(path) else os.path.abspath(path))


@contextlib.contextmanager
def draft(path: epath.Path) -> Iterator[epath.Path]:
    """A file beside `path` to write to; it takes the name `path` at the end, and is gone where writing ended early."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.parent / f"{path.name}.{os.getpid()}.part"
    try:
        yield place
        place.replace(path)
    except BaseException:
        place.unlink(missing_ok=True)
        raise


def write(path: epath.Path, content: bytes) -> None:
    """Put `content` at `path`; whoever reads it meanwhile, or after a crash, finds the old file or the new one."""
    with draft(path) as place:
        place.write_bytes(content)
