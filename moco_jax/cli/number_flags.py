"""Flags that are numbers within bounds; all else is refused by one line that says what is required.

The flags of absl let NaN through, as it is neither below the least nor above the most.
"""

import decimal
from collections.abc import Sequence
from typing import Any

from absl import flags

from moco_jax.config.settings.kinds import KINDS, SEVERAL, Range, plain, real, whole

MOST_DIGITS = 40  # of whole numbers that are written with a point or an exponent


def read_whole(text: str) -> int:
    """Parse the whole number in `text`, as '12', '0x1f', '2.0' or '1e3'; else ValueError."""
    try:
        return int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        try:
            found = decimal.Decimal(text)
        except decimal.InvalidOperation as error:
            raise ValueError(f"{text!r} is no number") from error
    # '1e999999999' is a whole number too, and would fill the memory.
    if (
        not found.is_finite()
        or found.adjusted() > MOST_DIGITS
        or found != found.to_integral_value()
    ):
        raise ValueError(f"{text!r} is no whole number")
    return int(found)


class NumberParser(flags.ArgumentParser):
    """Reads a number, int or float, within a range or any; 2.0 is a whole number, 2.5 is none."""

    def __init__(self, kind: type, allowed: Range | None = None):
        """Read numbers of `kind`, in the range `allowed` where there is one."""
        self.kind, self.allowed = kind, allowed
        bounds = f", {allowed}" if allowed is not None else ""
        self.syntactic_help = f"{KINDS[kind]}{bounds}"

    def parse(self, argument: Any) -> Any:
        """Parse the number in `argument`, text or a number; ValueError says what is required."""
        read, cast = (read_whole, whole) if self.kind is int else (float, real)
        try:
            value = read(argument) if isinstance(argument, str) else cast(argument)
        except ValueError as error:
            raise ValueError(f"must be {self.syntactic_help}") from error
        if self.allowed is not None and value not in self.allowed:
            raise ValueError(f"must be {self.syntactic_help}{self._hint(value)}")
        return value

    def _hint(self, value: float) -> str:
        assert self.allowed is not None
        low = not value > self.allowed.least
        end, left_out = (
            (self.allowed.least, self.allowed.above)
            if low
            else (self.allowed.most, self.allowed.below)
        )
        return "" if left_out else f"; try {plain(end)}"

    def flag_type(self) -> str:
        """Return the type's name in absl's own lists of flags."""
        return self.kind.__name__


class NumbersParser(flags.BaseListParser):
    """Reads numbers, int or float, within a range, with commas between them.

    They come ascending, each once.
    """

    def __init__(self, kind: type, allowed: Range):
        """Read numbers of `kind`, each in the range `allowed`."""
        super().__init__(",", "comma")
        self.each = NumberParser(kind, allowed)
        example = "; 1,10 works" if 1 in allowed and 10 in allowed else ""
        self.syntactic_help = f"{SEVERAL[kind]} with commas between them, {allowed} each{example}"

    def parse(self, argument: Any) -> list[Any]:
        """Parse the numbers in `argument`, text or a list; ValueError says what is required."""
        words = super().parse(argument) if isinstance(argument, str) else argument or []
        try:
            return sorted({self.each.parse(word) for word in words})
        except ValueError as error:
            raise ValueError(f"must be {self.syntactic_help}") from error

    def flag_type(self) -> str:
        """Return the type's name in absl's own lists of flags."""
        return "comma separated list of numbers"


def DEFINE_numbers(
    name: str,
    default: Sequence[float],
    help: str,
    kind: type,
    allowed: Range,
    given: flags.FlagValues,
) -> None:
    """Define in `given` a flag that is a list of numbers of `kind`, each in the range `allowed`."""
    parser, serializer = NumbersParser(kind, allowed), flags.CsvListSerializer(",")
    flags.DEFINE(parser, name, list(default), help, given, serializer)


def DEFINE_whole(
    name: str, default: int | None, help: str, least: int, most: int, given: flags.FlagValues
) -> None:
    """Define in `given` a flag that is a whole number from `least` to `most`."""
    parser = NumberParser(int, Range(least, most))
    flags.DEFINE(parser, name, default, help, given, flags.ArgumentSerializer())


def DEFINE_number(
    name: str, default: float | None, help: str, least: float, most: float, given: flags.FlagValues
) -> None:
    """Define in `given` a flag that is a finite number from `least` to `most`."""
    parser = NumberParser(float, Range(least, most))
    flags.DEFINE(parser, name, default, help, given, flags.ArgumentSerializer())
