"""Finds where each value of a column of bytes lies in a Parquet file, so that it is read alone.

Row groups may hold thousands of images, and pages hundreds, so that neither is a unit for reading
in any order. The format is specified at https://parquet.apache.org/docs/file-format.
"""

import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from moco_jax.data.sources import snappy_blocks, thrift
from moco_jax.data.sources.spans import BLOCKS, CODECS, EMPTY, NONE, SNAPPY, Span, expand

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # kinds of pages; a fourth, of indices, holds no values
_PLAIN, _RLE, _IN_DICTIONARY = 0, 3, (2, 8)  # encodings
_WIDEST = 32  # bits of a number

Get = Callable[[int, int], bytes]  # offset within a page's body, and a number of bytes


class Unfit(Exception):
    """Raised for a column that is sound but cannot be read value by value; the text says why."""


class Chunk(NamedTuple):
    """Where one row group of a column of bytes lies.

    Attributes:
        offset: of its first page in the file.
        values: how many, nulls counted.
        codec: one of `CODECS`.
        levels: the definition level of a value that is there; 0 where none can be null.
    """

    offset: int
    values: int
    codec: int
    levels: int


def hybrid(content: bytes, width: int, count: int) -> np.ndarray:
    """Decode `count` numbers of `width` bits in Parquet's mix of runs and packed bits, int64.

    Raises:
        ValueError: there are fewer.
        IndexError: they are cut off.
    """
    if width > _WIDEST:
        raise ValueError(f"numbers of {width} bits")
    place, found, parts = 0, 0, [np.zeros(0, np.int64)]
    weights = 1 << np.arange(width, dtype=np.int64)
    while found < count and width:
        head = shift = 0
        while True:
            byte = content[place]
            head |= (byte & 0x7F) << shift
            place, shift = place + 1, shift + 7
            if byte < 0x80:
                break
        if head & 1:
            length = (head >> 1) * width
            packed = np.frombuffer(content[place : place + length], np.uint8)
            bits = np.unpackbits(packed, bitorder="little")
            some = bits[: len(bits) // width * width].reshape(-1, width) @ weights
        else:
            length = (width + 7) // 8
            value = int.from_bytes(content[place : place + length], "little")
            some = np.full(min(head >> 1, count - found), value, np.int64)
        if not len(some):
            raise ValueError("a run of nothing")
        place, found = place + length, found + len(some)
        parts.append(some)
    return np.concatenate(parts)[:count] if width else np.zeros(count, np.int64)


class _Page(NamedTuple):
    """One page: its values' place in the file, and how they are stored.

    Attributes:
        kind, values, encoding: as its header says.
        offset, stored: where the compressed part lies.
        expanded: its bytes when it is expanded.
        codec: of that part.
        levels: the bytes of the definition levels, where they stand before it (version 2).
    """

    kind: int
    values: int
    encoding: int
    offset: int
    stored: int
    expanded: int
    codec: int
    levels: bytes | None


def _pages(file: BinaryIO, chunk: Chunk) -> Iterator[_Page]:
    """Yield the pages of `chunk` that hold values, in their order."""
    place, seen = chunk.offset, 0
    while seen < chunk.values:
        fields, length = thrift.read(file, place)
        kind, expanded, stored = fields[1], fields[2], fields[3]
        body = place + length
        place = body + stored
        if min(expanded, stored) < 0:
            raise ValueError("a page of negative size")
        if kind in (_DATA, _DICTIONARY):
            said = fields[5 if kind == _DATA else 7]
            seen += said[1] if kind == _DATA else 0
            if kind == _DATA and chunk.levels and said[3] != _RLE:
                raise Unfit("has levels in an encoding that is no longer written")
            yield _Page(kind, said[1], said[2], body, stored, expanded, chunk.codec, None)
        elif kind == _DATA_V2:
            said = fields[8]
            seen += said[1]
            before = said[5] + said[6]
            if min(said[5], said[6], stored - before, expanded - before) < 0:
                raise ValueError("levels that are larger than their page")
            file.seek(body + said[6])
            levels = file.read(said[5])
            codec = chunk.codec if said.get(7, True) else NONE
            sizes = stored - before, expanded - before
            yield _Page(_DATA, said[1], said[4], body + before, *sizes, codec, levels)


class _Body:
    """What a page holds, expanded if it is compressed; and where its parts lie in the file."""

    def __init__(self, file: BinaryIO, page: _Page):
        self.page, self._blocks = page, None
        if page.codec == NONE:
            self.length = page.stored
            self.get: Get = lambda offset, length: self._from(file, offset, length)
            return
        file.seek(page.offset)
        stored = file.read(page.stored)
        try:
            content = expand(stored, page.codec, page.expanded) if page.expanded else b""
        except OSError as error:  # which would say that the file cannot be read
            raise ValueError(str(error)) from error
        self.length, self.get = len(content), lambda at, length: content[at : at + length]
        if page.codec == SNAPPY and content:
            self._blocks = snappy_blocks.find(stored)

    def _from(self, file: BinaryIO, offset: int, length: int) -> bytes:
        file.seek(self.page.offset + offset)
        return file.read(min(length, self.length - offset))

    def span(self, offset: int, length: int) -> Span:
        """Return where `length` bytes from `offset` on lie."""
        page = self.page
        if page.codec == NONE:
            return Span(page.offset + offset, length, 0, 0, length, NONE)
        if self._blocks is None or not length:
            return Span(page.offset, page.stored, page.expanded, offset, length, page.codec)
        begin, stored, start, expanded = self._blocks.around(offset, length)
        return Span(page.offset + begin, stored, expanded, offset - start, length, BLOCKS)


def _plain(body: _Body, place: int, count: int) -> list[Span]:
    """Find `count` values, each behind its length in four bytes, from `place` on."""
    spans = []
    for _ in range(count):
        (length,) = struct.unpack("<I", body.get(place, 4))
        place += 4
        if length > body.length - place:
            raise ValueError("a value is longer than its page")
        spans.append(body.span(place, length))
        place += length
    return spans


def find(file: BinaryIO, chunk: Chunk) -> list[Span]:
    """Find all values of `chunk` in `file`, in order: `EMPTY` for a null.

    Raises:
        Unfit: they are encoded in a way in which no value can be read alone.
        ValueError, IndexError, KeyError, TypeError, struct.error: the file is damaged.
    """
    spans: list[Span] = []
    known: list[Span] = []
    for page in _pages(file, chunk):
        body = _Body(file, page)
        if page.kind == _DICTIONARY:
            if page.encoding not in (_PLAIN, *_IN_DICTIONARY):
                raise Unfit(f"has a dictionary in encoding {page.encoding}")
            known = _plain(body, 0, page.values)
            continue
        levels, place = page.levels, 0
        if levels is None and chunk.levels:
            (length,) = struct.unpack("<I", body.get(0, 4))
            levels, place = body.get(4, length), 4 + length
        there = np.ones(page.values, bool)
        if chunk.levels:
            there = hybrid(levels or b"", chunk.levels.bit_length(), page.values) == chunk.levels
        count = int(there.sum())
        if page.encoding == _PLAIN:
            values = _plain(body, place, count)
        elif page.encoding in _IN_DICTIONARY:
            content = body.get(place, body.length - place)
            which = hybrid(content[1:], content[0] if count else 0, count)
            values = [known[number] for number in which.tolist()]
        else:
            raise Unfit(
                f"is written in encoding {page.encoding}, in which values lie within others"
            )
        each = iter(values)
        spans += [next(each) if one else EMPTY for one in there.tolist()]
    return spans


def codec_of(name: str) -> int:
    """Return the number in `CODECS` of the compression that pyarrow calls `name`.

    Raises:
        Unfit: it is another.
    """
    called = {"UNCOMPRESSED": "", "LZ4": "lz4_raw"}.get(name, name.lower())
    if called not in CODECS:
        raise Unfit(f"is compressed by {name}")
    return CODECS.index(called)
