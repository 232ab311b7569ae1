"""An index of where the records of large files lie, so that they can be read in any order.

It is built once, and then kept on disk.
"""

import errno
import io
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from moco_jax.base import files
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.data.sources import store
from moco_jax.data.sources.names import short

END = 1 << 16  # bytes at each end of a file by which it is told from one of the same size
LONGEST = 2**31 - 1  # bytes of a record: its length is kept as int32
Arrays = dict[str, np.ndarray]


class Places(NamedTuple):
    """Where records lie, sixteen bytes each.

    The arrays are `file` int32 `[N]` (a place in `paths`), `offset` int64 `[N]` and `length`
    int32 `[N]`.
    """

    paths: list[str]
    file: np.ndarray
    offset: np.ndarray
    length: np.ndarray


def cache_path(index_dir: str | None, label: str) -> epath.Path | None:
    """Return the file in `index_dir` for the index of the set `label`; None without a folder."""
    if not index_dir:
        return None
    safe = "".join(c if c.isascii() and c.isalnum() else "_" for c in label)[-80:]
    # A file's name is cut in length; the number tells apart labels that then are the same.
    number = zlib.crc32(label.encode("utf-8", "surrogateescape"))
    return epath.Path(index_dir) / f"{safe}_{number:08x}.npz"


def states(paths: Sequence[str]) -> list[str]:
    """Return a line on each file that changes with it: path, bytes, time, and ends' checksums.

    A tar that is written again often keeps its size, as its blocks are filled up. In buckets the
    line has path, bytes and version, as listings tell them; nothing is read.

    Raises:
        OSError: one of the files is not there.
    """
    if not any(map(store.is_remote, paths)):
        return store.each(_state, paths)
    known = store.infos(paths)
    if None in known:
        raise FileNotFoundError(errno.ENOENT, "No such file", paths[known.index(None)])
    return [f"{path} {i.size} {i.version}" for path, i in zip(paths, known, strict=True) if i]


def _state(path: str) -> str:
    size, time = store.size(path), os.stat(path).st_mtime_ns
    with store.open_binary(path) as file:
        head = zlib.crc32(file.read(END))
        file.seek(max(size - END, 0))
        return f"{path} {size} {time} {head:08x} {zlib.crc32(file.read(END)):08x}"


def cached(
    cache: epath.Path | None, signature: Sequence[str], make: Callable[[], Arrays]
) -> Arrays:
    """Return what `make` returns, from `cache` if it was written with the same `signature`.

    `cache` is an .npz; with None `make` is always called.

    Raises:
        UserError: the cache cannot be written.
    """
    signed = np.asarray(signature)
    if cache is not None and store.exists(str(cache)):
        try:
            with np.load(io.BytesIO(files.read(cache))) as saved:
                if np.array_equal(saved["signature"], signed):
                    return {key[1:]: saved[key] for key in saved.files if key[0] == "_"}
        except (zipfile.BadZipFile, EOFError, OSError, KeyError, ValueError) as error:
            shown = printable(str(cache))
            logging.warning("the index of records %s is damaged (%s); made anew", shown, error)
    arrays = make()
    if cache is not None:
        content = io.BytesIO()
        # `savez` itself has arguments of names such as `file`.
        named: Arrays = {f"_{key}": value for key, value in arrays.items()}
        np.savez(content, signature=signed, **named)  # type: ignore[arg-type]
        try:
            files.write(cache, content.getvalue())
        except OSError as error:
            raise UserError(
                f"the index of records cannot be written to {printable(str(cache))}"
                f" ({error.strerror}); choose a workdir that you may write to"
            ) from error
    return arrays


def join(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Arrays:
    """Join offsets and lengths of files in turn to `file`, `offset` and `length` of `Places`."""
    counts = [len(offsets) for offsets, _ in parts]
    return {
        "file": np.repeat(np.arange(len(parts), dtype=np.int32), counts),
        "offset": np.concatenate([offsets for offsets, _ in parts]).astype(np.int64),
        "length": np.concatenate([lengths for _, lengths in parts]).astype(np.int32),
    }


class FileRecords:
    """The records at `places`, by number."""

    def __init__(self, places: Places):
        """Open the files."""
        self.places, self._ranges = places, store.Ranges(places.paths)
        self._called = short(places.paths)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.places.offset)

    def identity(self) -> list[Any]:
        """Return the names of the files, and the file, offset and length of all records."""
        return [self._called, self.places.file, self.places.offset, self.places.length]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Read records, object `[n]` of bytes; empty where one cannot be read."""
        some = (column[indices] for column in self.places[1:])
        return self._ranges.read_many(*some)

    def file(self, index: int) -> str:
        """Return the name of the file of record `index`, with every byte.

        It is more of the path where the name alone tells too little.
        """
        return self._called[self.places.file[index]]

    def where(self, index: int) -> str:
        """Return file and place of record `index`, in one line."""
        return f"{printable(self.file(index))} at byte {self.places.offset[index]}"
