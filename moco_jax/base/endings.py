"""How an error ends a command: its status, and the one line that is printed of it."""

import sys

from moco_jax.base import files, packages
from moco_jax.base.errors import TRY_AGAIN, Busy, UserError
from moco_jax.base.text import printable

MEND, STOPPED = 2, 130  # statuses: what a person can mend; Ctrl-C


def of(error: BaseException) -> tuple[int, str] | None:
    """Return the status and the line with which `error` ends a command; None for a bug."""
    if isinstance(error, KeyboardInterrupt):
        return STOPPED, "stopped"
    if isinstance(error, Busy):
        return TRY_AGAIN, str(error)
    if isinstance(error, (UserError, OSError)):
        # The last resort for what a message quotes: whatever it is, it stays one line, and prints.
        return MEND, printable(str(error))
    line = _of_devices(error) or _of_buckets(error)
    return (MEND, printable(line)) if line else None


def _of_devices(error: BaseException) -> str:
    """Describe devices without enough memory in one line; '' for other errors. Loads no JAX."""
    jax = sys.modules.get("jax")
    is_jax = jax is not None and isinstance(error, jax.errors.JaxRuntimeError)
    if not is_jax or "RESOURCE_EXHAUSTED" not in str(error):
        return ""
    reason = str(error).splitlines()[0]
    return f"the devices have too little memory; a smaller batch takes less: {reason}"


def _of_buckets(error: BaseException) -> str:
    """Describe a bucket out of reach in one line; '' for other errors. Loads no TensorFlow."""
    if not isinstance(error, Exception) or not isinstance(error, packages.tensorflow_errors()):
        return ""
    return files.describe_bucket_error(error)
