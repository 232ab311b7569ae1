"""A finding of the doctor, how it is marked, and the report that collects and prints them section by section."""

import dataclasses
from types import TracebackType

import jax

from moco_jax.base.console import Console
from moco_jax.base.errors import UserError

SHOWN = 5
OK, NOTE, WARNING, FAULT = "ok", "note", "warning", "fault"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        mark: `ok`, `note` (good to know), `warning` (a run would go on, worse than it could), `fault` (it would end).
        text: what was found; of a warning or fault also what to change.
        details: what it was found on, a line each.
    """

    mark: str
    text: str
    details: tuple[str, ...] = ()


def some_of(details: tuple[str, ...], limit: int) -> list[str]:
    """The first `limit` of `details`, and how many more there are; 0 for all."""
    if not limit or len(details) <= limit:
        return list(details)
    return [*details[:limit], f"and {len(details) - limit:,} more; --full names all"]


def verdict(marks: list[str]) -> str:
    """The last line of the report on findings with these `marks`."""

    def count(mark: str) -> str:
        number = marks.count(mark)
        return f"{number} {mark}{'s' if number != 1 else ''}"

    also = f", {count(WARNING)}" if WARNING in marks else ""
    if FAULT in marks:
        return f"not ready: {count(FAULT)}{also}"
    return f"ready, with {count(WARNING)}" if also else "ready"


class Report:
    """Prints findings as they are made, and remembers their marks."""

    def __init__(self, console: Console, limit: int = SHOWN):
        """`limit`: details shown with a finding; 0 for all."""
        self.console, self.limit = console, limit
        self.marks: list[str] = []

    def add(self, *findings: Finding) -> None:
        """Print and count `findings`."""
        for finding in findings:
            lines = [finding.text, *some_of(finding.details, self.limit)]
            self.console.line(f"  {finding.mark:8} " + f"\n{' ' * 13}".join(lines))
            self.marks.append(finding.mark)

    def busy(self, text: str) -> None:
        """Say what takes long."""
        self.console.progress(f"  ...      {text}")

    def skip(self, title: str, until: str) -> None:
        """Say that the section `title` cannot be examined yet."""
        self.console.line(f"\n{title}")
        self.add(Finding(NOTE, f"not examined until {until}"))

    def section(self, title: str) -> "Section":
        """A context under this `title`, in which an error of the user's or of the machine's becomes a fault."""
        self.console.line(f"\n{title}")
        return Section(self)


class Section:
    """Ends at the first error that can be told in a line, as a fault; the sections after it go on."""

    def __init__(self, report: Report):
        """`report`: where the fault goes."""
        self.report = report

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:  # fmt: skip
        """Report `error` if it is one of these; others are bugs and go on."""
        if isinstance(error, UserError | OSError):
            self.report.add(Finding(FAULT, str(error)))
        elif isinstance(error, jax.errors.JaxRuntimeError):
            said = str(error).splitlines()[0]
            full = "; a smaller batch_size or more devices" if "RESOURCE_EXHAUSTED" in said else ""
            self.report.add(Finding(FAULT, f"the devices refuse: {said}{full}"))
        else:
            return False
        return True
