"""Conversion of names, which may hold any bytes, to one line of text.

File, class and member names may hold any byte; a terminal or a table may not.
"""

import os
import re

_NO_LINE = re.compile(r"[\0-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff]|\\(?=x[0-9a-f]{2})")


def printable(name: str | bytes | os.PathLike) -> str:
    r"""Return `name` as text that any terminal, log or table shows on one line.

    Bytes that are no UTF-8 become `\xNN`; control characters, line and paragraph separators, marks
    that turn the direction of writing, and whatever else does not print become `\n`, `\t`, `\x1b`,
    `\u202e` and so on. All other characters stay as they are. The result can always be encoded as
    UTF-8.

    >>> printable("cat.png")
    'cat.png'
    >>> print(printable("a\nb\x1b[31m"))
    a\nb\x1b[31m
    >>> print(printable(b"caf\xe9"))
    caf\xe9
    """
    text = name if isinstance(name, str) else os.fsdecode(name)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that Python could not decode (surrogateescape)
        return f"\\x{number - 0xDC00:02x}"
    if 0x80 <= number < 0x100:  # told apart from such a byte
        return f"\\u{number:04x}"
    return character.encode("unicode_escape").decode("ascii")


def is_utf8(name: str) -> bool:
    """Return whether `name` is valid UTF-8, as buckets and TensorFlow need."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable_lines(text: str) -> str:
    r"""Return `text` with every line made `printable`; only its line feeds stay.

    >>> print(printable_lines("a\nb\x1b[31m"))
    a
    b\x1b[31m
    """
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))


def to_line(name: str) -> str:
    r"""Return `name` as a line of UTF-8 that stands for no other name; `from_line` reverses it.

    For records, such as a table of names. Bytes that are no UTF-8, control characters and line
    separators are written as the bytes that they are, `\xNN`, and so is a backslash that would read
    as the beginning of one. All else stays as it is, marks and joiners of writing systems too.

    >>> print(to_line("line\nbreak"))
    line\x0abreak
    >>> from_line(to_line("caf\udce9")) == "caf\udce9"
    True
    """
    return _NO_LINE.sub(lambda found: _as_bytes(found[0]), name)


def _as_bytes(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def from_line(line: str) -> str:
    """Return the name that `to_line` made `line` of."""
    content = line.encode("utf-8", "surrogateescape")
    found = re.sub(rb"\\x([0-9a-f]{2})", lambda byte: bytes([int(byte[1], 16)]), content)
    return found.decode("utf-8", "surrogateescape")
