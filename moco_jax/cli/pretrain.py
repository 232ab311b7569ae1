"""Pretrain an encoder on images without labels.

    moco-pretrain --data=FOLDER --out=runs/mine --minutes=30
    python -m moco_jax.main --config=configs/digits.py --workdir=runs/digits
    python -m moco_jax.main --config=folder --config.data_dir=FOLDER --config.batch_size=128 \\
        --workdir=runs/mine
    python -m moco_jax.main --config=imagenet:v2 --config.data_dir=TFDS --workdir=gs://BUCKET/v2 \\
        --distributed

`--data` and `--out` are all that is needed: settings are chosen by the images and the devices, and
report, exported encoder and a page on its use are left in the folder. `--config` names a recipe or
a file instead; `--config.NAME=VALUE` changes a setting, and all are below. The same command goes on
from the last checkpoint.
"""

import errno
import functools
import itertools
import re
import sys
import time
from collections.abc import Sequence

from absl import flags

from moco_jax import config as config_lib
from moco_jax.base import packages
from moco_jax.base.errors import full_disk
from moco_jax.cli import host_flags, number_flags, shared_flags
from moco_jax.cli.command_line import (
    SETTINGS,
    Command,
    define_config,
    fail,
    refuse_words,
    require_recipe_and_workdir,
)
from moco_jax.parallel.devices import set_up

LONGEST = 1e6  # minutes


def define(given: flags.FlagValues) -> None:
    """Define the flags."""
    define_config(given, "A recipe: configs/NAME.py or configs/NAME.py:VARIANT.")
    flags.DEFINE_string(
        "workdir", None, "Folder of this run: config, checkpoints, metrics, pictures.", given
    )
    flags.DEFINE_string(
        "data", None, "Images: a folder, shards, a list, tfds:NAME, digits; with --out.", given
    )
    flags.DEFINE_string("out", None, "With --data: the folder that is made.", given)
    number_flags.DEFINE_number(
        "minutes", None, "With --data: minutes of the run.", 0.01, LONGEST, given
    )
    shared_flags.allow_change(given)
    host_flags.define(given)


def main(given: flags.FlagValues, words: list[str]) -> None:
    """Pretrain as the flags say."""
    began = time.perf_counter()
    refuse_words(words)
    if given.data or given.out:
        work = functools.partial(_by_one_call, given)
    else:
        work = functools.partial(_by_recipe, given, began)
    place = given.out or given.workdir
    try:
        stopped = work()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise full_disk(place) from error
    if stopped:
        sys.exit(128 + stopped)


def _by_recipe(given: flags.FlagValues, began: float) -> int:
    """Train as --config says in --workdir; return the signal that stopped the run, or 0."""
    if not given.workdir and given.config is None:
        fail(
            "--data=FOLDER and --out=FOLDER are needed, or --config=configs/RECIPE.py and "
            "--workdir=FOLDER; --help lists all flags"
        )
    require_recipe_and_workdir(given, "configs/RECIPE.py")
    if given.minutes is not None:
        fail(f"with --config it is --config.minutes={given.minutes:g}")
    config_lib.check_each(given.config)

    from moco_jax.training import checks

    checks.check_values(given.config)
    if given.config.augment_on != "resident":
        packages.load_tensorflow(f"augment_on={given.config.augment_on!r}")
    set_up(given.config)

    from moco_jax.training import loop

    host_flags.join(given, asks_for_stops=True)
    return loop.train(given.config, given.workdir, set(given.allow_change), began)


def _by_one_call(given: flags.FlagValues) -> int:
    """Do what `moco_jax.pretrain` does; return the signal that stopped the run, or 0."""
    for name, other in (("data", "out"), ("out", "data")):
        if not given[name].value:
            fail(f"--{other}={given[other].value} needs --{name} too; --help lists all flags")
    if given.workdir:
        fail(f"--workdir={given.workdir} goes with --config; with --data it is --out={given.out}")
    for name in ("allow_change", "distributed", "coordinator"):
        if given[name].value:
            fail(f"--{name} goes with --config and --workdir; leave it out beside --data")

    from moco_jax.pretraining import work

    found = (re.match(r"--?(no)?config\.([^=]*)", word) for word in sys.argv[1:])
    names = {match[2] for match in found if match}
    settings = {name: given.config[name] for name in names}
    recipe = _recipe_in(sys.argv[1:])
    outcome, stopped = work.run(given.data, given.out, recipe, given.minutes, settings)
    if not stopped:
        print(outcome)
    return stopped


def _recipe_in(words: Sequence[str]) -> str:
    """Return what --config is in the `words` of a command line, in one word or two; '' without."""
    for word, following in itertools.pairwise([*words, ""]):
        if found := re.fullmatch(r"--?config(=(.*))?", word):
            return following if found[1] is None else found[2]
    return ""


class Pretrain(Command):
    """The command; with --data a recipe need not be named to change settings of it."""

    def parse(self, argv: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
        """Parse `argv` as every command does."""
        known = [word.lstrip("-").partition("=")[0] for word in argv[1:] if word.startswith("-")]
        if "data" in known and "config" not in known:
            argv = [argv[0], "--config=folder", *argv[1:]]
        return super().parse(argv)


COMMAND = Pretrain(__doc__, define, main, SETTINGS)


def run() -> None:
    """Entry point of the console script `moco-pretrain`."""
    COMMAND.start()
