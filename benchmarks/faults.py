"""Trains small runs that go wrong on purpose, and shows whether the diagnosis says so.

    python -m benchmarks.faults [--only=NAME] [--out=DIR]

Each run is a recipe of the digits in small with one fault put in; the first has none. Each row
shows the finding that was expected, and the warnings and faults that were reported, with the
step since which they hold. A run takes half a minute to two minutes on two cores.
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags
from etils import epath
from PIL import Image

from configs import digits
from moco_jax.base.console import table
from moco_jax.cli.command_line import set_up
from moco_jax.data import pipeline
from moco_jax.data.sources import open_source
from moco_jax.monitoring import run_log
from moco_jax.training import loop

ONLY = flags.DEFINE_string("only", "", "Name of the one run to train.")
OUT = flags.DEFINE_string(
    "out", "", "Folder of the runs, which stay there; a temporary one if empty."
)

SMALL: dict[str, Any] = dict(
    width=8,
    image_size=16,
    queue_size=512,
    epochs=10,
    log_every=5,
    monitor_every=2,
    knn_examples=300,
    eval_split="",
    workers=2,
)


@contextlib.contextmanager
def slow_source() -> Iterator[None]:
    """Delay every batch."""
    made = pipeline.train_batches

    def late(*arguments: Any, **named: Any):
        for batch in made(*arguments, **named):
            time.sleep(0.5)
            yield batch

    loop.pipeline.train_batches = late
    try:
        yield
    finally:
        loop.pipeline.train_batches = made


def tinted(folder: Path) -> dict[str, Any]:
    """Write digits, each on a background of its own colour, as a folder of classes.

    Returns the settings that read them.
    """
    source, rng = open_source("digits", "train", "", None), np.random.default_rng(0)
    chosen = np.arange(len(source))
    for image, label, number in zip(
        source.read(chosen), source.labels(chosen), chosen, strict=True
    ):
        colour = rng.integers(0, 256, 3)
        ink = image.astype(np.float32) / 255
        picture = (ink * 0.3 * 255 + (1 - ink) * colour).astype(np.uint8)
        place = folder / str(label) / f"{number:04}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place)
    return dict(dataset="folder", data_dir=str(folder), mean=(0.5,) * 3, std=(0.3,) * 3)


@dataclasses.dataclass(frozen=True)
class Fault:
    """A run, and the finding that should be reported on it.

    Attributes:
        name: of the fault.
        expected: name of the finding; '' where there should be no warning.
        settings: that differ from the digits' in small.
        around: a context that puts the fault in.
        images: writes other images to a folder, and returns the settings that read them.
    """

    name: str
    expected: str
    settings: dict[str, Any]
    around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    images: Callable[[Path], dict[str, Any]] | None = None


FAULTS = (
    Fault("none", "", {}),
    Fault(
        "no shuffled BatchNorm",
        "batch_norm_leak",
        dict(shuffle="none", bn_groups=16, shuffle_groups=4),
    ),
    Fault("lr x 100", "collapsed", dict(lr=6.0)),
    Fault("no momentum", "collapsed", dict(momentum=0.0)),
    Fault("momentum 0.9", "drift", dict(momentum=0.9)),
    Fault("collapsed head", "collapsed", dict(weight_decay=2.0)),
    Fault("slow source", "starved", dict(stop_at_step=40, monitor_every=0), slow_source),
    Fault(
        "tinted images", "shortcut", dict(queue_size=128, epochs=24, monitor_every=4), images=tinted
    ),
)


def run(fault: Fault, place: Path) -> list[str]:
    """Train with `fault` in the folder `place`, and return a row of the table."""
    config = digits.get_config()
    images = fault.images(place / "images") if fault.images else {}
    config.update(SMALL | images | fault.settings)
    set_up(config)
    with fault.around():
        loop.train(config, str(place / "run"), set())
    records = run_log.records(epath.Path(place / "run"))
    findings = [r for r in records if r.get("event") == "finding"]
    seen = [r for r in findings if r["severity"] != "note" or r["name"] == fault.expected]
    right = fault.expected in [r["name"] for r in seen] if fault.expected else not seen
    words = ", ".join(
        f"{r['severity']} {r['name']} (since {r['since_step']}, told at {r['step']})" for r in seen
    )
    return [fault.name, fault.expected or "-", words or "-", "yes" if right else "NO"]


def main(argv: list[str]) -> None:
    """Train the runs and print the table."""
    place = Path(OUT.value or tempfile.mkdtemp(prefix="faults_"))
    rows = []
    for fault in FAULTS:
        if ONLY.value in ("", fault.name):
            folder = place / fault.name.replace(" ", "_")
            shutil.rmtree(folder, ignore_errors=True)
            rows.append(run(fault, folder))
    print(table(["fault", "expected", "found", "as expected"], rows))
    if not OUT.value:
        shutil.rmtree(place)


if __name__ == "__main__":
    app.run(main)
