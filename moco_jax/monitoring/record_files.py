"""Where the lines of a run's records lie: one file here, segments in a bucket; readers join them.

In a bucket nothing can be appended to an object: it would be fetched and sent whole for each line.
There the lines of some time are written as one object, which is written again as long as it is
small. So the requests of a step, and the bytes of a request, do not grow with the run.
"""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from etils import epath

from moco_jax.base import files

NAME = "metrics.jsonl"
FOLDER = "metrics"  # holds the segments, in files numbered from 1
SECONDS = 10.0  # between two writings of a segment
FULL = 1000  # lines of a segment after which another one is begun
THREADS = 16  # segments that are read at once


def _segments(workdir: epath.Path) -> dict[int, epath.Path]:
    folder = workdir / FOLDER
    found = [p for p in folder.iterdir() if p.stem.isdecimal()] if folder.is_dir() else []
    return dict(sorted((int(path.stem), path) for path in found))


def paths(workdir: epath.Path) -> list[epath.Path]:
    """List the files of records that are in `workdir`, the oldest records first."""
    whole = [workdir / NAME] if (workdir / NAME).exists() else []
    return [*whole, *_segments(workdir).values()]


def read(workdir: epath.Path) -> list[tuple[epath.Path, bytes]]:
    """Read all files of records in `workdir`, the oldest records first.

    Raises:
        OSError: one cannot be read.
    """
    found = paths(workdir)
    with ThreadPoolExecutor(THREADS) as pool:
        return list(zip(found, pool.map(files.read, found), strict=True))


class Lines(Protocol):
    """Takes the lines of records of one run."""

    def append(self, line: bytes) -> None:
        """Add a line, which ends with its end of line."""

    def flush(self) -> None:
        """Write what is held back."""

    def idle(self) -> None:
        """Write what is held back for long; called now and then."""


class Appended:
    """Lines that are appended to one file, each at once."""

    def __init__(self, path: epath.Path):
        """Append to the file `path`."""
        self._path = path

    def append(self, line: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(line)

    def flush(self) -> None:
        """Do nothing: nothing is held back."""

    def idle(self) -> None:
        """Do nothing: nothing is held back."""


class Segments:
    """Lines that are held back for `SECONDS` and then written as an object of their own."""

    def __init__(
        self, workdir: epath.Path, number: int, clock: Callable[[], float] = time.monotonic
    ):
        """Write to segments of `workdir` that are counted from `number`."""
        self._folder, self._number, self._clock = workdir / FOLDER, number, clock
        self._lines: list[bytes] = []
        self._new, self._written = 0, clock()

    def append(self, line: bytes) -> None:
        self._lines.append(line)
        self._new += 1
        self.idle()

    def flush(self) -> None:
        if not self._new:
            return
        files.write(self._folder / f"{self._number:06}.jsonl", b"".join(self._lines))
        self._new, self._written = 0, self._clock()
        if len(self._lines) >= FULL:
            self._number, self._lines = self._number + 1, []

    def idle(self) -> None:
        if self._new and self._clock() - self._written >= SECONDS:
            self.flush()


def renew(
    workdir: epath.Path, kept: Sequence[tuple[epath.Path, list[dict[str, Any]], bool]]
) -> Lines:
    """Leave of the files of records what is `kept`, and return what takes the lines behind it.

    `kept`: path, records, and whether the file holds something else as well; one each file there
    is, in the order of `read`.
    """
    segments = _segments(workdir)
    if files.is_remote(workdir):
        for path, records, more in kept:
            if more and records:
                files.write(path, _lines_of(records))
            elif more:
                path.unlink()
        return Segments(workdir, max(segments, default=0) + 1)
    # Segments are here where a run was copied from a bucket.
    files.write(workdir / NAME, _lines_of([r for _, records, _ in kept for r in records]))
    for path in segments.values():
        path.unlink()
    return Appended(workdir / NAME)


def _lines_of(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()
