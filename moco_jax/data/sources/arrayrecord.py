"""ArrayRecord files, each record an encoded image or a tf.train.Example.

The files keep an index of their own.
"""

import importlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from moco_jax.base import packages
from moco_jax.base.errors import UserError
from moco_jax.base.text import is_utf8, printable
from moco_jax.data.sources import examples, names, shards
from moco_jax.data.sources.pixels import RGB, Decoding, is_image
from moco_jax.data.sources.tfrecord import Slice

ENDING = r"\.(array_?record|arecord)(-\d+-of-\d+)?"


def _library(module: str):
    try:
        return importlib.import_module(f"array_record.python.{module}")
    except ImportError as error:
        raise UserError(
            "ArrayRecord files need the package array_record: "
            + packages.how_to_have(["array_record"])
        ) from error


def writer(path: str):
    """Open the file `path` to write records: `write(bytes)` and `close()`.

    Each record is a group of its own, so that it can be read alone.
    """
    return _library("array_record_module").ArrayRecordWriter(path, "group_size:1")


class ArrayRecords:
    """The records of slices of ArrayRecord files, by number."""

    def __init__(self, slices: Sequence[Slice]):
        """Open `slices`; raises UserError if the package is missing or a file cannot be read."""
        odd = next((s.path for s in slices if not is_utf8(s.path)), "")
        if odd:
            raise UserError(
                f"{printable(odd)} is no name in UTF-8, as ArrayRecord files must have; rename it"
            )
        try:
            self._data = _library("array_record_data_source").ArrayRecordDataSource(
                [s.path if s.take < 0 else f"{s.path}[{s.skip}:{s.skip + s.take}]" for s in slices]
            )
        except RuntimeError as error:
            raise UserError(
                f"an ArrayRecord file is damaged or cannot be read: {printable(str(error))};"
                " replace it"
            ) from error
        called = names.short([piece.path for piece in slices])
        parts = zip(called, slices, strict=True)
        self._parts = [f"{name} {piece.skip} {piece.take}" for name, piece in parts]

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._data)

    def identity(self) -> list[Any]:
        """Return the names of the files, and which of their records are taken."""
        return [self._parts]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Read records, object `[n]` of bytes; empty where one cannot be read."""
        out = np.empty(len(indices), object)
        try:
            out[:] = self._data.__getitems__(indices.tolist())
        except RuntimeError:  # the whole call fails, whichever record is damaged
            out[:] = [self._one(index) for index in indices.tolist()]
        return out

    def _one(self, index: int) -> bytes:
        try:
            return self._data[index]
        except RuntimeError:
            return b""

    def where(self, index: int) -> str:
        """Return the number of the record, as messages give it."""
        return f"record {index}"


class ArrayRecordSource(examples.ExampleSource):
    """The images of ArrayRecord files; the first record shows what kind the records are."""

    def __init__(self, data_dir: str, decoding: Decoding = RGB):
        """Open the files that `data_dir` means (see `shards.find`).

        Raises:
            UserError: the package is missing, or there is no file, or they hold no images.
        """
        self.paths = paths = shards.find(data_dir, "array_record", ENDING)
        records = ArrayRecords([Slice(path, 0, -1) for path in paths])
        label = os.path.basename(data_dir.rstrip("/"))
        first = records.read(np.arange(min(len(records), 1)))
        self._bare = bool(len(first)) and is_image(first[0])
        features = examples.Features("")
        if not self._bare:
            features = examples.first_features(records, data_dir)
        classes = [] if self._bare else examples.packed_classes(paths)
        super().__init__(records, label, features, decoding, classes)

    def encoded(self, record: bytes) -> bytes:
        """Return the record, or the image feature of the example that it is."""
        return record if self._bare else super().encoded(record)
