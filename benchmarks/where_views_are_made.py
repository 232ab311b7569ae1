r"""Compares training's images a second with each `augment_on`: host, device and resident.

    python -m benchmarks.where_views_are_made [--dataset=tfds:cifar10 --data_dir=TFDS] \
        [--arch=resnet18 --width=64]

The steps are those of `configs/cifar10.py` on its images, or on the digits without `--dataset`,
with an encoder that is small unless told otherwise. The forms take turns, and the median of the
turns counts. Beside it stands what the host alone can send, which is the most that a fast device
would get. On a CPU views and steps share the cores, so that nothing is gained there but the
host's own waiting.
"""

import contextlib
import os
import time
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
from absl import app, flags

from benchmarks import machine
from configs import cifar10
from moco_jax.base import allocator
from moco_jax.base.console import Console, table
from moco_jax.data import pipeline
from moco_jax.training import assembly, feed

DATASET = flags.DEFINE_string(
    "dataset", "digits", "'digits', or 'tfds:NAME' of images of one size."
)
DATA_DIR = flags.DEFINE_string("data_dir", "", "The TFDS data directory.")
AUGMENT = flags.DEFINE_string("augment", "cifar", "Which views.")
ARCH = flags.DEFINE_string("arch", "resnet10", "Encoder.")
WIDTH = flags.DEFINE_integer("width", 8, "Channels of its first stage.")
BATCH = flags.DEFINE_integer("batch", 256, "Images a step.")
STEPS = flags.DEFINE_integer("steps", 20, "Steps of a turn.")
TURNS = flags.DEFINE_integer("turns", 3, "Turns of each form.")
FORMS = "host", "device", "resident"
MADE_AHEAD = 8  # batches that may be ready from before a turn


class Run:
    """A training run of one form, as the loop puts it together."""

    def __init__(self, form: str):
        """Build and compile the run, and load its images."""
        config = cifar10.get_config()
        config.update(
            dataset=DATASET.value,
            data_dir=DATA_DIR.value,
            eval_split="",
            augment=AUGMENT.value,
            augment_on=form,
            arch=ARCH.value,
            width=WIDTH.value,
            stem="cifar_stride2",
            batch_size=BATCH.value,
            queue_size=8 * BATCH.value,
        )
        self.setup = assembly.build(config, "")
        self.state = self.setup.program.initial()
        self.step = self.setup.program.compile_step()
        self.rows, images = feed.open_batches(
            config, self.setup, 0, pipeline.DamagedImages(0), Console()
        )
        self.batches = feed.device_batches(self.rows, self.setup.program, images)

    def turn(self, steps: int) -> tuple[float, float]:
        """Return images a second over so many steps, and the share of time spent on waiting."""
        waited, began = 0.0, 0.0
        for number in range(MADE_AHEAD + steps):
            if number == MADE_AHEAD:
                jax.block_until_ready(self.state)
                waited, began = 0.0, time.perf_counter()
            asked = time.perf_counter()
            batch = next(self.batches).batch
            waited += time.perf_counter() - asked
            self.state, metrics, _ = self.step(self.state, batch)
        jax.block_until_ready(metrics)
        elapsed = time.perf_counter() - began
        return steps * BATCH.value / elapsed, waited / elapsed

    def sent(self, seconds: float) -> float:
        """Return images a second that the host alone makes ready."""
        for _ in range(MADE_AHEAD):
            next(self.rows)
        count, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            count += len(next(self.rows)["index"])
        return count / elapsed


@contextlib.contextmanager
def running() -> Iterator[dict[str, Run]]:
    """Open the runs of all three forms, and close them at the end."""
    runs = {form: Run(form) for form in FORMS}
    try:
        yield runs
    finally:
        for run in runs.values():
            run.rows.close()


def main(argv: list[str]) -> None:
    """Let the forms take turns, and print the table."""
    allocator.keep_freed_memory()  # as commands do
    with running() as runs:
        turns = [
            {form: run.turn(STEPS.value) for form, run in runs.items()} for _ in range(TURNS.value)
        ]
        sent = {form: run.sent(5) for form, run in runs.items()}
        shape = runs["resident"].setup.resident_shape
    device = jax.devices()[0].device_kind
    print(
        f"{machine.describe()}, {jax.device_count()} x {device}; {DATASET.value} {shape}, views"
        f" {AUGMENT.value}, {ARCH.value} of width {WIDTH.value}, batch {BATCH.value}"
    )
    rate = {f: float(np.median([turn[f][0] for turn in turns])) for f in FORMS}
    rows = [
        [
            f"augment_on={form!r}",
            f"{rate[form]:.0f}",
            f"{rate[form] / rate['host']:.2f}",
            f"{np.median([turn[form][1] for turn in turns]):.0%}",
            f"{sent[form]:,.0f}",
            f"{sent[form] / sent['host']:.2f}",
        ]
        for form in FORMS
    ]
    print(table(["views", "images/s", "over host", "waiting", "host sends/s", "over host"], rows))


if __name__ == "__main__":
    app.run(main)
