"""The one exception for what a user can mend.

Everything that checks a setting, a file or a folder raises it, and the command lines print it as one line.
"""


class UserError(ValueError):
    """Bad input: one line that names setting, value and remedy."""


def full_disk(workdir: object) -> UserError:
    """What to say where `workdir` has no room left."""
    return UserError(
        f"workdir={workdir} is on a full disk; make room and give the same command: it goes on from the last "
        "checkpoint, which is untouched"
    )
