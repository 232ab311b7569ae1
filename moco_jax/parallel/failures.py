"""One process of a run that fails ends all of them, each with one line that says which and why.

A process that fails tells its reason through the key-value store of JAX's coordination service,
which process 0 hosts. In every process a thread looks for such a reason and gives signs of life;
process 0 notices who gives none. Of the loss of process 0 itself JAX tells (`lost`). This module
loads no JAX, and does nothing in a run of one process.
"""

import ctypes
import functools
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from moco_jax.base import endings
from moco_jax.base.errors import TRY_AGAIN
from moco_jax.base.text import printable

LOOK = 2.0  # seconds between two looks for a reason, and between two signs of life
SILENT = 30.0  # seconds without a sign of life after which a process counts as lost
SUSPECT = 8.0  # the same once an operation of all processes has failed
HEARTBEAT = 45  # seconds after which JAX itself, which needs no Python thread, gives up
OWN = 5.0  # seconds that a process has to fail by itself, or to end, once another one has failed
CLOSE = 25.0  # seconds that a process which fails has to close what it had open
HEARD = 10.0  # seconds that process 0, which hosts the service, waits until all know the reason
FAILED, ALIVE, HEARD_BY = "moco_jax/failed", "moco_jax/alive/", "moco_jax/heard/"

# What JAX and Orbax say where another process is missing from an operation of all.
OF_PEERS = (
    *("gloo", "connection closed", "connection reset", "coordination", "barrier", "heartbeat"),
    *("unavailable:", "deadline_exceeded:", "cancelled:", "aborted:"),
)

Ending = tuple[int, str]  # a status, and the line that says why
_watch: "Watch | None" = None


class Watch:
    """Looks after the other processes of a run, from one of them.

    Attributes:
        before_exit: called before this process ends because of another one.
    """

    def __init__(self, client: Any, number: int, count: int):
        """Watch as process `number` of `count`, through the `client` of JAX's service."""
        self.before_exit: list[Callable[[], None]] = []
        self._client, self._number, self._count = client, number, count
        self._looked = time.monotonic()
        self._signs: dict[int, str] = {}
        self._quiet = dict.fromkeys(range(count), 0.0)
        self._suspects = threading.Event()
        self._fails = threading.Event()  # this process has an error of its own
        self._ends = threading.Lock()  # held by who ends the process, and never given back
        self.reason: Ending | None = None

    def start(self) -> None:
        """Begin to watch, in a thread."""
        threading.Thread(target=self._look_on, name="watch over processes", daemon=True).start()

    def _look_on(self) -> None:
        unheard, signs = 0.0, 0
        while unheard < SILENT:
            signs += 1
            try:
                self._client.key_value_set(f"{ALIVE}{self._number}", str(signs), True)
                if self._number == 0:
                    self._count_silence()
                told = self._told()
                unheard = 0.0
            except Exception:  # the service is gone, or is shut down as the run ends
                told, unheard = None, unheard + LOOK
            if told and told["process"] == self._number and self._fails.is_set():
                return  # `leave` ends this process
            if told:
                self._end_with(told)
            time.sleep(LOOK)

    def _told(self) -> dict[str, Any] | None:
        """Return what a process that failed has told; None where none has."""
        try:
            return json.loads(self._client.key_value_try_get(FAILED))
        except Exception as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def _count_silence(self) -> None:
        """Add up for how long each process was silent; tell of the first that was so too long."""
        now = time.monotonic()
        # A process that was suspended has heard nothing meanwhile, and must not blame the others.
        passed, self._looked = min(now - self._looked, 2 * LOOK), now
        signs = dict(self._client.key_value_dir_get(ALIVE))
        for number in range(1, self._count):
            sign = signs.get(f"{ALIVE}{number}", "")
            changed = sign != self._signs.get(number)
            self._quiet[number] = 0.0 if changed else self._quiet[number] + passed
            self._signs[number] = sign
        limit = SUSPECT if self._suspects.is_set() else SILENT
        lost = [number for number, quiet in self._quiet.items() if quiet > limit]
        if lost:
            more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
            self._set_failed(
                lost[0],
                TRY_AGAIN,
                f"process {lost[0]}{more} gives no sign of life: it was killed, or its host or "
                "network failed; the same command goes on from the last checkpoint",
            )

    def _set_failed(self, process: int, status: int, line: str) -> None:
        told = {"process": process, "status": status, "line": line}
        try:
            self._client.key_value_set(FAILED, json.dumps(told))
        except Exception:
            return  # another one was first, or the service is gone

    def tell(self, error: BaseException) -> None:
        """Tell the others that this process ends because of `error`, unless all raise it."""
        if getattr(error, "agreed", False) or self._fails.is_set():
            return
        if is_of_peers(error):
            self._suspects.set()
            return
        self._fails.set()
        # What a person sees as a trace here is no mistake in the command that the others got.
        kind = printable(f"{type(error).__name__}: {error}")
        status, line = endings.of(error) or (TRY_AGAIN, kind)
        host = socket.gethostname()
        self._set_failed(self._number, status, f"process {self._number} on {host}: {line}")
        self._hear()
        # What is closed may wait for processes that are no longer there.
        timer = threading.Timer(CLOSE, self._end, (status, line))
        timer.daemon = True
        timer.start()

    def _hear(self) -> None:
        try:
            self._client.key_value_set(f"{HEARD_BY}{self._number}", "", True)
        except Exception:
            return  # who asks for it is gone

    def _wait_until_heard(self) -> None:
        """Wait, on process 0, until the others know why the run ends: the service ends with it."""
        deadline = time.monotonic() + HEARD
        waits = [n for n in range(1, self._count) if self._quiet[n] <= SUSPECT]
        while self._number == 0 and time.monotonic() < deadline:
            try:
                heard = dict(self._client.key_value_dir_get(HEARD_BY))
            except Exception:
                return
            if all(f"{HEARD_BY}{number}" in heard for number in waits):
                return
            time.sleep(0.05)

    def _end_with(self, told: dict[str, Any]) -> None:
        """End this process because of another; it may have an error of its own to tell."""
        self.reason = (told["status"], told["line"])
        self._hear()
        if self._fails.wait(OWN):
            time.sleep(CLOSE)
        self._end(*self.reason)

    def _end(self, status: int, line: str, trace: BaseException | None = None) -> None:
        """Print why, and end the process at once; threads that come second wait for that."""
        with self._ends:
            sys.stdout.flush()
            if trace is None:
                print(line if line == "stopped" else f"error: {line}", file=sys.stderr)
            else:
                traceback.print_exception(trace)
            sys.stderr.flush()
            self._wait_until_heard()
            closing = threading.Thread(target=self._close, daemon=True)
            closing.start()
            closing.join(OWN)
            os._exit(status)

    def _close(self) -> None:
        for call in self.before_exit:
            call()

    def leave(self, error: BaseException) -> None:
        """End this process because of `error`, which the others have been told of.

        Where it is of the kind that the loss of another process brings, wait first for what is
        known of that one.
        """
        if is_of_peers(error):
            self._suspects.set()
            time.sleep(HEARTBEAT)  # the watch ends this process before
        self.tell(error)
        known = endings.of(error)
        if known:
            self._end(*known)
        self._end(TRY_AGAIN if is_of_peers(error) else 1, "", error)

    def lost(self) -> None:
        """End this process, as JAX has lost the coordination service or another process."""
        who = "process 0" if self._number else "another process"
        line = (
            f"{who} of this run cannot be reached: it was killed, or a host or the network failed; "
            "the same command goes on from the last checkpoint"
        )
        self._end(*(self.reason or (TRY_AGAIN, line)))


