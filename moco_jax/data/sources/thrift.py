"""Structures in Thrift's compact protocol, as Parquet writes them before each page.

It is specified in Thrift's `doc/specs/thrift-compact-protocol.md`.
"""

from typing import Any, BinaryIO

_FIRST, _LONGEST = 1 << 9, 1 << 24  # bytes that are read at first, and at most
_DEEPEST = 8  # structures within structures


class _Header:
    """A page's header as fields by number, read from its first bytes."""

    def __init__(self, content: bytes):
        self.content, self.place = content, 0
        self.fields = self._struct(_DEEPEST)

    def _byte(self) -> int:
        self.place += 1
        return self.content[self.place - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80 or shift > 63:
                return value

    def _number(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def _struct(self, deepest: int) -> dict[int, Any]:
        fields, number = dict[int, Any](), 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._number()
            fields[number] = self._value(head & 15, deepest, True)
        return fields

    def _value(self, kind: int, deepest: int, is_field: bool = False) -> Any:
        if deepest < 0:
            raise ValueError("structures within structures without end")
        if kind in (1, 2):  # a field's value is its kind; an element is a byte
            return kind == 1 if is_field else self._byte() == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._number()
        if kind == 7:
            return self._skip(8)
        if kind == 8:
            return self._skip(self._varint())
        if kind in (9, 10):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._value(head & 15, deepest - 1) for _ in range(count)]
        if kind == 12:
            return self._struct(deepest - 1)
        raise ValueError(f"a field of kind {kind}")

    def _skip(self, length: int) -> bytes:
        self.place += length
        if self.place > len(self.content):
            raise IndexError("cut off")
        return self.content[self.place - length : self.place]


def read(file: BinaryIO, offset: int) -> tuple[dict[int, Any], int]:
    """Read the structure at `offset` of `file`: its fields by number, and its length in bytes.

    Raises:
        ValueError: it is cut off, or is none.
    """
    length = _FIRST
    while True:
        file.seek(offset)
        content = file.read(length)
        try:
            header = _Header(content)
            return header.fields, header.place
        except IndexError:
            if len(content) < length or length >= _LONGEST:
                raise ValueError("a page's header is cut off") from None
        length *= 8
