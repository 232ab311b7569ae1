"""Several command lines in one process of their own: flags are read once a process, and imports take longer than the work."""

import json
import os
import subprocess
import sys

DRIVER = """
import importlib, json, sys
from absl import flags
module = importlib.import_module(sys.argv[1])
from moco_jax.command_line import guarded, parse
for words in json.loads(sys.argv[2]):
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    print("BEGIN", file=sys.stderr)
    print("BEGIN")
    try:
        guarded(module.main, parse([sys.argv[1], *words]))
    except SystemExit as error:
        print("ended with", error.code)
"""


def command_lines(module, lines, folder=None):
    """Of each of `lines`, words for `python -m module` given in `folder`, what it printed, and its errors; two devices."""
    return ended(started(module, lines, 2, folder))


def started(module, lines, devices, folder=None):
    """A process that goes through `lines` on so many CPU devices; `ended` waits for it."""
    command = [sys.executable, "-c", DRIVER, module, json.dumps(lines)]
    given = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "PYTHONPATH": os.getcwd(),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=os.environ | given
    )  # fmt: skip


def ended(process):
    """What `command_lines` returns, of a process that was `started`."""
    printed, errors = process.communicate()
    assert not process.returncode, errors
    return list(zip(printed.split("BEGIN\n")[1:], errors.split("BEGIN\n")[1:], strict=True))
