"""Findings on a workdir: whether it can be written, and where a run would go on.

Nothing here writes.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from moco_jax.base import files
from moco_jax.base.console import size
from moco_jax.base.findings import FAULT, NOTE, OK, WARNING, Finding
from moco_jax.monitoring import run_log
from moco_jax.training import checkpoint
from moco_jax.workdir import integrity, recipe_check


def writable(workdir: epath.Path) -> Finding:
    """Find whether the rights of the file system let a run write to `workdir`."""
    if files.is_remote(workdir):
        return Finding(NOTE, f"{workdir}: whether it can be written shows when the run begins")
    place = _existing(workdir)
    if not place.is_dir():
        return Finding(FAULT, f"workdir={workdir}: {place} is a file; give a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding(
            FAULT,
            f"workdir={workdir}: {place} cannot be written; choose a folder that you may write to",
        )
    return Finding(OK, f"{workdir} can be written")


def _existing(path: epath.Path) -> Path:
    """Return `path`, or the nearest folder above it that is there."""
    place = Path(path)
    while not place.exists():
        place = place.parent
    return place


def checkpoints(workdir: epath.Path, total_steps: int) -> list[Finding]:
    """Find where a run would go on; `total_steps`: its length, 0 where it is not known."""
    examined = integrity.examine(workdir)
    why = integrity.lost(workdir, examined)
    if why:
        return [Finding(FAULT, why)]
    found = [Finding(WARNING, f"{c}; the run will move it aside") for c in examined if c.wrong]
    last = examined[-1] if examined and not examined[-1].wrong else None
    if last is None:
        return [*found, Finding(OK, "no checkpoint there: the run begins at step 0")]
    if total_steps and last.step >= total_steps:
        return [
            *found,
            Finding(
                NOTE, f"its run is at its end, step {last.step:,} of {total_steps:,}: nothing to do"
            ),
        ]
    stopped = [r for r in run_log.records(workdir) if r.get("event") == "stopped"]
    if stopped and stopped[-1]["step"] == last.step:
        why = f"{stopped[-1].get('verdict')} (stop_when={stopped[-1].get('stop_when')!r})"
        text = f"its run ended itself at step {last.step:,}: {why}"
        return [*found, Finding(NOTE, f"{text}; --config.stop_when=never lets it go on")]
    of = f" of {total_steps:,}" if total_steps else ""
    return [
        *found,
        Finding(
            OK, f"checkpoint {last.step} is sound: the run goes on after step {last.step:,}{of}"
        ),
    ]


def recipe(workdir: epath.Path, config: Mapping[str, Any], allow_change: set[str]) -> list[Finding]:
    """Find what `config` changes in the recipe of the run in `workdir`.

    Raises:
        UserError: it changes more than `allow_change` names.
    """
    step = integrity.sound(integrity.examine(workdir))
    changed = recipe_check.recipe_changes(workdir, config, allow_change, step)
    if not changed:
        return []
    listed = "; ".join(f"{k}: {old!r} -> {new!r}" for k, (old, new) in changed.items())
    return [Finding(NOTE, f"changed by --allow_change: {listed}")]


def room(free: int, present: int, state: int, keep: int) -> Finding:
    """Find whether the disk has room for checkpoints.

    Args:
        free: bytes on the disk.
        present: bytes of the checkpoints that are there and will be dropped in time.
        state: bytes of one.
        keep: of the latest; the best and the one that is being written come on top.
    """
    needed = state * (keep + 2)
    text = (
        f"{size(state)} a checkpoint, {size(needed)} for {keep} latest, the best and one being "
        "written"
    )
    if free < state * checkpoint.ROOM:
        return Finding(FAULT, f"{text}; {size(free)} are free: not even one fits, make room")
    if free + present < needed:
        return Finding(
            WARNING,
            f"{text}; {size(free)} are free: make room, or the run stops when the disk is full",
        )
    return Finding(OK, f"{text}; {size(free)} are free")


def measure_room(workdir: epath.Path, state: int, keep: int) -> list[Finding]:
    """Find the `room` on the disk where `workdir` is or will be; nothing for a bucket."""
    if files.is_remote(workdir):
        return []
    kept = [p for p in (Path(workdir) / "checkpoints").rglob("*") if p.is_file()]
    present = sum(p.stat().st_size for p in kept)
    return [room(shutil.disk_usage(_existing(workdir)).free, present, state, keep)]
