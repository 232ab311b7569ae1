"""Evaluate an encoder on images with labels.

The encoder is that of a run (--workdir) or of anyone's file of weights (--weights).

python -m moco_jax.evaluate knn --workdir=runs/mine --untrained
python -m moco_jax.evaluate linear --workdir=runs/mine --protocol=paper
python -m moco_jax.evaluate finetune --workdir=runs/mine --labels=1,10
python -m moco_jax.evaluate segmentation --workdir=runs/mine --data_dir=VOC2012
"""

import importlib
import inspect
import json
from functools import partial
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from moco_jax import config as config_lib
from moco_jax.base import files
from moco_jax.base.console import Console, Progress
from moco_jax.base.errors import UserError
from moco_jax.cli import evaluation_flags, host_flags
from moco_jax.cli.command_line import Command, absl_flags
from moco_jax.cli.evaluation_flags import EVALUATIONS
from moco_jax.config import settings
from moco_jax.parallel.devices import set_up

if TYPE_CHECKING:
    from moco_jax.inference import trained_encoder

# What hosts may be told differently.
OWN = {"process_id", "coordinator", "data_dir", "test_data_dir", "beside", "debug"}


def require_one_encoder(given: flags.FlagValues) -> str:
    """Return the workdir or file of weights to evaluate; refuse flags that do not name one."""
    if bool(given.workdir) == bool(given.weights):
        raise UserError(
            "--workdir=FOLDER of a run is needed, or --weights=FILE in its place; --help lists all "
            "flags"
        )
    if given.weights and not given.out:
        raise UserError(
            f"--weights={given.weights} needs --out=FOLDER, where the result is written"
        )
    return given.workdir or given.weights


def statistics(flag: flags.Flag) -> tuple[float, ...]:
    """Parse the numbers of --mean or --std, and check them as that setting is checked."""
    words: list[str] = flag.value or []
    try:
        found = tuple(float(word) for word in words)
    except ValueError as error:
        raise UserError(
            f"--{flag.name}={','.join(words)} must be a list of numbers, as 0.485,0.456,0.406"
        ) from error
    try:
        settings.SETTINGS[flag.name].check(found)
    except UserError as error:
        raise UserError(f"--{error}") from error
    return found


def as_all_hosts_must_say(given: flags.FlagValues) -> dict[str, Any]:
    """Collect the flags, by name, that all hosts of an evaluation must have alike."""
    left_out = OWN | {flag.name for flag in absl_flags()}
    return {f"--{name}": given[name].value for name in given if name not in left_out}


def load(given: flags.FlagValues, place: str) -> "trained_encoder.TrainedEncoder":
    """Start JAX as the run in `place` says, join the other hosts, and load the encoder."""
    from moco_jax.inference import trained_encoder

    if given.workdir and not trained_encoder.is_run(place):
        raise UserError(f"{place} is no workdir of a run; give a file of weights by --weights=FILE")
    is_run = bool(given.workdir)
    config = trained_encoder.read_config(place) if is_run else config_lib.default_config()
    set_up(config, own=False)
    logging.set_verbosity(logging.ERROR)
    host_flags.join(given, asks_for_stops=False)
    return trained_encoder.load(
        place,
        given.which,
        given.step,
        image_size=given.image_size,
        mean=statistics(given["mean"]),
        std=statistics(given["std"]),
        stem=given.stem,
    )


def load_beside(
    places: list[str], taken: set[str], which: str = "query"
) -> dict[str, "trained_encoder.TrainedEncoder"]:
    """Load the encoders of --beside, under the names that tables give them.

    Args:
        places: files of weights and workdirs.
        taken: names that others have in these tables.
        which: 'query' or 'key', of runs; of a file it is the query encoder.
    """
    from moco_jax.inference import trained_encoder

    found: dict[str, trained_encoder.TrainedEncoder] = {}
    whole: set[str] = set()
    for place in places:
        if not place:
            raise UserError(f"--beside={','.join(places)} has a comma too many; name places alone")
        where = str(files.absolute(place))
        if where in whole:
            raise UserError(f"--beside={','.join(places)} names {place} twice; once is enough")
        whole.add(where)
        short = place.rstrip("/").rpartition("/")[2]
        names = (name for name in (short, place, where) if name not in taken | found.keys())
        kind = which if trained_encoder.is_run(place) else "query"
        found[next(names)] = trained_encoder.load(place, kind)
    return found


def evaluate(name: str, given: flags.FlagValues, words: list[str]) -> None:
    """Run the evaluation `name`, and write its results to a JSON file."""
    if words:
        raise UserError(f"{words[0]!r} is no flag of {name}; --help lists them")
    place = require_one_encoder(given)

    import jax

    from moco_jax.base import digests
    from moco_jax.cli.evaluations.common import Task
    from moco_jax.evaluation.resume import Trainings
    from moco_jax.inference import trained_encoder
    from moco_jax.parallel import hosts

    found = load(given, place)
    console = Console(speaks=jax.process_index() == 0)
    taken = {"trained", "untrained"}
    others = load_beside(given.beside, taken, given.which) if "beside" in given else {}
    weights = [one.variables for one in (found, *others.values())]
    asked = {"evaluation": name, "step": found.step, "weights": digests.of_tree(weights)}
    hosts.require_agreement(hosts.facts_of(found.config) | as_all_hosts_must_say(given) | asked)
    encoders = {"trained": found}
    if given.untrained:
        encoders["untrained"] = trained_encoder.untrained(found)
    encoders |= others
    folder = files.absolute(given.out or place)
    trainings = Trainings(folder / f"evaluate_{name}", console)
    run_evaluation = importlib.import_module(f"moco_jax.cli.evaluations.{name}").run
    task = Task(encoders, given.which, folder, console, Progress(console), trainings, given)
    result = run_evaluation(task)
    about = {"evaluation": name, "of": place, "step": found.step, "which": given.which}
    path = folder / f"evaluate_{name}.json"
    if jax.process_index() == 0:
        files.write(path, (json.dumps(about | result, indent=2) + "\n").encode())
    trainings.forget()
    console.line(f"written: {path}")


def command_of(name: str) -> Command:
    """Make the subcommand `evaluate NAME`."""
    own = EVALUATIONS[name]

    def define(given: flags.FlagValues) -> None:
        own(given)
        evaluation_flags.encoder(given)

    return Command(inspect.cleandoc(own.__doc__ or name), define, partial(evaluate, name))


COMMAND = Command(
    __doc__,
    subcommands={name: command_of(name) for name in EVALUATIONS},
    missing=f"one of {', '.join(EVALUATIONS)} is needed: "
    "python -m moco_jax.evaluate knn --workdir=FOLDER",
)


def run() -> None:
    """Entry point of the console script `moco-evaluate`."""
    COMMAND.start()
