"""The table of all settings, from which checks, help and documentation are made.

`recipe.py`, with `strengths.py`, and `operational.py` hold the rows, `kinds.py` what a row may be.
Nothing heavy is loaded: names of encoders and other parts are in `config/registry.py`.
"""

import difflib
from collections.abc import Iterable

from moco_jax.config.settings.kinds import Setting
from moco_jax.config.settings.operational import OPERATIONAL
from moco_jax.config.settings.recipe import RECIPE
from moco_jax.config.settings.strengths import STRENGTHS

__all__ = ["OPERATIONAL", "RECIPE", "SETTINGS", "STRENGTHS", "Setting", "nearest", "overview"]

SETTINGS: dict[str, Setting] = RECIPE | OPERATIONAL


def nearest(name: str, known: Iterable[str] = tuple(SETTINGS)) -> str:
    """Suggest the names among `known` that are nearest to the unknown `name`, as 'lr, loss'.

    Where none is like it, the answer says where all are listed.
    """
    close = difflib.get_close_matches(name, list(known))
    return ", ".join(close) or "one of those that --help lists"


def overview() -> list[str]:
    """Return the lines of `--help` on all settings: topics, and below each its settings."""
    lines: list[str] = []
    for setting in SETTINGS.values():
        heading = f"{setting.topic} ({setting.group}):"
        if heading not in lines:
            lines.append(heading)
        lines.append(
            f"  {setting.name}: {setting.meaning} ({setting.allowed}; default {setting.default!r})"
        )
    return lines
