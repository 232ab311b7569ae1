"""Keeps off the console what Orbax's threads print when a save fails: the run raises the same itself, as one line."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any


class _Filter(logging.Filter):
    """Drops the tracebacks that Orbax logs, as `checkpoint.Checkpoints` hands errors on to the run, and its warnings."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is shown."""
        told = record.exc_info is not None or record.levelno <= logging.WARNING
        return not (told and f"{os.sep}orbax{os.sep}" in record.pathname)


class _Hook:
    """Passes over callbacks of file operations whose save had failed before they ended; all else goes on as before."""

    def __init__(self, before: Callable[[Any], Any]):
        """`before`: the hook that was in place."""
        self.before = before

    def __call__(self, found: Any) -> None:
        """Take in what Python could raise nowhere."""
        if not (
            isinstance(found.exc_value, RuntimeError) and "loop is closed" in str(found.exc_value)
        ):
            self.before(found)


def quiet() -> None:
    """From now on nothing of a failed save is printed but by the run; a second call changes nothing."""
    log = logging.getLogger("absl")
    if not any(isinstance(known, _Filter) for known in log.filters):
        log.addFilter(_Filter())
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
