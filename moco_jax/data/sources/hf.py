"""Hugging Face's data sets on this machine: saved by `save_to_disk`, or the hub's Parquet folders.

A saved set is Arrow files, in which images lie as they are: they are read by file and place.
Arrow's own reader says where, from a memory map. Nothing is asked of the hub.
"""

import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.base.storage import is_remote
from moco_jax.base.text import printable
from moco_jax.data.sources import image_columns, shards, spans, store, tables
from moco_jax.data.sources.image_columns import Columns
from moco_jax.data.sources.labels import listed
from moco_jax.data.sources.parquet import ParquetSource
from moco_jax.data.sources.pixels import RGB, Decoding
from moco_jax.data.sources.spans import NONE, Span, SpanRecords
from moco_jax.data.sources.tables import TableSource, pyarrow

STATE, PARTS = "state.json", "dataset_dict.json"  # beside one saved set; beside its parts
_FILE = b"ARROW1"  # Arrow's format of files begins so; that of streams does not
_NUMBERED = re.compile(r"(.+?)-\d+-of-\d+(?:-\w+)?")  # train-00000-of-00002, and with a digest


def open_saved(
    data_dir: str,
    dataset: str = "hf",
    split: str = "train",
    index_dir: str | None = None,
    decoding: Decoding = RGB,
) -> TableSource:
    """Open the part `split` of the set in the folder `data_dir`.

    Args:
        data_dir: what `save_to_disk` was given, or a folder of the hub's Parquet files.
        dataset: the setting; behind a colon the columns of images and classes.
        split: the part.
        index_dir: where an index of Parquet files is kept.
        decoding: how bytes become pixels.

    Raises:
        UserError: it is no such folder, it has no such part, or the part no images.
    """
    pyarrow(f"dataset={dataset!r}")
    shown = f"data_dir={printable(data_dir)}" if data_dir else "data_dir=''"
    if not data_dir or not store.is_folder(data_dir):
        raise UserError(
            f"{shown} is no folder; give one that Dataset.save_to_disk wrote, or that holds the"
            " Parquet files of a set of the hub"
        )
    if store.is_file(os.path.join(data_dir, PARTS)):
        known = _json(os.path.join(data_dir, PARTS)).get("splits")
        parts = {str(name): os.path.join(data_dir, str(name)) for name in known or ()}
        return _saved(_part(parts, split, shown), dataset, decoding)
    state = os.path.join(data_dir, STATE)
    if store.is_file(state):
        parts = {str(_json(state).get("_split") or "train"): data_dir}
        return _saved(_part(parts, split, shown), dataset, decoding)
    paths = _part(_parquet_parts(data_dir, shown), split, shown)
    folders = sorted({os.path.dirname(path) for path in paths})
    if len(folders) > 1:
        raise UserError(
            f"{shown} holds {split} in several folders, {listed(folders)}, each a set of its own;"
            f" give one: data_dir={printable(folders[0])}"
        )
    return ParquetSource(data_dir, dataset, index_dir, decoding, paths)


