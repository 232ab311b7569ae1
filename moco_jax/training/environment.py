"""The environment of a run, recorded at each start: command, versions, devices."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
from typing import Any

import jax

import moco_jax
from moco_jax.parallel import hosts

# Distributions, by the names that pip knows; TensorFlow is one of two.
LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-datasets",
    "clu",
    "libtpu",
)


def versions() -> dict[str, str]:
    """Collect the versions of Python, of this package and of the libraries that are installed."""
    found = {"python": platform.python_version(), "moco_jax": moco_jax.__version__}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command() -> str:
    """Return the command line of this process for a shell; the interpreter without its path."""
    return shlex.join([os.path.basename(sys.orig_argv[0]), *sys.orig_argv[1:]])


def facts() -> dict[str, Any]:
    """Collect what this process runs on, as JSON values; JAX is asked for its devices."""
    devices = jax.devices()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command(),
        "versions": versions(),
        "code": hosts.code_digest(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "hosts": jax.process_count(),
    }
