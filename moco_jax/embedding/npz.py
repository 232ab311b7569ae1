"""The features file as an uncompressed .npz, written and read in parts.

The checksum of an array is computed as the array passes by, so that nothing is read twice for
it.
"""

import contextlib
import math
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import numpy as np
from etils import epath

from moco_jax.base import files
from moco_jax.base.errors import UserError
from moco_jax.data.sources.names import Names
from moco_jax.embedding import columns as columns_lib
from moco_jax.embedding import facts as facts_lib
from moco_jax.embedding.columns import PARQUET, Rows, plain, user_errors

PIECE = 2**20  # bytes that are read, and added to a checksum, at once
_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# Column -> dimensions, kinds of NumPy's types, and the words for these kinds in messages.
_COLUMNS = {
    "features": (2, "fiu", "a table of numbers"),
    "names": (1, "U", "a list of texts"),
    "indices": (1, "iu", "a list of whole numbers"),
    "labels": (1, "iu", "a list of whole numbers"),
    "facts": (0, "U", "one text"),
}


@contextlib.contextmanager
def writing(draft: epath.Path, content: Callable[[], str]) -> Iterator[Callable[[Rows], None]]:
    """Write the file `draft`: yields a function that is called with rows, a few at a time.

    `content` returns the facts, and is called at the end.
    """
    names: list[Names] = []
    indices: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    width, longest = 0, 1

    with tempfile.TemporaryFile(dir=draft.parent) as spilled:

        def write(rows: Rows) -> None:
            nonlocal width, longest
            named = plain(rows.names)
            names.append(Names(named))
            indices.append(rows.indices)
            if rows.labels is not None:
                labels.append(rows.labels)
            width, longest = rows.features.shape[1], max([longest, *map(len, named)])
            spilled.write(np.ascontiguousarray(rows.features, "<f4").data)

        yield write
        number = sum(map(len, indices))
        spilled.seek(0)
        blocks_of = 4 * width * columns_lib.at_once(4 * width)
        with zipfile.ZipFile(draft, "w") as out:
            blocks = iter(lambda: spilled.read(blocks_of), b"")
            _member(out, "features", "<f4", (number, width), blocks)
            text = np.dtype(f"<U{longest}")
            spelt = (np.asarray([n[i] for i in range(len(n))], text).tobytes() for n in names)
            _member(out, "names", text.str, (number,), spelt)
            for name, parts in (("indices", indices), ("labels", labels)):
                if parts:
                    whole = np.concatenate(parts).astype("<i8")
                    _member(out, name, "<i8", (number,), iter([whole.tobytes()]))
            facts = np.asarray(content())
            _member(out, "facts", facts.dtype.str, (), iter([facts.tobytes()]))


def _member(
    out: zipfile.ZipFile, name: str, kind: str, shape: tuple[int, ...], blocks: Iterator[bytes]
) -> None:
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    # Without the time of day, so that the same rows make the same file.
    with out.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(block)


class _Array(NamedTuple):
    """An array in the file.

    `header` and `start` are the bytes before its numbers, in the member and in the file.
    """

    member: zipfile.ZipInfo
    header: int
    start: int
    kind: np.dtype
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.kind.itemsize


