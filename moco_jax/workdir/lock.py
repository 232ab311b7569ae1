"""A lock that keeps a workdir to one run, also in buckets and between machines.

`lock.json` in the workdir says which process is the owner. `lock.beat` beside it changes every
`BEAT` seconds as long as that process lives.
"""

import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from moco_jax.base.errors import Busy, LockLost, UserError
from moco_jax.base.text import printable
from moco_jax.workdir import lock_files, processes
from moco_jax.workdir.lock_owner import Owner, parse

LOCK, SIGN = "lock.json", "lock.beat"
BEAT = 10.0  # seconds between two signs of life
SAFE = 40.0  # seconds after one in which the owner may write without looking
STALE = 60.0  # seconds without one after which another run takes the lock over
POLL = 0.5  # seconds between two attempts of a run that waits
SLOW = 2.0  # seconds in which a lock is replaced; after more of them its owner makes sure
TELL = 2.0  # seconds of waiting that are not worth a line
TRIES = 5  # to give a sign of life in less than `SAFE` seconds
GAP = 5.0  # the most that the time between two attempts counts: who was suspended saw nothing


def _clock() -> float:
    """Return seconds that also pass while the machine sleeps, where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lock:
    """The claim of one process on one workdir.

    What it guarantees: while `check` returns, no other run has taken the workdir, as others take it
    only after they have seen no sign of life for `STALE` seconds, or have found that this process
    has ended. What is written within `STALE - SAFE` seconds after a `check` is so written before
    anybody else begins. Of several that start at once exactly one gets the
    lock, on disks and in buckets, however slow these are: who took long to write its claim waits
    until an owner that it may have written over has noticed. Clocks of machines are never compared:
    who waits counts seconds of its own in which it saw no change.
    """

    def __init__(
        self,
        workdir: object,
        store: lock_files.Store,
        process: processes.Process,
        clock: Callable[[], float] = _clock,
        sleep: Callable[[float], None] = time.sleep,
        is_gone: Callable[[processes.Process, processes.Process], bool] = processes.is_gone,
    ):
        """`workdir`: for messages; `clock` and what follows: the world, which tests replace."""
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        self._workdir = f"workdir={printable(str(workdir))}"
        self._store, self._clock, self._sleep, self._is_gone = store, clock, sleep, is_gone
        self._own = Owner(uuid.uuid4().hex, now, process)
        self._mine = self._own.to_bytes()
        self._claimed = False
        self._beats, self._safe_from = 0, 0.0
        self._seen: tuple[bytes, bytes | None] | None = None
        self._watched, self._looked, self._announced = 0.0, 0.0, False
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None
        self.lost = ""

    def attempt(self) -> tuple[bool, str]:
        """Take the lock if it is free, or its owner has ended.

        Returns:
            whether it is taken; else a line that is worth telling, or nothing, and one has to try
            again after `POLL`.

        Raises:
            Busy: another run is at work in the workdir.
            OSError: the workdir cannot be read or written.
        """
        seen, sign = self._store.read(LOCK), self._store.read(SIGN)
        if seen is not None and not self._may_replace(seen, sign):
            if self._watched < TELL or self._announced:
                return False, ""
            self._announced = True
            return False, self._waiting(seen)
        began, self._claimed = self._clock(), True
        self._safe_from = began
        if not self._store.replace(LOCK, seen, self._mine):
            self._claimed = False
            if seen is not None and self._watched >= 2 * STALE:
                self._store.unblock(LOCK, seen)
                self._watched = STALE
            return False, ""
        # Who took long may have written over an owner, which has noticed, or cannot write any more,
        # when it is stale.
        if self._clock() - began > SLOW:
            self._sleep(STALE)
            self._safe_from = self._clock()
            if self._store.read(LOCK) != self._mine:
                self._claimed = False
                return False, ""
        self.renew()
        if self.lost:
            self._claimed, self.lost = False, ""
            return False, ""
        return True, ""

    def _may_replace(self, seen: bytes, sign: bytes | None) -> bool:
        """Return whether the owner that `seen` names has ended, or was silent for too long."""
        _, owner = parse(seen)
        if owner is not None and self._is_gone(owner.process, self._own.process):
            return True
        now = self._clock()
        if self._seen is None or self._seen[0] != seen:
            self._seen, self._watched, self._announced = (seen, sign), 0.0, False
        else:
            self._watched += min(now - self._looked, GAP)
        self._looked = now
        if sign != self._seen[1]:
            raise Busy(
                f"{self._workdir} is in use by {owner or self._stranger()}; wait until that run "
                "ends, stop it, or give another workdir"
            )
        return self._watched >= STALE

    def _stranger(self) -> str:
        return f"another run, whose {LOCK} this version cannot read"

    def _waiting(self, seen: bytes) -> str:
        _, owner = parse(seen)
        claim = f"{self._workdir} is held by {owner}"
        if owner is None:
            claim = f"{self._workdir} has a {LOCK} that is damaged or of another version"
        return (
            f"{claim}; this run waits for a sign of life there, and begins after {STALE:g} s "
            "without one"
        )

    def beat_in_background(self) -> None:
        """Start a thread that gives signs of life until `release`."""
        self._heart = threading.Thread(
            target=self._beat_on, name="lock of the workdir", daemon=True
        )
        self._heart.start()

    def _beat_on(self) -> None:
        while not self._ended.wait(BEAT) and not self.lost:
            # A disk or network that fails for a while is no reason to stop: `check` knows how long
            # it was.
            with contextlib.suppress(OSError):
                self.renew()

    def renew(self) -> None:
        """Give a sign of life, if the lock is this run's still.

        Raises:
            OSError: the workdir cannot be read or written.
        """
        with self._guard:
            began = self._clock()
            seen = self._store.read(LOCK)
            if seen != self._mine:
                # Somebody removed or damaged it: it is put back. A name in it means that another
                # run has it, and after a time without a sign of life another one may have come and
                # gone.
                token, owner = parse(seen or b"")
                kept = not token and self._is_safe() and self._store.replace(LOCK, seen, self._mine)
                if kept and not self._is_safe():
                    self._store.remove(LOCK)
                    kept = False
                if not kept:
                    self.lost = (
                        f"{self._workdir} was taken over by {owner or self._stranger()}, as this "
                        "run gave no sign of life (was it suspended?); it stops and writes nothing "
                        "more"
                    )
                    return
            self._beats += 1
            self._store.write(SIGN, f"{self._own.token} {self._beats}\n".encode())
            self._safe_from = began

    def _is_safe(self) -> bool:
        return self._clock() - self._safe_from <= SAFE

    def check(self) -> None:
        """Make sure that this run may write to its workdir; call this before every write.

        Raises:
            LockLost: another run has taken the workdir.
            UserError: the workdir is gone.
            Busy: the workdir can no longer be reached, and another run may have taken it meanwhile.
        """
        for _ in range(TRIES):
            if not self._claimed or self.lost or self._is_safe():
                break
            try:
                self.renew()
            except FileNotFoundError as error:
                raise UserError(
                    f"{self._workdir} is gone; was it moved away while the run went on? Give its "
                    "new place"
                ) from error
            except OSError as error:
                raise Busy(
                    f"{self._workdir} cannot be reached ({error.strerror or error}); give the same "
                    "command again when it can, and the run goes on"
                ) from error
        else:
            raise Busy(
                f"{self._workdir} answers too slowly; give the same command again when it is "
                "faster, and the run goes on"
            )
        if self.lost:
            raise LockLost(self.lost)

    def release(self) -> None:
        """Give no more signs of life, and remove the lock where it is this run's."""
        self._ended.set()
        if self._heart is not None:
            self._heart.join()
        if not self._claimed or self.lost:
            return
        self._claimed = False
        # What cannot be removed is found stale by the next run.
        with contextlib.suppress(OSError):
            if self._store.read(LOCK) == self._mine:
                self._store.remove(LOCK)
                if (self._store.read(SIGN) or b"").startswith(self._own.token.encode()):
                    self._store.remove(SIGN)
