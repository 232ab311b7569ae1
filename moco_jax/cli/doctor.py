"""Command line that examines what a run needs before device time is spent on it.

    python -m moco_jax.doctor --config=folder --config.data_dir=FOLDER
    python -m moco_jax.doctor --config=imagenet:v2 --config.data_dir=TFDS --workdir=runs/v2 --full

Ends with a verdict and status 0 (ready), 1 (a fault was found) or 2 (the command line is wrong, or
a setting is none that any run could have).
"""

from moco_jax.cli import quiet  # noqa: F401

# isort: split
import os
import runpy
import sys

from absl import flags, logging
from ml_collections import config_flags

from moco_jax.base import files
from moco_jax.base.console import Console
from moco_jax.base.findings import FAULT, SHOWN, Report, verdict
from moco_jax.cli import number_flags
from moco_jax.cli.command_line import fail, refuse_words, set_up, start
from moco_jax.doctor.examination import examine
from moco_jax.training import checks

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A recipe: configs/NAME.py or configs/NAME.py:VARIANT."
)
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; it is read, not changed.")
ALLOW_CHANGE = flags.DEFINE_list(
    "allow_change", [], "Recipe settings that may differ from those the workdir was begun with."
)
FULL = flags.DEFINE_bool(
    "full", False, "Look at every image, and name all in which something is found."
)
SAMPLE = number_flags.DEFINE_whole("sample", 200, "Images to look at without --full.", 1, 2**31 - 1)
STEP_SECONDS = number_flags.DEFINE_number(
    "step_seconds",
    None,
    "Seconds of a step on the devices of the run; measured here where not given.",
    1e-6,
    1e6,
)
OUT = flags.DEFINE_string(
    "out", "", "Folder of the contact sheet; WORKDIR/doctor, or runs/doctor without a workdir."
)


def recipe_batch_size() -> int:
    """The batch size that the recipe file has before settings on the command line change it."""
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return runpy.run_path(path)["get_config"](*[variant] if variant else []).batch_size


def main(argv: list[str]) -> None:
    """Examine, and end with the verdict's status."""
    refuse_words(argv)
    if CONFIG.value is None:
        fail("--config=configs/RECIPE.py is needed; --help lists all flags")
    checks.check_values(CONFIG.value)
    set_up(CONFIG.value)
    logging.set_verbosity(logging.ERROR)  # damaged images are findings here, not news
    console = Console()
    report = Report(console, 0 if FULL.value else SHOWN)
    out = files.absolute(OUT.value or os.path.join(WORKDIR.value or "runs", "doctor"))
    examine(
        CONFIG.value, report, recipe_batch=recipe_batch_size(), count=None if FULL.value else SAMPLE.value,
        step=STEP_SECONDS.value, out=out,
        # An index of records is worth keeping, but a workdir gets nothing beside the picture.
        index_dir=str(out / "index") if OUT.value or not WORKDIR.value else None,
        place=files.absolute(WORKDIR.value) if WORKDIR.value else None, allow_change=set(ALLOW_CHANGE.value),
    )  # fmt: skip
    console.line(f"\nverdict: {verdict(report.marks)}")
    sys.exit(1 if FAULT in report.marks else 0)


def run() -> None:
    """Entry point of the console script `moco-doctor`."""
    start(main)


if __name__ == "__main__":
    run()
