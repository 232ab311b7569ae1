"""Run the rows of a comparison, and draw what they show.

    python -m moco_jax.ablation --config=configs/ablation.py:digits --workdir=runs/ablation
    python -m moco_jax.ablation --config=ablation:cifar10 --config.seeds=5 --only=negatives \\
        --workdir=runs/ablation

Each row is a run in a folder of its own, and rows of equal settings share one. The same command
goes on where it was stopped; rows that are done are not run again.
"""

import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.base import files
from moco_jax.base.console import Console
from moco_jax.cli.command_line import (
    SETTINGS,
    Command,
    define_config,
    fail,
    refuse_words,
    set_up,
)
from moco_jax.config.settings.kinds import Range

KNOWN = ("seeds", *(f"base.{name}" for name in SETTINGS))  # as --config.NAME
SEEDS = Range(1, 1000)


def define(given: flags.FlagValues) -> None:
    """Define the flags."""
    define_config(given, "Rows: configs/ablation.py or configs/ablation.py:VARIANT.")
    flags.DEFINE_string("workdir", None, "Folder of all rows, their table and figure.", given)
    flags.DEFINE_string(
        "only", "", "One table: 'negatives', 'momentum', 'shuffled BN' or 'methods'.", given
    )


def rows_of(config: ConfigDict, only: str) -> list[dict[str, Any]]:
    """Return the rows of `config`, checked before anything heavy is loaded."""
    rows = [row.to_dict() if isinstance(row, ConfigDict) else dict(row) for row in config.rows]
    tables = list(dict.fromkeys(row["table"] for row in rows))
    if only and only not in tables:
        fail(f"--only={only} is no table; use one of {', '.join(tables)}")
    if config.seeds not in SEEDS:
        fail(f"--config.seeds={config.seeds} must be {SEEDS}; try 3")
    config_lib.check_each(config.base)
    return rows


def main(given: flags.FlagValues, words: list[str]) -> None:
    """Run what is not done, then show everything that is."""
    refuse_words(words)
    if not given.workdir or given.config is None:
        fail("--config=configs/ablation.py and --workdir=FOLDER are needed; --help lists all flags")
    config, console, place = given.config, Console(), files.absolute(given.workdir)
    rows = rows_of(config, given.only)
    set_up(config.base)

    from moco_jax.ablation import rows as rows_lib
    from moco_jax.training import checks

    wanted: list[rows_lib.Row] = []
    for row in rows:
        ran = rows_lib.shared_run(config.base, rows, row)
        if given.only in ("", row["table"]) and ran not in wanted:
            wanted.append(ran)
    for row in wanted:
        checks.check_values(rows_lib.row_config(config.base, row, 0))
    runs = [(row, seed) for seed in range(config.seeds) for row in wanted]
    for number, (row, seed) in enumerate(runs, start=1):
        folder = place / rows_lib.folder_name(row, seed)
        if rows_lib.result_of(folder) is not None:
            continue
        name = f"{row['table']}: {row['line']}, {row['x']}, seed {seed}"
        console.line(f"\n[{number}/{len(runs)}] {name}")
        stopped = rows_lib.run_row(config.base, row, seed, folder)
        if stopped:
            sys.exit(128 + stopped)
    rows_lib.show(rows_lib.summary(config.base, rows, place, config.seeds), place, console)


COMMAND = Command(__doc__, define, main, KNOWN)


def run() -> None:
    """Entry point of the console script `moco-ablation`."""
    COMMAND.start()
