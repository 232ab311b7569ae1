"""How an error ends a command: its status, and the one line that is printed of it."""

import sys

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
    jax = sys.modules.get("jax")  # which an error of its own has loaded
    is_jax = jax is not None and isinstance(error, jax.errors.JaxRuntimeError)
    if not is_jax or "RESOURCE_EXHAUSTED" not in str(error):
        return None
    reason = printable(str(error).splitlines()[0])
    return MEND, f"the devices have too little memory; a smaller batch takes less: {reason}"
