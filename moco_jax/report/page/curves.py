"""Arranges the records of several runs over epochs: a panel for each metric, as numbers."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from moco_jax.evaluation import published
from moco_jax.report.page.run import Run

MOST = 200  # points of a line at most; neighbours among more records are averaged


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number of the records.

    Attributes:
        key: its name in a record.
        title: for a person.
        percent: whether it is a share, shown as 0..100.
    """

    key: str
    title: str
    percent: bool = False


METRICS = (
    Metric("loss", "Contrastive loss"),
    Metric("top1", "Contrastive top-1", True),
    Metric("knn", "kNN accuracy", True),
    Metric("probe", "Online probe, on the images that kNN classifies", True),
    Metric("probe_train", "Online probe, on training views", True),
    Metric("drift", "Drift of the queue's keys"),
    Metric("effective_rank", "Effective rank of the features"),
    Metric("feature_spread", "Feature spread"),
    Metric("lidar", "LiDAR"),
    Metric("alignment", "Alignment of views"),
    Metric("uniformity", "Uniformity"),
    Metric("spectrum_decay", "Decay of the spectrum"),
    Metric("lr", "Learning rate"),
    Metric("momentum", "Momentum of the key encoder"),
    Metric("grad_norm", "Gradient norm"),
    Metric("images_per_second", "Images per second"),
    Metric("waiting_share", "Time spent waiting for images", True),
)


@dataclasses.dataclass(frozen=True)
class Line:
    """The values of one metric in one run.

    Attributes:
        run: number of the run on the page.
        x: float64 `[N]`, epochs, or steps where a run's epochs are not known.
        y: float64 `[N]`; per cent where the metric is a share.
        averaged: how many records a point is the mean of, at most.
    """

    run: int
    x: np.ndarray
    y: np.ndarray
    averaged: int


@dataclasses.dataclass(frozen=True)
class Level:
    """A value to compare lines with, as a dotted line.

    `run` is the number of the run it belongs to, None for all.
    """

    label: str
    value: float
    run: int | None


@dataclasses.dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        metric: the number that it shows.
        axis: 'epoch' or 'step'.
        lines: a run each; those without this metric are left out.
        levels: values to compare lines with.
        published: epochs and values of a published run, float64 `[M]` each, and its source; None
            where there is none.
    """

    metric: Metric
    axis: str
    lines: list[Line]
    levels: list[Level]
    published: tuple[np.ndarray, np.ndarray, str] | None


def thin(x: np.ndarray, y: np.ndarray, most: int = MOST) -> tuple[np.ndarray, np.ndarray, int]:
    """Average neighbouring points of `x` and `y` float64 `[N]`, so that at most `most` are left.

    Returns:
        `x`, `y`, and how many points are averaged in one, at most.
    """
    if len(x) <= most:
        return x, y, 1
    parts = np.array_split(np.arange(len(x)), most)
    with np.errstate(invalid="ignore"):  # the mean of both infinities is NaN, without a warning
        means = [np.asarray([values[part].mean() for part in parts]) for values in (x, y)]
    return means[0], means[1], len(parts[0])


def panels(runs: Sequence[Run]) -> list[Panel]:
    """Make a panel for each of `METRICS` that a run has records of."""
    axis = "step" if any(run.steps_per_epoch is None for run in runs) else "epoch"
    return [p for p in (_panel(metric, runs, axis) for metric in METRICS) if p.lines]


def _panel(metric: Metric, runs: Sequence[Run], axis: str) -> Panel:
    scale = 100 if metric.percent else 1
    lines = []
    for number, run in enumerate(runs):
        records = [r for r in run.records if metric.key in r and "event" not in r]
        if records:
            steps = [r["step"] for r in records]
            x = run.epochs(steps) if axis == "epoch" else np.asarray(steps, np.float64)
            y = scale * np.asarray([r[metric.key] for r in records], np.float64)
            lines.append(Line(number, *thin(x, y)))
    levels: list[Level] = []
    if metric.key == "loss":
        levels = _levels("chance", [run.chance for run in runs])
    else:
        raw = [_last(run, f"raw_{metric.key}", scale) for run in runs]
        levels = _levels("raw pixels", raw)
    return Panel(metric, axis, lines, levels, _published(metric, runs, axis, scale))


def _last(run: Run, key: str, scale: float) -> float | None:
    values = [r[key] for r in run.records if key in r]
    return scale * values[-1] if values else None


def _levels(label: str, values: Sequence[float | None]) -> list[Level]:
    known = {round(v, 9) for v in values if v is not None}
    if len(known) == 1 and None not in values:
        return [Level(label, known.pop(), None)]
    return [Level(label, v, n) for n, v in enumerate(values) if v is not None]


def _published(
    metric: Metric, runs: Sequence[Run], axis: str, scale: float
) -> tuple[np.ndarray, np.ndarray, str] | None:
    curves = [c for c in (published.curve(run.config) for run in runs) if c is not None]
    if not curves or axis != "epoch" or metric.key not in ("knn", "loss"):
        return None
    points = curves[0].knn if metric.key == "knn" else curves[0].loss
    x = np.asarray(list(points), np.float64)
    if metric.key == "loss":
        x -= 0.5  # the mean over an epoch is drawn at its middle
    return x, scale * np.asarray(list(points.values())), curves[0].source
