"""Very many strings in little memory: one block of bytes and where each ends."""

from collections.abc import Iterable

import numpy as np


class Names:
    """Strings by number, in their length plus eight bytes each; a list takes some sixty bytes more."""

    def __init__(self, strings: Iterable[str]):
        """Take `strings` in, in their order."""
        parts = [string.encode("utf-8", "surrogateescape") for string in strings]
        self._block = b"".join(parts)
        self._ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return len(self._block) + self._ends.nbytes

    def __len__(self) -> int:
        """How many there are."""
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:
        """String `number`; IndexError past the end."""
        start, end = self._ends[number], self._ends[number + 1]
        return self._block[start:end].decode("utf-8", "surrogateescape")