def _json(path: str) -> dict[str, Any]:
    """Read the facts in the file `path`.

    Raises:
        UserError: it is damaged.
    """
    try:
        facts = json.loads(store.read(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{printable(path)} is damaged ({error}); save the set again") from error
    if not isinstance(facts, dict):
        raise UserError(f"{printable(path)} is damaged: it holds no facts; save the set again")
    return facts


def _part(parts: dict[str, Any], split: str, shown: str) -> Any:
    """Return the one of `parts` that `split` names.

    Raises:
        UserError: there is no such part.
    """
    if split not in parts:
        there = listed(sorted(parts)) if parts else "none"
        raise UserError(f"{shown} has no part split={split!r}; there is {there}")
    return parts[split]


def _parquet_parts(data_dir: str, shown: str) -> dict[str, list[str]]:
    """Return the Parquet files below `data_dir` by part: as names say it, or the folder's name.

    Raises:
        UserError: there is none, or a part lacks a file.
    """
    found: dict[str, list[str]] = {}
    by_folder: dict[str, list[str]] = {}
    for path in sorted(store.walk(data_dir)):
        folder, name = os.path.split(path)
        stem, ending = os.path.splitext(name)
        if ending.lower() != ".parquet":
            continue
        numbered = _NUMBERED.fullmatch(stem)
        part = numbered[1] if numbered else stem
        if stem.isdigit():  # default/train/0000.parquet
            part = os.path.basename(folder or data_dir.rstrip("/"))
        found.setdefault(part, []).append(os.path.join(data_dir, path))
        by_folder.setdefault(folder, []).append(name)
    if not found:
        raise UserError(
            f"{shown} holds neither {STATE} nor {PARTS}, as Dataset.save_to_disk writes them, nor a"
            " Parquet file; give the folder of a saved set, or of Parquet files"
        )
    for folder, called in by_folder.items():
        shards.complete(os.path.join(data_dir, folder), called)
    return found


def _saved(folder: str, dataset: str, decoding: Decoding) -> TableSource:
    """Open the one saved set in `folder`."""
    shown = f"data_dir={printable(folder)}"
    if is_remote(folder):
        raise UserError(
            f"{shown}: a saved set is read from a disk of this machine; copy it there, or write it"
            " as Parquet, which dataset='parquet' reads in buckets too"
        )
    state = _json(os.path.join(folder, STATE))
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UserError(
            f"{shown} was saved as a selection of rows; save it again after flatten_indices()"
        )
    try:
        paths = [os.path.join(folder, each["filename"]) for each in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{printable(os.path.join(folder, STATE))} names no files; save the set again"
        ) from error
    if not paths:
        raise UserError(f"{shown} holds no image: the set that was saved is empty")
    found: list[_File] = []
    wanted: Columns | None = None
    for path in paths:
        schema, batches = _batches(path)
        if wanted is None:
            wanted = image_columns.choose(schema, dataset, shown)
        found.append(_File(path, batches, wanted))
    assert wanted is not None
    counts = [len(file.spans) for file in found]
    files = np.repeat(np.arange(len(paths), dtype=np.int32), counts)
    arrays = spans.columns(np.concatenate([file.spans for file in found]))
    classes = tables.joined([file.classes for file in found])
    return TableSource(SpanRecords(paths, files, arrays), wanted, classes, shown, decoding)


def _damaged(path: str, error: Exception) -> UserError:
    why = next(iter(str(error).splitlines()), type(error).__name__)
    return UserError(
        f"{printable(path)} is no Arrow file, cut off or damaged ({printable(why)}); save the set"
        " again"
    )


def _batches(path: str) -> tuple[Any, "_Mapped"]:
    """Map the Arrow file `path`: its schema, and its tables with the address of its first byte.

    Raises:
        UserError: it is none, or cut off.
    """
    library = pyarrow("dataset='hf'")
    try:
        if not store.size(path):
            raise ValueError("it is empty")
        content = library.memory_map(path).read_buffer()
        is_file = content.slice(0, min(len(_FILE), content.size)).to_pybytes() == _FILE
        if is_file:
            reader = library.ipc.open_file(content)
            some = [reader.get_batch(number) for number in range(reader.num_record_batches)]
            return reader.schema, _Mapped(content, some)
        stream = library.ipc.open_stream(content)
        return stream.schema, _Mapped(content, list(stream))
    except FileNotFoundError as error:
        raise UserError(f"{printable(path)} is not there; save the set again") from error
    except (library.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from error


class _Mapped:
    """The tables of a file that is mapped into memory.

    Attributes:
        content: all bytes of the file.
        batches: its tables, which lie there.
    """

    def __init__(self, content: Any, batches: Sequence[Any]):
        self.content, self.batches = content, batches


class _File:
    """What one Arrow file holds.

    Attributes:
        spans: where its images are, int64 `[n, 6]`.
        classes: of its images.
    """

    def __init__(self, path: str, mapped: _Mapped, wanted: Columns):
        """Find the images in the tables `mapped` of the file `path`.

        Raises:
            UserError: it lacks a column, or its images do not lie there as they are.
        """
        parts, column = [spans.table([])], list[Any]()
        for batch in mapped.batches:
            names = batch.schema.names
            lacking = [n for n in (wanted.image, wanted.label) if n and n not in names]
            if lacking:
                raise UserError(
                    f"{printable(path)} has no column {printable(lacking[0])!r}, which the first"
                    " file has; save the set again"
                )
            parts.append(_places(path, mapped.content, batch.column(wanted.image)))
            column += [batch.column(wanted.label)] if wanted.label else []
        self.spans, self.classes = np.concatenate(parts), tables.NO_CLASSES
        if column:
            library = pyarrow("dataset='hf'")
            self.classes = tables.classes_in(library.chunked_array(column))


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
