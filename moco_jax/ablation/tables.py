"""Tables and figure of a comparison: means, spread over seeds, and each run's own scores."""

import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from moco_jax.base import figures, files
from moco_jax.base.console import Console, table

Row = dict[str, Any]
SHARES = {"knn": "kNN %", "probe": "online probe %", "top1": "contrastive top-1 %"}


def show(rows: Sequence[Row], place: epath.Path, console: Console) -> None:
    """Print the tables, write them to `ablation.json`, and draw `ablation.png` of several rows.

    `rows`: as `rows.summary` returns them.
    """
    for name in dict.fromkeys(row["table"] for row in rows):
        chosen = [row for row in rows if row["table"] == name]
        if any(row["seeds"] > 1 for row in chosen):
            console.line("\n" + _each_run(name, chosen))
        console.line("\n" + _means(name, chosen))
    files.write(place / "ablation.json", (json.dumps(rows, indent=2) + "\n").encode())
    if len(rows) > 1:
        figures.ablation(place / "ablation.png", rows)
        console.line(f"figure: {place / 'ablation.png'}")


def _shown(rows: Sequence[Row]) -> dict[str, str]:
    """Return the shares that all of `rows` have, with their titles."""
    return {key: title for key, title in SHARES.items() if all(key in row["mean"] for row in rows)}


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
            *(f"{100 * run[key]:.2f}" for key in shown),
            f"{run['loss']:.3f}",
        ]
        for row in rows
        for run in row["runs"]
    ]
    return table([name, "", "seed", *shown.values(), "loss"], cells)


def _means(name: str, rows: Sequence[Row]) -> str:
    """Make the table `name` of means, with one standard deviation and the range of kNN."""

    def share(row: Row, key: str) -> str:
        deviation = row["deviation"][key]
        text = f"{100 * row['mean'][key]:.2f}"
        return text if deviation is None else f"{text} +- {100 * deviation:.2f}"

    def between(row: Row) -> str:
        least, most = (f"{100 * value:.2f}" for value in row["range"]["knn"])
        return "-" if row["seeds"] == 1 else f"{least} to {most}"

    shown = _shown(rows)
    cells = [
        [
            *_names(row),
            share(row, "knn"),
            between(row),
            *(share(row, key) for key in shown if key != "knn"),
            f"{row['mean']['loss']:.3f}",
            "-" if row["chance"] is None else f"{row['chance']:.3f}",
            str(row["seeds"]),
        ]
        for row in rows
    ]
    first, *others = shown.values()
    heads = [name, "", first, "kNN from, to", *others, "loss", "chance", "seeds"]
    return table(heads, cells)
