"""Parquet files with a column of encoded images, as Hugging Face's hub has them.

Images are read one by one, in any order, by an index of where each lies (`parquet_pages.py`). The
package pyarrow reads what the files say of themselves, and the column of classes.
"""

import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.base.storage import Refused, Unreachable
from moco_jax.base.text import printable
from moco_jax.data.sources import image_columns, index, parquet_pages, shards, store, tables
from moco_jax.data.sources.image_columns import Columns
from moco_jax.data.sources.names import Names
from moco_jax.data.sources.pixels import RGB, Decoding
from moco_jax.data.sources.spans import BLOCKS, NONE, SpanRecords, columns, table
from moco_jax.data.sources.tables import Classes, TableSource, pyarrow

ENDING = r"\.(parquet|pq)"
_FORMAT = "1"  # of the index
_SCANNERS = 4  # files that are gone through at once, each with a page in memory
_MOST_READ = 4.0  # bytes read for each byte of an image above which a remark says so


def _opened(path: str) -> tuple[Any, Any]:
    """Open the file `path`: the file itself, and pyarrow's reader of it.

    Raises:
        UserError: it is no Parquet file.
    """
    library = pyarrow("dataset='parquet'")
    file = store.open_binary(path, store.AHEAD)
    try:
        return file, library.parquet.ParquetFile(file)
    except (Refused, Unreachable):
        raise
    except (library.ArrowException, OSError) as error:
        file.close()
        raise _damaged(path, error) from error


def _damaged(path: str, error: Exception) -> UserError:
    why = next(iter(str(error).splitlines()), type(error).__name__)
    return UserError(
        f"{printable(path)} is no Parquet file, cut off or damaged ({printable(why)}); replace it"
    )


class _Scanned(NamedTuple):
    """What one file holds: spans of images int64 `[n, 6]`, and classes."""

    spans: np.ndarray
    classes: Classes


def _scan(path: str, wanted: Columns, like: Any) -> _Scanned:
    """Find the images and classes of one file.

    `like`: the schema of the first file, which must have the same columns.

    Raises:
        UserError: it is damaged, or lacks a column, or its images cannot be read one by one.
    """
    file, reader = _opened(path)
    with file:
        schema = reader.schema_arrow
        for name in filter(None, (wanted.image, wanted.label)):
            there = schema.field(name).type if name in schema.names else "not there"
            if there != like.field(name).type:
                raise UserError(
                    f"{printable(path)}: the column {printable(name)!r} is {there}, and in the"
                    f" first file {like.field(name).type}; give files of one kind"
                )
        # An error of the system, as of a bucket that refuses, is none of the file's content.
        damage = (ValueError, LookupError, TypeError, struct.error, reader_error())
        try:
            spans = _spans(file, reader, wanted.leaf)
            if not wanted.label:
                return _Scanned(spans, tables.NO_CLASSES)
            column = reader.read(columns=[wanted.label]).column(wanted.label)
            return _Scanned(spans, tables.classes_in(column))
        except UserError as error:
            raise UserError(f"{printable(path)}: {error}") from error
        except parquet_pages.Unfit as error:
            raise UserError(
                f"{printable(path)}: the column {printable(wanted.leaf)!r} {error}, so that no"
                " image can be read alone; write it anew, as pyarrow does by default"
            ) from error
        except damage as error:
            raise _damaged(path, error) from error


def reader_error() -> type[Exception]:
    """Return the class of pyarrow's errors."""
    return pyarrow("dataset='parquet'").ArrowException


