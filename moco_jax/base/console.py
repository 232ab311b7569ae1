"""Lines for a person at a console: facts at the start, one line that renews itself, a table at the end."""

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from moco_jax.base.text import printable, printable_lines


def duration(seconds: float) -> str:
    """`5s`, `3m20s`, `2h05m`, `3d04h`."""
    seconds = round(max(seconds, 0))
    for unit, part, size in (("d", "h", 86400), ("h", "m", 3600), ("m", "s", 60)):
        if seconds >= size:
            rest = seconds % size // {"d": 3600, "h": 60, "m": 1}[unit]
            return f"{seconds // size}{unit}{rest:02d}{part}"
    return f"{seconds}s"


def size(number: float) -> str:
    """`512 B`, `1.5 MB`, `12 GB`: bytes in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns under `header`, two spaces apart."""
    lines = [header, *rows]
    widths = [max(len(row[i]) for row in lines) for i in range(len(header))]
    rule = ["-" * w for w in widths]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in (header, rule, *rows)
    )


class Console:
    """Prints to a terminal or a log: a terminal's progress line is rewritten, a log gets plain lines.

    A host that is not the first prints nothing. What is no text in a name that slipped through is written out, and so is
    what the terminal's encoding lacks: no name ends a command after its work was done.
    """

    def __init__(self, speaks: bool = True, out: TextIO | None = None):
        """`speaks`: whether this host prints; `out`: standard output where None."""
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
        print(text.encode(encoding, "backslashreplace").decode(encoding), end="", file=self.out, flush=True)  # fmt: skip

    def progress(self, text: str) -> None:
        """Renew the progress line (a terminal), or print it (anything else)."""
        if not self.speaks:
            return
        text = printable(text)
        if not self.out.isatty():
            return self.line(text)
        self._print("\r" + text.ljust(self._open))
        self._open = len(text)

    def facts(self, facts: dict[str, str]) -> None:
        """Print names and values in two columns."""
        width = max(map(len, facts))
        lines = (f"{name.ljust(width)}  {printable(value)}" for name, value in facts.items())
        self.line("\n".join(lines))


class Progress:
    """The line that renews itself; in a log one now and then."""

    def __init__(self, console: Console):
        """On `console`."""
        self.console, self.next = console, 0.0
        self.pause = 0.2 if console.out.isatty() else 10.0

    def __call__(self, text: str) -> None:
        """Show `text`, if the last is long enough ago."""
        now = time.monotonic()
        if now >= self.next:
            self.console.progress(text)
            self.next = now + self.pause
