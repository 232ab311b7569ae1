"""Exceptions that end a command with one line: faults that a user can mend, and passing ones.

Everything that checks a setting, a file or a folder raises `UserError`; the command lines print it
and end with status 2. `Busy` ends them with status 75, on which schedulers start the same command
again.
"""

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h


class UserError(ValueError):
    """Refuse bad input in one line that names setting, value and remedy."""


class Busy(RuntimeError):
    """End a command for a reason that passes by itself, named in one line."""


class LockLost(Busy):
    """End a run whose workdir another run has taken; none of its threads may write there."""


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
