"""Several places written as one text, as `data_dir` takes them: '(a, b)'.

So that a setting, a flag and the facts of a file hold one or several places alike. Nothing heavy
is loaded here: the table of settings uses it.
"""

import ast
import os
import re
from collections.abc import Sequence

from moco_jax.base.errors import UserError
from moco_jax.base.text import printable

_BRACKETS = {"(": ")", "[": "]"}
_COMMA = re.compile(r",(?![^{}]*\})")  # not one within the braces of a pattern
_QUOTES = "\"'"
_REMOTE = "://"  # in places that are no path of this machine


def split(text: str) -> list[str]:
    """Return the places that `text` names: several where it is '(a, b)', else `text` itself.

    Places may stand in quotes, as Python writes a tuple; commas within the braces of a pattern
    belong to the pattern. What exists under the name `text` is one place, whatever its name.

    Raises:
        UserError: one of several places is empty.

    >>> split("photos"), split("(a, b-{00,01}.tar)"), split("('a, b', 'c')")
    (['photos'], ['a', 'b-{00,01}.tar'], ['a, b', 'c'])
    """
    written = text.strip()
    several = "," in written and _BRACKETS.get(written[:1]) == written[-1:]
    if not several or "\0" in text or os.path.lexists(text):
        return [text]
    found = _as_python(written) or _as_words(written)
    if not all(found):
        raise UserError(
            f"data_dir={printable(text)} has an empty place between two commas; write it as"
            " '(FOLDER, OTHER)'"
        )
    return found


def _as_python(written: str) -> list[str]:
    """Read `written` as Python's own tuple or list of texts; [] where it is none."""
    try:
        found = ast.literal_eval(written)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return list(found) if all(isinstance(place, str) for place in found) else []


def _as_words(written: str) -> list[str]:
    """Split `written` at its commas, without quotes around a place."""
    parts = [part.strip() for part in _COMMA.split(written[1:-1])]
    parts = parts[:-1] if len(parts) > 1 and not parts[-1] else parts
    quoted = (len(p) > 1 and p[0] in _QUOTES and p[0] == p[-1] for p in parts)
    return [p[1:-1] if q else p for p, q in zip(parts, quoted, strict=True)]


def join(places: Sequence[str]) -> str:
    """Write `places` as one text, which `split` reads: a single one as it is."""
    return places[0] if len(places) == 1 else repr(tuple(places))


def full_names(text: str) -> str:
    """Make each place that `text` names absolute; addresses in buckets stay as they are."""
    return join([p if _REMOTE in p else os.path.abspath(p) for p in split(text)])


def real_names(text: str) -> str:
    """Return each place that `text` names as `full_names` does, links followed."""
    return join([p if _REMOTE in p else os.path.realpath(p) for p in split(text)])
