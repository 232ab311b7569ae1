"""Findings of the doctor and of the diagnosis of runs, and the report that prints the doctor's."""

import dataclasses
from types import TracebackType

import jax

from moco_jax.base.console import Console
from moco_jax.base.errors import UserError

SHOWN = 5
OK, NOTE, WARNING, FAULT = "ok", "note", "warning", "fault"
BUSY = "  ...      "  # begins a progress line, as wide as a severity


@dataclasses.dataclass(frozen=True)
class Finding:
    """One observation on a run, its settings or its images, with its severity.

    Attributes:
        severity: `ok`, `note` (good to know), `warning` (a run goes on, worse than it could),
            `fault` (it ends, or learns nothing).
        seen: what was found, a sentence; the doctor's warnings and faults also say what to change.
        details: lines that list the evidence, such as file names.
        name: of the rule that found it, as in docs/troubleshooting.md; empty for the doctor's.
        since_step: the step of the run at which it began; None where it concerns no step.
        meaning: what it means, a sentence or two; empty for the doctor's.
        change: what to do, a sentence or two; empty for the doctor's.
    """

    severity: str
    seen: str
    details: tuple[str, ...] = ()
    _: dataclasses.KW_ONLY
    name: str = ""
    since_step: int | None = None
    meaning: str = ""
    change: str = ""

    @property
    def text(self) -> str:
        """What was found, what it means, and on a second line what to change."""
        text = f"{self.seen} {self.meaning}".rstrip()
        return f"{text}\n  -> {self.change}" if self.change else text

    @property
    def line(self) -> str:
        """The text with the severity before it, for a console."""
        return f"{self.severity}: {self.text}"


def first_of(details: tuple[str, ...], limit: int) -> list[str]:
    """Return the first `limit` of `details` (0: all) and a line on how many more there are."""
    if not limit or len(details) <= limit:
        return list(details)
    return [*details[:limit], f"and {len(details) - limit:,} more; --full names all"]


def verdict(marks: list[str]) -> str:
    """Return the last line of a report whose findings have these severities (`marks`)."""

    def count(severity: str) -> str:
        number = marks.count(severity)
        return f"{number} {severity}{'s' if number != 1 else ''}"

    also = f", {count(WARNING)}" if WARNING in marks else ""
    if FAULT in marks:
        return f"not ready: {count(FAULT)}{also}"
    return f"ready, with {count(WARNING)}" if also else "ready"


class Report:
    """Prints findings as they are made, and remembers their severities as marks."""

    def __init__(self, console: Console, limit: int = SHOWN):
        """Begin a report on `console`; `limit`: details shown with a finding, 0 for all."""
        self.console, self.limit = console, limit
        self.marks: list[str] = []

    def add(self, *findings: Finding) -> None:
        """Print and count `findings`."""
        for finding in findings:
            lines = [finding.text, *first_of(finding.details, self.limit)]
            self.console.line(f"  {finding.severity:8} " + f"\n{' ' * 13}".join(lines))
            self.marks.append(finding.severity)

    def busy(self, text: str) -> None:
        """Show `text` on the progress line while something takes long."""
        self.console.progress(BUSY + text)

    def skip(self, title: str, until: str) -> None:
        """Report that the section `title` cannot be examined yet."""
        self.console.line(f"\n{title}")
        self.add(Finding(NOTE, f"not examined until {until}"))

    def section(self, title: str) -> "Section":
        """Return a context under this `title`, in which an error becomes a fault of the report."""
        self.console.line(f"\n{title}")
        return Section(self)


class Section:
    """Ends at the first error of the user's or of the machine's, which becomes a fault."""

    def __init__(self, report: Report):
        """Create a section of `report`."""
        self.report = report

    def __enter__(self) -> None:
        """Begin the section."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Report `error` if a line can tell it; other errors are bugs and are raised."""
        if isinstance(error, UserError | OSError):
            self.report.add(Finding(FAULT, str(error)))
        elif isinstance(error, jax.errors.JaxRuntimeError):
            reason = str(error).splitlines()[0]
            full = "RESOURCE_EXHAUSTED" in reason
            remedy = "; a smaller batch_size or more devices" if full else ""
            self.report.add(Finding(FAULT, f"the devices refuse: {reason}{remedy}"))
        else:
            return False
        return True
