"""An index of where each record of TFRecord files lies, so that they can be read in any order."""

import io
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from moco_jax import files
from moco_jax.errors import UserError

_FRAME = (
    16  # eight bytes of length and four of its checksum before a record, four of checksum after
)


class Slice(NamedTuple):
    """Records `skip` to `skip + take` of the file `path`."""

    path: str
    skip: int
    take: int


class RecordIndex(NamedTuple):
    """Sixteen bytes a record: `file` int32 `[N]` (into `paths`), `offset` int64 `[N]`, `length` int32 `[N]`."""

    paths: list[str]
    file: np.ndarray
    offset: np.ndarray
    length: np.ndarray


def scan(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Offsets int64 and lengths int32 of all records of one file; UserError where it is cut or damaged."""
    size = epath.Path(path).stat().length
    offsets, lengths, place = [], [], 0
    with open(path, "rb") as file:
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


def build(slices: Sequence[Slice], cache: epath.Path | None) -> RecordIndex:
    """The index of `slices`, in their order.

    `cache`: an .npz that is used if it was made from the same files at the same sizes, and written otherwise.
    """
    paths = [s.path for s in slices]
    signature = np.asarray(
        [f"{s.path} {epath.Path(s.path).stat().length} {s.skip} {s.take}" for s in slices]
    )
    if cache is not None and cache.exists():
        with cache.open("rb") as file, np.load(file) as saved:
            if np.array_equal(saved["signature"], signature):
                return RecordIndex(paths, saved["number"], saved["offset"], saved["length"])
    numbers, offsets, lengths = [], [], []
    for number, part in enumerate(slices):
        offset, length = scan(part.path)
        end = None if part.take < 0 else part.skip + part.take
        offsets.append(offset[part.skip : end])
        lengths.append(length[part.skip : end])
        numbers.append(np.full(len(offsets[-1]), number, np.int32))
    index = RecordIndex(paths, *map(np.concatenate, (numbers, offsets, lengths)))
    if cache is not None:
        try:
            content = io.BytesIO()
            np.savez(
                content,
                signature=signature,
                number=index.file,
                offset=index.offset,
                length=index.length,
            )
            files.write(cache, content.getvalue())
        except OSError as error:
            raise UserError(
                f"the index of records cannot be written to {cache} ({error.strerror}); give a workdir of yours"
            ) from error
    return index
