"""The features file as a .parquet, written and read in parts.

Parquet has a checksum for each page of values and none for the footer, which says where pages
lie, what columns are called and, here, what made the features. The footer therefore holds its
own SHA-256, computed with zeros in its place.
"""

import contextlib
import hashlib
import secrets
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from moco_jax.base import files, packages
from moco_jax.base.errors import UserError
from moco_jax.embedding import columns as columns_lib
from moco_jax.embedding import facts as facts_lib
from moco_jax.embedding.columns import PARQUET, Rows, plain, user_errors

BUFFER = 2**20  # bytes of each column that are read at once
FACTS, DIGEST = b"moco_jax", b"moco_jax_footer_sha256"


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"the package pyarrow is needed for .parquet: {packages.how_to_have(['pyarrow'])}; "
            ".npz needs none"
        ) from error
    return pyarrow


def _table(arrow: Any, waiting: list[Rows]) -> Any:
    features = np.concatenate([rows.features for rows in waiting])
    values = arrow.array(features.ravel(), arrow.float32())
    names = plain([name for rows in waiting for name in rows.names])
    columns = {
        "features": arrow.FixedSizeListArray.from_arrays(values, features.shape[1]),
        "names": arrow.array(names, arrow.string()),
        "indices": arrow.array(np.concatenate([rows.indices for rows in waiting]), arrow.int64()),
    }
    if waiting[0].labels is not None:
        known = np.concatenate([rows.labels for rows in waiting])
        columns["labels"] = arrow.array(known, arrow.int64())
    return arrow.table({PARQUET[name]: column for name, column in columns.items()})


def _taken(waiting: list[Rows], most: int) -> list[Rows]:
    """Take the first `most` rows out of `waiting`, or all if they are fewer."""
    taken: list[Rows] = []
    while waiting and most > 0:
        rows = waiting.pop(0)
        part, rest = rows.split(most)
        taken.append(part)
        most -= len(part.indices)
        if len(rest.indices):
            waiting.insert(0, rest)
    return taken


@contextlib.contextmanager
def writing(draft: epath.Path, content: Callable[[], str]) -> Iterator[Callable[[Rows], None]]:
    """Write the file `draft`: yields a function that is called with rows, a few at a time.

    `content` returns the facts, and is called at the end.
    """
    arrow = _arrow()
    waiting: list[Rows] = []
    writer = None

    def flush(most: int) -> None:
        """Write `most` of the waiting rows, or all if they are fewer."""
        nonlocal writer
        if not waiting:
            return
        table = _table(arrow, _taken(waiting, most))
        if writer is None:
            # Floating-point numbers hardly compress, and compression takes time.
            writer = arrow.parquet.ParquetWriter(
                str(draft),
                table.schema,
                use_dictionary=False,
                compression="none",
                write_page_checksum=True,
            )
        writer.write_table(table, row_group_size=columns_lib.BLOCK)

    def write(rows: Rows) -> None:
        waiting.append(rows)
        # Groups of one size, so that the file does not show in which parts the rows came.
        while sum(len(rows.indices) for rows in waiting) >= columns_lib.BLOCK:
            flush(columns_lib.BLOCK)

    mark = secrets.token_hex(32).encode()
    try:
        yield write
        flush(columns_lib.BLOCK)
        if writer is not None:
            writer.add_key_value_metadata({FACTS: content(), DIGEST: mark})
    finally:
        if writer is not None:
            writer.close()
    if writer is not None:
        _seal(draft, mark)


def _footer(file: BinaryIO) -> tuple[int, bytes]:
    """Return where the footer begins, and its bytes.

    Its length and Parquet's mark follow it, eight bytes.
    """
    end = file.seek(0, 2)
    file.seek(max(end - 8, 0))
    length = int.from_bytes(file.read(4), "little")
    start = end - 8 - length
    if start < 4:
        raise ValueError("its footer is cut off")
    file.seek(start)
    return start, file.read(length)


def _digest(footer: bytes, mark: bytes) -> bytes:
    return hashlib.sha256(footer.replace(mark, b"0" * len(mark))).hexdigest().encode()


def _seal(draft: epath.Path, mark: bytes) -> None:
    """Put the digest of the footer where `mark` stands in it."""
    with open(draft, "r+b") as file:
        start, footer = _footer(file)
        file.seek(start + footer.index(mark))
        file.write(_digest(footer, mark))


