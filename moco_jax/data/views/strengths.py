"""Replaces strengths of a recipe's operations, as the settings of a run ask for.

A strength has the name of a setting of a stage, such as `blur_probability`. One number counts for
both views, where two are those of query and key view.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from moco_jax.base.errors import UserError
from moco_jax.config.settings.kinds import without_brackets
from moco_jax.config.settings.strengths import HUE
from moco_jax.data.views.operations import TABLE, Jitter, Operation

Strengths = Mapping[str, tuple[float, ...]]

_KINDS: tuple[type[Operation], ...] = tuple(
    stage for row in TABLE for stage in row if issubclass(stage, Operation)
)
# What an operation has that a recipe does not have itself, where its own default is to do nothing.
_LENT: dict[type[Operation], dict[str, Any]] = {Jitter: {"jitter": (0.4, 0.4, 0.4, 0.1)}}  # v2's


def replaced(
    operations: tuple[Operation, ...], strengths: Strengths, augment: str, channels: int
) -> tuple[Operation, ...]:
    """Replace settings of `operations` by `strengths`, and leave out those that then do nothing.

    An operation that is not among them is added behind those that precede it in the table of
    stages, if its probability is given. `augment` and `channels` are named in refusals.

    Raises:
        UserError: a strength would change nothing, or needs colours and there are none.
    """
    found = list(operations)
    for kind in _KINDS:
        names = [field.name for field in dataclasses.fields(kind) if field.name in strengths]
        if not names:
            continue
        if kind.colours and channels != 3:
            raise UserError(
                f"{names[0]}={without_brackets(strengths[names[0]])} is of colours, which only "
                f"channels=3 have, and channels={channels}; {names[0]}=() works"
            )
        place = next((n for n, operation in enumerate(found) if type(operation) is kind), -1)
        if place < 0:
            before = _KINDS[: _KINDS.index(kind)]
            place = 1 + max((n for n, o in enumerate(found) if type(o) in before), default=-1)
            found.insert(place, kind(**{kind.probability_setting(): 0.0}, **_LENT.get(kind, {})))
        found[place] = _with(found[place], {name: strengths[name] for name in names}, augment)
    return tuple(operation for operation in found if not operation.idle)


def _with(operation: Operation, own: Strengths, augment: str) -> Operation:
    """Give an operation its `own` strengths."""
    probability = operation.probability_setting()
    values: dict[str, Any] = {name: without_brackets(value) for name, value in own.items()}
    if isinstance(operation, Jitter) and len(own.get("jitter", ())) == 1:
        values["jitter"] = _multiplied(operation.jitter, own["jitter"][0], augment)
    changed = dataclasses.replace(operation, **values)
    if not any(changed.chance(number) for number in (0, 1)):
        for name in own:
            if name != probability:
                raise UserError(
                    f"{name}={without_brackets(own[name])} changes nothing, as {probability} is 0 "
                    f"with augment={augment!r}; {probability}=0.5 makes it count, or take {name}=()"
                )
    return changed


def _multiplied(strengths: tuple[float, ...], by: float, augment: str) -> tuple[float, ...]:
    """Multiply the jitter's four strengths; hues must stay within half of the circle."""
    if strengths[3] * by > HUE:
        raise UserError(
            f"jitter={by} makes the hue's strength {strengths[3] * by:g} with "
            f"augment={augment!r}, and at most {HUE} is half of the circle; "
            f"jitter={HUE / strengths[3]:g} works, or four strengths"
        )
    return tuple(strength * by for strength in strengths)
