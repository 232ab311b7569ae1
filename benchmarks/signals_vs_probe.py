"""Compares signals that need no labels with kNN and a linear probe, over checkpoints of runs.

    python -m benchmarks.signals_vs_probe --digits --out=DIR [--figure=docs/images/signals.png]
    python -m benchmarks.signals_vs_probe --out=DIR runs/mine runs/other ...

With `--digits` short runs on the digits are trained first, in DIR (`signals_parts/digit_runs.py`);
else runs are named by their workdirs, which need labels, and are best begun with a large `keep`.
The first table has rank correlations (Spearman) and seconds a signal, by pooled features and by
those after the head; the second when each run would have been told to stop. What is trained and
encoded is kept in DIR: the same command goes on where it was stopped.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
from absl import app, flags
from etils import epath

from benchmarks import machine
from benchmarks.signals_parts import compare, digit_runs, encode, figure, stopping
from moco_jax.base.console import table
from moco_jax.cli.command_line import set_up
from moco_jax.monitoring import run_log
from moco_jax.report.page import run as runs_lib
from moco_jax.training import loop
from moco_jax.weights.workdir import read_config

DIGITS = flags.DEFINE_bool("digits", False, "Train the short runs on the digits, and take these.")
OUT = flags.DEFINE_string("out", None, "Folder for what is trained and encoded.", required=True)
FIGURE = flags.DEFINE_string("figure", "", "PNG to draw; none if empty.")
DRAWN = tuple(f"{name}, backbone" for name in ("effective rank", "LiDAR", "uniformity"))


def train(out: Path) -> list[Path]:
    """Train the runs on the digits that are not at their end, and return their workdirs."""
    places = []
    for name in digit_runs.RUNS:
        place, config = out / "runs" / name, digit_runs.config_of(name)
        done = place / "checkpoints" / str(config.epochs * digit_runs.STEPS)
        if not done.exists():
            set_up(config)
            if loop.train(config, str(place), set()):
                sys.exit("stopped; the same command goes on from there")
        places.append(place)
    return places


def losses(workdir: Path) -> dict[int, float]:
    """Return the contrastive loss by step, of the records of the run in `workdir`."""
    return {r["step"]: r["loss"] for r in run_log.records(epath.Path(workdir)) if "loss" in r}


def read(workdir: Path, out: Path) -> list[compare.Reading]:
    """Read all checkpoints of the run in `workdir`; what is encoded is kept in `out`."""
    kept, known = out / "encoded", losses(workdir)
    kept.mkdir(parents=True, exist_ok=True)
    found = []
    for checkpoint in encode.checkpoints(workdir, kept):
        near = min(known, key=lambda step: abs(step - checkpoint.step), default=None)
        found.append(compare.read(checkpoint, None if near is None else known[near]))
    return found


def stops(workdir: Path) -> list[list[str]]:
    """Replay the scores of the run in `workdir`: rows on when it would have been told to stop."""
    (run,) = runs_lib.read([str(workdir)])
    return stopping.rows(run)


def main(argv: list[str]) -> None:
    """Encode, compare, and print the tables."""
    out = Path(OUT.value)
    places = train(out) if DIGITS.value else [Path(word) for word in argv[1:]]
    names = [place.name for place in places]
    if not names or len(set(names)) < len(names):
        sys.exit(f"give --digits, or workdirs whose folders have different names; got {names}")
    set_up(read_config(str(places[0])), own=False)
    readings = [reading for place in places for reading in read(place, out)]
    if not readings:
        sys.exit("there are no checkpoints in these workdirs")
    runs = len(compare.by_run(readings))
    print(f"{machine.describe()}, {jax.device_count()} x {jax.devices()[0].device_kind}")
    print(f"{len(readings)} checkpoints of {runs} runs; rank correlations (Spearman)")
    print(table(compare.HEADS, compare.rows(readings)))
    print(table(stopping.HEADS, [row for place in places for row in stops(place)]))
    if FIGURE.value:
        figure.draw(Path(FIGURE.value), readings, DRAWN)


if __name__ == "__main__":
    app.run(main)
