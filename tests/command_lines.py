"""Several command lines in one process of their own: flags are read once a process, and imports take longer than the work."""

import contextlib
import importlib
import json
import os
import subprocess
import sys

from absl import flags

DRIVER = """
import importlib, json, sys
from absl import flags
module = importlib.import_module(sys.argv[1])
from moco_jax.cli.command_line import guarded, parse
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


@contextlib.contextmanager
def own_flags(module):
    """`module`, loaded in this process with its flags alone: two command lines have flags of one name.

    What was loaded before, and its flags, are there again afterwards.
    """
    before = forget_modules()
    kept = {k: copied(v) for k, v in vars(flags.FLAGS).items()}
    by_module = flags.FLAGS.flags_by_module_dict()
    strange = {f.name for m, some in by_module.items() if m.startswith("moco_jax") for f in some}
    for name in strange & set(flags.FLAGS):
        delattr(flags.FLAGS, name)
    try:
        yield importlib.import_module(module)
    finally:
        forget_modules()
        for name, loaded in before.items():
            sys.modules[name] = loaded
            package, _, last = name.rpartition(".")
            setattr(sys.modules[package], last, loaded)
        vars(flags.FLAGS).update(kept)


def forget_modules():
    """Take out, and return by name, the loaded modules that define flags; a package's attribute goes too."""
    ours = [name for name in sys.modules if name.startswith("moco_jax.") and defines_flags(name)]
    found = {name: sys.modules.pop(name) for name in ours}
    for name in found:
        package, _, last = name.rpartition(".")
        vars(sys.modules[package]).pop(last, None)
    return found


def copied(value):
    """What absl knows of flags: dictionaries are copied with the lists in them, flags are not."""
    if not isinstance(value, dict):
        return value
    return {k: list(v) if isinstance(v, list) else v for k, v in value.items()}


def defines_flags(name):
    """Whether flags are defined where the module `name` is loaded."""
    found = vars(sys.modules[name]).values()
    return name == "moco_jax.cli.command_line" or any(
        isinstance(v, flags.FlagHolder) for v in found
    )


def forget_words():
    """Put every flag back to what it is without a command line."""
    for name in list(flags.FLAGS):
        if name.startswith("config."):
            delattr(flags.FLAGS, name)
        else:
            flags.FLAGS[name].unparse()


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
