"""Command line of evaluation: `python -m moco_jax.evaluate NAME --workdir=DIR`, what a run's encoder is worth."""

import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import flags, logging

from moco_jax import files, trained
from moco_jax.command_line import fail, set_up, start
from moco_jax.errors import UserError
from moco_jax.evaluation.commands import knn, linear, segmentation
from moco_jax.evaluation.commands.common import Task
from moco_jax.report.console import Console, Progress

WORKDIR = flags.DEFINE_string("workdir", None, "Of the run; the result is written there.")
STEP = flags.DEFINE_integer("step", None, "Of which checkpoint; left out: the last sound one.")
WHICH = flags.DEFINE_enum("which", "query", list(trained.PARTS), "Query or momentum encoder.")
UNTRAINED = flags.DEFINE_bool("untrained", False, "Also the same encoder before its training.")

EVALUATIONS = {"knn": knn.run, "linear": linear.run, "segmentation": segmentation.run}


def evaluate(name: str, console: Console) -> None:
    """The evaluation `name` of the run that the flags tell of."""
    place = WORKDIR.value
    if not place:
        raise UserError("--workdir=FOLDER of a run is needed; --help lists all flags")
    set_up(trained.read_config(place))
    logging.set_verbosity(logging.ERROR)
    found = trained.load(place, WHICH.value, STEP.value)
    encoders = {"trained": found}
    if UNTRAINED.value:
        encoders["untrained"] = trained.untrained(found)
    folder = files.absolute(place)
    result = EVALUATIONS[name](Task(encoders, WHICH.value, folder, console, Progress(console)))
    about = {"evaluation": name, "step": found.step, "which": WHICH.value}
    path = folder / f"evaluate_{name}.json"
    files.write(path, (json.dumps(about | result, indent=2) + "\n").encode())
    console.line(f"written: {path}")


def main(argv: list[str]) -> None:
    """Evaluate, and turn what the user can mend into one line."""
    if len(argv) != 2 or argv[1] not in EVALUATIONS:
        fail(
            f"one of {', '.join(EVALUATIONS)} is needed: python -m moco_jax.evaluate knn --workdir=FOLDER"
        )
    console = Console()
    try:
        evaluate(argv[1], console)
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        console.line("stopped; nothing was written")
        sys.exit(130)


def run() -> None:
    """Entry point of the console script `moco-evaluate`."""
    start(main)


if __name__ == "__main__":
    run()
