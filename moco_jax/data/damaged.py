"""The list of images that a run could not decode, of all its processes together."""

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

from moco_jax.base.errors import UserError

if TYPE_CHECKING:
    from moco_jax.parallel.hosts import Board

LOOK = 5.0  # seconds between two looks at what other processes have found

T = TypeVar("T")


class DamagedImages:
    """Collects the names of images that could not be decoded, and ends a run at too many.

    Attributes:
        names: those that this process met.
    """

    def __init__(self, limit: int, board: "Board | None" = None):
        """Tolerate at most `limit` different damaged images, of all processes of the `board`."""
        self.limit = limit
        self.names: dict[str, None] = {}
        self._board, self._looked = board, time.monotonic()

    def add(self, name: str) -> None:
        """Count and name a damaged image; raises UserError with the list above the limit."""
        if name in self.names:
            return
        self.names[name] = None
        logging.warning("damaged image %d, replaced by the next: %s", len(self.names), name)
        self._require_few(list(self.names))
        if self._board is not None:
            self._board.show(list(self.names))

    def everywhere(self) -> list[str]:
        """Return the names of those that the processes have met until now, each once."""
        shown = [] if self._board is None else self._board.all()
        return list(dict.fromkeys([*self.names, *(name for names in shown for name in names)]))

    def counted(self, batches: Iterator[T], first: bool) -> Iterator[T]:
        """Yield `batches`; on the `first` process look at times at what all have met.

        Raises:
            UserError: too many images are damaged.
        """
        for batch in batches:
            if first and time.monotonic() - self._looked > LOOK:
                self._looked = time.monotonic()
                self._require_few(self.everywhere())
            yield batch

    def _require_few(self, names: list[str]) -> None:
        if len(names) > self.limit:
            raise UserError(
                f"more than max_bad_images={self.limit} damaged images; mend or remove them, or"
                f" raise the limit: {', '.join(names)}"
            )
