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
    command = [sys.executable, "-c", DRIVER, module, json.dumps(lines)]
    given = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": os.getcwd(),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=os.environ | given
    )
    assert not ended.returncode, ended.stderr
    printed, errors = (out.split("BEGIN\n")[1:] for out in (ended.stdout, ended.stderr))
    return list(zip(printed, errors, strict=True))
