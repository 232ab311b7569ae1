"""Text files that list image files, in the ways in which people and programs write them.

The first line shows the way of writing, which then holds for the whole list; a line that does
not fit it is refused by its number. A line that is the path of a file as it stands is always
taken as it stands.
"""

import codecs
import csv
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.data.sources import labels, store
from moco_jax.data.sources.labels import MISSING
from moco_jax.data.sources.pixels import EXTENSIONS

WANTED = (
    "a list is UTF-8 text with one image path a line, absolute or relative to the list's folder,"
    " and a class after a tab if there is one"
)
_LOOKED_FOR = 16  # files of a list that are looked for before the list is believed
_QUOTES = "\"'"
# A path that ends as an image does, perhaps in quotes, then blanks and a class.
_BLANK = re.compile(
    rf"([\"']?)(.+(?:{'|'.join(map(re.escape, EXTENSIONS))}))\1[ \t]+(\S.*)", re.I | re.S
)
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",  # PowerShell's > writes it
    codecs.BOM_UTF16_BE: "utf-16",
}


def text_lines(content: bytes) -> list[str]:
    """Return the lines of a text file without their ends: LF, CR LF, or CR where there is no LF.

    The text is UTF-8, or UTF-16 with a mark at its beginning; bytes that are neither stay what
    they are, as in names of files (`surrogateescape`). No other character ends a line, as names
    may hold them.

    Raises:
        ValueError: it is no text.
    """
    mark = next((mark for mark in _MARKS if content.startswith(mark)), b"")
    text = content.decode(_MARKS.get(mark, "utf-8"), "strict" if mark else "surrogateescape")
    if "\0" in text and not text.isascii() and any("\udc80" <= c <= "\udcff" for c in text):
        raise ValueError("it is no text")
    if "\n" not in text:
        return text.split("\r")
    return [line.removesuffix("\r") for line in text.split("\n")]


class Form(NamedTuple):
    """How the lines of a list are written.

    Attributes:
        separator: what stands before a class: a tab, a comma, a semicolon, a blank; '' where
            there are no classes.
        header: whether the first line names the columns.
        endings: whether paths end as images do.
        marks: characters at the beginning of a line that may be its path's own, as the first
            line does not begin so.
    """

    separator: str
    header: bool
    endings: bool
    marks: str = " ~" + _QUOTES


def _is_image(path: str) -> bool:
    return path.lower().endswith(EXTENSIONS)


def _is_there(folder: str, path: str) -> bool:
    return store.is_file(path if store.is_remote(path) else os.path.join(folder, path))


def _unquoted(cell: str) -> str:
    quote = cell[:1]
    if len(cell) < 2 or quote not in _QUOTES or cell[-1] != quote:
        return cell
    return cell[1:-1].replace(2 * quote, quote)


def _cells(line: str, separator: str) -> list[str]:
    """Split `line` into the path and its class where there is one; more cells mean an error."""
    plain = line.strip(" ")
    if separator == "\t":
        path, tab, name = line.partition("\t")
        return [_unquoted(path.strip(" ")), *([_unquoted(name)] if tab else [])]
    if not separator or _is_image(plain):
        return [_unquoted(plain)]
    if separator == " ":
        match = _BLANK.fullmatch(plain)
        return [match[2], _unquoted(match[3])] if match else [_unquoted(plain)]
    try:
        cells = next(csv.reader([plain], delimiter=separator, skipinitialspace=True))
    except csv.Error:  # a quote that does not end, or a NUL
        return [plain]
    return [_unquoted(cells[0].strip(" ")), *(cell.strip(" ") for cell in cells[1:])]


def _separator(line: str, folder: str) -> str | None:
    """Return what stands between path and class in `line`: '' for a path alone, None if unclear."""
    if _is_there(folder, line) or _is_image(_cells(line, "")[0]):
        return ""
    if "\t" in line:
        return "\t"
    separators = (s for s in ",; " if _is_image(_cells(line, s)[0]) and len(_cells(line, s)) > 1)
    return next(separators, None)


