"""Names for processes, and whether one has ended, also where its number was given anew."""

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

LARGEST = 1 << 22  # Linux numbers no process above this


@dataclass(frozen=True)
class Process:
    """A process among those of all machines.

    Attributes:
        host: the machine's name; containers have one of their own.
        boot: Linux' name for the time since the machine was started; empty where there is none.
        namespace: the process numbers that hold here (containers have their own); empty where it is
            not known.
        pid: the number of the process.
        started: when it was started, in clock ticks since the boot; 0 where it is not known.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: int


def this() -> Process:
    """Describe the calling process."""
    pid = os.getpid()
    _, _, started = _state(pid) or ("", 1, 0)
    boot, namespace = "", ""
    with contextlib.suppress(OSError):  # other systems than Linux have no /proc
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return Process(socket.gethostname(), boot, namespace, pid, started)


def is_gone(process: Process, here: Process) -> bool:
    """Return whether `process` ran where `here` runs and has ended; False if nobody can know.

    The same place is the same host name, boot and process numbers: a container may have the host
    name of another, or restart within one boot. A process of that number that was started at
    another time is another one. What was killed and is not yet collected by its parent has ended.
    """
    place = (here.host, here.boot, here.namespace)
    if not all(place) or place != (process.host, process.boot, process.namespace):
        return False
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it is there, and is another user's
    found = _state(process.pid)
    if found is None:
        return False
    state, threads, started = found
    if process.started and started != process.started:
        return True
    return state in ("Z", "X") and threads <= 1


def _state(pid: int) -> tuple[str, int, int] | None:
    """Read state, number of threads and start of process `pid` from Linux; None elsewhere."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        words = text.rpartition(")")[2].split()  # the name before it may hold anything
        return words[0], int(words[17]), int(words[19])
    except (OSError, IndexError, ValueError):
        return None
