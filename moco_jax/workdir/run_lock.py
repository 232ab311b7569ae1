"""Keeps a workdir to one run: `hold` takes its lock for all processes of the run.

Process 0 takes the lock. Readers (reports, evaluations, features) take none.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator

import jax
from etils import epath

from moco_jax.base import files
from moco_jax.base.errors import Busy, UserError, full_disk
from moco_jax.base.text import printable
from moco_jax.parallel import failures, hosts
from moco_jax.workdir import lock as lock_lib
from moco_jax.workdir import lock_files, processes


@contextlib.contextmanager
def hold(workdir: epath.Path, say: Callable[[str], None]) -> Iterator[lock_lib.Lock]:
    """Hold the lock of `workdir` within the context; every process of the run must call this.

    A workdir that is not there is made, and taken away again where nothing came into it. Where
    another run may be at work in it this waits until that is known; `say` gets a line about it.

    Raises:
        Busy: another run is at work there; on every process, with the same line.
        UserError: the workdir cannot be written.
    """
    first = jax.process_index() == 0
    lock = lock_lib.Lock(workdir, lock_files.store_in(workdir), processes.this())
    made: list[str] = []
    try:
        if first and not files.is_remote(workdir):
            made = _missing(os.fspath(workdir))
        while True:
            kind, line = hosts.broadcast(_outcome(lock, workdir) if first else ("", ""))
            if kind in ERRORS:
                raise hosts.agreed(ERRORS[kind](line))
            if kind == "held":
                break
            if line:
                say(line)
            if first:
                time.sleep(lock_lib.POLL)
        if first:
            lock.beat_in_background()
            # The next start need not wait until the lock is stale.
            failures.at_exit(lock.release)
        yield lock
    finally:
        lock.release()
        for folder in made:
            with contextlib.suppress(OSError):  # it holds something, or is gone
                os.rmdir(folder)


ERRORS: dict[str, type[Exception]] = {"busy": Busy, "refused": UserError}


def _outcome(lock: lock_lib.Lock, workdir: epath.Path) -> tuple[str, str]:
    """Try to take the lock once, and describe for all processes what came of it.

    Returns: 'held', 'waiting' or a kind of `ERRORS`, and a line.
    """
    try:
        if not files.is_remote(workdir):
            os.makedirs(workdir, exist_ok=True)
        taken, line = lock.attempt()
        return "held" if taken else "waiting", line
    except Busy as error:
        return "busy", str(error)
    except UserError as error:
        return "refused", str(error)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return "refused", str(full_disk(workdir))
        return "refused", (
            f"workdir={printable(str(workdir))} cannot be written ({error.strerror or error}); "
            "choose a folder that you may write to"
        )


def _missing(folder: str) -> list[str]:
    """List `folder` and the folders above it that are not there, the innermost first."""
    missing: list[str] = []
    while folder and not os.path.lexists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    return missing
