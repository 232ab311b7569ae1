"""Reads the header of an image file: its size, and whether TensorFlow decodes it as PIL does.

One rule serves training, evaluation, embedding, packing and `moco_jax.load`. TensorFlow decodes
the plain JPEGs and PNGs that it is known to decode as PIL does. PIL decodes everything else, and
so whatever is doubtful here.
"""

import zlib
from typing import NamedTuple

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
END_OF_JPEG = b"\xff\xd9"

_SCAN = 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive, all with Huffman's code
_APP0, _APP1, _APP2, _APP13, _APP14 = 0xE0, 0xE1, 0xE2, 0xED, 0xEE
_TABLES = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))  # tables, comments, APPn
_SAMPLINGS = (b"\x11", b"\x21", b"\x22")  # 4:4:4, 4:2:2, 4:2:0

_KINDS_OF_PNG = (0, 2, 4, 6)  # gray and RGB, without and with alpha
# Chunks that change no pixel, and their lengths.
_SIDE_CHUNKS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"tIME": 7}
_WORDS_OF_EXIF = (b"Raw profile", b"XML:")  # text chunks in which an orientation may stand
_LONGEST_TEXT = 1 << 16


class Header(NamedTuple):
    """The facts in an image file's header that decide how it is decoded.

    Attributes:
        plain: whether TensorFlow decodes the file as PIL does.
        height, width: of the picture; 0 where this module does not read them.
        whole: false for a JPEG that lacks its end.
        alpha: whether pixels have alpha.
        tagged: whether an orientation may be written somewhere.
    """

    plain: bool
    height: int = 0
    width: int = 0
    whole: bool = True
    alpha: bool = False
    tagged: bool = True


UNKNOWN = Header(False)


def read(content: bytes) -> Header:
    """Read the header of the file `content`; kinds other than JPEG and PNG tell nothing."""
    if content.startswith(JPEG):
        return _jpeg(content)
    if content.startswith(PNG):
        return _png(content)
    return UNKNOWN


def _odd(kind: int, segment: bytes) -> bool:
    """Whether an APPn segment means more to PIL than a place to skip, or less than it needs."""
    if kind == _APP0:
        return segment.startswith(b"JFIF") and len(segment) < 7
    if kind == _APP2:  # several pictures in one file; a cut colour profile
        return segment.startswith(b"MPF\0") or (
            segment.startswith(b"ICC_PROFILE\0") and len(segment) < 15
        )
    if kind == _APP13:
        return segment[-6:-2] == b"8BIM"  # PIL refuses a file with a cut block of Photoshop's
    # With another transform than Adobe's own, 1, the colours may be anything.
    return kind == _APP14 and segment.startswith(b"Adobe") and segment[11:12] != b"\x01"


def _plain_frame(frame: bytes, familiar: bool) -> bool:
    """Whether a frame header is of eight bits, gray or YCbCr.

    `familiar`: JFIF or Adobe have said that it is YCbCr.
    """
    if len(frame) == 9:
        return frame[0] == 8 and frame[7] == 0x11
    if len(frame) != 15 or frame[0] != 8 or frame[5] != 3:
        return False
    sampled = frame[7:8] in _SAMPLINGS and frame[10] == frame[13] == 0x11
    return sampled and (familiar or frame[6:15:3] == b"\1\2\3")


def _jpeg(content: bytes) -> Header:
    place, frame, plain, familiar, tagged = 2, b"", True, False, False
    end = len(content) - 4
    while place <= end and content[place] == 0xFF:
        kind = content[place + 1]
        if kind == _SCAN:
            break
        segment = place + 4
        place += 2 + (content[place + 2] << 8 | content[place + 3])
        if kind in _FRAMES:
            plain &= not frame
            frame = content[segment:place]
        elif kind not in _TABLES:
            plain = False
        elif kind in (_APP0, _APP1, _APP2, _APP13, _APP14):
            some = content[segment:place]
            plain &= not _odd(kind, some)
            familiar |= some.startswith((b"JFIF\0", b"Adobe"))
            tagged |= kind == _APP1
    else:
        plain = False
    whole = content.endswith(END_OF_JPEG) or content.find(END_OF_JPEG, place) >= 0
    height, width = frame[1:3], frame[3:5]
    plain = plain and whole and _plain_frame(frame, familiar)
    sides = int.from_bytes(height, "big"), int.from_bytes(width, "big")
    return Header(plain and all(sides), *sides, whole, tagged=tagged or not plain)


def _plain_chunk(kind: bytes, body: bytes) -> bool:
    """Whether a chunk before the picture's data changes no pixel, for PIL and for libpng."""
    if kind in _SIDE_CHUNKS:
        return len(body) == _SIDE_CHUNKS[kind]
    return kind == b"tEXt" and len(body) < _LONGEST_TEXT and not body.startswith(_WORDS_OF_EXIF)


def _png(content: bytes) -> Header:
    head = content[16:29]
    if content[8:16] != b"\0\0\0\rIHDR" or len(head) < 13:
        return UNKNOWN
    width, height = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:8], "big")
    alpha = head[9] in (4, 6)
    doubtful = Header(False, height, width, alpha=alpha)
    if head[8] != 8 or head[9] not in _KINDS_OF_PNG or any(head[10:]) or not height * width:
        return doubtful
    place, data = 8, 0  # `data`: 0 before the picture's data, 1 among them, 2 behind them
    while kind := content[place + 4 : place + 8]:
        body = place + 8
        place = body + int.from_bytes(content[body - 8 : body - 4], "big") + 4
        if place > len(content):
            return doubtful
        if kind == b"IDAT":
            if data == 2:
                return doubtful
            data = 1
        elif kind == b"IEND":
            return Header(data > 0, height, width, alpha=alpha, tagged=False)
        elif data:
            data = 2
            if kind not in (b"tEXt", b"tIME"):
                return doubtful
        else:
            sum_there = int.from_bytes(content[place - 4 : place], "big")
            if zlib.crc32(content[body - 4 : place - 4]) != sum_there:
                return doubtful
            if kind != b"IHDR" and not _plain_chunk(kind, content[body : place - 4]):
                return doubtful
    return doubtful
