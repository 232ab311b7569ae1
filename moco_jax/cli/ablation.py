"""Run the rows of a comparison, or one recipe, with several seeds, and show their spread.

    python -m moco_jax.ablation --config=configs/ablation.py:digits --workdir=runs/ablation
    python -m moco_jax.ablation --config=ablation:cifar10 --seeds=5 --only=negatives \\
        --workdir=runs/ablation
    python -m moco_jax.ablation --config=digits --seeds=3 --config.epochs=40 --workdir=runs/seeds

Each row is a run in a folder of its own, and rows of equal settings share one; a recipe is one row.
The same command goes on where it was stopped: runs that are done are not repeated, and a larger
`--seeds` adds those that are new. A recipe whose images have no labels is shown by what needs
none (docs/signals.md).
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from moco_jax import config as config_lib
from moco_jax.base import files
from moco_jax.base.console import Console
from moco_jax.cli import number_flags
from moco_jax.cli.command_line import (
    SETTINGS,
    Command,
    define_config,
    fail,
    refuse_words,
    require_recipe_and_workdir,
)
from moco_jax.config.settings.kinds import Range
from moco_jax.parallel.devices import set_up

KNOWN = ("seeds", *(f"base.{name}" for name in SETTINGS))  # as --config.NAME, of a comparison
MOST_SEEDS = 1000
SEEDS = Range(1, MOST_SEEDS)


def define(given: flags.FlagValues) -> None:
    """Define the flags."""
    define_config(given, "Rows: configs/ablation.py or configs/ablation.py:VARIANT; or any recipe.")
    flags.DEFINE_string("workdir", None, "Folder of all runs, their table and figure.", given)
    flags.DEFINE_string(
        "only", "", "One table: 'negatives', 'momentum', 'shuffled BN' or 'methods'.", given
    )
    number_flags.DEFINE_whole(
        "seeds",
        None,
        "How often each row is run: with the seed of its settings, the next one, and so on. "
        "Left out: as often as the comparison says.",
        1,
        MOST_SEEDS,
        given,
    )


def is_comparison(config: ConfigDict) -> bool:
    """Return whether `config` has rows, and is not one recipe."""
    return "rows" in config


def names_with(config: ConfigDict) -> Sequence[str]:
    """Return what `--config.NAME` may name with `config`."""
    return KNOWN if is_comparison(config) else SETTINGS


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


def asked(given: flags.FlagValues) -> tuple[ConfigDict, list[dict[str, Any]], int]:
    """Return the settings that all rows share, the rows, and how often each is run."""
    config = given.config
    if is_comparison(config):
        return config.base, rows_of(config, given.only), given.seeds or config.seeds
    path, _, variant = config_flags.get_config_filename(given["config"]).partition(":")
    name = ":".join(filter(None, (Path(path).stem, variant)))
    if given.only:
        fail(f"--only={given.only} chooses a table of a comparison, and {name} is one recipe")
    if given.seeds is None:
        fail(f"--seeds=N says how often {name} is run; try --seeds=3")
    config_lib.check_each(config)
    return config, [{"table": name, "line": "", "x": "", "settings": {}}], given.seeds


def main(given: flags.FlagValues, words: list[str]) -> None:
    """Run what is not done, then show everything that is."""
    refuse_words(words)
    require_recipe_and_workdir(given, "configs/ablation.py")
    console, place = Console(), files.absolute(given.workdir)
    base, rows, number = asked(given)
    set_up(base)

    from moco_jax.ablation import rows as rows_lib
    from moco_jax.ablation import tables

    wanted: list[rows_lib.Row] = []
    for row in rows:
        ran = rows_lib.shared_run(base, rows, row)
        if given.only in ("", row["table"]) and ran not in wanted:
            wanted.append(ran)
    seeds = range(base.seed, base.seed + number)
    rows_lib.check(base, wanted, seeds, place)
    runs = [(row, seed) for seed in seeds for row in wanted]
    for count, (row, seed) in enumerate(runs, start=1):
        folder = place / rows_lib.folder_name(row, seed)
        if rows_lib.result_of(folder) is not None:
            continue
        console.line(f"\n[{count}/{len(runs)}] {rows_lib.called(row)}, seed {seed}")
        stopped = rows_lib.run_row(base, row, seed, folder)
        if stopped:
            sys.exit(128 + stopped)
    tables.show(rows_lib.summary(base, rows, place, seeds), place, console)


COMMAND = Command(__doc__, define, main, KNOWN, names_with)


def run() -> None:
    """Entry point of the console script `moco-ablation`."""
    COMMAND.start()
