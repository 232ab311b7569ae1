"""Command line of pretraining: `python -m moco_jax.main --config=configs/digits.py --workdir=DIR`."""

import errno
import os
import sys
from typing import NoReturn

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import tensorflow as tf
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from moco_jax import config as config_lib
from moco_jax import hosts, train
from moco_jax.errors import UserError, full_disk

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A recipe: configs/NAME.py or configs/NAME.py:VARIANT."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of this run: config, checkpoints, metrics, pictures."
)
ALLOW_CHANGE = flags.DEFINE_list(
    "allow_change", [], "Recipe settings that may differ from those the workdir was begun with."
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join a run of many hosts whose addresses the platform gives."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, to join a run of several processes by hand."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", 1, "With --coordinator: how many there are.")
PROCESS_ID = flags.DEFINE_integer("process_id", 0, "With --coordinator: which this one is.")


def fail(error: object) -> NoReturn:
    """End with one line and status 2."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def parse(argv: list[str]) -> list[str]:
    """Read the command line; anything wrong with it ends the program with one line."""
    try:
        config_lib.check_names(argv[1:])
        return flags.FLAGS(argv)
    except (UserError, flags.Error) as error:
        # A config file that raises is reported by its library with the whole traceback as text.
        fail(" ".join(str(error).split()).rpartition("UserError: ")[2])


def set_up_jax(config: ConfigDict) -> None:
    """What JAX must know before it looks for devices."""
    given = os.environ.get("XLA_FLAGS", "")
    if config.deterministic:
        os.environ["XLA_FLAGS"] = f"{given} --xla_gpu_deterministic_ops=true"
    if config.cpu_devices > 0 and "host_platform_device_count" not in given:
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def main(argv: list[str]) -> None:
    """Train, and turn what the user can mend into one line."""
    if len(argv) > 1:
        fail(f"{argv[1]!r} is no flag; settings are given as --config.NAME=VALUE")
    if not WORKDIR.value or CONFIG.value is None:
        fail("--config=configs/RECIPE.py and --workdir=FOLDER are needed; --help lists all flags")
    logging.set_verbosity(logging.WARNING)
    tf.config.set_visible_devices([], "GPU")
    set_up_jax(CONFIG.value)
    try:
        hosts.start_hosts(
            DISTRIBUTED.value, COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
        )
        stopped = train.train(CONFIG.value, WORKDIR.value, set(ALLOW_CHANGE.value))
    except UserError as error:
        fail(error)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        fail(full_disk(WORKDIR.value))
    if stopped:
        sys.exit(128 + stopped)


def run() -> None:
    """Entry point of the console script `moco-jax`."""
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    run()
