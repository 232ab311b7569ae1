"""Parts of a Snappy stream that can be expanded alone.

Snappy's encoders compress each 64 KiB of the input for itself: no copy reaches back beyond the
block that it is in. The format does not promise it, so `find` looks at every element. Format:
google/snappy, `format_description.txt`.
"""

from typing import NamedTuple

BLOCK = 1 << 16  # bytes of the input


class Blocks(NamedTuple):
    """Where the blocks of a stream lie.

    Attributes:
        begins: place of the first element of each block in the stream, and the stream's end.
        expanded: bytes of the whole when it is expanded.
    """

    begins: list[int]
    expanded: int

    def around(self, offset: int, length: int) -> tuple[int, int, int, int]:
        """Find the blocks that hold `length` expanded bytes from `offset` on.

        Returns:
            where they begin in the stream and how many bytes they take there, and the same of
            what they expand to.
        """
        first, last = offset // BLOCK, -(-(offset + length) // BLOCK)
        begin, start = self.begins[first], first * BLOCK
        stop = min(last * BLOCK, self.expanded)
        return begin, self.begins[last] - begin, start, stop - start


def varint(value: int) -> bytes:
    """Write the length that a Snappy stream begins with."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def find(stream: bytes) -> Blocks | None:
    """Find the blocks of a sound `stream`; None where one cannot be expanded without others."""
    place = expanded = shift = 0
    while True:
        byte = stream[place]
        expanded |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            break
    made, start, begins, end = 0, 0, [place], len(stream)
    while place < end:
        tag = stream[place]
        kind = tag & 3
        if kind == 0:
            length = tag >> 2
            if length > 59:
                extra = length - 59
                length = int.from_bytes(stream[place + 1 : place + 1 + extra], "little")
                place += extra
            length += 1
            place += length + 1
        else:
            if kind == 1:
                length, back = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | stream[place + 1]
                place += 2
            else:
                size = 2 if kind == 2 else 4
                length = (tag >> 2) + 1
                back = int.from_bytes(stream[place + 1 : place + 1 + size], "little")
                place += 1 + size
            if back > made - start:
                return None
        made += length
        if made - start >= BLOCK:
            if made - start > BLOCK:
                return None
            start = made
            begins.append(place)
    if made != expanded:
        return None
    return Blocks(begins if made == start and made else [*begins, place], expanded)
