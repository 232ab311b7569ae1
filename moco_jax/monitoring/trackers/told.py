"""The events of a run as one text, for trackers that cannot add lines to what they have."""

import time
from collections.abc import Mapping
from typing import Any

KEPT = 1000  # latest events; of some a run may have one a step
SECONDS = 30.0  # between two sendings of them all; a finding is sent at once


class Told:
    """Collects events as rows of step, name and text.

    Attributes:
        rows: the latest ones, oldest first.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self.rows: list[tuple[int, str, str]] = []
        self._sent, self._changed, self._hurries = 0.0, False, False

    def add(self, step: int, event: Mapping[str, Any]) -> None:
        """Add an event, the content of an `Item`, at `step`."""
        self.rows = [*self.rows[1 - KEPT :], (step, event["name"], event["text"])]
        self._changed = True
        self._hurries |= event["name"].startswith("finding/")

    def due(self, at_once: bool = False) -> bool:
        """Whether they are to be sent now, which is then taken as done."""
        now = time.monotonic()
        if not self._changed or not (at_once or self._hurries or now - self._sent >= SECONDS):
            return False
        self._sent, self._changed, self._hurries = now, False, False
        return True
