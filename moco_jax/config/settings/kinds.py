"""Kinds of settings: a type with choices or a range; one line refuses any other value.

A value is first cast, where nothing is lost by it (2.0 for a whole number, 1 for a number, a list
for a tuple), and then compared with what is allowed. NaN lies in no range: the question is always
whether a value lies inside, never whether it lies outside.
"""

import dataclasses
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from moco_jax.base import places as places_lib
from moco_jax.base.errors import UserError

LARGEST = 3.4028234663852886e38  # of float32, in which devices compute
SMALLEST = 1.1754943508222875e-38  # above 0; devices take less for 0
LONGEST = 80  # characters of a value that a message shows

Choices = Callable[[], Iterable[Any]]
Rule = Callable[[Any], str]


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`.

    Attributes:
        least: the one end.
        most: the other.
        above: whether `least` itself is left out.
        below: whether `most` itself is left out.
    """

    least: float
    most: float
    above: bool = False
    below: bool = False

    def __contains__(self, number: float) -> bool:
        """Return whether `number` lies inside; NaN never does."""
        over = self.least < number if self.above else self.least <= number
        return over and (number < self.most if self.below else number <= self.most)

    def __str__(self) -> str:
        """The range as in 'must be ...'."""
        least = f"{'above' if self.above else 'at least'} {plain(self.least)}"
        return f"{least} and {'below' if self.below else 'at most'} {plain(self.most)}"


class Places(str):
    """The kind of a setting that names one place or several; its value is a text."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting: a row of the table.

    Attributes:
        kind: bool, int, float, str or `Places`; of each value where there are several.
        default: its value where a recipe says nothing.
        range: of int and float: the numbers that are allowed, each of them where there are several.
        choices: a function to the values that are allowed; None where a range or any text is.
        several: whether it is a tuple of such values.
        length: of a tuple: how many values; 0 for any number of them, or the name of the setting
            that says how many, which `encoders.configured.check_views` then compares.
        rule: a further condition: a function from a value to what a message says behind
            'NAME=VALUE ', '' where all is well.
        why: the reason for the range, where the reason is not plain.
        name: what stands behind `--config.` and `config.`; `table` sets this and the rest.
        meaning: what it decides, in words that are read beside the name.
        group: 'recipe' or 'operational'.
        topic: what it is about, in a word or two.
    """

    kind: type
    default: Any
    range: Range | None = None
    choices: Choices | None = None
    several: bool = False
    length: int | str = 0
    rule: Rule | None = None
    why: str = ""
    name: str = ""
    meaning: str = ""
    group: str = ""
    topic: str = ""

    def cast(self, value: Any) -> Any:
        """Return `value` in the setting's type; UserError where it would not stay the same."""
        to = CASTS[self.kind]
        try:
            if not self.several:
                return to(value)
            if not isinstance(value, list | tuple):
                raise ValueError("no tuple")
            return tuple(to(each) for each in value)
        except ValueError as error:
            raise self._refusal(value, self.allowed) from error

    def check(self, value: Any) -> None:
        """Raise UserError, naming setting, value and what works, where `value` is not allowed."""
        found = self.cast(value)
        each = found if self.several else (found,)
        if isinstance(self.length, int) and self.length and len(found) != self.length:
            raise self._refusal(value, self.allowed)
        if self.range is not None and not all(one in self.range for one in each):
            raise self._refusal(value, f"{self.range}{' each' if self.several else ''}")
        if self.kind is float and any(0 < abs(one) < SMALLEST for one in each):
            raise self._refusal(value, f"more than {SMALLEST:.3g}, below which float32 has only 0")
        if self.choices is not None and found not in tuple(self.choices()):
            if self.kind is not str:
                raise self._refusal(value, self.allowed)
            known = ", ".join(self.choices())
            raise UserError(f"{self.name}={shown(value)} is unknown; use one of {known}")
        said = self.rule(found) if self.rule is not None else ""
        if said:
            raise UserError(f"{self.name}={shown(value)} {said}")

    def _refusal(self, value: Any, allowed: str) -> UserError:
        why = f" ({self.why})" if self.why else ""
        return UserError(
            f"{self.name}={shown(value)} must be {allowed}{why}; try {shown(self.default)}"
        )

    @property
    def allowed(self) -> str:
        """The allowed values in words, as 'a whole number, at least 1 and at most 8192'."""
        if self.choices is not None:
            return f"one of {', '.join(map(str, self.choices()))}"
        if not self.several:
            return KINDS[self.kind] if self.range is None else f"{KINDS[self.kind]}, {self.range}"
        if isinstance(self.length, str):
            return f"{SEVERAL[self.kind]}, as many as {self.length} says, {self.range} each"
        many = f"{self.length} " if self.length else ""
        return f"{many}{SEVERAL[self.kind]}, {self.range} each"


def shown(value: Any) -> str:
    """Format `value` as Python writes it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"{type(value).__name__} of thousands of digits"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def plain(number: float) -> str:
    """Format `number` in few digits, without a point where it is whole: 200.0 as '200'."""
    if isinstance(number, numbers.Integral):
        return str(number)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else f"{number:.6g}"


def whole(value: Any) -> int:
    """Convert a whole number of any type to int; ValueError for any other value."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    found = real(value)
    if not found.is_integer():  # so are NaN and infinity
        raise ValueError("no whole number")
    return int(found)


def real(value: Any) -> float:
    """Convert a number of any type to float; ValueError where digits would be lost."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError("no number")
    try:
        found = float(value)
    except OverflowError as error:
        raise ValueError("no float") from error
    if isinstance(value, numbers.Integral) and int(found) != int(value):
        raise ValueError("no float")
    return found


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("neither True nor False")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("no text")
    return value


def _places(value: Any) -> str:
    """Return the text that names the places in `value`, one text or several."""
    if not isinstance(value, list | tuple):
        return _text(value)
    if not value:
        raise ValueError("no place")
    return places_lib.join([_text(place) for place in value])


CASTS: dict[type, Callable[[Any], Any]] = {
    bool: _switch,
    int: whole,
    float: real,
    str: _text,
    Places: _places,
}
KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    Places: "text, or several texts in brackets",
}
SEVERAL = {int: "whole numbers", float: "numbers"}


def switch(default: bool) -> Setting:
    """Make a setting that is True or False."""
    return Setting(bool, default)


def text(default: str, rule: Rule | None = None) -> Setting:
    """Make a setting that is any text, unless a `rule` says otherwise."""
    return Setting(str, default, rule=rule)


def places(default: str) -> Setting:
    """Make a setting that names one place or several, as `moco_jax.base.places` reads them."""
    return Setting(Places, default)


def count(default: int, least: int, most: int, why: str = "") -> Setting:
    """Make a setting that is a whole number from `least` to `most`, both allowed."""
    return Setting(int, default, Range(least, most), why=why)


def number(
    default: float,
    least: float,
    most: float,
    *,
    above: bool = False,
    below: bool = False,
    rule: Rule | None = None,
) -> Setting:
    """Make a setting that is a number from `least` to `most`; `above`, `below` exclude an end."""
    return Setting(float, default, Range(least, most, above, below), rule=rule)


def choice(default: Any, choices: Choices | tuple[Any, ...]) -> Setting:
    """Make a setting that is one of `choices`, a tuple or a function that returns one."""
    known: Choices = choices if callable(choices) else lambda: choices
    return Setting(type(default), default, choices=known)


def several(
    default: tuple,
    allowed: Range,
    *,
    length: int | str = 0,
    rule: Rule | None = None,
    why: str = "",
) -> Setting:
    """Make a setting that is a tuple of numbers of the type in `default`, each within `allowed`."""
    kind = type(default[0])
    return Setting(kind, default, allowed, several=True, length=length, rule=rule, why=why)


def table(
    group: str, topics: Mapping[str, Mapping[str, tuple[Setting, str]]]
) -> dict[str, Setting]:
    """Collect the settings of a `group` by name; each gets its name, meaning, group and topic.

    `topics`: topic -> name -> what it may be, and its meaning.
    """
    return {
        name: dataclasses.replace(setting, name=name, meaning=meaning, group=group, topic=topic)
        for topic, rows in topics.items()
        for name, (setting, meaning) in rows.items()
    }
