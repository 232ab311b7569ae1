"""Processes that measure, each with a limit that ends it, and the file that keeps their results.

A process that hangs or dies costs its own results alone: what it told before is written by then.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, TextIO

from benchmarks.accelerator_parts.telling import READY, RESULT

SHOWN = 12  # last lines of a process that failed, which are kept with its failure


class Results:
    """The results of one command: a file of JSON lines, each written as soon as it is known.

    Attributes:
        all: the results so far.
        began: when the command began, by `time.perf_counter`.
    """

    def __init__(self, folder: Path):
        """Write to `results.jsonl` in `folder`, and what processes print to `log.txt` there."""
        folder.mkdir(parents=True, exist_ok=True)
        self.began, self.all = time.perf_counter(), list[dict[str, Any]]()
        self._file, self._log = (
            (folder / name).open("a", encoding="utf-8") for name in ("results.jsonl", "log.txt")
        )
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """Return the seconds since the command began."""
        return time.perf_counter() - self.began

    def add(self, **result: Any) -> None:
        """Keep one result: it is on the disk when this returns."""
        with self._lock:
            self.all.append(result)
            line = json.dumps(result | {"at": round(self.seconds, 1)})
            self._write(self._file, line)
            os.fsync(self._file.fileno())
        print(f"{self.seconds:5.0f} s  {_readable(result)}", flush=True)

    def log(self, name: str, line: str) -> None:
        """Keep a line that the process `name` printed."""
        with self._lock:
            self._write(self._log, f"{self.seconds:.1f} {name}: {line}")

    @staticmethod
    def _write(file: TextIO, line: str) -> None:
        file.write(line + "\n")
        file.flush()


def _readable(result: dict[str, Any]) -> str:
    parts = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in result.items())
    return ", ".join(parts)


class Process:
    """A process that measures; its results go to the file as they come.

    Attributes:
        running: all processes that were started and have not been waited for.
    """

    running: ClassVar[list["Process"]] = []

    def __init__(
        self,
        results: Results,
        part: int,
        name: str,
        command: list[str],
        limit: float,
        environment: dict[str, str],
    ):
        """Start `command`, which ends within `limit` seconds or is ended.

        Args:
            results: take what it tells.
            part: number of the part that it belongs to.
            name: says what failed, if it does.
            command: words of the command line.
            limit: seconds from now.
            environment: variables that it has beside this process's own.
        """
        self.results, self.part, self.name = results, part, name
        self.limit, self.deadline = limit, time.perf_counter() + limit
        self._ready, self._tail = threading.Event(), deque[str](maxlen=SHOWN)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | environment,
            process_group=0,  # so that it is ended with all that it has started
        )
        self.running.append(self)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            text = line.rstrip("\n")
            if text.startswith(RESULT):
                self.results.add(part=self.part, **json.loads(text.removeprefix(RESULT)))
            elif text == READY:
                self._ready.set()
            else:
                self._tail.append(text)
                self.results.log(self.name, text)
        self._ready.set()  # it will say nothing more

    @property
    def runs(self) -> bool:
        """Return whether the process has not ended yet."""
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Wait until everything is compiled, the process has ended, or its limit is over."""
        self._ready.wait(max(self.deadline - time.perf_counter(), 0))

    def measure(self, limit: float) -> None:
        """Give the process its turn for at most `limit` seconds, and wait until it has ended.

        One that was not ready within its first limit has no turn and is ended.
        """
        if self._ready.is_set():
            self.limit, self.deadline = limit, time.perf_counter() + limit
            with contextlib.suppress(OSError):  # it may have ended
                self._process.stdin.write("\n")
                self._process.stdin.flush()
        self.finish()

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the process alone, after which a training saves its state."""
        if self.runs:
            self._process.send_signal(signal.SIGTERM)

    def finish(self, expected: tuple[int, ...] = (0,)) -> bool:
        """Wait until the process ends, at its deadline by force, and tell of a failure.

        Returns whether its status was one of those `expected`.
        """
        over = False
        try:
            self._process.wait(max(self.deadline - time.perf_counter(), 0))
        except subprocess.TimeoutExpired:
            over = True
        self.end()
        status = self._process.wait()
        self._reader.join(5)
        if over or status not in expected:
            why = f"ended after {self.limit:.0f} s" if over else f"status {status}"
            self.results.add(part=self.part, failed=self.name, why=why, last=list(self._tail))
        return not over and status in expected

    def end(self) -> None:
        """End the process, and workers that it has left behind, whatever they do."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self in self.running:
            self.running.remove(self)


@contextlib.contextmanager
def none_left_behind() -> Iterator[None]:
    """End all processes with the block, also where SIGTERM ends this one."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        for process in [*Process.running]:
            process.end()


def measuring(module: str, asked: dict[str, Any]) -> list[str]:
    """Return the command line of a measuring process, one of the modules beside this one."""
    name = f"benchmarks.accelerator_parts.{module}"
    return [sys.executable, "-m", name, json.dumps(asked)]
