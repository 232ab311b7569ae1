"""Where the records of large files lie, so that they can be read in any order; found once, then kept on disk."""

import io
import logging
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from moco_jax.base import files
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.data.sources import store
from moco_jax.data.sources.names import short

LONGEST = 2**31 - 1  # bytes of a record: its length is kept as int32
Arrays = dict[str, np.ndarray]


class Places(NamedTuple):
    """Sixteen bytes a record: `file` int32 `[N]` (into `paths`), `offset` int64 `[N]`, `length` int32 `[N]`."""

    paths: list[str]
    file: np.ndarray
    offset: np.ndarray
    length: np.ndarray


def cache_path(index_dir: str | None, label: str) -> epath.Path | None:
    """The file in `index_dir` for the index of what `label` names; None without a folder."""
    if not index_dir:
        return None
    safe = "".join(c if c.isascii() and c.isalnum() else "_" for c in label)[-80:]
    # The number tells labels apart that are the same when cut to the length of a file's name.
    number = zlib.crc32(label.encode("utf-8", "surrogateescape"))
    return epath.Path(index_dir) / f"{safe}_{number:08x}.npz"


def sizes(paths: Sequence[str]) -> list[str]:
    """A line on each file: path and bytes."""
    return store.each(lambda path: f"{path} {store.size(path)}", paths)


def cached(
    cache: epath.Path | None, signature: Sequence[str], make: Callable[[], Arrays]
) -> Arrays:
    """What `make` returns, or what it returned when `signature` was the same and `cache` was written.

    `cache`: an .npz; None for always anew. UserError where it cannot be written.
    """
    signed = np.asarray(signature)
    if cache is not None and cache.exists():
        try:
            with cache.open("rb") as file, np.load(file) as saved:
                if np.array_equal(saved["signature"], signed):
                    return {key[1:]: saved[key] for key in saved.files if key[0] == "_"}
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            shown = printable(str(cache))
            logging.warning("the index of records %s is damaged (%s); made anew", shown, error)
    arrays = make()
    if cache is not None:
        content = io.BytesIO()
        # NumPy keeps names such as `file` to itself.
        named: Arrays = {f"_{key}": value for key, value in arrays.items()}
        np.savez(content, signature=signed, **named)  # type: ignore[arg-type]
        try:
            files.write(cache, content.getvalue())
        except OSError as error:
            raise UserError(
                f"the index of records cannot be written to {printable(str(cache))}"
                f" ({error.strerror}); give a workdir of yours"
            ) from error
    return arrays


def join(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Arrays:
    """`file`, `offset` and `length` of `Places`, from offsets and lengths of each file in turn."""
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
        """How many there are."""
        return len(self.places.offset)

    def part(self, index: int, start: int, length: int) -> bytes:
        """`length` bytes from `start` bytes after the beginning of record `index` on (before it, if negative)."""
        offset = int(self.places.offset[index]) + start
        return self._ranges.read(int(self.places.file[index]), offset, length)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Object `[n]` of bytes; empty where a record cannot be read."""
        return store.read_many(lambda i: self.part(i, 0, int(self.places.length[i])), indices)

    def file(self, index: int) -> str:
        """What to call the file of record `index`, with every byte: its name, or more of its path where that tells too little."""
        return self._called[self.places.file[index]]

    def where(self, index: int) -> str:
        """File and place of record `index`, in one line."""
        return f"{printable(self.file(index))} at byte {self.places.offset[index]}"
