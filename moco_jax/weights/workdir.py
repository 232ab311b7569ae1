"""Reads the weights of a run back from its workdir, without the rest of its state."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from moco_jax.base import files, storage
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.parallel import hosts
from moco_jax.workdir import integrity, recipe_check

# which encoder of a run -> its fields in the state
PARTS = {"query": ("params", "batch_stats"), "key": ("key_params", "key_batch_stats")}


def read_config(place: str) -> ConfigDict:
    """Read the settings of the run in the workdir `place`; raises UserError where there is none."""
    return recipe_check.settings(files.absolute(place))


def sound_step(place: str, step: int | None = None) -> int:
    """Return `step`, or the last sound step where it is None.

    Where several processes work together every one of them must call this: the checkpoint is read
    by process 0 alone, which tells the others.

    Raises:
        UserError: the workdir `place` has no such checkpoint.
    """
    workdir = files.absolute(place)
    if step is None:
        found = _last_sound(workdir) if jax.process_index() == 0 else (None, "")
        sound, why = hosts.broadcast(found)
        if sound is None:
            raise UserError(f"{place} {why}")
        return sound
    if not (workdir / "checkpoints" / str(step)).exists():
        raise UserError(f"{place} has no checkpoint of step {step}")
    return step


def _last_sound(workdir: epath.Path) -> tuple[int | None, str]:
    """Look for the last sound step; where there is none, say what is wrong."""
    try:
        examined = integrity.examine(workdir)
    except storage.OF_STORES:
        raise
    except OSError as error:
        return None, f"cannot be read ({printable(str(error.strerror or error))})"
    why = f": {'; '.join(map(str, examined))}" if examined else ""
    return integrity.sound(examined), f"has no sound checkpoint{why}"


def variables(place: str, which: str, step: int) -> dict[str, Any]:
    """Read the 'query' or 'key' encoder after `step`, `{'params', 'batch_stats'}` in NumPy.

    Both are empty where the run has no such encoder.
    """
    folder = files.absolute(place) / "checkpoints" / str(step) / "state"
    params, batch_stats = _restore(folder, PARTS[which])
    return {"params": params, "batch_stats": batch_stats}


def queue(place: str, step: int) -> np.ndarray | None:
    """Read the keys in the queue after `step`, `[K, dim]`, oldest first; None without a queue.

    `place` is the workdir of the run.
    """
    workdir = files.absolute(place)
    saved = recipe_check.settings(workdir)
    if saved.dictionary != "queue":
        return None
    (saved_queue,) = _restore(workdir / "checkpoints" / str(step) / "state", ("dictionary",))
    oldest_first = np.roll(saved_queue["keys"], -int(saved_queue["pointer"]), axis=0)
    return oldest_first.reshape(-1, oldest_first.shape[-1])[-saved.queue_size :]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Orbax's warnings that do not matter to this reader."""
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _restore(folder: Any, names: tuple[str, ...]) -> list[Any]:
    """Read the fields `names` of the state in `folder` as NumPy arrays, and nothing else."""
    reading = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    with _quiet(), storage.told(str(folder)), reading as reader:
        tree = reader.metadata(folder).item_metadata.tree
        wanted = {name: tree[name] for name in names if tree.get(name)}
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        restored = reader.restore(
            folder,
            args=ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True),
        )
    return [restored.get(name, {}) for name in names]
