"""Command line of evaluation: what a run's encoder, or anyone's, is worth.

python -m moco_jax.evaluate knn --workdir=runs/mine --untrained
python -m moco_jax.evaluate linear --workdir=runs/mine --protocol=paper
python -m moco_jax.evaluate finetune --workdir=runs/mine --labels=1,10
python -m moco_jax.evaluate segmentation --workdir=runs/mine --data_dir=VOC2012
python -m moco_jax.evaluate knn --weights=r50.pth --out=results --dataset=folder --data_dir=FOLDER
"""

from moco_jax import quiet  # noqa: F401

# isort: split
import json
from typing import Any

import jax
from absl import flags, logging

from moco_jax import config as config_lib
from moco_jax import files, host_flags, hosts, number_flags, settings, trained
from moco_jax.command_line import fail, set_up, start
from moco_jax.errors import UserError
from moco_jax.evaluation.commands import finetune, knn, linear, segmentation
from moco_jax.evaluation.commands.common import Task
from moco_jax.evaluation.resume import Trainings, digest
from moco_jax.report.console import Console, Progress

WORKDIR = flags.DEFINE_string("workdir", None, "Of the run; the result is written there.")
STEP = number_flags.DEFINE_whole(
    "step", None, "Of which checkpoint; left out: the last sound one.", 0, 2**31 - 1
)
WHICH = flags.DEFINE_enum("which", "query", list(trained.PARTS), "Query or momentum encoder.")
WEIGHTS = flags.DEFINE_string(
    "weights", "", "In place of --workdir: a file or folder of weights, of any library that docs/weights.md names."
)  # fmt: skip
OUT = flags.DEFINE_string("out", "", "Folder of the result; the workdir if empty.")
IMAGE_SIZE = number_flags.DEFINE_whole(
    "image_size", 0, "Other than the run's or the file's, in pixels.", 0, 8192
)
MEAN = flags.DEFINE_list("mean", [], "Per channel, of images scaled to 0..1; the run's or the file's if empty.")  # fmt: skip
STD = flags.DEFINE_list("std", [], "As --mean.")
STEM = flags.DEFINE_string("stem", "", "Of a ResNet in --weights; empty: 'imagenet' or 'cifar', by its kernel.")  # fmt: skip
UNTRAINED = flags.DEFINE_bool("untrained", False, "Also the same encoder before its training.")

# What hosts may be told differently.
OWN = {"process_id", "coordinator", "data_dir", "test_data_dir", "debug"}
EVALUATIONS = {
    "knn": knn.run, "linear": linear.run, "finetune": finetune.run, "segmentation": segmentation.run,
}  # fmt: skip


def _statistics(flag: flags.FlagHolder) -> tuple[float, ...]:
    try:
        found = tuple(float(word) for word in flag.value)
    except ValueError as error:
        raise UserError(
            f"--{flag.name}={','.join(flag.value)} is no list of numbers; 0.485,0.456,0.406 is one"
        ) from error
    try:
        settings.SETTINGS[flag.name].check(found)
    except UserError as error:
        raise UserError(f"--{error}") from error
    return found


def _given() -> dict[str, Any]:
    """The flags of this package by name, as all hosts of an evaluation must have them."""
    known = flags.FLAGS.flags_by_module_dict().items()
    ours = [flag for module, found in known if module.startswith("moco_jax") for flag in found]
    return {f"--{flag.name}": flag.value for flag in ours if flag.name not in OWN}


def evaluate(name: str) -> None:
    """The evaluation `name` of the run, or the weights, that the flags tell of."""
    if bool(WORKDIR.value) == bool(WEIGHTS.value):
        raise UserError(
            "--workdir=FOLDER of a run is needed, or --weights=FILE in its place; --help lists all flags"
        )
    place = WORKDIR.value or WEIGHTS.value
    if WEIGHTS.value and not OUT.value:
        raise UserError(f"--weights={place} needs --out=FOLDER, where the result is written")
    if WORKDIR.value and not trained.is_run(place):
        raise UserError(f"{place} is no workdir of a run; weights are named by --weights=FILE")
    config = trained.read_config(place) if WORKDIR.value else config_lib.default_config()
    set_up(config, own=False)
    logging.set_verbosity(logging.ERROR)
    host_flags.join(asks_for_stops=False)
    console = Console(speaks=jax.process_index() == 0)
    found = trained.load(
        place, WHICH.value, STEP.value, image_size=IMAGE_SIZE.value, mean=_statistics(MEAN), std=_statistics(STD),
        stem=STEM.value,
    )  # fmt: skip
    hosts.require_agreement(hosts.facts_of(found.config) | _given() | {
        "evaluation": name, "step": found.step, "weights": digest(found.variables),
    })  # fmt: skip
    encoders = {"trained": found}
    if UNTRAINED.value:
        encoders["untrained"] = trained.untrained(found)
    folder = files.absolute(OUT.value or place)
    trainings = Trainings(folder / f"evaluate_{name}", console)
    result = EVALUATIONS[name](
        Task(encoders, WHICH.value, folder, console, Progress(console), trainings)
    )
    about = {"evaluation": name, "of": place, "step": found.step, "which": WHICH.value}
    path = folder / f"evaluate_{name}.json"
    if jax.process_index() == 0:
        files.write(path, (json.dumps(about | result, indent=2) + "\n").encode())
    trainings.forget()
    console.line(f"written: {path}")


def main(argv: list[str]) -> None:
    """Evaluate."""
    if len(argv) != 2 or argv[1] not in EVALUATIONS:
        fail(
            f"one of {', '.join(EVALUATIONS)} is needed: python -m moco_jax.evaluate knn --workdir=FOLDER"
        )
    evaluate(argv[1])


def run() -> None:
    """Entry point of the console script `moco-evaluate`."""
    start(main)


if __name__ == "__main__":
    run()
