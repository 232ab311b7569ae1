"""Saves the trainings of an evaluation, so that they go on where they were cut off.

The state of each lies in a file of its own until the evaluation has ended. A file is written
whole or not at all, begins with the digest of the rest, and is used by no training but the one
of the same settings, images and first weights.
"""

import errno
import re
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import serialization
from jax.sharding import Mesh

from moco_jax import __version__
from moco_jax.base import digests, files
from moco_jax.base.console import Console
from moco_jax.base.errors import full_disk
from moco_jax.parallel import hosts
from moco_jax.parallel import mesh as mesh_lib

SECONDS = 300.0  # between two saves
SHARE = 0.05  # of the time at most is spent on saving, which comes less often where it is slow


class Kept:
    """One training that is saved in a file; without a path it is not saved, and starts afresh."""

    def __init__(
        self,
        path: epath.Path | None,
        name: str,
        facts: Any,
        console: Console | None,
        seconds: float,
    ):
        """Save the training called `name`, for which `facts` hold beside those given to `begin`."""
        self._path, self._name, self._console, self._seconds = path, name, console, seconds
        self._facts, self._digest, self._next = facts, "", 0.0

    def begin(self, mesh: Mesh, state: Any, facts: Any) -> tuple[Any, int, dict[str, Any]]:
        """Return the state to go on from; every host must call it.

        Args:
            mesh: the devices.
            state: a pytree of arrays, as they are before the first step.
            facts: all that shapes the training, as `digests.of_tree` takes it.

        Returns:
            The state, the number of steps it has gone, and the notes saved with it. After 0
            steps there are no notes.
        """
        if self._path is None:
            return state, 0, {}
        self._digest = digests.of_tree((__version__, self._facts, facts))
        self._next = time.monotonic() + self._seconds
        saved, step = self._read(), 0
        if saved is not None:
            step = int(saved["step"])
        hosts.require_agreement({f"step saved in {self._path}": step, "training": self._digest})
        if saved is None:
            return state, 0, {}
        leaves, structure = jax.tree.flatten(state)
        arrays = [np.asarray(saved["state"][str(n)]) for n in range(len(leaves))]
        self._say(f"{self._name}: goes on after step {step:,} ({self._path})")
        state = jax.tree.unflatten(structure, mesh_lib.to_every_device(mesh, arrays))
        return state, step, saved["notes"]

    def _read(self) -> dict[str, Any] | None:
        """Read the file; None where there is none, or it is damaged or of another training."""
        assert self._path is not None
        if not self._path.exists():
            return None
        body = digests.unseal(self._path.read_bytes())
        if body is None:
            wrong = "is damaged"
        else:
            content = serialization.msgpack_restore(body)
            if content["training"] == self._digest:
                return content
            wrong = "is of other settings, weights or images"
        self._say(f"{self._name}: {self._path} {wrong} and is not used; the training begins anew")
        return None

    def due(self, last: bool) -> bool:
        """Return whether to `save` now, which is true on the first host alone.

        It is true after the `last` step, and when the time has come.
        """
        if self._path is None or jax.process_index() != 0:
            return False
        return last or time.monotonic() >= self._next

    def save(self, step: int, state: Any, **notes: Any) -> None:
        """Replace the saved state by the `state` after `step` steps.

        Args:
            step: how many.
            state: of which every host has all.
            notes: numbers, and lists of them, that `begin` gives back.

        Raises:
            UserError: the disk is full; the state saved before is untouched.
        """
        if self._path is None:
            return
        began = time.monotonic()
        leaves = {str(n): np.asarray(x) for n, x in enumerate(jax.tree.leaves(state))}
        body = serialization.msgpack_serialize(
            {"training": self._digest, "step": step, "state": leaves, "notes": notes}
        )
        try:
            files.write(self._path, digests.seal(body))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise full_disk(self._path.parent) from error
            raise
        ended = time.monotonic()
        self._next = ended + max(self._seconds, (ended - began) / SHARE)

    def _say(self, text: str) -> None:
        if self._console is not None:
            self._console.line(text)


NOT_KEPT = Kept(None, "", None, None, SECONDS)


class Trainings:
    """The trainings of one evaluation, as files in a folder of their own."""

    def __init__(self, folder: epath.Path, console: Console, seconds: float = SECONDS):
        """Keep them in `folder`, with `seconds` between two saves of a training."""
        self._folder, self._console, self._seconds = folder, console, seconds

    def one(self, name: str, *facts: Any) -> Kept:
        """Return the training `name`, one of its kind in this evaluation.

        `facts` hold for it beside those given to `Kept.begin`.
        """
        path = self._folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}.state"
        return Kept(path, name, facts, self._console, self._seconds)

    def forget(self) -> None:
        """Remove the folder: the evaluation has ended, and its result is written."""
        if jax.process_index() == 0 and self._folder.exists():
            self._folder.rmtree()
