"""JAX made ready for a command: its devices, its logs and its cache, as the settings say."""

import errno
import os

from absl import logging
from ml_collections import ConfigDict

from moco_jax.base import files
from moco_jax.base.errors import UserError


def set_up(config: ConfigDict, own: bool = True) -> None:
    """Load JAX: quiet logs, devices as `config` says.

    Call this before anything asks JAX for its devices.

    `own`: whether `config` is that of this command, and not of a run that it reads: that run's
    `compilation_cache` may be a folder of another machine, and is then done without.

    Raises:
        UserError: `compilation_cache` can be no folder to write to.
    """
    wrong = _wrong_with_cache(config.compilation_cache)
    if wrong and own:
        raise UserError(
            f"compilation_cache={config.compilation_cache} is no folder that can be written "
            f"({wrong}); choose one that you may write to, or '' for none"
        )
    logging.set_verbosity(logging.WARNING)
    import jax

    given = os.environ.get("XLA_FLAGS", "")
    if config.deterministic:
        os.environ["XLA_FLAGS"] = f"{given} --xla_gpu_deterministic_ops=true"
    if config.cpu_devices > 0 and "host_platform_device_count" not in given:
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    if config.compilation_cache and not wrong:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _wrong_with_cache(place: str) -> str:
    """Say why programs cannot be kept in `place`, which is made if need be; '' if they can."""
    try:
        if not place or files.is_remote(files.absolute(place)):
            return ""
        os.makedirs(place, exist_ok=True)
    except (UserError, OSError) as error:
        return getattr(error, "strerror", None) or str(error)
    return "" if os.access(place, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
