"""Reads the members of one tar file under their whole names, written as ustar, PAX or GNU do.

`tarfile` reads the headers and believes what they claim, so that it is given no more than there
is.
"""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.data.sources import names

_BLOCK = 512
_HEADER = 1 << 20  # bytes of a header at most; those with a long name are a few kilobytes
_LINKS = "links, devices and sparse files"
LEFT_OUT = (names.HIDDEN, names.SYSTEM, _LINKS)


class Member(NamedTuple):
    """A regular file within a tar.

    Attributes:
        name: the whole, with every byte (`surrogateescape`).
        folder, parts: its folder, and its own name, divided at the dots.
        offset, length: where its content lies.
    """

    name: str
    folder: str
    parts: list[str]
    offset: int
    length: int


class _Claimed:
    """A file for `tarfile` that refuses what a header claims beyond the file or a header's size."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size = file, size
        self.tell = file.tell

    def read(self, length: int) -> bytes:
        if not 0 <= length <= _HEADER:
            raise tarfile.ReadError(f"a header claims {length:,} bytes")
        return self._file.read(length)

    def seek(self, place: int) -> int:
        if not 0 <= place <= self._size:
            raise tarfile.ReadError("unexpected end of data")
        return self._file.seek(place)


def read(file: BinaryIO, path: str, left_out: Counter[str]) -> Iterator[Member]:
    """Read the regular files of the tar `file`, in their order.

    Between two members the caller may read elsewhere in `file`, which is `path` in messages.
    `left_out` counts what is left out, under the words of `LEFT_OUT`.

    Raises:
        UserError: it is cut, damaged or compressed.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        claimed: Any = _Claimed(file, size)
        with tarfile.open(fileobj=claimed, mode="r:", encoding="utf-8") as archive:
            for header in _headers(archive, size):
                kept = _kept(header, left_out)
                if kept:
                    yield kept
        # tarfile takes a damaged header for the end of the archive.
        file.seek(archive.offset)
        if file.read(_BLOCK).strip(b"\0"):
            raise UserError(
                f"{printable(path)} is damaged at byte {archive.offset}; replace the file"
            )
    except UserError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{printable(path)} is cut off, or no plain tar file ({printable(str(error))}); replace"
            " it, and unpack a compressed one (.gz), which cannot be read in any order"
        ) from error


def _headers(archive: tarfile.TarFile, size: int) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of `archive`, of `size` bytes; each must lie behind the one before."""
    place = -1
    while (header := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # else it keeps them all in memory
        inside = header.issparse() or 0 <= header.size <= size - header.offset_data
        if archive.offset <= place or (header.isreg() and not inside):
            raise tarfile.ReadError("unexpected end of data")
        place = archive.offset
        yield header


def _kept(header: tarfile.TarInfo, left_out: Counter[str]) -> Member | None:
    """Return the member of this header; None for a folder, and, counted, for what is left out."""
    folder, base = os.path.split(header.name)
    folders = [part for part in folder.split("/") if part not in ("", ".", "..")]
    if header.isdir():
        return None
    if base.startswith(".") or any(part.startswith(".") for part in folders):
        left_out[names.HIDDEN] += 1
    elif any(map(names.is_systems, folders)):
        left_out[names.SYSTEM] += 1
    elif not header.isreg() or header.issparse():
        left_out[_LINKS] += 1
    else:
        return Member(header.name, folder, base.split("."), header.offset_data, header.size)
    return None
