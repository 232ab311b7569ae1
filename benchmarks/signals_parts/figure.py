"""Draws signals against kNN: a point a checkpoint, a colour a run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.signals_parts.compare import Reading, by_run

COLOURS = [f"C{n}" for n in range(10)]


def draw(path: Path, readings: Sequence[Reading], names: Sequence[str]) -> None:
    """Draw a panel for each of the signals called `names` to the PNG `path`.

    Values of a run are joined in the order of its steps; its last one is a large dot.
    """
    figure = Figure(figsize=(2.6 * len(names) + 1.6, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for colour, (run, some) in zip(COLOURS, by_run(readings).items(), strict=False):
            x = np.asarray([r.signals[name] for r in some])
            y = 100 * np.asarray([r.knn for r in some])
            axes.plot(x, y, ".-", color=colour, markersize=3, linewidth=0.7, label=run)
            axes.plot(x[-1], y[-1], "o", color=colour, markersize=6)
        axes.set_xlabel(name, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(linewidth=0.3)
    panels[0].set_ylabel("kNN, %", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
