"""Bounds how far a host runs ahead of its devices: what it has sent them lies in their memory."""

from collections import deque
from typing import Any

import jax

STEPS = 4  # that may be under way: enough for the devices never to wait for the host


class Ahead:
    """Waits, at each step, for the one `most` steps before it."""

    def __init__(self, most: int = STEPS):
        """Allow `most` steps to be under way."""
        self._most = most
        self._under_way: deque[Any] = deque()

    def wait(self, result: Any) -> None:
        """Take in what a step will return, and wait until no more than `most` are under way.

        `result`: arrays that nothing takes over (as a donated state would be).
        """
        self._under_way.append(result)
        if len(self._under_way) > self._most:
            jax.block_until_ready(self._under_way.popleft())
