"""The features file: a row for each image, with what made it. Written and read in parts, so that memory holds no file.

`.npz` holds the arrays `features` float32 `[N, D]`, `names` str `[N]`, `indices` int64 `[N]` (places in the data set),
`labels` int64 `[N]` where they are known, and `facts`, JSON. `.parquet` holds the same as the columns `features`, `name`,
`index`, `label`, and the facts in its metadata under `moco_jax`. Features are as the encoder gives them, of any length.
"""

import contextlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from etils import epath

from moco_jax import files
from moco_jax.data.sources.names import Names
from moco_jax.errors import UserError
from moco_jax.report.console import size
from moco_jax.text import to_line

FORMAT = 1
BLOCK = 8192  # rows that are held at once
# How the columns are called in a .parquet, where each belongs to one image.
PARQUET = {"features": "features", "names": "name", "indices": "index", "labels": "label"}
_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Rows(NamedTuple):
    """Some images.

    Attributes:
        features: float32 `[n, D]`.
        names: n strings.
        indices: int64 `[n]`, places in the data set.
        labels: int64 `[n]`, or None where they are not known.
    """

    features: np.ndarray
    names: list[str]
    indices: np.ndarray
    labels: np.ndarray | None


Write = Callable[[Rows], None]


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "the package pyarrow is needed for .parquet: pip install 'moco_jax[parquet]'; .npz needs none"
        ) from error
    return pyarrow


def plain(names: list[str]) -> list[str]:
    """Names as lines of UTF-8, no two alike where the names are not; `moco_jax.text.from_line` gives them back."""
    return list(map(to_line, names))


@contextlib.contextmanager
def writing(path: str, facts: Mapping[str, Any]) -> Iterator[Write]:
    """Write the file `path`, whole or not at all: what this gives takes rows, a few at a time, in their order.

    Args:
        path: .npz or .parquet, on this machine.
        facts: kept beside the rows, as they are when the block ends.

    Raises:
        UserError: another ending, a package is missing, or the file cannot be written.
    """
    kinds: dict[str, Any] = {".npz": _write_npz, ".parquet": _write_parquet}
    place = files.absolute(path)
    if place.suffix not in kinds or files.is_remote(path):
        raise UserError(f"out={path!r} is no file here that ends in {' or '.join(kinds)}")
    try:
        with files.draft(place) as draft, kinds[place.suffix](draft, facts) as write:
            yield write
    except OSError as error:
        why = error.strerror or error
        raise UserError(
            f"out={path} cannot be written ({why}); make room, or give another place"
        ) from error


def require_room(path: str, number: int, width: int) -> None:
    """UserError where the disk of `path` has no room for so many features of this width, and for what is in between."""
    place = files.absolute(path)
    # The shape stands before the features in an .npz, and is known after them: they are kept apart meanwhile.
    needed = 4 * number * width * (2 if place.suffix == ".npz" else 1)
    free = shutil.disk_usage(place.parent).free
    if needed > free:
        raise UserError(
            f"out={path} needs {size(needed)} while it is written, and its disk has {size(free)}; make room, or give "
            "another place"
        )


def _content(facts: Mapping[str, Any]) -> str:
    return json.dumps({"format": FORMAT, **facts})


@contextlib.contextmanager
def _write_npz(draft: epath.Path, facts: Mapping[str, Any]) -> Iterator[Write]:
    names: list[Names] = []
    indices: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    width = longest = 0

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
        at_once = 4 * width * BLOCK
        with zipfile.ZipFile(draft, "w") as out:
            blocks = iter(lambda: spilled.read(at_once), b"")
            _member(out, "features", "<f4", (number, width), blocks)
            text = np.dtype(f"<U{longest}")
            spelt = (np.asarray([n[i] for i in range(len(n))], text).tobytes() for n in names)
            _member(out, "names", text.str, (number,), spelt)
            for name, parts in (("indices", indices), ("labels", labels)):
                if parts:
                    whole = np.concatenate(parts).astype("<i8")
                    _member(out, name, "<i8", (number,), iter([whole.tobytes()]))
            content = np.asarray(_content(facts))
            _member(out, "facts", content.dtype.str, (), iter([content.tobytes()]))


def _member(
    out: zipfile.ZipFile, name: str, kind: str, shape: tuple[int, ...], blocks: Iterator[bytes]
) -> None:
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    with out.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(block)


@contextlib.contextmanager
def _write_parquet(draft: epath.Path, facts: Mapping[str, Any]) -> Iterator[Write]:
    arrow = _arrow()
    waiting: list[Rows] = []
    writer = None

    def flush() -> None:
        nonlocal writer
        if not waiting:
            return
        features = np.concatenate([rows.features for rows in waiting])
        width = features.shape[1]
        columns = {
            "features": arrow.FixedSizeListArray.from_arrays(
                arrow.array(features.ravel(), arrow.float32()), width
            ),
            "names": arrow.array(plain([n for rows in waiting for n in rows.names]), arrow.string()),
            "indices": arrow.array(np.concatenate([rows.indices for rows in waiting]), arrow.int64()),
        }  # fmt: skip
        if waiting[0].labels is not None:
            known = np.concatenate([rows.labels for rows in waiting])
            columns["labels"] = arrow.array(known, arrow.int64())
        table = arrow.table({PARQUET[name]: column for name, column in columns.items()})
        if writer is None:
            # Compression finds little in floating-point numbers, and takes its time.
            writer = arrow.parquet.ParquetWriter(
                str(draft), table.schema, use_dictionary=False, compression="none"
            )
        writer.write_table(table, row_group_size=BLOCK)
        waiting.clear()

    def write(rows: Rows) -> None:
        waiting.append(rows)
        if sum(len(rows.indices) for rows in waiting) >= BLOCK:
            flush()

    try:
        yield write
        flush()
        if writer is not None:
            writer.add_key_value_metadata({"moco_jax": _content(facts)})
    finally:
        if writer is not None:
            writer.close()


