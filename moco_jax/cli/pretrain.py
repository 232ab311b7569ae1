"""Command line of pretraining.

    python -m moco_jax.main --config=configs/digits.py --workdir=runs/digits
    python -m moco_jax.main --config=folder --config.data_dir=FOLDER --config.batch_size=128 --workdir=runs/mine
    python -m moco_jax.main --config=imagenet:v2 --config.data_dir=TFDS --workdir=gs://BUCKET/v2 --distributed

A recipe is named, or is a file; any setting is changed by --config.NAME=VALUE, and --help lists all.
The same command goes on from the last checkpoint of its workdir.
"""

from moco_jax.cli import quiet  # noqa: F401

# isort: split
import errno
import sys

from absl import flags
from ml_collections import config_flags

from moco_jax.base.errors import full_disk
from moco_jax.cli import host_flags
from moco_jax.cli.command_line import fail, refuse_words, set_up, start
from moco_jax.training import checks, loop

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A recipe: configs/NAME.py or configs/NAME.py:VARIANT."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of this run: config, checkpoints, metrics, pictures."
)
ALLOW_CHANGE = flags.DEFINE_list(
    "allow_change", [], "Recipe settings that may differ from those the workdir was begun with."
)


def main(argv: list[str]) -> None:
    """Train."""
    refuse_words(argv)
    if not WORKDIR.value or CONFIG.value is None:
        fail("--config=configs/RECIPE.py and --workdir=FOLDER are needed; --help lists all flags")
    checks.check_values(CONFIG.value)
    set_up(CONFIG.value)
    try:
        host_flags.join(asks_for_stops=True)
        stopped = loop.train(CONFIG.value, WORKDIR.value, set(ALLOW_CHANGE.value))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        fail(full_disk(WORKDIR.value))
    if stopped:
        sys.exit(128 + stopped)


def run() -> None:
    """Entry point of the console script `moco-pretrain`."""
    start(main)


if __name__ == "__main__":
    run()