def _form(lines: Sequence[str], folder: str) -> Form:
    """Recognise how the list that begins with the two `lines` is written."""
    first, *rest = (_separator(line, folder) for line in lines)
    path = _cells(lines[0], first or "")[0]
    after = rest[0] if rest else None
    if after is not None and not _is_image(path) and _is_image(_cells(lines[1], after)[0]):
        return Form(after, not _is_there(folder, path), True)
    form = Form(first or "", False, _is_image(path))
    if _is_there(folder, lines[0]):
        return form
    return form._replace(marks=form.marks.replace(lines[0][0], ""))


def _read_line(line: str, form: Form, folder: str) -> tuple[list[str], str]:
    """Read the path and perhaps the class in `line`, and say what is wrong with it, or ''."""
    cells = _cells(line, form.separator)
    if line[0] in form.marks and not store.is_remote(folder) and _is_there(folder, line):
        return [line], ""
    path = cells[0] = os.path.expanduser(cells[0]) if cells[0][:1] == "~" else cells[0]
    if "\0" in path or not path:
        return cells, "is no path"
    if len(cells) > 2:
        return cells, f"has {len(cells)} columns"
    odd = len(cells) == 1 and not _is_image(path) and (form.endings or "\t" in line)
    if not odd or _is_there(folder, path):
        return cells, ""
    if _separator(line, folder):
        return cells, "differs in having a class"
    return cells, f"({printable(path)}) is no such file"


def _class(cell: str, where: str) -> str:
    """Return the class that `cell` names, '' for none, which is also written as -1.

    Raises:
        UserError: it is another negative number.
    """
    if re.fullmatch(r"-\d+", cell) is None:
        return cell
    if int(cell) == MISSING:
        return ""
    raise UserError(f"{where} has the class {cell[:24]}; {labels.WANTED}, or a name")


def _require_one(files: Sequence[str], lines: Sequence[int], folder: str, where: str) -> None:
    """Refuse a list if none of the few files that are looked for is there."""
    some = sorted({len(files) * n // _LOOKED_FOR for n in range(_LOOKED_FOR)})
    there = store.each(lambda place: _is_there(folder, files[place]), some)
    if not any(there):
        also = f", nor are {len(some) - 1} more of its files there" if len(some) > 1 else ""
        raise UserError(
            f"{where}: line {lines[0]} ({printable(files[0])}) is no such file{also}; {WANTED}"
        )


def read_list(path: str) -> tuple[list[str], list[str], list[str]]:
    """Read a list of images from the text file `path`: image paths, their classes, and remarks.

    Each line holds a path, relative to the file's folder or absolute, and, on all lines or none,
    a class; empty lines count for nothing. Between path and class is a tab, a comma or semicolon
    (with quotes as in CSV), or blanks behind the path's ending. A header, quotes around a path,
    blanks around a line and `~` are understood.

    Raises:
        UserError: it is no such file, or none of its images is there.
    """
    folder, where = os.path.dirname(path), f"data_dir={printable(path)}"
    try:
        lines = text_lines(store.read(path))
    except ValueError as error:
        raise UserError(f"{where} is no text file; {WANTED}") from error
    numbers = [number for number, line in enumerate(lines) if line.strip(" ")]
    if not numbers:
        raise UserError(f"{where} lists no image; {WANTED}")
    form = _form([lines[number] for number in numbers[:2]], folder)
    files: list[str] = []
    classes: list[str] = []
    for number in numbers[form.header :]:
        cells, wrong = _read_line(lines[number], form, folder)
        if not wrong and files and (len(cells) > 1) != bool(classes):
            wrong = "differs in having a class"
        if wrong:
            raise UserError(f"{where}: line {number + 1} {wrong}; {WANTED}, on all lines or none")
        files.append(cells[0])
        classes += [_class(cell, f"{where}: line {number + 1}") for cell in cells[1:]]
    _require_one(files, [number + 1 for number in numbers[form.header :]], folder, where)
    head = f"{where}: line {numbers[0] + 1} ({printable(lines[numbers[0]])}) is taken for a header"
    return files, classes if any(classes) else [], [head] if form.header else []
