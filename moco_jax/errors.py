"""The one exception for what a user can mend.

Everything that checks a setting, a file or a folder raises it, and the command lines print it as one line.
"""


class UserError(ValueError):
    """Bad input: one line that names setting, value and remedy."""
