"""Command line that runs the rows of a comparison and draws what they show.

    python -m moco_jax.ablation --config=configs/ablation.py:digits --workdir=runs/ablation
    python -m moco_jax.ablation --config=ablation:cifar10 --config.seeds=5 --only=negatives --workdir=runs/ablation

Each row is a run in a folder of its own, which rows of equal settings share; the same command goes on where it was
stopped, and rows that are done are not run again.
"""

from moco_jax.cli import quiet  # noqa: F401

# isort: split
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from moco_jax.ablation.rows import (
    Row,
    folder_name,
    result_of,
    row_config,
    run_row,
    shared_run,
    show,
    summary,
)
from moco_jax.base import files
from moco_jax.base.console import Console
from moco_jax.cli.command_line import SETTINGS, fail, refuse_words, set_up, start
from moco_jax.config.settings.kinds import Range
from moco_jax.training import checks

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Rows: configs/ablation.py or configs/ablation.py:VARIANT."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all rows, their table and figure.")
ONLY = flags.DEFINE_string(
    "only", "", "One table: 'negatives', 'momentum', 'shuffled BN' or 'methods'."
)

KNOWN = ("seeds", *(f"base.{name}" for name in SETTINGS))  # as --config.NAME
SEEDS = Range(1, 1000)


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
        checks.check_values(row_config(config.base, row, 0))
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
