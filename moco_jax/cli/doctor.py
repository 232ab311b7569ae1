"""Examine what a run needs, before device time is spent on it.

    python -m moco_jax.doctor --config=folder --config.data_dir=FOLDER
    python -m moco_jax.doctor --config=imagenet:v2 --config.data_dir=TFDS --workdir=runs/v2 --full

The last line is a verdict. The status is 0 (ready), 1 (a fault was found) or 2 (the command line
is wrong, or a setting has a value that no run could have).
"""

import os
import runpy
import sys
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from moco_jax import config as config_lib
from moco_jax.base import files, packages
from moco_jax.base.console import Console
from moco_jax.cli import host_flags, number_flags, shared_flags
from moco_jax.cli.command_line import (
    SETTINGS,
    Command,
    define_config,
    fail,
    refuse_words,
)
from moco_jax.parallel.devices import set_up


def define(given: flags.FlagValues) -> None:
    """Define the flags."""
    define_config(given, "A recipe: configs/NAME.py or configs/NAME.py:VARIANT.")
    flags.DEFINE_string("workdir", "", "Folder of the run; it is read, not changed.", given)
    shared_flags.allow_change(given)
    flags.DEFINE_bool(
        "full", False, "Look at every image, and name all that have a finding.", given
    )
    number_flags.DEFINE_whole(
        "sample", 200, "Images to look at without --full.", 1, 2**31 - 1, given
    )
    number_flags.DEFINE_number(
        "step_seconds",
        None,
        "Seconds of a step on the run's devices; left out: measured here.",
        1e-6,
        1e6,
        given,
    )
    flags.DEFINE_string(
        "out",
        "",
        "Folder of the contact sheet; WORKDIR/doctor, or runs/doctor without a workdir.",
        given,
    )
    host_flags.define(given)


def recipe_batch_size(config_flag: Any) -> int:
    """Return the batch size of the recipe file, before the command line changes it."""
    path, _, variant = config_flags.get_config_filename(config_flag).partition(":")
    return runpy.run_path(path)["get_config"](*[variant] if variant else []).batch_size


def main(given: flags.FlagValues, words: list[str]) -> None:
    """Examine a run, and end with the verdict's status."""
    refuse_words(words)
    if given.config is None:
        fail("--config=configs/RECIPE.py is needed; --help lists all flags")
    config_lib.check_each(given.config)

    from moco_jax.training import checks

    checks.check_values(given.config)
    if given.config.augment_on != "resident":
        packages.load_tensorflow(f"augment_on={given.config.augment_on!r}")
    set_up(given.config)
    host_flags.join(given, asks_for_stops=False)
    logging.set_verbosity(logging.ERROR)  # damaged images are findings here, not news

    from moco_jax.base.findings import FAULT, SHOWN, Report, verdict
    from moco_jax.doctor.examination import Options, examine
    from moco_jax.parallel import hosts

    console = Console(speaks=hosts.is_first())
    report = Report(console, 0 if given.full else SHOWN)
    out = files.absolute(given.out or os.path.join(given.workdir or "runs", "doctor"))
    options = Options(
        recipe_batch=recipe_batch_size(given["config"]),
        out=out,
        count=None if given.full else given.sample,
        step_seconds=given.step_seconds,
        # An index of records is worth keeping, but a workdir gets nothing beside the picture.
        index_dir=str(out / "index") if given.out or not given.workdir else None,
        place=files.absolute(given.workdir) if given.workdir else None,
        allow_change=frozenset(given.allow_change),
    )
    examine(given.config, report, options)
    console.line(f"\nverdict: {verdict(report.marks)}")
    sys.exit(1 if hosts.gather(FAULT in report.marks)[0] else 0)


COMMAND = Command(__doc__, define, main, SETTINGS)


def run() -> None:
    """Entry point of the console script `moco-doctor`."""
    COMMAND.start()
