"""Measures how long a run takes to resume far into a billion examples, and its memory.

    python -m benchmarks.resume_anywhere [--examples=1000000000] [--step=1000000]

Timed is the first batch of step 0 and of step 1,000,000. The images are made from their number,
so that only order and views are measured, not a disk. The views of one host are also compared
with those of two, and of one worker with those of eight.
"""

import os
import resource
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

from moco_jax.base.console import table
from moco_jax.data import pipeline
from moco_jax.data.sources.pixels import RGB
from moco_jax.data.sources.records import pixels_of
from moco_jax.data.views import recipes

EXAMPLES = flags.DEFINE_integer("examples", 10**9, "Length of the synthetic dataset.")
STEP = flags.DEFINE_integer("step", 10**6, "The step at which a run goes on.")
SIDE, BATCH = 32, 1024


class Numbered:
    """Images that are made from their number when they are read."""

    record_spec, decoding = pixels_of((SIDE, SIDE, 3)), RGB

    def __len__(self) -> int:
        """Return as many as the flag says."""
        return EXAMPLES.value

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Make images, uint8 `[n, SIDE, SIDE, 3]`."""
        pixels = np.arange(SIDE * SIDE * 3, dtype=np.int64)
        return (
            ((indices[:, None] * 2654435761 + pixels * 97) >> 7)
            .astype(np.uint8)
            .reshape(-1, SIDE, SIDE, 3)
        )

    def encoded(self, record: bytes) -> bytes:
        """Return the record, which is the image: there is nothing to decode."""
        return record

    def labels(self, indices: np.ndarray) -> None:
        """Return None: there are no labels."""

    def name(self, index: int) -> str:
        """Return the number."""
        return f"image {index}"


def first_batch(step: int, rows: np.ndarray, workers: int) -> tuple[pipeline.Rows, float]:
    """Return the batch after `step` steps, and the seconds from opening the dataset to it."""
    began = time.perf_counter()
    batches = pipeline.train_batches(
        Numbered(),
        recipes.create("cifar", SIDE),
        seed=0,
        batch_size=BATCH,
        rows=rows,
        examples_seen=step * BATCH,
        workers=workers,
        damaged=pipeline.DamagedImages(0),
    )
    batch = next(batches)
    return batch, time.perf_counter() - began


def megabytes() -> float:
    """Return the largest memory that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: list[str]) -> None:
    """Measure and print."""
    everyone = np.arange(BATCH)
    first_batch(0, everyone, 2)  # so that TensorFlow has started before time is taken
    rows = []
    for step in (0, STEP.value, 0, STEP.value):
        before = megabytes()
        seconds = first_batch(step, everyone, 2)[1]
        rows.append(
            [f"{step:,}", f"{seconds:.2f}", f"{megabytes():.0f}", f"{megabytes() - before:.0f}"]
        )
    print(f"{EXAMPLES.value:,} examples, batch {BATCH}")
    print(table(["step", "s to the first batch", "MB of the process", "MB more"], rows))
    whole = first_batch(STEP.value, everyone, 1)[0]
    many = first_batch(STEP.value, everyone, 8)[0]
    halves = [first_batch(STEP.value, half, 2)[0] for half in np.split(everyone, 2)]
    same = {
        "1 and 8 workers": all(np.array_equal(whole[k], many[k]) for k in whole),
        "1 and 2 hosts": all(
            np.array_equal(whole[k], np.concatenate([h[k] for h in halves])) for k in whole
        ),
    }
    for name, equal in same.items():
        print(f"views of {name}: {'identical' if equal else 'DIFFERENT'}")


if __name__ == "__main__":
    app.run(main)
