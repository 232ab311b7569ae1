"""The class of an image: a number, a name where the source has names, or nothing.

A missing label is a value of its own, `MISSING`. It is no class, and equals nothing, not even
another missing label.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.base.text import printable

if TYPE_CHECKING:
    from moco_jax.data.sources import Source

MISSING = -1  # also what TFDS writes for images without a label
LARGEST = 2**63 - 1  # the largest class number
WANTED = f"a class is a number from 0 to {LARGEST}, and {MISSING} says that there is none"


def checked(numbers: np.ndarray, name: Callable[[int], str]) -> np.ndarray:
    """Return class `numbers` of any integer type `[N]` as int64.

    `name`: what a message calls image n of them.

    Raises:
        UserError: one is no class number, nor `MISSING`.
    """
    numbers = np.asarray(numbers)
    if numbers.dtype.kind not in "iub":
        raise UserError(f"the classes of {name(0)} and others are {numbers.dtype}; {WANTED}")
    wrong = np.flatnonzero((numbers < MISSING) | (numbers > LARGEST))
    if len(wrong):
        first = int(wrong[0])
        raise UserError(f"{name(first)} has the class {numbers[first]}; {WANTED}")
    return numbers.astype(np.int64)


def known(source: "Source", indices: np.ndarray) -> np.ndarray | None:
    """Return the classes int64 `[n]` of images `indices` int `[n]`, `MISSING` for none.

    None where no image has one.
    """
    stored = source.labels(indices)
    if stored is None:
        return None
    numbers = np.asarray(stored, np.int64)
    return numbers if (numbers >= 0).any() else None


def called(classes: Sequence[str], number: int) -> str:
    """Return the name of class `number` on one line, or the number itself; '' for `MISSING`."""
    if number < 0:
        return ""
    name = classes[number] if number < len(classes) else ""
    return printable(name) if name else str(number)


def listed(words: Sequence[str], most: int = 5) -> str:
    """Return the first of `words`, names of classes or folders, on one line; others are counted."""
    more = f" and {len(words) - most:,} more" if len(words) > most else ""
    return ", ".join(map(printable, words[:most])) + more
