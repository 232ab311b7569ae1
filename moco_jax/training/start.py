"""The first state of a run: restored from its last checkpoint, or made anew.

A start changes nothing in the workdir before it is sure to go on: a command that is refused can be
given again, and finds everything as it was.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from moco_jax.method.state import TrainState
from moco_jax.parallel import hosts
from moco_jax.training import warm_start
from moco_jax.training.assembly import Program
from moco_jax.training.checkpoint import Checkpoints
from moco_jax.workdir import integrity, recipe_check
from moco_jax.workdir.lock import Lock


@dataclasses.dataclass
class Start:
    """Where a run begins, or goes on.

    Attributes:
        step: of the checkpoint that it goes on from; 0 for a new run.
        seconds: that the run had taken at that step.
        state: before the next step.
        checkpoints: those of the workdir.
        remarks: a line on each thing that was mended, changed or set aside.
        weights: a line on each part that was taken from `init_from`, or was not.
    """

    step: int
    state: TrainState
    checkpoints: Checkpoints
    remarks: Sequence[str]
    weights: Sequence[str] = ()
    seconds: float = 0.0


def begin_or_go_on(
    config: ConfigDict,
    workdir: epath.Path,
    allow_change: set[str],
    program: Program,
    lock: Lock,
    images: Mapping[str, Any],
) -> Start:
    """Claim `workdir` for this run, and return the state that it begins with or goes on from.

    Args:
        config: the settings.
        workdir: the folder of the run, whose `lock` is held.
        allow_change: recipe settings that may differ from those of the run that is there.
        program: what the devices compute.
        lock: the claim on `workdir`.
        images: the fingerprint of the images that are trained on.

    Raises:
        UserError: another recipe, other images, weights that do not fit, or no sound checkpoint
            among damaged ones; nothing in `workdir` has changed then.
    """
    # Weights that do not fit refuse the run, so they are read before the first change. Where the
    # run goes on they are not needed: its checkpoint has what became of them.
    weights = None
    if config.init_from and not integrity.is_begun(workdir):
        weights = hosts.each(lambda: warm_start.read(config, program.abstract))
        # Each process has read a file of its own machine, and they train as one.
        hosts.require_agreement({"init_from": weights.digest})
    # Only looked at: damaged checkpoints stay where they are until the recipe has been compared
    # with the one of the newest sound checkpoint.
    sound, examined = integrity.find(workdir)
    # Reading checkpoints can take minutes in which another run may have taken the workdir.
    hosts.first(lock.check)
    remarks = _claim(config, workdir, allow_change, sound, images)
    # The recipe was accepted: from here on the run is sure to begin.
    if sound is None:
        remarks += integrity.set_aside(workdir, examined)
    # After that, because Orbax lists the folder when it is opened.
    checkpoints = Checkpoints(workdir, config.keep, {recipe_check.IMAGES: dict(images)})
    if sound is not None:
        # Sets damaged checkpoints aside itself, once it has found one whose numbers are finite.
        step, state, set_aside = checkpoints.go_on(
            sound, examined, program.abstract, config.batch_size
        )
        seconds = float(integrity.about(workdir, step).get("seconds", 0.0))
        return Start(step, state, checkpoints, [*remarks, *set_aside], seconds=seconds)
    if weights:
        state = warm_start.begin(program, weights, config.momentum)
        return Start(0, state, checkpoints, remarks, weights.remarks)
    return Start(0, program.initial(), checkpoints, remarks)


def _claim(
    config: ConfigDict,
    workdir: epath.Path,
    allow_change: set[str],
    sound: int | None,
    images: Mapping[str, Any],
) -> list[str]:
    """Compare the recipe with that of `workdir`, whose checkpoint `sound` is trusted; write it.

    Other arguments, and errors, are those of `begin_or_go_on`.

    Returns:
        a line on each thing that was mended or changed.
    """
    # Before the claim, which writes the config.json whose damage this tells.
    remarks = hosts.first(
        lambda: [
            *recipe_check.mended(workdir, sound),
            *recipe_check.unknown_images(workdir, sound),
        ]
    )
    changed = hosts.first(
        lambda: recipe_check.claim_workdir(workdir, config.to_dict(), allow_change, sound, images)
    )
    hosts.each(lambda: recipe_check.require_shared(workdir))
    return [
        *remarks,
        *(
            f"changed by --allow_change: {name}: {old!r} -> {new!r}"
            for name, (old, new) in changed.items()
        ),
    ]


def query_variables(state: TrainState) -> dict:
    """Return what the query encoder needs to run."""
    return {"params": state.params, "batch_stats": state.batch_stats}


def first_variables(config: ConfigDict, program: Program) -> dict:
    """Make what the query encoder was before the first step.

    Raises:
        UserError: the weights of `init_from` are no longer there.
    """
    if not config.init_from:
        return query_variables(program.initial())
    weights = warm_start.read(config, program.abstract)
    return query_variables(warm_start.begin(program, weights, config.momentum))
