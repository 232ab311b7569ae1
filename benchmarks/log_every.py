"""Compares training's steps a second with `log_every` 1, 10 and 1000.

    python -m benchmarks.log_every [--steps=400 --runs=5]

Whole runs of `moco_jax.main`'s own loop, on the digits, with a small encoder: records, TensorBoard,
diagnosis and console as always. The settings take turns; beside the medians stands the spread of
each, and the ratio to `log_every=1000`. The last row is a reference: a loop that waits after each
step until its numbers are written, as one does that reads them from the devices itself.
"""

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
from absl import app, flags

from benchmarks import machine
from configs import digits
from moco_jax.base.console import table
from moco_jax.training import assembly, loop

STEPS = flags.DEFINE_integer("steps", 400, "Steps that are timed in a run.")
RUNS = flags.DEFINE_integer("runs", 5, "Runs of each setting.")
WIDTH = flags.DEFINE_integer("width", 8, "Channels of the encoder's first stage.")
BATCH = flags.DEFINE_integer("batch", 64, "Images a step.")
SETTINGS = {"1": 1, "10": 10, "1000": 1000, "1, each step waits": 1}
REFERENCE = "1000"
WARM_UP = 60  # steps before the clock starts: TensorBoard's packages are loaded in them


def config_of(log_every: int):
    """Make the settings of a run that does nothing but train and log."""
    config = digits.get_config()
    config.update(
        width=WIDTH.value,
        batch_size=BATCH.value,
        queue_size=8 * BATCH.value,
        log_every=log_every,
        monitor_every=0,
        epochs=1000,
        checkpoint_every=10**6,
        augment_on="resident",
        stop_at_step=WARM_UP + STEPS.value + 1,
    )
    return config


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Let all runs in this context share one setup and one compiled step."""
    built = loop.build(config_of(1), "")
    step = built.program.compile_step()
    with (
        mock.patch.object(loop, "build", return_value=built),
        mock.patch.object(assembly.Program, "compile_step", return_value=step),
    ):
        yield


def steps_a_second(log_every: int, waits: bool) -> float:
    """Train, and return the steps a second until the last record of the timed steps is written."""
    after: Callable[..., None] = loop.Loop.after
    times: dict[int, float] = {}

    def timed(self: loop.Loop, step: int, *arguments, **named) -> None:
        after(self, step, *arguments, **named)
        last = WARM_UP + STEPS.value
        if waits or step in (WARM_UP, last):
            self.journal.written()()
        times[step] = time.perf_counter()

    quiet = contextlib.redirect_stdout(io.StringIO())
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(loop.Loop, "after", timed),
        quiet,
    ):
        loop.train(config_of(log_every), str(Path(folder) / "run"), set())
    return STEPS.value / (times[WARM_UP + STEPS.value] - times[WARM_UP])


def main(argv: list[str]) -> None:
    """Let the settings take turns, and print the table."""
    found: dict[str, list[float]] = {name: [] for name in SETTINGS}
    with compiled_once():
        for _ in range(RUNS.value):
            for name, log_every in SETTINGS.items():
                found[name].append(steps_a_second(log_every, "waits" in name))
    device = jax.devices()[0].device_kind
    print(
        f"{machine.describe()}, {jax.device_count()} x {device}; digits, width {WIDTH.value}, batch"
        f" {BATCH.value}; medians of {RUNS.value} runs of {STEPS.value} steps in turn"
    )
    usual = float(np.median(found[REFERENCE]))
    rows = [
        [
            name,
            f"{np.median(rates):.1f}",
            f"{min(rates):.1f} to {max(rates):.1f}",
            f"{(max(rates) - min(rates)) / np.median(rates):.1%}",
            f"{np.median(rates) / usual:.3f}",
        ]
        for name, rates in found.items()
    ]
    print(table(["log_every", "steps/s", "from, to", "spread", f"over {REFERENCE}"], rows))


if __name__ == "__main__":
    app.run(main)
