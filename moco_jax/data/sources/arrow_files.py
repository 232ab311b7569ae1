"""Finds the images in Arrow's files, in which they lie as they are, so that each is read alone.

Arrow's own reader says where they lie, from a map of the file into memory: a buffer's address less
the map's is a place in the file.
"""

from typing import Any

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.data.sources import spans, store, tables
from moco_jax.data.sources.image_columns import Columns
from moco_jax.data.sources.spans import NONE, Span
from moco_jax.data.sources.tables import Classes, pyarrow

_FILE = b"ARROW1"  # Arrow's format of files begins so; that of streams does not


class Mapped:
    """An Arrow file that is mapped into memory.

    Attributes:
        path: of the file.
        content: all its bytes.
        schema: of its tables.
        batches: the tables, which lie in `content`.
    """

    def __init__(self, path: str):
        """Map the file `path`.

        Raises:
            UserError: it is none, or cut off.
        """
        library, self.path = pyarrow("dataset='hf'"), path
        try:
            if not store.size(path):
                raise ValueError("it is empty")
            self.content = library.memory_map(path).read_buffer()
            head = self.content.slice(0, min(len(_FILE), self.content.size)).to_pybytes()
            if head == _FILE:
                reader = library.ipc.open_file(self.content)
                numbers = range(reader.num_record_batches)
                self.schema = reader.schema
                self.batches = [reader.get_batch(number) for number in numbers]
            else:
                stream = library.ipc.open_stream(self.content)
                self.schema, self.batches = stream.schema, list(stream)
        except FileNotFoundError as error:
            raise UserError(f"{printable(path)} is not there; save the set again") from error
        except (library.ArrowException, OSError, ValueError) as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"{printable(path)} is no Arrow file, cut off or damaged ({printable(why)}); save"
                " the set again"
            ) from error


def read(mapped: Mapped, wanted: Columns) -> tuple[np.ndarray, Classes]:
    """Find the images in the columns `wanted` of a file: spans int64 `[n, 6]`, and their classes.

    Raises:
        UserError: the file lacks a column, or its images do not lie there as they are.
    """
    parts, column = [spans.table([])], list[Any]()
    for batch in mapped.batches:
        names = batch.schema.names
        lacking = [name for name in (wanted.image, wanted.label) if name and name not in names]
        if lacking:
            raise UserError(
                f"{printable(mapped.path)} has no column {printable(lacking[0])!r}, which the first"
                " file has; save the set again"
            )
        parts.append(_places(mapped.path, mapped.content, batch.column(wanted.image)))
        column += [batch.column(wanted.label)] if wanted.label else []
    if not column:
        return np.concatenate(parts), tables.NO_CLASSES
    whole = pyarrow("dataset='hf'").chunked_array(column)
    return np.concatenate(parts), tables.classes_in(whole)


def _places(path: str, content: Any, column: Any) -> np.ndarray:
    """Find where each image of `column` lies in the mapped file `path`: int64 `[n, 6]`."""
    library = pyarrow("dataset='hf'")
    there = np.asarray(column.is_valid())
    if library.types.is_struct(column.type):
        column = column.field("bytes")
        there = there & np.asarray(column.is_valid())
    kind = np.int64 if library.types.is_large_binary(column.type) else np.int32
    _, ends, values = column.buffers()
    places = np.frombuffer(ends, kind)[column.offset : column.offset + len(column) + 1]
    places = places.astype(np.int64)
    made = np.zeros((len(column), len(Span._fields)), np.int64)
    if not len(column) or not there.any():
        return made
    first = values.address - content.address
    begins, lengths = first + places[:-1], np.diff(places)
    lengths = np.where(there, lengths, 0)
    if first < 0 or (lengths < 0).any() or (begins + lengths).max() > content.size:
        raise UserError(
            f"{printable(path)} is compressed or damaged, so that no image can be read alone; save"
            " the set again"
        )
    if lengths.max() > 2**31 - 1:
        raise UserError(f"{printable(path)} has an image of more than 2 GiB; take it out")
    fields = Span(begins, lengths, 0, 0, lengths, NONE)
    for place, values_ in enumerate(fields):
        made[:, place] = values_
    return made
