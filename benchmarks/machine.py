"""Describes the machine that a benchmark ran on; also holds functions that benchmarks share."""

import os
import platform
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path

import jax


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def describe() -> str:
    """Return processor, cores and the version of JAX."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [
            x.split(":")[1].strip()
            for x in info.read_text().splitlines()
            if x.startswith("model name")
        ]
        name = named[0] if named else name
    return f"{name}, {os.cpu_count()} cores, jax {jax.__version__}"


def peak() -> int:
    """Return the most bytes of memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def median_seconds(run: Callable[[], object], times: int, warm_up: int = 2) -> float:
    """Return the median duration of `times` calls of `run`, which must wait for its own result."""
    for _ in range(warm_up):
        run()
    durations = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        durations.append(time.perf_counter() - began)
    return sorted(durations)[len(durations) // 2]
