"""Parts of files that are compressed, or lie within what is: read and expanded, by number."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from moco_jax.base.text import printable
from moco_jax.data.sources import snappy_blocks, store
from moco_jax.data.sources.names import short

# By number, what the package pyarrow calls them; the first says that nothing is compressed.
CODECS = ("", "snappy", "gzip", "zstd", "brotli", "lz4_raw")
NONE, SNAPPY = 0, 1
BLOCKS = len(CODECS)  # some blocks of a Snappy stream, without the length before them
AT_ONCE = 1 << 28  # bytes that a read holds beside its result; more only for a single part


class Span(NamedTuple):
    """Where bytes lie in a file.

    Attributes:
        offset, stored: the part of the file that must be read.
        expanded: bytes of that part when it is expanded; 0 where it is not compressed.
        skip, length: the bytes within what was read and expanded.
        codec: a place in `CODECS`, or `BLOCKS`.
    """

    offset: int
    stored: int
    expanded: int
    skip: int
    length: int
    codec: int


EMPTY = Span(0, 0, 0, 0, 0, NONE)
_TYPES = (np.int64, np.int32, np.int32, np.int32, np.int32, np.int8)


def expand(stored: bytes, codec: int, expanded: int) -> bytes:
    """Expand `stored` bytes to `expanded` ones.

    Raises:
        OSError, ValueError: they are damaged.
    """
    import pyarrow

    if codec == BLOCKS:
        stored, codec = snappy_blocks.varint(expanded) + stored, SNAPPY
    # A codec for each call: not every kind may be used by several threads.
    content = pyarrow.Codec(CODECS[codec]).decompress(stored, expanded, asbytes=True)
    if len(content) != expanded:
        raise ValueError(f"{len(content)} bytes instead of {expanded}")
    return content


def table(spans: Sequence[Span]) -> np.ndarray:
    """Return `spans` as int64 `[N, 6]`, which takes a sixth of their memory."""
    return np.asarray(spans, np.int64).reshape(-1, len(Span._fields))


def columns(spans: np.ndarray) -> dict[str, np.ndarray]:
    """Return `spans` int64 `[N, 6]` as arrays `[N]`, by the names of their fields."""
    made = zip(Span._fields, spans.T, _TYPES, strict=True)
    return {name: column.astype(kind) for name, column, kind in made}


class SpanRecords:
    """The bytes that spans mean, by number; 29 bytes of memory each."""

    def __init__(self, paths: Sequence[str], file: np.ndarray, arrays: dict[str, np.ndarray]):
        """Open the files `paths`; `file` int32 `[N]` says which one each of `arrays`' spans is in.

        Args:
            paths: the files.
            file: int32 `[N]`, a place in `paths`.
            arrays: as `columns` returns them.
        """
        self.paths, self._file, self._arrays = list(paths), file, arrays
        self._ranges, self.called = store.Ranges(paths), short(paths)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._file)

    def identity(self) -> list[Any]:
        """Return the names of the files, and where everything lies."""
        return [self.called, self._file, *(self._arrays[name] for name in Span._fields)]

    def file(self, index: int) -> str:
        """Return the name of the file that number `index` is in, with every byte."""
        return self.called[self._file[index]]

    def row(self, index: int) -> int:
        """Return which one of its file number `index` is, from 0."""
        return index - int(np.searchsorted(self._file, self._file[index]))

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Read what spans mean, object `[n]` of bytes; empty where it cannot be read, and for null.

        A part that several spans share is read and expanded once. At most `AT_ONCE` bytes are
        held, unless one part takes more.
        """
        out, taken = np.empty(len(indices), object), self._some(indices)
        where = np.stack([self._file[indices].astype(np.int64), taken["offset"], taken["stored"]])
        parts, of = np.unique(where, axis=1, return_inverse=True)
        order = np.argsort(of, kind="stable")
        rows = np.split(order, np.flatnonzero(np.diff(of[order])) + 1)
        weights = np.asarray([int(self._weight(taken, mine[0])) for mine in rows], np.int64)
        for some in _runs(weights):
            contents = self._ranges.read_many(*parts[:, some])
            for content, mine in zip(contents, rows[some], strict=True):
                out[mine] = _taken(content, taken, mine)
        return out

    def _some(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {name: column[indices] for name, column in self._arrays.items()}

    @staticmethod
    def _weight(taken: dict[str, np.ndarray], row: int) -> int:
        return int(taken["stored"][row]) + int(taken["expanded"][row])

    def any_bytes(self) -> bool:
        """Whether any of them has a byte."""
        return bool(self._arrays["length"].any())

    def read_bytes(self, indices: np.ndarray) -> int:
        """Return how many bytes `read` takes from files for `indices`, int."""
        taken = self._some(indices)
        where = np.stack([self._file[indices].astype(np.int64), taken["offset"], taken["stored"]])
        return int(np.unique(where, axis=1)[2].sum())

    def where(self, index: int) -> str:
        """Return row and file of number `index`, in one line."""
        return f"row {self.row(index)} of {printable(self.file(index))}"


def _runs(weights: np.ndarray) -> Iterator[slice]:
    """Divide parts of `weights` bytes int `[P]` into runs of `AT_ONCE` at most, or of one part."""
    first, held = 0, 0
    for place, weight in enumerate(weights.tolist()):
        if place > first and held + weight > AT_ONCE:
            yield slice(first, place)
            first, held = place, 0
        held += weight
    if first < len(weights):
        yield slice(first, len(weights))


def _taken(content: bytes, taken: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Take the bytes of `rows` out of the one part that all lie in, object `[m]` of bytes."""
    out = np.empty(len(rows), object)
    out[:] = b""
    stored, expanded, codec = (int(taken[k][rows[0]]) for k in ("stored", "expanded", "codec"))
    if len(content) < stored:
        return out
    try:
        whole = content if codec == NONE else expand(content, codec, expanded)
    except (OSError, ValueError):
        return out
    spans = zip(taken["skip"][rows].tolist(), taken["length"][rows].tolist(), strict=True)
    out[:] = [whole[skip : skip + length] for skip, length in spans]
    return out
