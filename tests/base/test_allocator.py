"""Freed memory stays with a process of ours, unless the user or the system's library says no."""

import os
import subprocess
import sys

import pytest

from moco_jax.base import allocator

# Prints the answer, and the pages that the system had to give for the tenth of ten large buffers.
PROGRAM = """
import resource
from moco_jax.base import allocator
kept = allocator.keep_freed_memory()
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (64 << 20)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = (64 << 20) // 4096


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has GNU's allocator")
@pytest.mark.parametrize(
    ("variables", "kept"),
    [
        ({}, True),
        ({"MALLOC_MMAP_MAX_": "65536"}, False),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_max=65536"}, False),
    ],
)
def test_a_buffer_gets_the_pages_of_the_one_before(variables, kept):
    own = ("MALLOC_", "GLIBC_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    env |= {"PYTHONPATH": os.getcwd()} | variables
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env, check=True
    )
    said, pages = run.stdout.split()
    assert said == str(kept)
    assert int(pages) < PAGES / 10 if kept else int(pages) > PAGES / 2


def test_another_library_is_left_alone(monkeypatch):
    for name in ("GLIBC_TUNABLES", *allocator._OF_THE_USER):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert not allocator.keep_freed_memory()
