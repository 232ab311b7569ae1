"""Names as one line of text: file, class and member names may hold any byte, a terminal or a table may not."""

import os


def printable(name: str | bytes | os.PathLike) -> str:
    r"""Return `name` as text that any terminal, log or table shows on one line.

    Bytes that are no UTF-8 become `\xNN`; control characters, line and paragraph separators, marks that turn the
    direction of writing, and whatever else does not print become `\n`, `\t`, `\x1b`, `\u202e` and so on. All other
    characters stay as they are. The result can always be encoded as UTF-8.

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
