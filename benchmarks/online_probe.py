"""Compares training's steps a second with an online probe and without it.

    python -m benchmarks.online_probe [--recipes=digits,cifar10:cpu --steps=150 --runs=5]

Whole runs of `moco_jax.main`'s own loop, of each recipe's encoder and batch; `cifar10:cpu` trains
on random images of CIFAR-10's size, of ten classes. The two take turns in one process, with one
compiled step; beside the medians stand their spread and their ratio.
"""

import contextlib
import io
import os
import tempfile
import time
from pathlib import Path
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from benchmarks import machine
from configs import cifar10, digits
from moco_jax.base import allocator
from moco_jax.base.console import table
from moco_jax.data.sources.memory import ArraySource
from moco_jax.training import assembly, loop

RECIPES = flags.DEFINE_list("recipes", ["digits", "cifar10:cpu"], "Which of the two.")
STEPS = flags.DEFINE_integer("steps", 150, "Steps that are timed in a run.")
RUNS = flags.DEFINE_integer("runs", 5, "Runs of each.")
WARM_UP = 10  # steps before the clock starts
IMAGES = 4096  # random ones
FORMS = {"without": False, "with": True}


def config_of(recipe: str) -> ConfigDict:
    """Make the settings of a run that does nothing but train and log."""
    config = digits.get_config() if recipe == "digits" else cifar10.get_config("cpu")
    config.update(
        monitor_every=10**6,  # not 0, which is without a probe
        epochs=1000,
        checkpoint_every=10**6,
        augment_on="resident",
        log_every=10,
        stop_at_step=WARM_UP + STEPS.value,
    )
    if recipe != "digits":
        config.dataset, config.eval_split = "digits", ""  # a name; `images_of` makes the images
    return config


def images_of(recipe: str) -> contextlib.AbstractContextManager:
    """Give a context in which the run's images are those of `recipe`."""
    if recipe == "digits":
        return contextlib.nullcontext()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
    source = ArraySource(images, rng.integers(0, 10, IMAGES), "random images")
    return mock.patch.object(assembly, "open_images", return_value=source)


def steps_a_second(config: ConfigDict) -> float:
    """Train, and return the steps a second until the last record of the timed steps is written."""
    after, times, last = loop.Loop.after, {}, WARM_UP + STEPS.value

    def timed(self: loop.Loop, step: int, *arguments, **named) -> None:
        if step == last:
            self.clock.cut().read()  # waits for the step, before a checkpoint is written
            times[step] = time.perf_counter()
            return
        after(self, step, *arguments, **named)
        if step == WARM_UP:
            self.journal.written()()
            times[step] = time.perf_counter()

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(loop.Loop, "after", timed),
        mock.patch.object(loop.Scores, "before_training"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        loop.train(config, str(Path(folder) / "run"), set())
    return STEPS.value / (times[last] - times[WARM_UP])


def compare(recipe: str) -> list[list[str]]:
    """Let runs with and without a probe take turns; return rows of the table."""
    config = config_of(recipe)
    found: dict[str, list[float]] = {name: [] for name in FORMS}
    with images_of(recipe):
        built = loop.build(config, "")
        compiled = built.program.compile_step()
        with (
            mock.patch.object(loop, "build", return_value=built),
            mock.patch.object(assembly.Program, "compile_step", return_value=compiled),
        ):
            for turn in range(RUNS.value):
                names = list(FORMS) if turn % 2 else list(FORMS)[::-1]
                for name in names:
                    config.online_probe = FORMS[name]
                    found[name].append(steps_a_second(config))
    usual = float(np.median(found["without"]))
    return [
        [
            f"{recipe}, {name}",
            f"{np.median(rates):.2f}",
            f"{min(rates):.2f} to {max(rates):.2f}",
            f"{np.median(rates) / usual:.3f}",
        ]
        for name, rates in found.items()
    ]


def main(argv: list[str]) -> None:
    """Print the table."""
    allocator.keep_freed_memory()  # as commands do
    rows = [row for recipe in RECIPES.value for row in compare(recipe)]
    device = jax.devices()[0].device_kind
    print(
        f"{machine.describe()}, {jax.device_count()} x {device}; medians of {RUNS.value} runs of"
        f" {STEPS.value} steps in turn"
    )
    print(table(["recipe, online probe", "steps/s", "from, to", "over without"], rows))


if __name__ == "__main__":
    app.run(main)