class Parquet:
    """A features file of columns in a .parquet, whoever wrote it.

    Features are lists of numbers of any type, names text, the rest whole numbers; none is null.
    """

    def __init__(self, path: str):
        """Open the file `path`, which stays open; raises UserError where it is no features file."""
        self._path, self._arrow = path, _arrow()
        with user_errors(path):
            file = files.open_regular(path)
            _, footer = _footer(file)
            self._file = self._arrow.parquet.ParquetFile(
                file, pre_buffer=False, buffer_size=BUFFER, page_checksum_verification=True
            )
            self._metadata = self._file.metadata
            metadata = self._metadata.metadata or {}
            if DIGEST in metadata and _digest(footer, metadata[DIGEST]) != metadata[DIGEST]:
                raise ValueError("the digest of its footer is another")
            if FACTS not in metadata:
                raise ValueError("it has no facts")
            self.facts = facts_lib.checked(columns_lib.parsed(metadata[FACTS], path), path)
            self.columns = self._examined()
            number = self._metadata.num_rows
            self.number = columns_lib.require(path, self.columns, {"features": number})
            # The type may lack the list's length, or be wrong about it: the first row shows it.
            self.width = 0
            self.width = len(next(self._pass("features", 1)).ravel())

    def _examined(self) -> set[str]:
        """Return the columns of a table that are there; raises UserError where a type is wrong."""
        schema, types, columns = self._file.schema_arrow, self._arrow.types, set()
        meant: dict[str, tuple[Callable[[Any], bool], str]] = {
            "features": (self._is_numbers, "lists of numbers"),
            "names": (self._is_text, "text"),
            "indices": (types.is_integer, "whole numbers"),
            "labels": (types.is_integer, "whole numbers"),
        }
        for name, (fits, words) in meant.items():
            places = schema.get_all_field_indices(PARQUET[name])
            if len(places) > 1:
                raise ValueError(f"it has two columns called {PARQUET[name]}")
            if not places:
                continue
            kind = schema.field(places[0]).type
            is_wide = kind == self._arrow.uint64() and name != "features"
            if is_wide or not fits(kind):
                raise UserError(
                    f"{self._path}: the column {PARQUET[name]} is of type {kind}; "
                    f"it must hold {words}"
                )
            columns.add(name)
        return columns

    def _is_numbers(self, kind: Any) -> bool:
        types = self._arrow.types
        lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
        if not any(is_list(kind) for is_list in lists):
            return False
        return types.is_floating(kind.value_type) or types.is_integer(kind.value_type)

    def _is_text(self, kind: Any) -> bool:
        types = self._arrow.types
        if types.is_dictionary(kind):
            return self._is_text(kind.value_type)
        return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)

    def _pass(self, column: str, rows: int = 0) -> Iterator[np.ndarray]:
        """Yield the whole column, `rows` at a time; 0: as many as memory should hold."""
        at_once, done = rows or columns_lib.at_once(4 * self.width), 0
        for batch in self._file.iter_batches(at_once, columns=[PARQUET[column]], use_threads=False):
            yield self._values(column, batch.column(0), done)
            done += len(batch)
        if done != self.number:
            raise ValueError(f"{column} of {done:,} rows are there; there must be {self.number:,}")

    def _values(self, column: str, batch: Any, first: int) -> np.ndarray:
        """Return the rows of a batch, from row `first` on.

        Raises:
            UserError: one is null or too short.
        """
        if column == "names":
            names = np.asarray([None, *batch.to_pylist()], object)[1:]
            self._refuse(column, np.asarray([name is None for name in names]), first, "is null")
            return names
        self._refuse(column, ~np.asarray(batch.is_valid()), first, "is null")
        if column != "features":
            return np.asarray(batch.to_numpy(zero_copy_only=False), np.int64)
        lengths: np.ndarray = np.asarray(self._arrow.compute.list_value_length(batch))
        width = self.width or int(lengths[0])
        if not width:
            raise UserError(f"{self._path}: features of row {first:,} hold no numbers")
        self._refuse(
            column,
            np.asarray(lengths != width),
            first,
            f"is not of {width:,} numbers, as others are",
        )
        values = batch.flatten()
        holes = np.logical_not(np.asarray(values.is_valid()).reshape(-1, width)).any(1)
        self._refuse(column, holes, first, "holds a null")
        return columns_lib.as_float32(values.to_numpy().reshape(-1, width))

    def _refuse(self, column: str, odd: np.ndarray, first: int, why: str) -> None:
        if odd.any():
            raise UserError(
                f"{self._path}: in column {PARQUET[column]} row {first + int(odd.argmax()):,}"
                f" {why}; every row needs its own, so take such rows out"
            )

    def blocks(self, column: str) -> Iterator[np.ndarray]:
        with user_errors(self._path):
            yield from self._pass(column)

    def take(self, column: str, rows: np.ndarray) -> np.ndarray:
        with user_errors(self._path):
            return columns_lib.picked(self._pass(column), np.asarray(rows))

    peek = take