def is_of_peers(error: BaseException | None) -> bool:
    """Return whether `error` of JAX or Orbax is what the loss of another process brings."""
    seen: list[BaseException] = []  # an error may be its own cause
    while error is not None and error not in seen:
        said = str(error).lower()
        if endings.of(error) is None and any(words in said for words in OF_PEERS):
            return True
        seen.append(error)
        error = error.__cause__
    return False


def begin(client: Any, number: int, count: int) -> None:
    """Watch over the other processes of this run; call this once they are joined."""
    global _watch
    _watch = Watch(client, number, count)
    _watch.start()


def tell(error: BaseException) -> None:
    """Tell the other processes that this one ends because of `error`; call it again at will."""
    if _watch is not None:
        _watch.tell(error)


def leave(error: BaseException) -> None:
    """End this process because of `error`, with its line and status, once the others know of it.

    This returns where all processes raise that error, and in a run of one process.
    """
    if _watch is not None and not getattr(error, "agreed", False):
        _watch.leave(error)


def is_watched() -> bool:
    """Return whether this process is one of several that watch over each other."""
    return _watch is not None


def at_exit(call: Callable[[], None]) -> None:
    """Have `call` called, in another thread, before another process' failure ends this one."""
    if _watch is not None:
        _watch.before_exit.append(call)


def lost(*_: Any) -> None:
    """Answer JAX, which has lost the coordination service: end this process with one line."""
    if _watch is not None:
        _watch.lost()
    print("error: the processes of this run lost each other", file=sys.stderr, flush=True)
    os._exit(TRY_AGAIN)


@functools.cache
def catch_aborts() -> object:
    """Have `lost` called where JAX would end the process with a trace of its C++.

    JAX gives its callback a value that Python cannot be given: its bindings then raise in C++,
    nothing catches that, and the C++ library asks for its last word what `set_terminate` has set.

    Returns:
        What must live as long as the process.
    """
    last_word = ctypes.CFUNCTYPE(None)(lost)
    try:
        ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE(last_word)
    except (OSError, AttributeError):  # another C++ library: the trace is printed, status 134
        return None
    return last_word
