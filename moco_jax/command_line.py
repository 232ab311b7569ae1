"""What the command lines share: reading flags, ending with one line, and telling JAX and TensorFlow how to start."""

import os
import sys
from typing import NoReturn

import jax
import tensorflow as tf
from absl import flags, logging
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.errors import UserError


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


def refuse_words(argv: list[str]) -> None:
    """End with one line where a word of the command line is no flag."""
    if len(argv) > 1:
        fail(f"{argv[1]!r} is no flag; settings are given as --config.NAME=VALUE")


def set_up(config: ConfigDict) -> None:
    """Quiet logs, TensorFlow off the GPUs, and what JAX must know before it looks for devices."""
    logging.set_verbosity(logging.WARNING)
    tf.config.set_visible_devices([], "GPU")
    given = os.environ.get("XLA_FLAGS", "")
    if config.deterministic:
        os.environ["XLA_FLAGS"] = f"{given} --xla_gpu_deterministic_ops=true"
    if config.cpu_devices > 0 and "host_platform_device_count" not in given:
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
