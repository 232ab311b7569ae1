"""Console output for a person: facts, tables, and one progress line that is rewritten."""

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from moco_jax.base.text import printable, printable_lines


def duration(seconds: float) -> str:
    """Format a time for people: `5s`, `3m20s`, `2h05m`, `3d04h`."""
    seconds = round(max(seconds, 0))
    for unit, part, size in (("d", "h", 86400), ("h", "m", 3600), ("m", "s", 60)):
        if seconds >= size:
            rest = seconds % size // {"d": 3600, "h": 60, "m": 1}[unit]
            return f"{seconds // size}{unit}{rest:02d}{part}"
    return f"{seconds}s"


def size(number: float) -> str:
    """Format a number of bytes in powers of ten: `512 B`, `1.5 MB`, `12 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format `rows` as left-aligned columns under `header`, two spaces apart."""
    lines = [header, *rows]
    widths = [max(len(row[i]) for row in lines) for i in range(len(header))]
    rule = ["-" * w for w in widths]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in (header, rule, *rows)
    )


def rewrites(out: TextIO) -> bool:
    """Whether a line of `out` can be rewritten: on a terminal, and below a cell of a notebook."""
    return out.isatty() or type(out).__module__.startswith("ipykernel.")


class Console:
    """Prints lines for a person; a progress line is rewritten where that shows, else a plain line.

    A host that is not the first prints nothing. Characters that do not print, or that the
    terminal's encoding lacks, are written as escapes, because an odd file name must not end a
    command after its work was done.
    """

    def __init__(self, speaks: bool = True, out: TextIO | None = None):
        """Create a console.

        Args:
            speaks: whether this host prints.
            out: where to; None for standard output.
        """
        self.speaks, self.out = speaks, out or sys.stdout
        self._open = 0

    def line(self, text: str) -> None:
        """Print `text` on lines of its own."""
        if self.speaks:
            start = "\n" if self._open else ""
            self._print(f"{start}{printable_lines(text)}\n")
            self._open = 0

    def _print(self, text: str) -> None:
        encoding = getattr(self.out, "encoding", None) or "utf-8"
        print(
            text.encode(encoding, "backslashreplace").decode(encoding),
            end="",
            file=self.out,
            flush=True,
        )

    def progress(self, text: str) -> None:
        """Rewrite the progress line; print `text` on a line of its own where `out` cannot."""
        if not self.speaks:
            return
        text = printable(text)
        if not rewrites(self.out):
            return self.line(text)
        self._print("\r" + text.ljust(self._open))
        self._open = len(text)

    def facts(self, facts: dict[str, str]) -> None:
        """Print names and values in two columns."""
        width = max(map(len, facts))
        lines = (f"{name.ljust(width)}  {printable(value)}" for name, value in facts.items())
        self.line("\n".join(lines))


class Progress:
    """A progress line that is shown now and then: often on a terminal, seldom in a log."""

    def __init__(self, console: Console):
        """Create the line on `console`."""
        self.console, self.next = console, 0.0
        self.pause = 0.2 if rewrites(console.out) else 10.0

    @property
    def due(self) -> bool:
        """Whether the last line was shown long enough ago for another one."""
        return time.monotonic() >= self.next

    def __call__(self, text: str, at_once: bool = False) -> None:
        """Show `text` if the time for it has come, or `at_once`."""
        if at_once or self.due:
            self.console.progress(text)
            self.next = time.monotonic() + self.pause


class Counter:
    """A progress line that counts a known number of items: done, items a second, time left.

    Attributes:
        form: what the line says of the number, with `{done}` and `{total}` in it.
    """

    def __init__(self, console: Console, form: str, total: int):
        """Create the line on `console` for `total` things."""
        self.show, self.form, self.total = Progress(console), form, total
        self._first: tuple[float, int] | None = None

    def __call__(self, done: int, at_once: bool = False) -> None:
        """Show that `done` of them are done, if the time for it has come, or `at_once`.

        The clock starts with the first call, so that the time of compiling before it, and things
        that an earlier run has done, do not count.
        """
        if self._first is None:
            self._first = time.monotonic(), done
        began, before = self._first
        if not at_once and (done == before or not self.show.due):
            return
        rate = max(done - before, 1) / max(time.monotonic() - began, 1e-9)
        left = duration((self.total - done) / rate)
        counted = self.form.format(done=f"{done:,}", total=f"{self.total:,}")
        self.show(f"{counted}  {rate:,.0f} a second  left {left}", at_once=True)
