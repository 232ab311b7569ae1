"""Command line that runs the rows of a comparison and draws what they show.

    python -m moco_jax.ablation --config=configs/ablation.py:digits --workdir=runs/ablation
    python -m moco_jax.ablation --config=ablation:cifar10 --config.seeds=5 --only=negatives --workdir=runs/ablation

Each row is a run in a folder of its own, which rows of equal settings share; the same command goes on where it was
stopped, and rows that are done are not run again.
"""

from moco_jax import quiet  # noqa: F401

# isort: split
import json
import re
import sys
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from moco_jax import config as config_lib
from moco_jax import files, train
from moco_jax.command_line import SETTINGS, fail, refuse_words, set_up, start
from moco_jax.report import figures, writers
from moco_jax.report.console import Console, table
from moco_jax.settings.kinds import Range

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Rows: configs/ablation.py or configs/ablation.py:VARIANT."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all rows, their table and figure.")
ONLY = flags.DEFINE_string(
    "only", "", "One table: 'negatives', 'momentum', 'shuffled BN' or 'methods'."
)

KNOWN = ("seeds", *(f"base.{name}" for name in SETTINGS))  # as --config.NAME
SEEDS = Range(1, 1000)
Row = dict[str, Any]


def row_config(base: ConfigDict, row: Row, seed: int) -> ConfigDict:
    """The settings of one run of `row`."""
    config = base.copy_and_resolve_references()
    config.update(dict(row["settings"]))
    config.seed = seed
    return config


def folder_name(row: Row, seed: int) -> str:
    """Where one run of `row` is kept."""
    words = f"{row['table']} {row['line']} {row['x']} seed {seed}"
    return re.sub(r"[^\w.]+", "_", words)


def shared_run(base: ConfigDict, rows: list[Row], row: Row) -> Row:
    """The first of `rows` that has the settings of `row`: its run serves both."""
    wanted = row_config(base, row, 0).to_dict()
    return next(other for other in rows if row_config(base, other, 0).to_dict() == wanted)


def result_of(folder: epath.Path) -> dict[str, float] | None:
    """The scores of a finished run, or None."""
    path = folder / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def scores(folder: epath.Path) -> dict[str, float]:
    """Last kNN accuracy, and the contrastive top-1 and loss averaged over the last tenth of the records."""
    found = writers.records(folder)
    steps = [r for r in found if "loss" in r]
    last = steps[-max(len(steps) // 10, 1) :]
    mean = {name: float(np.mean([r[name] for r in last])) for name in ("top1", "loss")}
    return {"knn": [r["knn"] for r in found if "knn" in r][-1], **mean}


def run_row(base: ConfigDict, row: Row, seed: int, folder: epath.Path) -> int:
    """Train one run of `row` and keep its scores; the number of the signal that stopped it, or 0."""
    stopped = train.train(row_config(base, row, seed), str(folder), set())
    if not stopped:
        files.write(folder / "result.json", (json.dumps(scores(folder)) + "\n").encode())
    return stopped


def summary(base: ConfigDict, rows: list[Row], place: epath.Path, seeds: int) -> list[Row]:
    """Of every row that has results: their mean and standard deviation over seeds, and the loss of chance."""
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
        chance = config_lib.method_of(config).chance_level(config.batch_size)
        found.append(
            {**identity, "seeds": len(done), "mean": mean, "deviation": spread, "chance": chance}
        )
    return found


def show(found: list[Row], place: epath.Path, console: Console) -> None:
    """Print the tables, write them to `ablation.json`, and draw `ablation.png`."""

    def share(row: Row, name: str) -> str:
        deviation = row["deviation"][name]
        text = f"{100 * row['mean'][name]:.2f}"
        return text if deviation is None else f"{text} +- {100 * deviation:.2f}"

    def level(row: Row) -> str:
        return "-" if row["chance"] is None else f"{row['chance']:.3f}"

    for name in dict.fromkeys(row["table"] for row in found):
        lines = [
            [row["line"], str(row["x"]), share(row, "knn"), share(row, "top1"), f"{row['mean']['loss']:.3f}", level(row), str(row["seeds"])]
            for row in found
            if row["table"] == name
        ]  # fmt: skip
        heads = [name, "", "kNN %", "contrastive top-1 %", "loss", "chance", "seeds"]
        console.line("\n" + table(heads, lines))
    files.write(place / "ablation.json", (json.dumps(found, indent=2) + "\n").encode())
    figures.ablation(place / "ablation.png", found)
    console.line(f"figure: {place / 'ablation.png'}")


def main(argv: list[str]) -> None:
    """Run what is not done, then show everything that is."""
    refuse_words(argv)
    if not WORKDIR.value or CONFIG.value is None:
        fail("--config=configs/ablation.py and --workdir=FOLDER are needed; --help lists all flags")
    config, console, place = CONFIG.value, Console(), files.absolute(WORKDIR.value)
    rows = [row.to_dict() if isinstance(row, ConfigDict) else dict(row) for row in config.rows]
    tables = list(dict.fromkeys(row["table"] for row in rows))
    if ONLY.value and ONLY.value not in tables:
        fail(f"--only={ONLY.value} is no table; there are {', '.join(tables)}")
    wanted: list[Row] = []
    for row in rows:
        ran = shared_run(config.base, rows, row)
        if ONLY.value in ("", row["table"]) and ran not in wanted:
            wanted.append(ran)
    if config.seeds not in SEEDS:
        fail(f"--config.seeds={config.seeds} must be {SEEDS}; try 3")
    for row in wanted:
        config_lib.check_values(row_config(config.base, row, 0))
    set_up(config.base)
    runs = [(row, seed) for seed in range(config.seeds) for row in wanted]
    for number, (row, seed) in enumerate(runs, start=1):
        folder = place / folder_name(row, seed)
        if result_of(folder) is not None:
            continue
        console.line(f"\n[{number}/{len(runs)}] {row['table']}: {row['line']}, {row['x']}, seed {seed}")  # fmt: skip
        stopped = run_row(config.base, row, seed, folder)
        if stopped:
            sys.exit(128 + stopped)
    show(summary(config.base, rows, place, config.seeds), place, console)


def run() -> None:
    """Entry point of the console script `moco-ablation`."""
    start(main, settings=KNOWN)


if __name__ == "__main__":
    run()
