"""Paths here and in buckets, and a file written whole or not at all: a run killed at any moment leaves no half."""

import os

from etils import epath


def is_remote(path: object) -> bool:
    """Whether `path` has a scheme, as gs://bucket/folder has."""
    return "://" in str(path)


def absolute(path: str) -> epath.Path:
    """`path` from the root, or as it is where it names a bucket."""
    return epath.Path(path if is_remote(path) else os.path.abspath(path))


def write(path: epath.Path, content: bytes) -> None:
    """Put `content` at `path`; whoever reads it meanwhile, or after a crash, finds the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f"{path.name}.{os.getpid()}.part"
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
