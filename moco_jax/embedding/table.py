"""The features file: a row for each image, and what made the features.

It is written and read in parts, so that memory never holds it all. `.npz` holds the arrays
`features` float32 `[N, D]`, `names` str `[N]`, `indices` int64 `[N]` (places in the data set),
`labels` int64 `[N]` where they are known, and `facts`, JSON. `.parquet` holds the same as the
columns `features`, `name`, `index`, `label`, and the facts in its metadata under `moco_jax`.
Features are as the encoder gives them, of any length. Both have checksums: a file that was
altered or cut is refused, however little of it is read.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from moco_jax.base import files
from moco_jax.base.console import size
from moco_jax.base.errors import UserError
from moco_jax.embedding import npz, parquet
from moco_jax.embedding.columns import BLOCK, PARQUET, Rows, plain
from moco_jax.embedding.facts import FORMAT

__all__ = [
    "BLOCK",
    "PARQUET",
    "Rows",
    "Table",
    "opened",
    "plain",
    "require_a_place",
    "require_room",
    "writing",
]

Write = Callable[[Rows], None]
ENDINGS = (".npz", ".parquet")


def require_a_place(path: str) -> None:
    """UserError where `path` is not what `writing` writes, whatever there is to be written."""
    place = files.absolute(path)
    if place.suffix not in ENDINGS or files.is_remote(path):
        raise UserError(f"out={path!r} is no file here that ends in {' or '.join(ENDINGS)}")
    if place.is_dir():
        raise UserError(f"out={path} is a folder; give the name of a file, or move the folder away")


@contextlib.contextmanager
def writing(path: str, facts: Mapping[str, Any]) -> Iterator[Write]:
    """Write the file `path`, whole or not at all: yields a function that is called with rows.

    Args:
        path: .npz or .parquet, on this machine.
        facts: kept beside the rows, as they are when the block ends.

    Raises:
        UserError: another ending, a package is missing, or the file cannot be written.
    """
    kinds: dict[str, Any] = {".npz": npz.writing, ".parquet": parquet.writing}
    require_a_place(path)
    place = files.absolute(path)

    def content() -> str:
        return json.dumps({"format": FORMAT, **facts})

    try:
        with files.draft(place) as draft, kinds[place.suffix](draft, content) as write:
            yield write
    except OSError as error:
        why = error.strerror or error
        raise UserError(
            f"out={path} cannot be written ({why}); make room, or give another place"
        ) from error


def require_room(path: str, number: int, width: int) -> None:
    """Refuse a `path` whose disk has no room for so many features of this width.

    Room is also needed for what is kept while the file is written.
    """
    place = files.absolute(path)
    # In an .npz the shape stands before the features but is known after them, so that the features
    # are first kept in a file of their own.
    needed = 4 * number * width * (2 if place.suffix == ".npz" else 1)
    free = shutil.disk_usage(place.parent).free
    if needed > free:
        raise UserError(
            f"out={path} needs {size(needed)} while it is written, and its disk has {size(free)};"
            " make room, or give another place"
        )


class Table(Protocol):
    """A features file that is read in parts.

    Each method raises a UserError where the file turns out to be damaged.

    Attributes:
        facts: what made it.
        number: N, its rows, at least one.
        width: D, of the features, at least one.
        columns: those of 'features', 'names', 'indices' and 'labels' it has; always the first
            two.
    """

    facts: dict[str, Any]
    number: int
    width: int
    columns: set[str]

    def blocks(self, column: str) -> Iterator[np.ndarray]:
        """Yield the whole column, `BLOCK` rows at a time: `[n, D]` for features, else `[n]`.

        Blocks may be trusted once all of them have come; the last may be smaller.
        """

    def take(self, column: str, rows: np.ndarray) -> np.ndarray:
        """Return `rows` int `[n]` of a column, all of which is verified if it has not been yet."""

    def peek(self, column: str, rows: np.ndarray) -> np.ndarray:
        """Return `rows` int `[n]` of a column without verifying it.

        The rows may be trusted only once all `blocks` of the column have come.
        """


def opened(path: str) -> Table:
    """Open the features file `path`; raises UserError where it is none."""
    kinds: dict[str, Any] = {".npz": npz.Npz, ".parquet": parquet.Parquet}
    place = files.absolute(path)
    if place.suffix not in kinds or files.is_remote(path):
        raise UserError(f"{path!r} is no features file here; they end in {' or '.join(kinds)}")
    table: Table = kinds[place.suffix](path)
    return table
