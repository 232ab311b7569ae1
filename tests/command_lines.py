"""Several command lines, one after the other in one process: imports take longer than the work."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests import xla

DRIVER = """
import json, sys
from moco_jax.cli.commands import command_of
command = command_of(sys.argv[1].removeprefix("moco_jax."))
for words in json.loads(sys.argv[2]):
    print("BEGIN", file=sys.stderr)
    print("BEGIN")
    try:
        command.call([sys.argv[1], *words])
    except SystemExit as error:
        print("ended with", error.code)
"""

# The same in one of two processes, which join once, at the first command line: the words begin with
# the module. Some code of the test may come first.
ONE_OF_TWO = """
import json, sys
import jax
from moco_jax.base import allocator
from moco_jax.cli.commands import command_of
from moco_jax.parallel import joining, xla_flags
xla_flags.set_up()
allocator.keep_freed_memory()
join, flags = joining.start_hosts, sys.argv[2:5]
def once(*arguments, **named):
    if not jax.distributed.is_initialized():
        join(*arguments, **named)
joining.start_hosts = once
exec(sys.argv[5])
for module, *words in json.loads(sys.argv[1]):
    print("BEGIN", file=sys.stderr)
    print("BEGIN")
    try:
        command_of(module).call([module, *words, *flags])
    except SystemExit as error:
        print("ended with", error.code)
"""


def in_two_processes(lines, devices, folder, code="", seconds=300):
    """What each of `lines` printed in both of two joined processes: pairs as of `command_lines`.

    Each process has so many `devices`; `code` is executed in both before the first line.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = str(Path(__file__).parents[1])
    env = os.environ | {"XLA_FLAGS": xla.flags(devices), "PYTHONPATH": here}
    both = []
    for number in range(2):
        flags = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={number}"]
        command = [sys.executable, "-c", ONE_OF_TWO, json.dumps(lines), *flags, code]
        both.append(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=folder,
                env=env,
            )
        )
    try:
        said = [process.communicate(timeout=seconds) for process in both]
    finally:
        for process in both:
            process.kill()
    for process, (printed, errors) in zip(both, said, strict=True):
        assert not process.returncode, (printed, errors)
    return [
        list(zip(printed.split("BEGIN\n")[1:], errors.split("BEGIN\n")[1:], strict=True))
        for printed, errors in said
    ]


def command_lines(module, lines, folder=None):
    """What each of `lines`, words for `python -m module` in `folder`, printed, and its errors.

    They run on two devices.
    """
    return ended(started(module, lines, 2, folder))


def started(module, lines, devices, folder=None):
    """Start a process that goes through `lines` on so many CPU devices; `ended` waits for it."""
    command = [sys.executable, "-c", DRIVER, module, json.dumps(lines)]
    given = {
        "XLA_FLAGS": xla.flags(devices),
        "PYTHONPATH": os.getcwd(),
    }
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | given,
    )


# Gloo, by which CPUs of several processes exchange, prints this by itself, word by word: what else
# is printed meanwhile may stand between two of its words.
OF_GLOO = {"[Gloo]", "Rank", "is", "connected", "to", "peer", "ranks.", "Expected", "number", "of"}
OF_GLOO |= {"ranks", ":"}


def own_lines(printed):
    """Lines of `printed` that have a word which is not Gloo's."""
    return [
        x for x in printed.splitlines() if {w for w in x.split() if not w.isdecimal()} - OF_GLOO
    ]


def ended(process):
    """Wait for a process that was `started`, and return what `command_lines` does."""
    printed, errors = process.communicate()
    assert not process.returncode, errors
    return list(zip(printed.split("BEGIN\n")[1:], errors.split("BEGIN\n")[1:], strict=True))
