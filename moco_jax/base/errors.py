"""Exceptions that end a command with one line: wrong input, and conditions that pass.

Everything that checks a setting, a file or a folder raises `UserError`; the command lines print it
and end with status 2. `Busy` ends them with status 75, on which schedulers start the same command
again.
"""

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h


class UserError(ValueError):
    """Raised for input that the user can correct; the text names setting, value and remedy."""


class Busy(RuntimeError):
    """Raised for a condition that passes by itself; the text names it in one line."""


class LockLost(Busy):
    """Raised in a run whose workdir another run has taken; no thread may write there any more."""


def full_disk(workdir: object) -> UserError:
    """Make the error of a `workdir` whose disk has no room left."""
    return UserError(
        f"workdir={workdir} is on a full disk; make room and give the same command: it goes on "
        "from the last checkpoint, which is untouched"
    )


def nearest_multiples(value: int, unit: int) -> str:
    """Name the multiples of `unit` beside a `value` that is none, as a remedy: 'use 240 or 256'."""
    below = value // unit * unit
    return f"use {below} or {below + unit}" if below > 0 else f"use {unit}"
