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
        self._kept: tuple[_Part | None, bytes] = (None, b"")

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

        A part that several spans share is read and expanded once, and the last such part is kept
        for whoever reads front to back. At most `AT_ONCE` bytes are held beside it, unless one part
        takes more.
        """
        out, taken = np.empty(len(indices), object), self._some(indices)
        if not len(indices):
            return out
        where = np.stack([self._file[indices].astype(np.int64), taken["offset"], taken["stored"]])
        parts, of = np.unique(where, axis=1, return_inverse=True)
        of = of.reshape(-1)  # of NumPy 2.0 it has a second axis
        order = np.argsort(of, kind="stable")
        rows = np.split(order, np.flatnonzero(np.diff(of[order])) + 1)
        heads = [int(mine[0]) for mine in rows]
        sizes = taken["expanded"][heads].tolist(), taken["codec"][heads].tolist()
        firsts = [_Part(*part) for part in zip(*parts.tolist(), *sizes, strict=True)]
        kept = self._kept
        for some in _runs(firsts):
            wanted = [part for part in firsts[some] if part != kept[0]]
            columns_ = np.asarray([part[:3] for part in wanted], np.int64).reshape(-1, 3).T
            contents = iter(self._ranges.read_many(*columns_))
            for part, mine in zip(firsts[some], rows[some], strict=True):
                whole = kept[1] if part == kept[0] else part.expanded_from(next(contents))
                spans = zip(
                    taken["skip"][mine].tolist(), taken["length"][mine].tolist(), strict=True
                )
                out[mine] = _objects([whole[skip : skip + length] for skip, length in spans])
        if firsts[-1].is_shared:
            self._kept = (firsts[-1], whole)
        return out

    def _some(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {name: column[indices] for name, column in self._arrays.items()}

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


class _Part(NamedTuple):
    """A part of a file that one or more spans lie in.

    Attributes:
        file: a place among the files.
        offset, stored, expanded, codec: as those of `Span`.
    """

    file: int
    offset: int
    stored: int
    expanded: int
    codec: int

    @property
    def is_shared(self) -> bool:
        """Whether other spans lie in it too, as in a page that is compressed as a whole."""
        return self.codec not in (NONE, BLOCKS)

    def expanded_from(self, content: bytes) -> bytes:
        """Return the part expanded from `content`, its bytes in the file; b'' where damaged."""
        if len(content) < self.stored or not self.stored:
            return b""
        try:
            return content if self.codec == NONE else expand(content, self.codec, self.expanded)
        except (OSError, ValueError):
            return b""


def _runs(parts: Sequence[_Part]) -> Iterator[slice]:
    """Divide `parts` into runs of `AT_ONCE` bytes at most, or of one part."""
    first, held = 0, 0
    for place, part in enumerate(parts):
        weight = part.stored + part.expanded
        if place > first and held + weight > AT_ONCE:
            yield slice(first, place)
            first, held = place, 0
        held += weight
    if first < len(parts):
        yield slice(first, len(parts))


def _objects(contents: Sequence[bytes]) -> np.ndarray:
    """Return `contents` as object `[n]`."""
    out = np.empty(len(contents), object)
    out[:] = contents
    return out
