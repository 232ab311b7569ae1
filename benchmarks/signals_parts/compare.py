"""Compares signals with what labels say: rank correlations over checkpoints, and what they cost."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.signals_parts.encode import KINDS, Checkpoint
from moco_jax.monitoring import signals

# What is taken of each checkpoint: name -> function of evaluation views `[M, D]` and drawn views
# `[N, Q, D]`, and whether it needs the latter.
SIGNALS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], float | None], bool]] = {
    "effective rank": (lambda still, views: signals.effective_rank(still), False),
    "decay of the spectrum": (lambda still, views: signals.spectrum_decay(still), False),
    "uniformity": (lambda still, views: signals.uniformity(still), False),
    "alignment": (lambda still, views: signals.alignment(views), True),
    "LiDAR": (lambda still, views: signals.lidar(views), True),
}
LOSS = "contrastive loss"


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the rank correlation of two rows of numbers; ties have the mean of their ranks.

    NaN where one of them does not vary.
    """
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (x, y)]
    off = [r - r.mean() for r in ranks]
    norm = np.sqrt(np.sum(off[0] ** 2) * np.sum(off[1] ** 2))
    return float(np.sum(off[0] * off[1]) / norm) if norm else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


@dataclasses.dataclass(frozen=True)
class Reading:
    """The numbers of one checkpoint.

    Attributes:
        run, step, knn, probe: as of the checkpoint.
        signals: name, with the kind of features -> value; NaN where there is none.
        seconds: name -> time that it took, without the encoding of views.
        encoding: 'evaluation views' and 'drawn views' -> time that their encoding took.
    """

    run: str
    step: int
    knn: float
    probe: float
    signals: dict[str, float]
    seconds: dict[str, float]
    encoding: dict[str, float]


def read(checkpoint: Checkpoint, loss: float | None) -> Reading:
    """Compute all signals of a checkpoint; `loss`: the contrastive loss there, if it is known."""
    values: dict[str, float] = {LOSS: float("nan") if loss is None else loss}
    seconds: dict[str, float] = {}
    for kind in KINDS:
        still, views = checkpoint.still[kind][:1024], checkpoint.views[kind]
        for name, (of, _) in SIGNALS.items():
            began = time.perf_counter()
            found = of(still, views)
            seconds[f"{name}, {kind}"] = time.perf_counter() - began
            values[f"{name}, {kind}"] = float("nan") if found is None else found
    encoding = {name: checkpoint.seconds[name] for name in ("evaluation views", "drawn views")}
    c = checkpoint
    return Reading(c.run, c.step, c.knn, c.probe, values, seconds, encoding)


HEADS = [
    "signal",
    "all: kNN",
    "all: probe",
    "in a run: median",
    "in a run: weakest",
    "last of runs",
    "seconds",
]


def rows(readings: Sequence[Reading]) -> list[list[str]]:
    """Make the table, a signal a row, under `HEADS`: rank correlations, and what they cost.

    Correlated are all checkpoints with kNN and with the probe; those of each run with kNN, of which
    the median and the weakest are shown (the farthest from the median's sign); and the last ones of
    the runs with kNN. The signal that tells most within a run comes first.
    """
    made = [_row(readings, name) for name in readings[0].signals]
    return [row for _, row in sorted(made, key=lambda m: -m[0])]


def _row(readings: Sequence[Reading], name: str) -> tuple[float, list[str]]:
    runs = by_run(readings).values()
    within = [w for w in (_between(run, name, "knn") for run in runs) if np.isfinite(w)]
    median = float(np.median(within)) if within else 0.0
    sign = 1 if median >= 0 else -1
    numbers = [
        _between(readings, name, "knn"),
        _between(readings, name, "probe"),
        median,
        sign * min((sign * w for w in within), default=float("nan")),
        _between([run[-1] for run in runs], name, "knn"),
    ]
    return abs(median), [name, *(f"{n:+.2f}" for n in numbers), _cost(readings, name)]


def _between(some: Sequence[Reading], name: str, other: str) -> float:
    known = [r for r in some if np.isfinite(r.signals[name])]
    return spearman([r.signals[name] for r in known], [getattr(r, other) for r in known])


def _cost(readings: Sequence[Reading], name: str) -> str:
    if name == LOSS:
        return "0"
    own = float(np.median([r.seconds[name] for r in readings]))
    if not SIGNALS[name.split(", ")[0]][1]:
        return f"{own:.2f}"
    views = float(np.median([r.encoding["drawn views"] for r in readings]))
    return f"{own:.2f} + {views:.1f} for views"


def by_run(readings: Sequence[Reading]) -> dict[str, list[Reading]]:
    """Group readings by their runs, in order."""
    found: dict[str, list[Reading]] = {}
    for reading in readings:
        found.setdefault(reading.run, []).append(reading)
    return found
