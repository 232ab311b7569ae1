"""Weights of a run, read back from its workdir without the rest of its state."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from moco_jax.base import files
from moco_jax.base.errors import UserError
from moco_jax.workdir import integrity, recipe_check

# which encoder of a run -> its fields in the state
PARTS = {"query": ("params", "batch_stats"), "key": ("key_params", "key_batch_stats")}


def read_config(place: str) -> ConfigDict:
    """The settings of the run in the workdir `place`; UserError where there is none."""
    return recipe_check.settings(files.absolute(place))


def sound_step(place: str, step: int | None = None) -> int:
    """`step`, or the last sound one where None; UserError where the workdir `place` has no checkpoint of it."""
    workdir = files.absolute(place)
    if step is None:
        examined = integrity.examine(workdir)
        sound = integrity.sound(examined)
        if sound is None:
            why = f": {'; '.join(map(str, examined))}" if examined else ""
            raise UserError(f"{place} has no sound checkpoint{why}")
        return sound
    if not (workdir / "checkpoints" / str(step)).exists():
        raise UserError(f"{place} has no checkpoint of step {step}")
    return step


def variables(place: str, which: str, step: int) -> dict[str, Any]:
    """`{'params', 'batch_stats'}` of the 'query' or 'key' encoder after `step`, of NumPy arrays; both empty without one."""
    folder = files.absolute(place) / "checkpoints" / str(step) / "state"
    params, batch_stats = _restore(folder, PARTS[which])
    return {"params": params, "batch_stats": batch_stats}


def queue(place: str, step: int) -> np.ndarray | None:
    """The keys in the queue of the run in the workdir `place` after `step`: `[K, dim]`, oldest first; None without one."""
    workdir = files.absolute(place)
    saved = recipe_check.settings(workdir)
    if saved.dictionary != "queue":
        return None
    (found,) = _restore(workdir / "checkpoints" / str(step) / "state", ("dictionary",))
    oldest_first = np.roll(found["keys"], -int(found["pointer"]), axis=0)
    return oldest_first.reshape(-1, oldest_first.shape[-1])[-saved.queue_size :]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's warnings of what does not matter here."""
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _restore(folder: Any, names: tuple[str, ...]) -> list[Any]:
    """These fields of the state in `folder`, as NumPy arrays; nothing else is read."""
    with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(folder).item_metadata.tree
        wanted = {name: tree[name] for name in names if tree.get(name)}
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        found = reader.restore(
            folder,
            args=ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True),
        )
    return [found.get(name, {}) for name in names]
