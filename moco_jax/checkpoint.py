"""Saving and restoring whole train states, asynchronously, with the config beside them (Orbax).

A checkpoint counts once the digests of all its files are written (`digests/STEP` in the workdir). One that lacks
them, or differs from them, is set aside at the next start and the one before it is used.
"""

import dataclasses
import errno
import json
import shutil
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from moco_jax import config as config_lib
from moco_jax import digests, files
from moco_jax.dictionary import Queue
from moco_jax.errors import UserError, full_disk
from moco_jax.state import FORMAT_VERSION, TrainState, for_batch_size

STEPS = 100  # at least between checkpoints that nobody asked for: after fewer, saving takes a part of the time
ROOM = 1.2  # free space asked for, in sizes of the state


def interval(every: int, steps_per_epoch: int) -> int:
    """Steps between checkpoints: `every`; where that is 0 an epoch, or as many as have `STEPS`."""
    return every or -(-STEPS // steps_per_epoch) * steps_per_epoch


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
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        changed = recipe_changes(workdir, config, allow_change)
        if jax.process_index() == 0:
            files.write(path, (json.dumps(dict(config), indent=2) + "\n").encode())
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"workdir={workdir} cannot be written ({reason}); give a folder of yours"
        ) from error
    return changed


def recipe_changes(
    workdir: epath.Path, config: Mapping[str, Any], allow_change: set[str]
) -> dict[str, Any]:
    """What `config` changes in the recipe of the run in `workdir`: name -> (old, new); nothing is written.

    Raises:
        UserError: a recipe setting differs and is not in `allow_change`.
    """
    unknown = sorted(allow_change - config_lib.RECIPE.keys())
    if unknown:
        raise UserError(
            f"--allow_change={','.join(unknown)} names no recipe setting; they are listed in "
            "moco_jax/settings/recipe.py, and others may always change"
        )
    path = workdir / "config.json"
    changed = config_lib.recipe_differences(read_config(path), config) if path.exists() else {}
    refused = {k: v for k, v in changed.items() if k not in allow_change}
    if refused:
        listed = "; ".join(f"{k}: {old!r} -> {new!r}" for k, (old, new) in refused.items())
        raise UserError(
            f"workdir={workdir} holds a run of another recipe ({listed}); take another workdir, or "
            f"--allow_change={','.join(refused)}"
        )
    return changed


