"""Pretrain an encoder on images without labels.

    python -m moco_jax.main --config=configs/digits.py --workdir=runs/digits
    python -m moco_jax.main --config=folder --config.data_dir=FOLDER --config.batch_size=128 \\
        --workdir=runs/mine
    python -m moco_jax.main --config=imagenet:v2 --config.data_dir=TFDS --workdir=gs://BUCKET/v2 \\
        --distributed

`--config` names a recipe or a file; `--config.NAME=VALUE` changes a setting, and all are below.
The same command goes on from the last checkpoint of its workdir.
"""

import errno
import sys

from absl import flags

from moco_jax import config as config_lib
from moco_jax.base import packages
from moco_jax.base.errors import full_disk
from moco_jax.cli import host_flags, shared_flags
from moco_jax.cli.command_line import (
    SETTINGS,
    Command,
    define_config,
    refuse_words,
    require_recipe_and_workdir,
    set_up,
)


def define(given: flags.FlagValues) -> None:
    """Define the flags."""
    define_config(given, "A recipe: configs/NAME.py or configs/NAME.py:VARIANT.")
    flags.DEFINE_string(
        "workdir", None, "Folder of this run: config, checkpoints, metrics, pictures.", given
    )
    shared_flags.allow_change(given)
    host_flags.define(given)


def main(given: flags.FlagValues, words: list[str]) -> None:
    """Pretrain as the flags say."""
    refuse_words(words)
    require_recipe_and_workdir(given, "configs/RECIPE.py")
    config_lib.check_each(given.config)

    from moco_jax.training import checks

    checks.check_values(given.config)
    if given.config.augment_on != "resident":
        packages.load_tensorflow(f"augment_on={given.config.augment_on!r}")
    set_up(given.config)

    from moco_jax.training import loop

    try:
        host_flags.join(given, asks_for_stops=True)
        stopped = loop.train(given.config, given.workdir, set(given.allow_change))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise full_disk(given.workdir) from error
    if stopped:
        sys.exit(128 + stopped)


COMMAND = Command(__doc__, define, main, SETTINGS)


def run() -> None:
    """Entry point of the console script `moco-pretrain`."""
    COMMAND.start()
