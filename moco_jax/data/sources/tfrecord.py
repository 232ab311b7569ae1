"""TFRecord files: where their records lie, and sets in them that have no TFDS metadata, such as packed ones."""

import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from moco_jax.data.sources import examples, index, shards, store
from moco_jax.data.sources.pixels import RGB, Decoding
from moco_jax.errors import UserError

_FRAME = (
    16  # eight bytes of length and four of its checksum before a record, four of checksum after
)
ENDING = r"\.tfrecords?(-\d+-of-\d+)?"


class Slice(NamedTuple):
    """Records `skip` to `skip + take` of the file `path`; all from `skip` on where `take` is -1."""

    path: str
    skip: int
    take: int


def scan(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Offsets int64 and lengths int32 of all records of one file; UserError where it is cut or damaged."""
    size = store.size(path)
    offsets, lengths, place = [], [], 0
    with store.open_binary(path) as file:
        while place < size:
            file.seek(place)
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
            if place + length + _FRAME > size:
                raise UserError(
                    f"{path} is cut off or damaged at byte {place}; prepare the dataset again or replace the file"
                )
            offsets.append(place + 12)
            lengths.append(length)
            place += length + _FRAME
    return np.asarray(offsets, np.int64), np.asarray(lengths, np.int32)


def build(slices: Sequence[Slice], cache: epath.Path | None) -> index.Places:
    """The places of the records of `slices`, in their order; kept in `cache` (see `index.cached`)."""

    def part(piece: Slice) -> tuple[np.ndarray, np.ndarray]:
        offsets, lengths = scan(piece.path)
        end = None if piece.take < 0 else piece.skip + piece.take
        return offsets[piece.skip : end], lengths[piece.skip : end]

    paths = [s.path for s in slices]
    signature = [
        f"{line} {s.skip} {s.take}" for line, s in zip(index.sizes(paths), slices, strict=True)
    ]
    arrays = index.cached(cache, signature, lambda: index.join(store.each(part, slices)))
    return index.Places(paths, **arrays)


class TFRecordSource(examples.ExampleSource):
    """The examples of TFRecord files; which features they have is seen from the first."""

    def __init__(self, data_dir: str, index_dir: str | None = None, decoding: Decoding = RGB):
        """Open the files that `data_dir` means (see `shards.find`); keep their index in `index_dir`.

        Raises:
            UserError: there is none, one is cut off, or they hold no images.
        """
        paths = shards.find(data_dir, "tfrecord", ENDING)
        cache = index.cache_path(index_dir, f"tfrecord {data_dir}")
        records = index.FileRecords(build([Slice(p, 0, -1) for p in paths], cache))
        found = examples.first_features(records, data_dir)
        label = os.path.basename(data_dir.rstrip("/"))
        super().__init__(records, label, found, decoding, examples.packed_classes(paths))