def read_config(path: epath.Path) -> dict[str, Any]:
    """The settings in a workdir's config.json; UserError where it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is damaged; its content is also in checkpoints/STEP/about, or take another workdir"
        ) from error


def set_damaged_aside(workdir: epath.Path) -> list[str]:
    """Move checkpoints that are unfinished or altered, newest first, to `workdir`/damaged, up to a sound one.

    Returns:
        A line on each.

    Raises:
        UserError: there were whole checkpoints, and none is sound any more.
    """
    said: list[str] = []
    if jax.process_index() == 0:
        said = _set_damaged_aside(workdir)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoints examined")
    return said


def _set_damaged_aside(workdir: epath.Path) -> list[str]:
    said: list[str] = []
    found = examine(workdir)
    for checkpoint in found:
        if checkpoint.wrong:
            place = workdir / "damaged" / f"{checkpoint.step}_{time.time_ns()}"
            place.parent.mkdir(exist_ok=True)
            (workdir / "checkpoints" / str(checkpoint.step)).rename(place)
            said.append(f"{checkpoint}; moved to {place}")
    if is_lost(found):
        raise UserError(
            f"workdir={workdir} has no sound checkpoint left; {'; '.join(said)}. Start in another workdir, or "
            "once more in this one from the beginning"
        )
    return said


@dataclasses.dataclass(frozen=True)
class Examined:
    """A checkpoint that was looked at.

    Attributes:
        step: when it was saved.
        wrong: what is wrong with it, a line each; empty when it is sound.
        finished: whether it was ever whole.
    """

    step: int
    wrong: list[str]
    finished: bool

    def __str__(self) -> str:
        """One line on a damaged one."""
        more = "; ..." if len(self.wrong) > 3 else ""
        return f"checkpoint {self.step} is damaged ({'; '.join(self.wrong[:3])}{more})"


def examine(workdir: epath.Path) -> list[Examined]:
    """The checkpoints of `workdir`, newest first, down to the first sound one; nothing is changed."""
    folder, found = workdir / "checkpoints", []
    for step in _steps(workdir):
        record = workdir / "digests" / str(step)
        if not record.exists():
            found.append(Examined(step, ["it was not finished"], finished=False))
            continue
        found.append(Examined(step, digests.damaged(folder / str(step), record), finished=True))
        if not found[-1].wrong:
            break
    return found


def _steps(workdir: epath.Path) -> list[int]:
    """Of which steps there are checkpoints, finished or not, newest first."""
    folder = workdir / "checkpoints"
    if not folder.exists():
        return []
    return sorted((int(p.name) for p in folder.iterdir() if p.name.isdigit()), reverse=True)


def is_begun(workdir: epath.Path) -> bool:
    """Whether `workdir` has a checkpoint that was once whole, so that no run starts there from the beginning."""
    return any((workdir / "digests" / str(step)).exists() for step in _steps(workdir))


def is_lost(found: list[Examined]) -> bool:
    """Whether there were whole checkpoints among those `found`, and none is sound any more."""
    sound = any(not checkpoint.wrong for checkpoint in found)
    return not sound and (any(c.finished for c in found) or len(found) > 1)


class Checkpoints:
    """The checkpoints of one workdir: the latest few, and the best by kNN."""

    def __init__(self, workdir: epath.Path, keep: int):
        """`keep`: how many of the latest are kept beside the best, at least 2."""
        best = BestN(get_metric_fn=lambda m: m["knn"], n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(n=keep), best]),
            cleanup_tmp_directories=True,
        )
        self.manager = ocp.CheckpointManager(workdir / "checkpoints", options=options)
        self.seconds = 0.0  # how long the run waited for saving
        self._records = workdir / "digests"
        self._finisher: threading.Thread | None = None
        self._error: BaseException | None = None

    def latest(self) -> int | None:
        """The step of the last checkpoint, or None."""
        return self.manager.latest_step()

    def save(
        self, step: int, state: TrainState, config: Mapping[str, Any], metrics: Mapping[str, float]
    ):
        """Begin to save `state`; the run goes on while it is written. A step that is there is left alone.

        Raises:
            UserError: the disk is full; what was saved before is untouched.
        """
        if step == self.latest():
            return
        began = time.perf_counter()
        self._settle()
        self._require_room(state)
        about = {"format_version": FORMAT_VERSION, "config": dict(config)}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)
        )
        score = {"knn": metrics["knn"]} if "knn" in metrics else None
        try:
            self.manager.save(step, args=items, metrics=score)
        except Exception as error:
            raise _explained(error, self._records.parent) from error
        self._finisher = threading.Thread(target=self._finish, args=(step,))
        self._finisher.start()
        self.seconds += time.perf_counter() - began

    def _require_room(self, state: TrainState) -> None:
        # Asked beforehand, as a save that fails half-way in Orbax's threads fills the screen.
        workdir = self._records.parent
        if files.is_remote(workdir):
            return
        needed = sum(x.nbytes for x in jax.tree.leaves(state))
        if shutil.disk_usage(workdir).free < needed * ROOM:
            raise full_disk(workdir)

    def _finish(self, step: int) -> None:
        """In a thread of its own: wait for the files, then write their digests and drop those without files."""
        try:
            self.manager.wait_until_finished()
            if jax.process_index() == 0:
                digests.write(self.manager.directory / str(step), self._records / str(step))
                present = {str(s) for s in self.manager.all_steps()}
                for record in self._records.iterdir():
                    if record.name not in present:
                        record.unlink()
        except BaseException as error:  # raised again by the run itself, in _settle
            self._error = error

    def _settle(self) -> None:
        if self._finisher is not None:
            self._finisher.join()
            self._finisher = None
        if self._error is not None:
            error, self._error = self._error, None
            raise _explained(error, self._records.parent) from error

    def restore(self, step: int, like: TrainState, batch_size: int) -> TrainState:
        """The state saved at `step`, laid over devices as the abstract state `like` says.

        It was saved with this `batch_size` or another; `like` is for this one.
        """
        about = self.manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))[
            "about"
        ]
        if about["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"checkpoint {self.manager.directory / str(step)} has format_version="
                f"{about['format_version']}, this program reads {FORMAT_VERSION}; use the version that wrote it"
            )
        if about["config"]["batch_size"] == batch_size:
            return self._restore(step, like)
        saved = self._restore(step, _as_saved(like, about["config"]["batch_size"]))
        layout = jax.tree.map(lambda x: x.sharding, like)
        return jax.device_put(for_batch_size(saved, batch_size), layout)

    def _restore(self, step: int, like: TrainState) -> TrainState:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        return self.manager.restore(step, args=items)["state"]

    def close(self) -> None:
        """Wait until everything is written."""
        began = time.perf_counter()
        try:
            self._settle()
        finally:
            try:
                self.manager.close()
            except Exception as error:  # a save that failed is told once more here
                raise _explained(error, self._records.parent) from error
        self.seconds += time.perf_counter() - began


def _as_saved(like: TrainState, batch_size: int) -> TrainState:
    """`like` as it was with `batch_size`, its dictionary whole on every device: slots may not divide over them."""
    if not isinstance(like.dictionary, Queue):
        return like
    everywhere = like.step.sharding
    shapes = jax.eval_shape(lambda queue: queue.for_batch_size(batch_size), like.dictionary)
    return dataclasses.replace(
        like,
        dictionary=jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes
        ),
    )


def _explained(error: BaseException, workdir: epath.Path) -> BaseException:
    """`error`, or where the disk is full the sentence that says so."""
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    return full_disk(workdir) if full else error
