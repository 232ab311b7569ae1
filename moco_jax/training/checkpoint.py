"""Saving and restoring whole train states, asynchronously, with the config beside them (Orbax).

What is saved was found finite first, and counts once the digests of all its files are written
(`integrity.py`); until then nothing that was saved before is dropped.
"""

import dataclasses
import errno
import functools
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from moco_jax.base import digests, files, storage
from moco_jax.base.errors import Busy, UserError, full_disk
from moco_jax.base.text import printable
from moco_jax.method.state import FORMAT_VERSION, TrainState, all_finite, for_batch_size
from moco_jax.monitoring.online_probe import OnlineProbe
from moco_jax.parallel import failures, hosts
from moco_jax.training import orbax_logging
from moco_jax.workdir import integrity

STEPS = 100  # minimum between automatic checkpoints: after fewer, saving takes a part of the time
PROBE = "probe"  # what a checkpoint calls the online probe, and what it is of
ROOM = 1.2  # free space asked for, in sizes of the state


def interval(every: int, steps_per_epoch: int) -> int:
    """Return the steps between checkpoints: `every`, or where it is 0 whole epochs.

    As many epochs as it takes to have `STEPS` steps.
    """
    return every or -(-STEPS // steps_per_epoch) * steps_per_epoch


def place_of(workdir: str) -> epath.Path:
    """Return the folder of a run, `workdir` made absolute; Orbax writes to such ones only.

    Raises:
        UserError: it is in a store to which Orbax writes no checkpoints.
    """
    place = files.absolute(workdir)
    if files.is_remote(place) and not str(place).startswith("gs://"):
        raise UserError(
            f"workdir={printable(workdir)} is in a store to which no checkpoints can be written; "
            "give gs://BUCKET/FOLDER, or a folder of this machine"
        )
    return place


class Checkpoints:
    """Saves and restores the checkpoints of a workdir: the latest few, and the best by kNN.

    Attributes:
        seconds: how long the run waited for saving.
    """

    def __init__(
        self, workdir: epath.Path, keep: int, facts: Mapping[str, Any] = MappingProxyType({})
    ):
        """Open those in `workdir`; `keep`: how many latest ones stay beside the best, 2 or more.

        `facts`: what each checkpoint keeps beside the settings, values of JSON by name.
        """
        orbax_logging.silence()
        best = BestN(get_metric_fn=lambda m: m["knn"], n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(n=keep), best]),
            # In a bucket what is not whole has its own name, and `integrity` removes it.
            cleanup_tmp_directories=not files.is_remote(workdir),
        )
        with storage.told(os.fspath(workdir)):
            self.manager = ocp.CheckpointManager(workdir / "checkpoints", options=options)
        self.seconds, self._facts = 0.0, facts
        self._records = workdir / integrity.RECORDS
        # Once it is gone, somebody took it away.
        hosts.first(lambda: self._records.mkdir(exist_ok=True))
        self._place = _identity(workdir)
        self._good: int | None = None
        self._finisher: threading.Thread | None = None
        self._error: BaseException | None = None

    def good(self) -> str:
        """Say for a person which checkpoint is the last that is whole and finite."""
        self._settle()
        if self._good is None:
            return "There is no checkpoint yet"
        return f"Checkpoint {self._good} is good: it was found finite and is whole"

    def save(
        self,
        step: int,
        state: TrainState,
        config: Mapping[str, Any],
        metrics: Mapping[str, float],
        recorded: Callable[[], object] = lambda: None,
        probe: OnlineProbe | None = None,
        seconds: float = 0.0,
    ):
        """Begin to save `state`, unless `step` is saved; the run goes on while it is written.

        Args:
            step: of the state.
            state: what is saved.
            config: the settings of the run.
            metrics: a score, whose `knn` tells the best checkpoint; may be empty.
            recorded: waits until the records up to `step` are written; the checkpoint does not
                count before. It is called by a thread.
            probe: that learns beside the run, and goes on where the run does; None without one.
            seconds: that the run has taken by now, over all its commands.

        Raises:
            UserError: `state` is not finite, or cannot be written; what was saved before is
                untouched.
        """
        if step == self.manager.latest_step():
            return
        began = time.perf_counter()
        self._settle()
        # Before the save begins, because the end of one drops what is older.
        if not is_finite(state):
            raise UserError(
                f"step {step}: the state holds numbers that are not finite and is not saved. "
                f"{self.good()}; go on from there with a lower lr: --config.lr=... "
                "--allow_change=lr"
            )
        # A process that saves alone would wait for the others.
        hosts.each(lambda: self._require_room((state, None if probe is None else probe.state)))
        about = {"format_version": FORMAT_VERSION, "step": step, "config": dict(config)}
        about |= {**self._facts, "seconds": seconds}
        items: dict[str, Any] = {"state": ocp.args.StandardSave(state)}
        if probe is not None:
            # An item of its own, which nobody needs to know who reads the state.
            items[PROBE], about[PROBE] = ocp.args.StandardSave(probe.state), probe.facts
        items["about"] = ocp.args.JsonSave(about)
        score = {"knn": metrics["knn"]} if "knn" in metrics else None
        try:
            self.manager.save(step, args=ocp.args.Composite(**items), metrics=score)
        except Exception as error:
            raise self._explained(error) from error
        self._finisher = threading.Thread(target=self._finish, args=(step, recorded))
        self._finisher.start()
        self.seconds += time.perf_counter() - began

    def _require_room(self, state: Any) -> None:
        # Asked beforehand, as a save that fails half-way in Orbax's threads fills the screen.
        workdir = self._records.parent
        if files.is_remote(workdir):
            return
        # Orbax would make the folders anew and the run go on into a workdir that has nothing but
        # its last checkpoints.
        if _identity(workdir) != self._place:
            raise UserError(
                f"workdir={workdir} is not the folder any more that the run began in: it was "
                "moved, removed or replaced. Put it back and give the same command: it goes on "
                "from the last checkpoint there"
            )
        needed = sum(x.nbytes for x in jax.tree.leaves(state))
        if shutil.disk_usage(workdir).free < needed * ROOM:
            raise full_disk(workdir)

    def _finish(self, step: int, recorded: Callable[[], object]) -> None:
        """Wait, in a thread, for files and records; then write digests and drop old ones."""
        try:
            self.manager.wait_until_finished()
            recorded()
            if jax.process_index() == 0:
                digests.write(self.manager.directory / str(step), self._records / str(step))
                present = {str(s) for s in self.manager.all_steps()}
                for record in self._records.iterdir():
                    if record.name not in present:
                        record.unlink()
            self._good = step
        except BaseException as error:  # raised again by the run itself, in _settle
            self._error = error

    def _settle(self) -> None:
        if self._finisher is not None:
            self._finisher.join()
            self._finisher = None
        if self._error is not None:
            error, self._error = self._error, None
            raise self._explained(error) from error

    def _explained(self, error: BaseException) -> UserError | Busy:
        """Turn an `error` while saving into one that names its remedy."""
        if isinstance(error, UserError | Busy):
            return error
        workdir = self._records.parent
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            return full_disk(workdir)
        reason = printable((str(error).strip() or repr(error)).splitlines()[0])
        if failures.is_watched() and failures.is_of_peers(error):
            return Busy(
                f"workdir={workdir}: a checkpoint could not be saved, as another process was lost "
                f"({reason}); the same command goes on from the last whole checkpoint"
            )
        if files.is_remote(workdir) and isinstance(error, Exception):
            found = storage.translate(error, os.fspath(workdir))
            if isinstance(found, UserError | Busy):
                return found
        return UserError(
            f"workdir={workdir}: a checkpoint could not be saved ({reason}). See that the folder "
            "is there and can be written, and give the same command: it goes on from the last "
            "whole checkpoint, which is untouched"
        )

    def go_on(
        self, step: int, examined: list[integrity.Examined], like: TrainState, batch_size: int
    ) -> tuple[int, TrainState, list[str]]:
        """Restore the newest checkpoint that is finite, and set aside those that are damaged.

        Args:
            step: of the newest sound one; where its numbers are not finite, an earlier one is
                taken.
            examined: what `integrity.find` found on the way to it.
            like, batch_size: as of `restore`.

        Returns:
            its step, the state as of `restore`, and a line on each checkpoint that was set aside.

        Raises:
            UserError: none is finite, or it is of another version; none is moved then.
        """
        workdir, passed = self._records.parent, [c for c in examined if c.wrong]
        while True:
            state = self.restore(step, like, batch_size)
            wrong = "" if is_finite(state) else "it holds numbers that are not finite"
            if not wrong and int(state.step) != step:
                wrong = f"it was saved at step {int(state.step)}"
            if not wrong:
                break
            passed.append(integrity.Examined(step, [wrong], finished=True))
            before, more = integrity.find(workdir, before=step)
            passed += [checkpoint for checkpoint in more if checkpoint.wrong]
            if before is None:
                raise UserError(integrity.lost(workdir, passed))
            step = before
        self._good = step
        remarks = integrity.set_aside(workdir, passed if jax.process_index() == 0 else ())
        with storage.told(os.fspath(workdir)):
            self.manager.reload()
        return step, state, remarks

    def restore(self, step: int, like: TrainState, batch_size: int) -> TrainState:
        """Restore the state saved at `step`, laid over devices as the abstract state `like` says.

        It was saved with this `batch_size` or another; `like` is for this one.
        """
        about = integrity.about(self._records.parent, step)
        if about.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"checkpoint {self.manager.directory / str(step)} has format_version="
                f"{about.get('format_version')}, this program reads {FORMAT_VERSION}; use the "
                "version that wrote it"
            )
        if about["config"]["batch_size"] == batch_size:
            return self._restore(step, like)
        saved = self._restore(step, _as_saved(like, about["config"]["batch_size"]))
        layout = jax.tree.map(lambda x: x.sharding, like)
        return jax.device_put(for_batch_size(saved, batch_size), layout)

    def restore_probe(self, step: int, probe: OnlineProbe) -> bool:
        """Let `probe` go on from the checkpoint of `step`, and say whether it does.

        It does not where none was saved, or one of other classes or features.
        """
        if integrity.about(self._records.parent, step).get(PROBE) != probe.facts:
            return False
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), probe.state
        )
        probe.state = self._restore(step, like, PROBE)
        return True

    def _restore(self, step: int, like: Any, item: str = "state") -> Any:
        items = ocp.args.Composite(**{item: ocp.args.StandardRestore(like)})
        with storage.told(os.fspath(self._records)):
            return self.manager.restore(step, args=items)[item]

    def close(self) -> None:
        """Wait until everything is written."""
        began = time.perf_counter()
        try:
            self._settle()
        finally:
            try:
                self.manager.close()
            except Exception as error:  # a save that failed is told once more here
                raise self._explained(error) from error
        self.seconds += time.perf_counter() - began


def _as_saved(like: TrainState, batch_size: int) -> TrainState:
    """Return `like` as it was with another `batch_size`.

    Its dictionary is whole on every device, because the slots may not divide over them.
    """
    kept = like.dictionary
    if kept is None:
        return like
    everywhere = like.step.sharding
    shapes = jax.eval_shape(lambda kept: kept.for_batch_size(batch_size), kept)
    if [x.shape for x in jax.tree.leaves(shapes)] == [x.shape for x in jax.tree.leaves(kept)]:
        return like
    return dataclasses.replace(
        like,
        dictionary=jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes
        ),
    )


def is_finite(state: TrainState) -> bool:
    """Return whether every number of `state` is finite; every host must call this."""
    return bool(_finite_on(state.step.sharding)(state))


@functools.cache
def _finite_on(everywhere: jax.sharding.Sharding) -> Any:
    """`all_finite`, compiled so that its answer is `everywhere`."""
    return jax.jit(all_finite, out_shardings=everywhere)


def _identity(workdir: epath.Path) -> tuple[int, int] | None:
    """Return what tells a folder here from another in its place; None for buckets."""
    if files.is_remote(workdir) or not workdir.exists():
        return None
    found = os.stat(workdir)
    return found.st_dev, found.st_ino
