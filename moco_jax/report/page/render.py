"""Renders the page: collects what its template shows of runs, section by section."""

import datetime
import functools
import importlib.resources
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

import moco_jax
from moco_jax.base.text import printable_lines
from moco_jax.monitoring.diagnosis import rules
from moco_jax.report.page import charts, curves, evaluations, gallery, settings, tables
from moco_jax.report.page.renewal import SlowParts, reason
from moco_jax.report.page.run import Run

SECTIONS = {
    "summary": "Summary",
    "diagnosis": "Diagnosis",
    "curves": "Curves",
    "settings": "Settings",
    "views": "View pairs",
    "neighbours": "Neighbours",
    "map": "Map",
    "evaluations": "Evaluations",
    "environment": "Environment",
    "repeat": "Repeat",
    "missing": "Left out",
}


@functools.cache
def _templates() -> tuple[jinja2.Template, Markup, Markup]:
    loader = jinja2.PackageLoader("moco_jax.report.page", "templates")
    made = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        finalize=_shown,
    )
    folder = importlib.resources.files("moco_jax.report.page") / "templates"
    style, script = ((folder / name).read_text("utf-8") for name in ("style.css", "page.js"))
    return made.get_template("page.html"), Markup(style), Markup(script)


class _Builder:
    """Builds the sections of a page, and notes why one cannot be built."""

    def __init__(self) -> None:
        """Start with nothing missing."""
        self.missing: list[str] = []

    def build(self, called: str, make: Callable[[], Any], instead: Any) -> Any:
        """Return what `make` returns, or `instead` where it fails.

        Records and files may hold anything, and a page without a part is better than none.
        """
        try:
            return make()
        except Exception as error:
            self.missing.append(f"{called}, as {reason(error)}")
            return instead

    def build_each(self, runs: Sequence[Run], called: str, make: Callable[[Run], Any]) -> list[Any]:
        """Return what `make` returns for each of `runs`, without those for which it fails."""
        made = (
            self.build(f"{run.name}: {called}", functools.partial(make, run), None) for run in runs
        )
        return [one for one in made if one is not None]


def _shown(value: Any) -> Any:
    """Make text printable, whatever names are in it.

    A browser obeys marks of direction, and bytes are no HTML.
    """
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return printable_lines(value) if is_text else value


def page(
    runs: Sequence[Run],
    slow_parts: Sequence[SlowParts],
    live: str = "",
    say: Callable[[str], None] | None = None,
) -> str:
    """Render the page on `runs`, as HTML that needs no other file.

    Args:
        runs: the runs to compare.
        slow_parts: the slow parts for each of them.
        live: names this state of the page where it is served; empty for a page that stays as it
            is.
        say: called with each line on what is left out, which the page has too.
    """
    template, style, script = _templates()
    names, builder = [run.name for run in runs], _Builder()
    values = _values(runs, slow_parts, builder)
    missing = [line for run in runs for line in run.left_out] + builder.missing
    missing += [line for slow in slow_parts for line in slow.missing.values()]
    optional = ("views", "neighbours", "maps")
    left = {key.replace("maps", "map") for key in optional if not values[key]}
    left |= set() if missing else {"missing"}
    if say is not None:
        for line in missing:
            say(line)
    text = template.render(
        **values,
        names=names,
        missing=missing,
        live=live,
        style=style,
        script=script,
        colours=charts.COLOURS,
        title=f"Run {names[0]}" if len(runs) == 1 else f"{len(runs)} runs compared",
        dashes=[" ".join(map(str, charts.dash(n))) for n in range(len(runs))],
        class_colours=gallery.CLASS_COLOURS,
        sections=[(key, name) for key, name in SECTIONS.items() if key not in left],
        version=moco_jax.__version__,
        time=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    # JSON can spell half a surrogate pair, which cannot be encoded in UTF-8.
    return text.encode("utf-8", "backslashreplace").decode()


def _values(
    runs: Sequence[Run], slow_parts: Sequence[SlowParts], builder: _Builder
) -> dict[str, Any]:
    """Collect the values that the template shows, by the name of its part."""
    pairs = list(zip(runs, slow_parts, strict=True))
    seen = {run.name: slow.embedding for run, slow in pairs if slow.embedding}
    numbers = {run.name: n for n, run in enumerate(runs)}
    mapped = [run for run in runs if run.name in seen]
    drawn = [run for run in runs if run.name not in seen]
    results = builder.build_each(runs, "evaluations", evaluations.results)
    pictures = builder.build_each(drawn, "the picture that it drew", gallery.drawn)
    return dict(
        summary=builder.build("the summary", lambda: tables.summary(runs), []),
        diagnosis=[_diagnosis(run, builder) for run in runs],
        panels=_panels(runs, builder),
        differing=builder.build(
            "settings that differ", lambda: tables.setting_rows(runs, settings.differing(runs)), []
        ),
        settings=builder.build(
            "all settings",
            lambda: tables.setting_rows(runs, settings.every(runs), default=True),
            [],
        ),
        views=builder.build("view pairs", lambda: gallery.view_pairs(pairs), []),
        neighbours=builder.build_each(
            mapped, "neighbours", lambda run: gallery.neighbours(run, seen[run.name])
        ),
        maps=builder.build_each(
            mapped, "map", lambda run: gallery.feature_map(numbers[run.name], run, seen[run.name])
        ),
        results=[result for found in results for result in found],
        environments=builder.build_each(runs, "environment", tables.environment),
        repeats=builder.build_each(runs, "how to repeat it", settings.repeat),
        fallback=[picture for found in pictures for picture in found],
    )


def _diagnosis(run: Run, builder: _Builder) -> dict[str, Any]:
    diagnosed = builder.build(f"{run.name}: the diagnosis", lambda: findings(run), [])
    events = builder.build(f"{run.name}: what it reported", lambda: tables.events(run), [])
    return {"name": run.name, "findings": diagnosed, "events": events}


def findings(run: Run) -> list[rules.Finding]:
    """Apply the rules of `moco_jax.monitoring.diagnosis.rules` to the records of `run`."""
    return rules.examine(run.records, run.facts)


def _panels(runs: Sequence[Run], builder: _Builder) -> list[dict[str, Any]]:
    names = [run.name for run in runs]

    def made(panel: curves.Panel) -> dict[str, Any]:
        key = f"curve-{panel.metric.key}"
        header, rows = charts.table(panel, names)
        return {
            "key": key,
            "title": panel.metric.title,
            "percent": panel.metric.percent,
            "svg": charts.draw(panel, key),
            "description": charts.describe(panel, names),
            "notes": charts.notes(panel, names),
            "header": header,
            "rows": rows,
        }

    panels = builder.build("curves", lambda: curves.panels(runs), [])
    drawn = (
        builder.build(f"the curve of {p.metric.key}", functools.partial(made, p), None)
        for p in panels
    )
    return [panel for panel in drawn if panel is not None]
