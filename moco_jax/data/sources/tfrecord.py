"""TFRecord files: where their records lie, and sets without TFDS metadata, as packed ones."""

import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.data.sources import examples, index, shards, store
from moco_jax.data.sources.pixels import RGB, Decoding

_FRAME = 16  # eight bytes of length and four of checksum before a record, four of checksum after
_CHECKED_AT_ONCE = 256  # lengths whose checksums are computed together
ENDING = r"\.tfrecords?(-\d+-of-\d+)?"


class Slice(NamedTuple):
    """Records `skip` to `skip + take` of the file `path`; all from `skip` on if `take` is -1."""

    path: str
    skip: int
    take: int


def _crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1 ^ (table & 1) * 0x82F63B78).astype(np.uint32)
    return table


_CRC_TABLE = _crc_table()


def masked_crc(words: np.ndarray) -> np.ndarray:
    """Compute TFRecord's masked CRC-32C of rows of bytes uint8 `[n, k]`: uint32 `[n]`."""
    crc = np.full(len(words), 0xFFFFFFFF, np.uint32)
    for column in words.T:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ column) & 0xFF]
    crc = ~crc
    return (crc >> 15 | crc << 17) + np.uint32(0xA282EAD8)


def _require_sound(path: str, heads: list[bytes], offsets: list[int]) -> None:
    """Refuse the file `path` if the checksum of a record's length is wrong.

    `heads` are the twelve bytes before each record, `offsets` where the records begin.
    """
    bytes_ = np.frombuffer(b"".join(heads), np.uint8).reshape(-1, 12)
    wrong = np.flatnonzero(masked_crc(bytes_[:, :8]) != bytes_[:, 8:].copy().view("<u4")[:, 0])
    if len(wrong):
        raise _damaged(path, offsets[wrong[0] - len(heads)] - 12)


def _damaged(path: str, place: int) -> UserError:
    return UserError(
        f"{printable(path)} is cut off or damaged at byte {place}; prepare the dataset again or"
        " replace the file"
    )


def scan(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Find offsets int64 and lengths int32 of all records of one file.

    Raises:
        UserError: it is cut or damaged.
    """
    size = store.size(path)
    offsets, lengths, place, heads = [], [], 0, list[bytes]()
    with store.open_binary(path, store.AHEAD) as file:
        while place < size:
            file.seek(place)
            head = file.read(12)
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else size
            offsets.append(place + 12)
            lengths.append(length)
            heads.append(head.ljust(12, b"\0"))
            place += length + _FRAME
            # A wrong length leads anywhere, so lengths are checked before they are followed far.
            if len(heads) == _CHECKED_AT_ONCE or place >= size or length > index.LONGEST:
                _require_sound(path, heads, offsets)
                heads.clear()
            if place > size:
                raise _damaged(path, offsets[-1] - 12)
            if length > index.LONGEST:
                raise UserError(
                    f"{printable(path)} has a record of {length:,} bytes at byte"
                    f" {offsets[-1] - 12}; records of at most {index.LONGEST:,} can be read: write"
                    " smaller ones"
                )
    return np.asarray(offsets, np.int64), np.asarray(lengths, np.int32)


def build(slices: Sequence[Slice], cache: epath.Path | None) -> index.Places:
    """Find the places of the records of `slices`, kept in `cache` (see `index.cached`)."""

    def part(piece: Slice) -> tuple[np.ndarray, np.ndarray]:
        offsets, lengths = scan(piece.path)
        end = None if piece.take < 0 else piece.skip + piece.take
        return offsets[piece.skip : end], lengths[piece.skip : end]

    paths = [s.path for s in slices]
    signature = [
        f"{line} {s.skip} {s.take}" for line, s in zip(index.states(paths), slices, strict=True)
    ]
    arrays = index.cached(cache, signature, lambda: index.join(store.each(part, slices)))
    return index.Places(paths, **arrays)


class TFRecordSource(examples.ExampleSource):
    """The examples of TFRecord files; the first record shows which features they have."""

    def __init__(self, data_dir: str, index_dir: str | None = None, decoding: Decoding = RGB):
        """Open the files that `data_dir` means (see `shards.find`), with an index in `index_dir`.

        Raises:
            UserError: there is none, one is cut off, or they hold no images.
        """
        self.paths = paths = shards.find(data_dir, "tfrecord", ENDING)
        cache = index.cache_path(index_dir, f"tfrecord {data_dir}")
        records = index.FileRecords(build([Slice(p, 0, -1) for p in paths], cache))
        features = examples.first_features(records, data_dir)
        label = os.path.basename(data_dir.rstrip("/"))
        super().__init__(records, label, features, decoding, examples.packed_classes(paths))
