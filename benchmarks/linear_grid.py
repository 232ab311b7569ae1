"""Times the steps of a grid of linear classifiers, many a call beside one a call.

    python -m benchmarks.linear_grid                                # of a ResNet-18, CIFAR-10
    python -m benchmarks.linear_grid --dim=2048 --classes=1000 --rates=3 --batch=1024

`moco_jax.evaluation.grid.fit` trains all classifiers in three ways, in turns: each step a call of
its own with features sent by the host, many steps a call with theirs sent together, and with
features that lie on the devices. What is left out on a CPU is the third, as that has no memory of
its own. Features are made up; compiling is not counted. Printed are seconds and seconds of
processor a step, and whether the classifiers are the same.
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
from absl import app, flags

from benchmarks import machine
from moco_jax.base.console import table
from moco_jax.evaluation import grid
from moco_jax.parallel import mesh as mesh_lib

IMAGES = flags.DEFINE_integer("images", 45_000, "Rows of features.", 1)
DIM = flags.DEFINE_integer("dim", 512, "Numbers in each.", 1)
CLASSES = flags.DEFINE_integer("classes", 10, "Of the images.", 2)
RATES = flags.DEFINE_integer("rates", 9, "Learning rates; with four decays, and BN or not.", 1, 9)
BATCH = flags.DEFINE_integer("batch", 256, "Rows a step.", 1)
EPOCHS = flags.DEFINE_integer("epochs", 1, "Of each training.", 1)
TIMES = flags.DEFINE_integer("times", 3, "Turns; the median is printed.", 1)
ONE, MANY, HELD = "one step a call", "many steps a call", "many, features on the devices"


def trained(features: np.ndarray, classes: np.ndarray, name: str) -> dict:
    """Train all classifiers in the way `name`; return seconds, seconds of processor and them."""
    sent, stay = grid.SENT, grid._stay_on_the_host
    grid.SENT = 1 if name == ONE else sent
    grid._stay_on_the_host = lambda *_: name != HELD
    settings = grid.FitSettings(CLASSES.value, epochs=EPOCHS.value, batch_size=BATCH.value)
    tried, mesh = grid.Grid(grid.RATES[: RATES.value]), mesh_lib.create_mesh()
    began, cpu = time.perf_counter(), time.process_time()
    fitted = grid.fit([features], classes, tried, mesh, settings, lambda _: None)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    grid.SENT, grid._stay_on_the_host = sent, stay
    found = mesh_lib.to_hosts(mesh, fitted.classifiers)
    return {"seconds": seconds, "cpu": cpu, "found": found}


def main(argv: list[str]) -> None:
    """Train in each way, compare, and print."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, CLASSES.value, IMAGES.value)
    centres = rng.standard_normal((CLASSES.value, DIM.value), np.float32)
    features = centres[classes] + 2 * rng.standard_normal((IMAGES.value, DIM.value), np.float32)
    steps = EPOCHS.value * -(-IMAGES.value // BATCH.value)
    names = [ONE, MANY] + ([] if jax.default_backend() == "cpu" else [HELD])
    print(machine.describe())
    print(
        f"{2 * RATES.value * len(grid.DECAYS)} classifiers of {CLASSES.value} classes,"
        f" {IMAGES.value:,} x {DIM.value:,} features, batches of {BATCH.value}, {steps} steps"
    )
    for name in names:
        trained(features, classes, name)
    runs = [{name: trained(features, classes, name) for name in names} for _ in range(TIMES.value)]

    def median(what: str, name: str, over: str = "") -> float:
        return float(np.median([r[name][what] / (r[over][what] if over else 1) for r in runs]))

    rows = []
    for name in names:
        pairs = zip(runs[0][name]["found"], runs[0][ONE]["found"], strict=True)
        same = all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
        times = [f"{1e3 * median(what, name) / steps:.2f}" for what in ("seconds", "cpu")]
        ratios = [f"{1 / median(what, name, ONE):.2f}" for what in ("seconds", "cpu")]
        rows.append([name, *times, *ratios, "yes" if same else "but for rounding"])
    heads = ["", "ms a step", "CPU ms", "times as fast", "by CPU", "same to the bit"]
    print(table(heads, rows))


if __name__ == "__main__":
    app.run(main)
