"""Parts of many files, here or in buckets, read many at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moco_jax.base.storage import bucket, failures, local

# Bytes between two parts of one file that are read with them: less than what another request
# costs. Headers of a TFRecord (16 bytes) and of a member of a tar (512 and more) are smaller.
GAP = 1 << 11
LARGEST = 1 << 23  # bytes of a request for several parts


def _raise_grave(results: Sequence[Any]) -> None:
    """Raise what hinders every reading: that parts are read as missing would hide it."""
    grave = (r for r in results if isinstance(r, failures.Refused | failures.Unreachable))
    if error := next(grave, None):
        raise error


def as_contents(results: Sequence[Any]) -> np.ndarray:
    """Return `results` of reading, bytes or errors, as object `[n]` of bytes, empty for an error.

    Raises:
        Refused, Unreachable: a bucket refuses access, or does not answer.
    """
    _raise_grave(results)
    out = np.empty(len(results), object)
    out[:] = [b"" if isinstance(result, Exception) else result for result in results]
    return out


def neighbours(
    files: np.ndarray, offsets: np.ndarray, lengths: np.ndarray
) -> list[tuple[int, int, int, list[int]]]:
    """Join parts that lie side by side in one file.

    Args:
        files: int `[n]`, the file of each part.
        offsets: int `[n]`, where it begins.
        lengths: int `[n]`, its bytes.

    Returns:
        For each request its file, where it begins and ends, and the numbers of its parts.
    """
    requests: list[tuple[int, int, int, list[int]]] = []
    for part in np.lexsort((offsets, files)).tolist():
        file, begin = int(files[part]), int(offsets[part])
        end = begin + int(lengths[part])
        if requests:
            last, start, stop, parts = requests[-1]
            if last == file and begin - stop <= GAP and end - start <= LARGEST:
                requests[-1] = (file, start, max(stop, end), [*parts, part])
                continue
        requests.append((file, begin, end, [part]))
    return requests


class Ranges:
    """Reads parts of many files, from any thread."""

    def __init__(self, paths: Sequence[str]):
        """Open those files of this machine that may stay open, unless others are in buckets."""
        self.paths = list(paths)
        self._local = None
        if not any("://" in path for path in self.paths):
            self._local = local.LocalRanges(self.paths)

    def read(self, file: int, offset: int, length: int) -> bytes:
        """Read `length` bytes of the file number `file` from `offset` on; fewer at its end."""
        if self._local is not None:
            return self._local.read(file, offset, length)
        (result,) = self._remote(np.asarray([file]), np.asarray([offset]), np.asarray([length]))
        if isinstance(result, Exception):
            raise result
        return result

    def read_many(self, files: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Read many parts: object `[n]` of bytes, empty where one cannot be read.

        Args:
            files: int `[n]`, places in `paths`.
            offsets: int `[n]`.
            lengths: int `[n]`, bytes.

        Raises:
            Refused, Unreachable: as `as_contents` does.
        """
        if self._local is None:
            return as_contents(self._remote(files, offsets, lengths))
        read = self._local.read

        def attempt(part: tuple[int, int, int]) -> bytes:
            try:
                return read(*part)
            except OSError:
                return b""

        parts = zip(files.tolist(), offsets.tolist(), lengths.tolist(), strict=True)
        return as_contents(local.each(attempt, parts))

    def _remote(self, files: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> list[Any]:
        requests = neighbours(files, offsets, lengths)
        paths = [self.paths[file] for file, *_ in requests]
        read = bucket.read_many(paths, [r[1] for r in requests], [r[2] for r in requests])
        results: list[Any] = [None] * len(files)
        for (_, start, _, parts), content in zip(requests, read, strict=True):
            for part in parts:
                begin = int(offsets[part]) - start
                whole = isinstance(content, Exception) or len(parts) == 1
                results[part] = content if whole else content[begin : begin + int(lengths[part])]
        return results