def _spans(file: Any, reader: Any, leaf: str) -> np.ndarray:
    """Find all values of the column `leaf`, in the order of the rows: int64 `[n, 6]`."""
    facts, parts = reader.metadata, [table([])]
    for group in range(facts.num_row_groups):
        row_group = facts.row_group(group)
        places = range(row_group.num_columns)
        chunks = {row_group.column(place).path_in_schema: place for place in places}
        chunk, kind = row_group.column(chunks[leaf]), reader.schema.column(chunks[leaf])
        starts = [chunk.data_page_offset]
        if chunk.has_dictionary_page and chunk.dictionary_page_offset:
            starts.append(chunk.dictionary_page_offset)
        codec = parquet_pages.codec_of(chunk.compression)
        level = kind.max_definition_level
        found = parquet_pages.Chunk(min(starts), chunk.num_values, codec, level)
        parts.append(table(parquet_pages.find(file, found)))
    spans = np.concatenate(parts)
    if len(spans) != facts.num_rows:
        raise ValueError(f"{len(spans)} images in {facts.num_rows} rows")
    return spans


def _arrays(paths: Sequence[str], wanted: Columns, like: Any) -> index.Arrays:
    """Build the arrays of the index of the files at `paths`."""
    with ThreadPoolExecutor(_SCANNERS) as pool:
        parts = list(pool.map(lambda path: _scan(path, wanted, like), paths))
    counts = [len(part.spans) for part in parts]
    classes = tables.joined([part.classes for part in parts])
    called = Names(classes.names)
    return columns(np.concatenate([part.spans for part in parts])) | {
        "file": np.repeat(np.arange(len(paths), dtype=np.int32), counts),
        "label": classes.numbers,
        "names": called.block,
        "ends": called.ends,
    }


class ParquetSource(TableSource):
    """The images in Parquet files.

    Of several columns one is taken, which `remarks` say, as they say where reading in any order
    costs much.
    """

    def __init__(
        self,
        data_dir: str,
        dataset: str = "parquet",
        index_dir: str | None = None,
        decoding: Decoding = RGB,
        paths: Sequence[str] = (),
    ):
        """Open the files that `data_dir` means (see `shards.find`), or the `paths` within it.

        Args:
            data_dir: a folder, a file or a pattern.
            dataset: the setting; behind a colon the columns of images and classes.
            index_dir: where the index is kept.
            decoding: how bytes become pixels.
            paths: the files, where it is known which.

        Raises:
            UserError: there is none, one is damaged, or they hold no images.
        """
        pyarrow(f"dataset={dataset!r}")
        paths = list(paths) or shards.find(data_dir, "parquet", ENDING)
        shown = f"data_dir={printable(data_dir)}"
        file, reader = _opened(paths[0])
        with file:
            like = reader.schema_arrow
        wanted = image_columns.choose(like, dataset, shown)
        cache = index.cache_path(index_dir, f"{dataset} {data_dir} {paths[0]}")
        signature = [_FORMAT, dataset, *index.states(paths)]
        arrays = index.cached(cache, signature, lambda: _arrays(paths, wanted, like))
        numbers = arrays.pop("label")
        met = Names.of(arrays.pop("names"), arrays.pop("ends"))
        records = SpanRecords(paths, arrays.pop("file"), arrays)
        classes = Classes(numbers, tuple(met[n] for n in range(len(met))))
        super().__init__(records, wanted, classes, shown, decoding)
        remark = _cost(shown, dataset, arrays)
        self.remarks += [remark] if remark else []


def _cost(shown: str, dataset: str, arrays: index.Arrays) -> str:
    """Say what reading in any order costs, where a whole page is read for each image; else ''."""
    whole = (arrays["codec"] != NONE) & (arrays["codec"] != BLOCKS)
    read = arrays["stored"].astype(np.int64).sum()
    ratio = read / max(int(arrays["length"].astype(np.int64).sum()), 1)
    if not whole.any() or ratio < _MOST_READ:
        return ""
    return (
        f"{shown}: {int(whole.sum()):,} images lie within larger compressed pages, so that training"
        f" reads {ratio:,.0f} times their bytes; pack them once: python -m moco_jax.pack"
        f" --dataset={printable(dataset)} --data_dir=... --out=OUT"
    )
