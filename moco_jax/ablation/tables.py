"""Tables and figure of a comparison: means, spread over seeds, and each run's own scores."""

import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from moco_jax.base import figures, files
from moco_jax.base.console import Console, table

Row = dict[str, Any]
SHARES = {"knn": "kNN %", "probe": "online probe %", "top1": "contrastive top-1 %"}
# Shown where there is no kNN, the first of them in its place.
WITHOUT_LABELS = {
    "effective_rank": "effective rank",
    "lidar": "LiDAR",
    "alignment": "alignment",
    "uniformity": "uniformity",
    "spectrum_decay": "decay of the spectrum",
    "top1": "contrastive top-1 %",
}
NO_KNN = (
    "no kNN, as the images have no labels of two classes: these numbers say how much features "
    "differ, and not what they are worth (docs/signals.md)"
)


def show(rows: Sequence[Row], place: epath.Path, console: Console) -> None:
    """Print the tables, write them to `ablation.json`, and draw `ablation.png` of several rows.

    `rows`: as `rows.summary` returns them. Those without kNN are not drawn.
    """
    for name in dict.fromkeys(row["table"] for row in rows):
        chosen = [row for row in rows if row["table"] == name]
        if any(row["seeds"] > 1 for row in chosen):
            console.line("\n" + _each_run(name, chosen))
        console.line("\n" + _means(name, chosen))
        if "knn" not in _shown(chosen):
            console.line(NO_KNN)
    files.write(place / "ablation.json", (json.dumps(rows, indent=2) + "\n").encode())
    if len(rows) > 1 and "knn" in _shown(rows):
        figures.ablation(place / "ablation.png", rows)
        console.line(f"figure: {place / 'ablation.png'}")


def _shown(rows: Sequence[Row]) -> dict[str, str]:
    """Return the scores that all of `rows` have, with their titles; the first one counts most."""
    titles = SHARES if all("knn" in row["mean"] for row in rows) else WITHOUT_LABELS
    return {key: title for key, title in titles.items() if all(key in row["mean"] for row in rows)}


def _number(key: str, value: float) -> str:
    """Format a score or its deviation: a share in per cent, another number as it is."""
    return f"{100 * value if key in SHARES else value:.2f}"


def _names(row: Row) -> list[str]:
    return [row["line"] or "all seeds", str(row["x"])]


def _each_run(name: str, rows: Sequence[Row]) -> str:
    """Make the table `name` of single runs."""
    shown = _shown(rows)
    cells = [
        [
            row["line"],
            str(row["x"]),
            str(run["seed"]),
            *(_number(key, run[key]) for key in shown),
            f"{run['loss']:.3f}",
        ]
        for row in rows
        for run in row["runs"]
    ]
    return table([name, "", "seed", *shown.values(), "loss"], cells)


def _means(name: str, rows: Sequence[Row]) -> str:
    """Make the table `name` of means, with one standard deviation and the range of what counts."""
    shown = _shown(rows)
    first, *others = shown

    def score(row: Row, key: str) -> str:
        deviation = row["deviation"][key]
        text = _number(key, row["mean"][key])
        return text if deviation is None else f"{text} +- {_number(key, deviation)}"

    def between(row: Row) -> str:
        least, most = (_number(first, value) for value in row["range"][first])
        return "-" if row["seeds"] == 1 else f"{least} to {most}"

    cells = [
        [
            *_names(row),
            score(row, first),
            between(row),
            *(score(row, key) for key in others),
            f"{row['mean']['loss']:.3f}",
            "-" if row["chance"] is None else f"{row['chance']:.3f}",
            str(row["seeds"]),
        ]
        for row in rows
    ]
    titles = [shown[key] for key in others]
    span = f"{shown[first].removesuffix(' %')} from, to"
    heads = [name, "", shown[first], span, *titles, "loss", "chance", "seeds"]
    return table(heads, cells)
