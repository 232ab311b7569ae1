"""A tracker's process as the run sees it: a message is sent, an answer comes in time or not."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import moco_jax

PART = 1 << 16  # bytes read or written at once
SHOWN = 4000  # bytes of its output in which a reason is looked for


class Failed(Exception):
    """A tracker did not do what it was told; the text says why, without its name.

    Attributes:
        ends: whether its process ends by itself.
    """

    def __init__(self, reason: str, ends: bool = False):
        """Say the `reason`."""
        super().__init__(reason)
        self.ends = ends


class Child:
    """The process of one tracker. Its output goes to a file that nobody else has."""

    def __init__(self, name: str):
        """Start the process of the tracker `name`, in a session of its own.

        Raises:
            OSError: it cannot be started.
        """
        root = str(Path(moco_jax.__file__).parents[1])
        paths = [path for path in (os.environ.get("PYTHONPATH"), root) if path]
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moco_jax.monitoring.trackers.child", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)

    def ask(self, message: Mapping[str, Any], seconds: float) -> Any:
        """Send `message` and return the answer.

        Raises:
            Failed: it is an error, does not come within `seconds`, or the process has ended.
        """
        deadline = time.monotonic() + seconds
        left, got = memoryview(json.dumps(message).encode() + b"\n"), b""
        while not got.endswith(b"\n"):
            wait = deadline - time.monotonic()
            ready, room, _ = select.select(
                [self._from], [self._to] if left else [], [], max(wait, 0)
            )
            if not ready and not room:
                raise Failed(f"it gave no answer for {seconds:g} s")
            try:
                if room:
                    left = left[os.write(self._to, left[:PART]) :]
            except BrokenPipeError:
                left = left[:0]  # its last answer, or its end, is read next
            if ready:
                part = os.read(self._from, PART)
                if not part:
                    raise Failed(f"its process has ended{self._last_words()}")
                got += part
        answer = json.loads(got)
        if "error" in answer:
            raise Failed(answer["error"], ends=True)
        return answer["ok"]

    def _last_words(self) -> str:
        self._output.seek(0, os.SEEK_END)
        self._output.seek(max(self._output.tell() - SHOWN, 0))
        lines = self._output.read().decode(errors="replace").split("\n")
        said = [" ".join(line.split()) for line in lines if line.strip()]
        return f" ({said[-1][:300]})" if said else ""

    def kill(self) -> None:
        """End the process, and those that it started in its session, at once."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self, seconds: float) -> None:
        """Give the process so many `seconds` to end, then kill it."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._output):
            assert file is not None
            file.close()
