"""Signals that ask a run to stop: noted, so that the loop saves its state before it ends."""

import os
import signal

import jax
from jax.experimental import multihost_utils


class StopSignals:
    """Notes SIGTERM and SIGINT, so that the loop can save and end; a second one ends at once.

    Where several processes run, either to any one of them is enough: SIGTERM is left to JAX's
    preemption service, which tells all of them and agrees on a step, and SIGINT is passed on as
    SIGTERM. A second SIGINT ends its process at once, and with it the others.
    """

    def __init__(self) -> None:
        """Take the signals over."""
        self.number = 0
        self._alone = jax.process_count() == 1
        names = (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,)
        self._before = {name: signal.signal(name, self._note) for name in names}

    def _note(self, number: int, frame) -> None:
        self.number = number
        # The second signal goes to the handlers of before, which end the process at once.
        self.release()
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)

    def asked(self, step: int) -> int:
        """Return the number of the signal that asks to stop after `step`, or 0.

        All processes stop after the same step. It is SIGTERM on those that got no signal.
        """
        if self._alone:
            return self.number
        stops = multihost_utils.reached_preemption_sync_point(step)
        return (self.number or signal.SIGTERM) if stops else 0

    def release(self) -> None:
        """Give both signals back to the handlers of before."""
        for name, handler in self._before.items():
            signal.signal(name, handler)
