"""Signals that ask a run to stop: noted, so that the loop saves its state before it ends."""

import signal

import jax
from jax.experimental import multihost_utils


class StopSignals:
    """Notes SIGTERM and SIGINT, so that the loop can save and end; a second one ends at once.

    Where several processes run, SIGTERM is left to JAX's preemption service, which tells all of
    them and agrees on a step.
    """

    def __init__(self) -> None:
        """Take both signals over."""
        self.number = 0
        alone = jax.process_count() == 1
        names = (signal.SIGTERM, signal.SIGINT) if alone else ()
        self._before = {name: signal.signal(name, self._note) for name in names}

    def _note(self, number: int, frame) -> None:
        self.number = number
        # The second signal goes to the handlers of before, which end the process at once.
        self.release()

    def asked(self, step: int) -> int:
        """Return the number of the signal that asks to stop after `step`, or 0.

        All processes get one answer, because they must leave the loop after the same step.
        """
        if jax.process_count() == 1:
            return self.number
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0

    def release(self) -> None:
        """Give both signals back to the handlers of before."""
        for name, handler in self._before.items():
            signal.signal(name, handler)
