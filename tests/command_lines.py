"""Several command lines, one after the other in one process: imports take longer than the work."""

import json
import os
import subprocess
import sys

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


def ended(process):
    """Wait for a process that was `started`, and return what `command_lines` does."""
    printed, errors = process.communicate()
    assert not process.returncode, errors
    return list(zip(printed.split("BEGIN\n")[1:], errors.split("BEGIN\n")[1:], strict=True))
