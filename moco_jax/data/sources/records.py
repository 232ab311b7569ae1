"""What stands for one image before it is decoded: its encoded bytes, or its pixels."""

from typing import Any, NamedTuple

import numpy as np


class RecordSpec(NamedTuple):
    """Shape and NumPy dtype of one record of a source.

    Attributes:
        shape: `()` for encoded bytes, `[H, W, C]` for pixels.
        dtype: object for encoded bytes, uint8 for pixels.
    """

    shape: tuple[int, ...]
    dtype: Any


ENCODED = RecordSpec((), np.dtype(object))


def pixels_of(shape: tuple[int, ...]) -> RecordSpec:
    """Return the spec of records that are images uint8 of this `shape` `[H, W, C]`."""
    return RecordSpec(tuple(shape), np.dtype(np.uint8))
