"""What both kinds of features file share: columns, block sizes, and errors on damage."""

import contextlib
import json
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.base.text import printable, to_line

BLOCK = 8192  # rows that are held at once at most
BYTES = 2**28  # bytes of a column that are held at once at most, for long rows
# Names of the columns in a .parquet, where each value belongs to one image.
PARQUET = {"features": "features", "names": "name", "indices": "index", "labels": "label"}
REQUIRED = ("features", "names")

# Exceptions of the readers of zip, NumPy's headers, Parquet and JSON on damaged files.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    MemoryError,
)


class Rows(NamedTuple):
    """Rows of a features file, an image each.

    Attributes:
        features: float32 `[n, D]`.
        names: n strings.
        indices: int64 `[n]`, places in the data set.
        labels: int64 `[n]`, or None where they are not known.
    """

    features: np.ndarray
    names: list[str]
    indices: np.ndarray
    labels: np.ndarray | None

    def split(self, at: int) -> tuple["Rows", "Rows"]:
        """Return the first `at` rows, and the others."""
        first, rest = (
            Rows(
                self.features[part],
                self.names[part],
                self.indices[part],
                None if self.labels is None else self.labels[part],
            )
            for part in (slice(at), slice(at, None))
        )
        return first, rest


@contextlib.contextmanager
def user_errors(path: str) -> Iterator[None]:
    """Turn any error that damage of the file `path` raises into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({_line(error.strerror or error)})") from error
    except _DAMAGE as error:
        raise UserError(
            f"{path} is damaged, or not written by python -m moco_jax.embed ({_line(error)})"
        ) from error


def _line(error: object) -> str:
    line = " ".join(str(error).split()) or type(error).__name__
    return printable(line[:200])


def require(path: str, columns: Iterable[str], rows: dict[str, int]) -> int:
    """Check the columns of a file and their lengths, and return the number of rows.

    Raises:
        UserError: a needed column is missing, there are no rows, or columns are of unequal
            length.
    """
    lacking = [name for name in REQUIRED if name not in set(columns)]
    if lacking:
        raise UserError(f"{path} has no {lacking[0]}; python -m moco_jax.embed writes them")
    number = rows["features"]
    if not number:
        raise UserError(f"{path} has no rows; python -m moco_jax.embed writes one for each image")
    for name, count in rows.items():
        if count != number:
            raise UserError(
                f"{path} is damaged: it has {number:,} features and "
                f"{count:,} {name}; there must be as many of each"
            )
    return number


def at_once(row_bytes: int) -> int:
    """Return how many rows of so many bytes are held at once."""
    return max(1, min(BLOCK, BYTES // max(row_bytes, 1)))


def as_float32(values: np.ndarray) -> np.ndarray:
    """Convert `values` to float32.

    What is beyond its range becomes infinite, and a search leaves it out.
    """
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)


def picked(blocks: Iterable[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Pick `rows` int `[n]`, in any order, from a column that passes by in blocks, all of them."""
    blocks_of_rows, places, first = [], [], 0
    for block in blocks:
        inside = np.flatnonzero((rows >= first) & (rows < first + len(block)))
        blocks_of_rows.append(block[rows[inside] - first])
        places.append(inside)
        first += len(block)
    values = np.concatenate(blocks_of_rows)
    if len(values) != len(rows):
        raise IndexError(f"rows {rows} of {first}")
    ordered = np.empty_like(values)
    ordered[np.concatenate(places)] = values
    return ordered


def plain(names: list[str]) -> list[str]:
    """Write names as lines of UTF-8, which differ where the names differ.

    `text.from_line` gives the names back.
    """
    return list(map(to_line, names))


def parsed(facts: str | bytes, path: str) -> Any:
    """Parse the JSON text `facts`; raises UserError where it is none."""
    try:
        return json.loads(facts)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: its facts are no JSON ({_line(error)})") from error
