"""What embedding and search share: how JAX starts, and the line that tells progress."""

import time

from absl import logging

from moco_jax import config as config_lib
from moco_jax.base import console as console_lib
from moco_jax.base.console import Console, Progress
from moco_jax.cli.command_line import set_up
from moco_jax.inference import trained_encoder


class Counter:
    """Progress as a count: how many are done, how fast, how long the rest takes.

    The clock starts with the first call, after compiling.
    """

    def __init__(self, console: Console, what: str, size: int):
        """Count `size` things, called `what`, on `console`."""
        self.show, self.what, self.size = Progress(console), what, size
        self.begun: tuple[float, int] | None = None

    def __call__(self, done: int) -> None:
        """Show that so many are `done`."""
        now = time.monotonic()
        if self.begun is None:
            self.begun = now, done
        began, before = self.begun
        if done == before:
            return
        rate = (done - before) / max(now - began, 1e-9)
        left = console_lib.duration((self.size - done) / rate)
        self.show(f"{done:,} of {self.size:,} {self.what}  {rate:,.0f} a second  left {left}")


def prepare(place: str | None) -> None:
    """Quiet logs, and tell JAX how to start: as the run in `place` says, if there is one."""
    is_run = place is not None and trained_encoder.is_run(place)
    config = trained_encoder.read_config(place) if place and is_run else config_lib.default_config()
    set_up(config, own=False)
    logging.set_verbosity(logging.ERROR)
