"""SHA-256 of trees of arrays, of files, and of every file of a checkpoint.

A checkpoint that is half-written or altered is found by its digests before it is used.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from moco_jax.base import files, storage
from moco_jax.base.text import printable

THREADS = 8
BLOCK = 1 << 20  # bytes that are read at once
UNREADABLE = "unreadable: "  # begins what stands in a digest's place


def of_tree(tree: Any) -> str:
    """Return the SHA-256 of nested containers: names, shapes, types and bytes of their arrays.

    Leaves that are no arrays count by their `repr`, which has to tell all of them.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None):
        name = jax.tree_util.keystr(path)
        if isinstance(leaf, np.ndarray | np.generic | jax.Array):
            array = np.ascontiguousarray(leaf)
            digest.update(f"{name} {array.dtype} {array.shape};".encode())
            digest.update(array.view(np.uint8).data if array.size else b"")
        else:
            digest.update(f"{name} {leaf!r};".encode())
    return digest.hexdigest()


def of_files(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of the contents of `paths`, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            _add(digest, file)
    return digest.hexdigest()


def _add(digest: Any, file: Any) -> None:
    """Add what is left of the binary `file` to a hash, a block at a time."""
    while block := file.read(BLOCK):
        digest.update(block)


def seal(body: bytes) -> bytes:
    """Return `body` under a first line that holds its SHA-256, as `unseal` takes it."""
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def unseal(content: bytes) -> bytes | None:
    """Return the body that `seal` was given; None where `content` has changed since."""
    digest, _, body = content.partition(b"\n")
    return body if digest == hashlib.sha256(body).hexdigest().encode() else None


def _of_file(path: epath.Path) -> str:
    """Return the digest of a file, or why it cannot be read (a link to nothing, a pipe)."""
    try:
        # A file of a checkpoint may be larger than the memory that is left, and eight are read.
        with storage.open_binary(os.fspath(path), storage.AHEAD) as file:
            digest = hashlib.sha256()
            _add(digest, file)
            return digest.hexdigest()
    except storage.OF_STORES:  # which says nothing of the file
        raise
    except OSError as error:
        return f"{UNREADABLE}{error.strerror or error}"


def _listing(folder: epath.Path) -> dict[str, epath.Path]:
    """List all files below `folder`: path within it -> path."""
    if files.is_remote(folder):
        return {name: folder / name for name in storage.find(os.fspath(folder))}
    paths, open_folders = {}, [folder]
    while open_folders:
        for path in open_folders.pop().iterdir():
            if path.is_dir():
                open_folders.append(path)
            else:
                paths[str(path.relative_to(folder))] = path
    return paths


def _digests(paths: dict[str, epath.Path]) -> dict[str, str]:
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(paths, pool.map(_of_file, paths.values()), strict=True))


def write(folder: epath.Path, record: epath.Path) -> None:
    """Write the digests of all files below `folder` to the sealed file `record`.

    Raises:
        OSError: one of them cannot be read.
    """
    digests = _digests(_listing(folder))
    for name, digest in digests.items():
        if digest.startswith(UNREADABLE):
            raise OSError(f"{folder / name}: {digest}")
    files.write(record, seal(json.dumps(digests, indent=1, sort_keys=True).encode()))


def damaged(folder: epath.Path, record: epath.Path) -> list[str]:
    """List what differs between `folder` and its `record`; empty when all is sound."""
    try:
        body = unseal(files.read(record))
        if body is None:
            return [f"{record} has changed"]
        expected, present = json.loads(body), _listing(folder)
        if not isinstance(expected, dict):
            return [f"{record} holds no digests by name"]
    except storage.OF_STORES:
        raise
    except OSError as error:  # a folder in a file's place, or the other way round
        return [f"{error.filename or folder} cannot be read ({error.strerror or error})"]
    common = {name: present[name] for name in sorted(expected.keys() & present.keys())}
    return [
        *(f"{folder / n} is missing" for n in sorted(expected.keys() - present.keys())),
        *(f"{folder / printable(n)} was added" for n in sorted(present.keys() - expected.keys())),
        *(f"{folder / n} {_change(d)}" for n, d in _digests(common).items() if d != expected[n]),
    ]


def _change(digest: str) -> str:
    if digest.startswith(UNREADABLE):
        return f"cannot be read ({digest.removeprefix(UNREADABLE)})"
    return "has changed"