class Table(Protocol):
    """A features file that is read in parts.

    Attributes:
        facts: what made it.
        number: N, its rows.
        width: D, of the features.
        columns: which of 'features', 'names', 'indices' and 'labels' it has.
    """

    facts: dict[str, Any]
    number: int
    width: int
    columns: set[str]

    def blocks(self, column: str) -> Iterator[np.ndarray]:
        """The whole column, `BLOCK` rows at a time, the last fewer: `[n, D]` for features, else `[n]`."""

    def take(self, column: str, rows: np.ndarray) -> np.ndarray:
        """`rows` int `[n]` of a column."""


def opened(path: str) -> Table:
    """The features file `path`; UserError where it is none."""
    kinds: dict[str, Any] = {".npz": _Npz, ".parquet": _Parquet}
    place = files.absolute(path)
    if place.suffix not in kinds or files.is_remote(path):
        raise UserError(f"{path!r} is no features file here; they end in {' or '.join(kinds)}")
    try:
        found: Table = kinds[place.suffix](str(place))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged, or not written by python -m moco_jax.embed") from error
    if found.facts.get("format") != FORMAT:
        raise UserError(f"{path} is of format {found.facts.get('format')}; {FORMAT} is known here")
    return found


class _Place(NamedTuple):
    """Where an array lies in a file: its first byte, type and shape."""

    start: int
    kind: np.dtype
    shape: tuple[int, ...]


def _places(path: str) -> dict[str, _Place]:
    """The arrays of an .npz by name; UserError where they cannot be read in parts."""
    found = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise UserError(
                    f"{path} is compressed and cannot be searched; np.savez writes one that can"
                )
            # Thirty bytes, of which the last four are the lengths of the name and of what else stands before the array.
            file.seek(member.header_offset + 26)
            file.seek(int(np.frombuffer(file.read(4), "<u2").sum()), os.SEEK_CUR)
            shape, by_columns, kind = _HEADERS[np.lib.format.read_magic(file)](file)
            if by_columns and len(shape) > 1:
                raise UserError(
                    f"{path}: {member.filename} is laid out by columns; np.ascontiguousarray mends it"
                )
            found[member.filename.removesuffix(".npy")] = _Place(file.tell(), kind, shape)
    return found


class _Npz:
    """Arrays in an uncompressed .npz: where each begins is found once, rows are read from there."""

    def __init__(self, path: str):
        self._path, self._found = path, _places(path)
        facts = self._found["facts"]
        self.facts = json.loads(str(np.fromfile(path, facts.kind, 1, offset=facts.start)[0]))
        self.number, self.width = self._found["features"].shape
        self.columns = self._found.keys() & PARQUET.keys()

    def _read(self, column: str, first: int, last: int) -> np.ndarray:
        start, kind, shape = self._found[column]
        each = int(np.prod(shape[1:]))
        found = np.fromfile(
            self._path, kind, (last - first) * each, offset=start + first * each * kind.itemsize
        )
        return found.reshape(-1, *shape[1:])

    def blocks(self, column: str) -> Iterator[np.ndarray]:
        for first in range(0, self.number, BLOCK):
            yield self._read(column, first, min(first + BLOCK, self.number))

    def take(self, column: str, rows: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [self._read(column, row, row + 1) for row in np.asarray(rows).tolist()]
        )


class _Parquet:
    """Columns of a .parquet."""

    def __init__(self, path: str):
        arrow = _arrow()
        try:
            self._file = arrow.parquet.ParquetFile(path)
        except arrow.ArrowInvalid as error:
            raise ValueError(str(error)) from error
        self.facts = json.loads(self._file.metadata.metadata[b"moco_jax"])
        schema = self._file.schema_arrow
        self.number = self._file.metadata.num_rows
        self.width = schema.field("features").type.list_size
        self.columns = {name for name, column in PARQUET.items() if column in schema.names}

    def blocks(self, column: str) -> Iterator[np.ndarray]:
        for batch in self._file.iter_batches(BLOCK, columns=[PARQUET[column]]):
            found = batch.column(0)
            if column == "features":
                yield found.flatten().to_numpy().reshape(-1, self.width)
            else:
                yield np.asarray(found.to_pylist())

    def take(self, column: str, rows: np.ndarray) -> np.ndarray:
        found: dict[int, Any] = {}
        first = 0
        for block in self.blocks(column):
            inside = rows[(rows >= first) & (rows < first + len(block))].tolist()
            found |= {row: block[row - first] for row in inside}
            first += len(block)
        return np.asarray([found[row] for row in rows.tolist()])
