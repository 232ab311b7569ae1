"""Silence for Orbax's threads, whose tracebacks of a failed save the run raises as one line."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any


class _Filter(logging.Filter):
    """Drops tracebacks and warnings that Orbax logs.

    `checkpoint.Checkpoints` hands the errors on to the run.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is shown."""
        told = record.exc_info is not None or record.levelno <= logging.WARNING
        return not (told and f"{os.sep}orbax{os.sep}" in record.pathname)


class _Hook:
    """Ignores errors in callbacks of file operations whose save has failed already."""

    def __init__(self, before: Callable[[Any], Any]):
        """Wrap the hook that was in place `before`."""
        self.before = before

    def __call__(self, unraisable: Any) -> None:
        """Handle an error that Python could raise nowhere."""
        if not (
            isinstance(unraisable.exc_value, RuntimeError)
            and "loop is closed" in str(unraisable.exc_value)
        ):
            self.before(unraisable)


def silence() -> None:
    """Keep Orbax from printing that a save failed; a second call changes nothing."""
    log = logging.getLogger("absl")
    if not any(isinstance(known, _Filter) for known in log.filters):
        log.addFilter(_Filter())
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