class Npz:
    """A features file of arrays in an uncompressed .npz.

    Where each array begins is found once, and rows are read from there.
    """

    def __init__(self, path: str):
        """Open the file `path`, which stays open; raises UserError where it is no features file."""
        self._path = path
        self._sound: set[str] = set()
        with user_errors(path):
            self._file = files.open_regular(path)
            self._archive = zipfile.ZipFile(self._file)
            self._arrays = self._read_arrays()
            if "facts" not in self._arrays:
                raise ValueError("it has no facts")
            (facts,) = next(self._pass("facts")).reshape(1).tolist()
            self.facts = facts_lib.checked(columns_lib.parsed(facts, path), path)
        self.columns = self._arrays.keys() & PARQUET.keys()
        self.number = columns_lib.require(
            path, self.columns, {name: self._arrays[name].shape[0] for name in self.columns}
        )
        self.width = self._arrays["features"].shape[1]

    def _read_arrays(self) -> dict[str, _Array]:
        """Find the arrays that a table has, by name, each as long as its header says."""
        arrays: dict[str, _Array] = {}
        for member in self._archive.infolist():
            name = member.filename.removesuffix(".npy")
            # Every member is opened: this finds names that the zip spells in two ways.
            if name not in _COLUMNS or member.compress_type == zipfile.ZIP_STORED:
                with self._archive.open(member) as file:
                    if name in _COLUMNS:
                        if name in arrays:
                            raise ValueError(f"it has two arrays called {name}")
                        arrays[name] = self._array(name, member, file)
            else:
                raise UserError(
                    f"{self._path} is compressed and cannot be searched; "
                    "np.savez writes one that can"
                )
        return arrays

    def _array(self, name: str, member: zipfile.ZipInfo, file: Any) -> _Array:
        shape, by_columns, kind = _HEADERS[np.lib.format.read_magic(file)](file)
        dimensions, kinds, meant = _COLUMNS[name]
        odd = len(shape) != dimensions or min(shape, default=0) < 0
        if odd or kind.kind not in kinds or not kind.itemsize:
            raise UserError(
                f"{self._path}: {name} are of type {kind} and shape {shape}; they must be {meant}"
            )
        if kinds == "iu" and not np.can_cast(kind, np.int64):
            raise UserError(f"{self._path}: {name} are of type {kind}; they must be int64")
        if name == "features" and not shape[1]:
            raise UserError(f"{self._path}: features of shape {shape} hold no numbers")
        if by_columns and len(shape) > 1:
            raise UserError(
                f"{self._path}: {member.filename} is laid out by columns; "
                "np.ascontiguousarray mends it"
            )
        header = file.tell()
        needed = header + math.prod(shape) * kind.itemsize
        sizes = {member.file_size, member.compress_size} - {needed}
        if sizes:
            raise UserError(
                f"{self._path} is damaged: {name} of shape {shape} take {needed:,} bytes, and "
                f"{sizes.pop():,} are there"
            )
        # A member's header has thirty bytes. The last four are the lengths of the name and of
        # what else stands before the array.
        self._file.seek(member.header_offset + 26)
        lengths = int(np.frombuffer(self._file.read(4), "<u2").sum())
        return _Array(member, header, member.header_offset + 30 + lengths + header, kind, shape)

    def _pass(self, column: str) -> Iterator[np.ndarray]:
        """Yield the whole column in blocks; raises BadZipFile if its checksum differs."""
        array = self._arrays[column]
        number = array.shape[0] if array.shape else 1
        rows = columns_lib.at_once(array.row_bytes)
        with self._archive.open(array.member) as file:
            file.read(array.header)
            for first in range(0, number, rows):
                block = np.empty((min(rows, number - first), *array.shape[1:]), array.kind)
                _fill(file, block)
                yield _native(column, block)
        self._sound.add(column)

    def blocks(self, column: str) -> Iterator[np.ndarray]:
        with user_errors(self._path):
            yield from self._pass(column)

    def peek(self, column: str, rows: np.ndarray) -> np.ndarray:
        with user_errors(self._path):
            array, rows_read = self._arrays[column], []
            for row in np.asarray(rows).tolist():
                if not 0 <= row < self.number:
                    raise IndexError(f"row {row} of {self.number}")
                self._file.seek(array.start + row * array.row_bytes)
                rows_read.append(self._file.read(array.row_bytes))
            values = np.frombuffer(b"".join(rows_read), array.kind)
            return _native(column, values.reshape(-1, *array.shape[1:]))

    def take(self, column: str, rows: np.ndarray) -> np.ndarray:
        if column in self._sound:
            return self.peek(column, rows)
        with user_errors(self._path):
            return columns_lib.picked(self._pass(column), np.asarray(rows))


def _fill(file: IO[bytes], block: np.ndarray) -> None:
    """Read the bytes of `block` from `file`, a piece at a time, so that nothing is held twice."""
    bytes_of = block.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(bytes_of):
        count = file.readinto(bytes_of[done : done + PIECE])  # type: ignore[attr-defined]
        if not count:
            raise EOFError("it ends within an array")
        done += count


def _native(column: str, block: np.ndarray) -> np.ndarray:
    """Convert `block` of a file to the type of its column here."""
    if column == "features":
        return columns_lib.as_float32(block)
    if column in ("indices", "labels"):
        return np.asarray(block, np.int64)
    text = block.astype(block.dtype.newbyteorder("="), copy=False)
    if text.size and np.ascontiguousarray(text).reshape(-1).view(np.uint32).max() > 0x10FFFF:
        raise ValueError(f"{column} are no Unicode")
    return text
