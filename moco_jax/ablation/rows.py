"""Comparisons of several runs, a row each: training them, and a table and figure of results."""

import json
import re
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from moco_jax.base import figures, files
from moco_jax.base.console import Console, table
from moco_jax.method.configured import method_of
from moco_jax.monitoring import run_log
from moco_jax.training import loop

Row = dict[str, Any]


def row_config(base: ConfigDict, row: Row, seed: int) -> ConfigDict:
    """Make the settings of one run of `row`."""
    config = base.copy_and_resolve_references()
    config.update(dict(row["settings"]))
    config.seed = seed
    return config


def folder_name(row: Row, seed: int) -> str:
    """Return the name of the folder of one run of `row`."""
    words = f"{row['table']} {row['line']} {row['x']} seed {seed}"
    return re.sub(r"[^\w.]+", "_", words)


def shared_run(base: ConfigDict, rows: list[Row], row: Row) -> Row:
    """Return the first of `rows` that has the settings of `row`: one run serves both."""
    wanted = row_config(base, row, 0).to_dict()
    return next(other for other in rows if row_config(base, other, 0).to_dict() == wanted)


def result_of(folder: epath.Path) -> dict[str, float] | None:
    """Read the scores of a finished run; None where it is not finished."""
    path = folder / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def scores(folder: epath.Path) -> dict[str, float]:
    """Return the last kNN accuracy, and top-1 and loss averaged over the last tenth of records."""
    found = run_log.records(folder)
    steps = [r for r in found if "loss" in r]
    last = steps[-max(len(steps) // 10, 1) :]
    mean = {name: float(np.mean([r[name] for r in last])) for name in ("top1", "loss")}
    return {"knn": [r["knn"] for r in found if "knn" in r][-1], **mean}


def run_row(base: ConfigDict, row: Row, seed: int, folder: epath.Path) -> int:
    """Train one run of `row` in `folder`, and keep its scores there.

    Returns:
        The number of the signal that stopped it, or 0.
    """
    stopped = loop.train(row_config(base, row, seed), str(folder), set())
    if not stopped:
        files.write(folder / "result.json", (json.dumps(scores(folder)) + "\n").encode())
    return stopped


def summary(base: ConfigDict, rows: list[Row], place: epath.Path, seeds: int) -> list[Row]:
    """Summarise every row that has results over its seeds.

    Returns:
        for each row its names, the number of its seeds, `mean` and `deviation` of each score (None
        for one seed), and the loss of chance.
    """
    found = []
    for row in rows:
        ran = shared_run(base, rows, row)
        results = [result_of(place / folder_name(ran, seed)) for seed in range(seeds)]
        done = [r for r in results if r is not None]
        if not done:
            continue
        values = {name: [r[name] for r in done] for name in done[0]}
        spread = {
            name: float(np.std(v, ddof=1)) if len(v) > 1 else None for name, v in values.items()
        }
        mean = {name: float(np.mean(v)) for name, v in values.items()}
        identity = {name: row[name] for name in ("table", "line", "x")}
        config = row_config(base, row, 0)
        chance = method_of(config).chance_level(config.batch_size)
        found.append(
            {**identity, "seeds": len(done), "mean": mean, "deviation": spread, "chance": chance}
        )
    return found


def show(rows: list[Row], place: epath.Path, console: Console) -> None:
    """Print the tables, write them to `ablation.json`, and draw `ablation.png`."""

    def share(row: Row, name: str) -> str:
        deviation = row["deviation"][name]
        text = f"{100 * row['mean'][name]:.2f}"
        return text if deviation is None else f"{text} +- {100 * deviation:.2f}"

    def level(row: Row) -> str:
        return "-" if row["chance"] is None else f"{row['chance']:.3f}"

    for name in dict.fromkeys(row["table"] for row in rows):
        cells = [
            [
                row["line"],
                str(row["x"]),
                share(row, "knn"),
                share(row, "top1"),
                f"{row['mean']['loss']:.3f}",
                level(row),
                str(row["seeds"]),
            ]
            for row in rows
            if row["table"] == name
        ]
        heads = [name, "", "kNN %", "contrastive top-1 %", "loss", "chance", "seeds"]
        console.line("\n" + table(heads, cells))
    files.write(place / "ablation.json", (json.dumps(rows, indent=2) + "\n").encode())
    figures.ablation(place / "ablation.png", rows)
    console.line(f"figure: {place / 'ablation.png'}")
