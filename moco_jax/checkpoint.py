"""Saving and restoring whole train states, asynchronously, with the config beside them (Orbax)."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from moco_jax import config as config_lib
from moco_jax.errors import UserError
from moco_jax.state import FORMAT_VERSION, TrainState


def claim_workdir(
    workdir: epath.Path, config: Mapping[str, Any], allow_change: set[str]
) -> dict[str, Any]:
    """Make `workdir` this run's: write config.json there, or refuse when its recipe differs.

    Args:
        workdir: made if missing.
        config: the settings of this run.
        allow_change: recipe settings that may differ from the run that is there.

    Returns:
        The changes that were allowed: name -> (old, new).

    Raises:
        UserError: the folder cannot be written, or a recipe setting differs.
    """
    unknown = sorted(allow_change - config_lib.RECIPE.keys())
    if unknown:
        raise UserError(
            f"--allow_change={','.join(unknown)} names no recipe setting; they are listed in "
            "moco_jax/config.py, and others may always change"
        )
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        changed = {}
        if path.exists():
            changed = config_lib.recipe_differences(json.loads(path.read_text()), config)
            refused = {k: v for k, v in changed.items() if k not in allow_change}
            if refused:
                listed = "; ".join(f"{k}: {old!r} -> {new!r}" for k, (old, new) in refused.items())
                raise UserError(
                    f"workdir={workdir} holds a run of another recipe ({listed}); take another workdir, or "
                    f"--allow_change={','.join(refused)}"
                )
        if jax.process_index() == 0:
            path.write_text(json.dumps(dict(config), indent=2) + "\n")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"workdir={workdir} cannot be written ({reason}); give a folder of yours"
        ) from error
    return changed


class Checkpoints:
    """The checkpoints of one workdir: the latest few, and the best by kNN."""

    def __init__(self, workdir: epath.Path, keep: int):
        """`keep`: how many of the latest are kept beside the best."""
        best = BestN(get_metric_fn=lambda m: m["knn"], n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(n=keep), best]),
            cleanup_tmp_directories=True,
        )
        self.manager = ocp.CheckpointManager(workdir / "checkpoints", options=options)

    def latest(self) -> int | None:
        """The step of the last checkpoint, or None."""
        return self.manager.latest_step()

    def save(
        self, step: int, state: TrainState, config: Mapping[str, Any], metrics: Mapping[str, float]
    ):
        """Begin to save `state`; the run goes on while it is written. A step that is there is left alone."""
        if step == self.latest():
            return
        about = {"format_version": FORMAT_VERSION, "config": dict(config)}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)
        )
        score = {"knn": metrics["knn"]} if "knn" in metrics else None
        self.manager.save(step, args=items, metrics=score)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state saved at `step`, laid over devices as the abstract state `like` says."""
        about = self.manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))[
            "about"
        ]
        if about["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"checkpoint {self.manager.directory / str(step)} has format_version="
                f"{about['format_version']}, this program reads {FORMAT_VERSION}; use the version that wrote it"
            )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        return self.manager.restore(step, args=items)["state"]

    def close(self) -> None:
        """Wait until everything is written."""
        self.manager.close()
