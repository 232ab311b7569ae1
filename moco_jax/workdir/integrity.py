"""Checkpoints of a workdir that can be trusted.

They are examined newest first, and nothing is moved before it is known that one of them is sound.

A checkpoint counts once the digests of all its files are written (`digests/STEP`). It also says of
which step it is and by which settings it was made (`about`).
"""

import dataclasses
import time
from collections.abc import Iterable
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from moco_jax.base import digests, files, storage
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.parallel import hosts

FOLDER, RECORDS, ASIDE = "checkpoints", "digests", "damaged"  # in a workdir


@dataclasses.dataclass(frozen=True)
class Examined:
    """A checkpoint that was examined, and what is wrong with it.

    Attributes:
        step: the step that it is called by.
        wrong: what is wrong with it, a line each; empty when it is sound.
        finished: whether it was ever whole.
    """

    step: int
    wrong: list[str]
    finished: bool

    def __str__(self) -> str:
        """Describe a damaged checkpoint in one line."""
        more = "; ..." if len(self.wrong) > 3 else ""
        return f"checkpoint {self.step} is damaged ({'; '.join(self.wrong[:3])}{more})"


def step_of(name: str) -> int | None:
    """Read the step from a checkpoint's `name`; None for names that no run gives, as '040'."""
    is_number = name.isascii() and name.isdigit() and len(name) < 20
    return int(name) if is_number and str(int(name)) == name else None


def steps(workdir: epath.Path) -> list[int]:
    """List the steps of all checkpoints, finished or not, newest first."""
    folder = workdir / FOLDER
    if not folder.is_dir():
        return []
    found = (step_of(path.name) for path in folder.iterdir())
    return sorted((step for step in found if step is not None), reverse=True)


def examine(workdir: epath.Path, before: int | None = None) -> list[Examined]:
    """Examine checkpoints of `workdir`, newest first, down to a sound one; nothing is changed.

    `before`: only those of earlier steps; None: all.
    """
    found: list[Examined] = []
    for step in steps(workdir):
        if before is not None and step >= before:
            continue
        if not (workdir / RECORDS / str(step)).exists():
            found.append(Examined(step, ["it was not finished"], finished=False))
            continue
        found.append(Examined(step, _wrong_with(workdir, step), finished=True))
        if not found[-1].wrong:
            break
    return found


def _wrong_with(workdir: epath.Path, step: int) -> list[str]:
    wrong = digests.damaged(workdir / FOLDER / str(step), workdir / RECORDS / str(step))
    if wrong:
        return wrong
    try:
        own = about(workdir, step).get("step", step)
    except UserError as error:
        return [str(error)]
    return [] if own == step else [f"it was saved at step {own}"]


def about(workdir: epath.Path, step: int) -> dict[str, Any]:
    """Read `format_version`, `config` and (not in old ones) `step` of the checkpoint of `step`.

    Raises:
        UserError: that cannot be read.
    """
    place = workdir / FOLDER / str(step) / "about"
    try:
        found = ocp.JsonCheckpointHandler().restore(place)
    except storage.OF_STORES:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{place} cannot be read ({printable(str(error))})") from error
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise UserError(f"{place} does not hold the settings of a run")
    return found


def is_begun(workdir: epath.Path) -> bool:
    """Return whether `workdir` has a checkpoint that was once whole: no run begins anew there."""
    return any((workdir / RECORDS / str(step)).exists() for step in steps(workdir))


def sound(examined: Iterable[Examined]) -> int | None:
    """Return the step of the sound one among the checkpoints `examined`, or None."""
    return next((checkpoint.step for checkpoint in examined if not checkpoint.wrong), None)


def lost(workdir: epath.Path, examined: list[Examined]) -> str:
    """Say why a run can neither go on in `workdir` nor begin anew; empty where it can.

    One checkpoint without digests is what a run leaves that was ended while it saved its first: it
    begins anew. More of them, or a folder of digests that is gone, are a run's that must not be
    taken for a new one.
    """
    if sound(examined) is not None or not examined:
        return ""
    finished = any(checkpoint.finished for checkpoint in examined)
    # A bucket has no empty folders: there a run that has saved nothing yet has none.
    taken = not files.is_remote(workdir) and not (workdir / RECORDS).exists()
    listed = ", ".join(str(checkpoint.step) for checkpoint in examined)
    anew = f"give another workdir, or move {workdir / FOLDER} elsewhere to begin at step 0"
    if not finished and (taken or len(examined) > 1):
        return (
            f"{workdir / RECORDS} has no digests of checkpoint {listed}, so that nothing tells "
            f"whether they are whole; put that folder back, {anew}. Nothing was changed"
        )
    if finished:
        damages = "; ".join(map(str, examined))
        return (
            f"workdir={workdir} has no sound checkpoint left; {damages}. Restore one, {anew}. "
            "Nothing was changed"
        )
    return ""


def find(workdir: epath.Path, before: int | None = None) -> tuple[int | None, list[Examined]]:
    """Find the checkpoint that a run goes on from; process 0 looks, every host must call this.

    Args:
        workdir: of the run; nothing in it is changed.
        before: only checkpoints of earlier steps.

    Returns:
        the step of the newest sound checkpoint, None where there is none, and on process 0 those
        that were examined.

    Raises:
        UserError: there were checkpoints that a run can go on from, and none is sound any more.
    """
    examined: list[Examined] = []

    def look() -> int | None:
        try:
            examined.extend(examine(workdir, before))
            why = lost(workdir, examined)
        except storage.OF_STORES:
            raise
        except OSError as error:
            why = f"workdir={workdir} cannot be read ({error.strerror or error})"
        if why:
            raise UserError(why)
        return sound(examined)

    return hosts.first(look), examined


def set_aside(workdir: epath.Path, examined: Iterable[Examined]) -> list[str]:
    """Move damaged ones among the checkpoints `examined` to `damaged`; every host must call this.

    Process 0 moves those that it has `examined`.

    Returns:
        A line on each.
    """
    return hosts.first(lambda: _moved(workdir, examined))


def _moved(workdir: epath.Path, examined: Iterable[Examined]) -> list[str]:
    remarks, parts = [], _removed_parts(workdir)
    for checkpoint in examined:
        if checkpoint.wrong and checkpoint.step in parts:
            remarks.append(f"{checkpoint}; the part of it that was there is removed")
        elif checkpoint.wrong:
            place = workdir / ASIDE / f"{checkpoint.step}_{time.time_ns()}"
            files.move(workdir / FOLDER / str(checkpoint.step), place)
            remarks.append(f"{checkpoint}; moved to {place}")
    return remarks


def _removed_parts(workdir: epath.Path) -> set[int]:
    """Remove what killed runs have left in a bucket of checkpoints they saved or dropped.

    Returns:
        their steps. On disks Orbax writes under other names, and removes these itself.
    """
    if not files.is_remote(workdir):
        return set()
    parts = {step for step in steps(workdir) if not (workdir / RECORDS / str(step)).exists()}
    parts = {s for s in parts if not ocp.utils.is_checkpoint_finalized(workdir / FOLDER / str(s))}
    for step in parts:
        storage.remove_folder(str(workdir / FOLDER / str(step)))
    return parts


def set_damaged_aside(workdir: epath.Path) -> list[str]:
    """Move unfinished and altered checkpoints aside, newest first, up to a sound one.

    Returns:
        A line on each.

    Raises:
        UserError: there were whole checkpoints, and none is sound any more; none is moved then.
    """
    return set_aside(workdir, find(workdir)[1])
