"""Renders the page: turns runs and their slow parts into words and data for its template."""

import datetime
import functools
import importlib.resources
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

import moco_jax
from moco_jax.base.text import printable, printable_lines
from moco_jax.monitoring.diagnosis import rules
from moco_jax.report.page import charts, curves, evaluations, images, settings
from moco_jax.report.page.embedding import Embedding
from moco_jax.report.page.records import short
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
CLASS_COLOURS = 10
THUMB = 40  # side in pixels of an image in the map's sheet
COLUMNS = 32  # images in a row of the map's sheet
MAP = (600, 440, 14)  # width, height and margin of the map, as the template has them


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


class _Parts:
    """Makes the parts of a page, and notes why one cannot be made."""

    def __init__(self) -> None:
        """Start with nothing missing."""
        self.missing: list[str] = []

    def made(self, called: str, make: Callable[[], Any], instead: Any) -> Any:
        """Return what `make` returns, or `instead` where it fails.

        Records and files may hold anything, and a page without a part is better than none.
        """
        try:
            return make()
        except Exception as error:
            self.missing.append(f"{called}, as {reason(error)}")
            return instead

    def of_each(self, runs: Sequence[Run], called: str, make: Callable[[Run], Any]) -> list[Any]:
        """Return what `make` returns for each of `runs`, without those for which it fails."""
        made = (
            self.made(f"{run.name}: {called}", functools.partial(make, run), None) for run in runs
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
    names, parts = [run.name for run in runs], _Parts()
    values = _values(runs, slow_parts, parts)
    missing = [line for run in runs for line in run.left_out] + parts.missing
    missing += [line for parts_of_run in slow_parts for line in parts_of_run.missing.values()]
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
        class_colours=CLASS_COLOURS,
        sections=[(key, name) for key, name in SECTIONS.items() if key not in left],
        version=moco_jax.__version__,
        time=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    # JSON can spell half a surrogate pair, which cannot be encoded in UTF-8.
    return text.encode("utf-8", "backslashreplace").decode()


def _values(runs: Sequence[Run], slow_parts: Sequence[SlowParts], parts: _Parts) -> dict[str, Any]:
    """Collect the values that the template shows, by the name of its part."""
    pairs = list(zip(runs, slow_parts, strict=True))
    seen = {
        run.name: parts_of_run.embedding for run, parts_of_run in pairs if parts_of_run.embedding
    }
    numbers = {run.name: n for n, run in enumerate(runs)}
    mapped = [run for run in runs if run.name in seen]
    drawn = [run for run in runs if run.name not in seen]
    results = parts.of_each(runs, "evaluations", evaluations.results)
    pictures = parts.of_each(drawn, "the picture that it drew", _drawn)
    return dict(
        summary=parts.made("the summary", lambda: _summary(runs), []),
        diagnosis=[_diagnosis(run, parts) for run in runs],
        panels=_panels(runs, parts),
        differing=parts.made(
            "settings that differ", lambda: _rows(runs, settings.differing(runs)), []
        ),
        settings=parts.made(
            "all settings", lambda: _rows(runs, settings.every(runs), default=True), []
        ),
        views=parts.made("view pairs", lambda: _views(pairs), []),
        neighbours=parts.of_each(
            mapped, "neighbours", lambda run: _neighbours(run, seen[run.name])
        ),
        maps=parts.of_each(mapped, "map", lambda run: _map(numbers[run.name], run, seen[run.name])),
        results=[result for found in results for result in found],
        environments=parts.of_each(runs, "environment", _environment),
        repeats=parts.of_each(runs, "how to repeat it", settings.repeat),
        fallback=[picture for found in pictures for picture in found],
    )


def _diagnosis(run: Run, parts: _Parts) -> dict[str, Any]:
    diagnosed = parts.made(f"{run.name}: the diagnosis", lambda: findings(run), [])
    events = parts.made(f"{run.name}: what it reported", lambda: _events(run), [])
    return {"name": run.name, "findings": diagnosed, "events": events}


def findings(run: Run) -> list[rules.Finding]:
    """Apply the rules of `moco_jax.monitoring.diagnosis.rules` to the records of `run`."""
    images = run.starts[-1]["examples"] if run.starts else None
    return rules.examine(run.records, rules.facts_of(run.config, images))


def _panels(runs: Sequence[Run], parts: _Parts) -> list[dict[str, Any]]:
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

    panels = parts.made("curves", lambda: curves.panels(runs), [])
    drawn = (
        parts.made(f"the curve of {p.metric.key}", functools.partial(made, p), None) for p in panels
    )
    return [panel for panel in drawn if panel is not None]


def _views(looked: Sequence[tuple[Run, SlowParts]]) -> list[dict[str, Any]]:
    """Return each set of view pairs once, under the names of all runs that draw it."""
    sets: list[dict[str, Any]] = []
    for run, parts in looked:
        same = [entry for entry in sets if entry["pairs"] == parts.pairs]
        if same:
            same[0]["names"].append(run.name)
        elif parts.pairs:
            sets.append({"names": [run.name], "augment": run.config.augment, "pairs": parts.pairs})
    return sets


def _summary(runs: Sequence[Run]) -> list[list[str]]:
    def last(run: Run, key: str) -> list[Any]:
        return [r[key] for r in run.records if key in r and "event" not in r]

    def share(values: Sequence[float], place: int = -1) -> str:
        return f"{100 * values[place]:.2f} %" if values else ""

    def loss(run: Run) -> str:
        values = last(run, "loss")
        beside = "" if run.chance is None else f" (chance {run.chance:.2f})"
        return f"{values[-1]:.3f}{beside}" if values else ""

    def state(run: Run) -> str:
        if run.steps_per_epoch is None:
            return f"step {run.step:,}"
        done = f"epoch {run.epochs([run.step])[0]:.4g} of {run.config.epochs}"
        return f"{done}, finished" if run.is_finished else f"{done}, step {run.step:,}"

    def best(run: Run) -> str:
        scored = [(r["knn"], r["step"]) for r in run.records if "knn" in r and r["step"]]
        scored = [(value, step) for value, step in scored if np.isfinite(value)]
        value, step = max(scored, default=(None, 0))
        return "" if value is None else f"{100 * value:.2f} % at step {step:,}"

    def before(run: Run) -> str:
        return share([r["knn"] for r in run.records if "knn" in r and r["step"] == 0], 0)

    facts = {
        "state": state,
        "images": lambda run: (
            f"{run.config.dataset} ({run.config.split}), {run.config.image_size} pixels"
        ),
        "encoder": lambda run: run.config.arch,
        "loss": loss,
        "contrastive top-1": lambda run: share(last(run, "top1")),
        "kNN, raw pixels": lambda run: share(last(run, "raw_knn")),
        "kNN before training": before,
        "kNN, last": lambda run: share([r["knn"] for r in run.records if "knn" in r and r["step"]]),
        "kNN, best": best,
        "images per second, median": lambda run: _median(last(run, "images_per_second"), "{:,.0f}"),
        "time spent waiting, median": lambda run: _median(last(run, "waiting_share"), "{:.1%}"),
        "workdir": lambda run: str(run.place),
    }
    rows = [[name, *(tell(run) for run in runs)] for name, tell in facts.items()]
    return [row for row in rows if any(row[1:])]


def _median(values: Sequence[float], form: str) -> str:
    finite = [value for value in values if np.isfinite(value)]
    return form.format(float(np.median(finite))) if finite else ""


def _events(run: Run) -> list[list[str]]:
    rows = []
    for record in run.events:
        if record["event"] == "finding":
            continue  # the diagnosis shows these
        facts = {k.replace("_", " "): v for k, v in record.items() if k not in ("step", "event")}
        more = [f"{printable(k)}: {_short(v)}" for k, v in facts.items()]
        called = printable(record["event"].replace("_", " "))
        rows.append([f"{record['step']:,}", called, ", ".join(more)])
    return rows


def _short(value: Any) -> str:
    if isinstance(value, list):
        more = ", ..." if len(value) > 5 else ""
        return ", ".join(map(_short_one, value[:5])) + more
    return charts.number(value) if isinstance(value, float) else _short_one(value)


def _short_one(value: Any) -> str:
    return printable(value[:500]) if isinstance(value, str) else short(value, 500)


def _rows(
    runs: Sequence[Run], chosen: Sequence[settings.Setting], default: bool = False
) -> list[list[str]]:
    beside = default or len(runs) == 1
    return [[s.name, *s.values, *([s.default] if beside else [])] for s in chosen]


def _environment(run: Run) -> dict[str, Any]:
    rows = settings.environment(run)
    heads = [f"start {n}" for n in range(1, len(run.starts) + 1)]
    return {"name": run.name, "heads": heads, "rows": [[name, *values] for name, values in rows]}


def _neighbours(run: Run, embedding: Embedding) -> dict[str, Any]:
    bank, queries = embedding.bank, embedding.queries
    used = sorted({int(row) for rows in embedding.nearest.values() for row in rows.ravel()})

    def neighbour(query: int, rank: int, row: int) -> dict[str, Any]:
        alt, mark = f"{rank}: {_called(bank, row)}", ""
        if bank.classes is not None and queries.classes is not None:
            ours, asked = bank.classes[row], queries.classes[query]
            if ours and asked:
                mark = "same" if ours == asked else "other"
        return {"row": row, "alt": alt, "mark": mark}

    rows = [
        {
            "picture": images.small(queries.images[query]),
            "alt": _called(queries, query),
            "cells": [
                [neighbour(query, rank, int(row)) for rank, row in enumerate(rows[query], 1)]
                for rows in embedding.nearest.values()
            ],
        }
        for query in range(len(queries.images))
    ]
    about = f"Cosine of the features ({run.config.knn_features})."
    if embedding.agreement:
        shares = [f"{share:.1%} {title}" for title, share in embedding.agreement.items()]
        about += f" Images whose nearest other is of their class: {', '.join(shares)}."
        without = (bank.classes or []).count("")
        if without:
            about += f" {without:,} of {len(bank.images):,} have no label and do not count."
    return {
        "name": run.name,
        "about": about,
        "titles": list(embedding.nearest),
        "rows": rows,
        "count": f"{len(bank.images):,}",
        "classed": bank.classes is not None,
        "bank": {row: images.small(bank.images[row]) for row in used},
    }


def _called(pictures: Any, row: int) -> str:
    name = pictures.names[row]
    of = "" if pictures.classes is None else pictures.classes[row]
    return f"class {of}, {name}" if of else name


def _by_number(name: str) -> tuple[bool, int, str]:
    """Return a key that sorts names that are numbers by value, before others."""
    is_number = name.isdecimal()
    return not is_number, int(name) if is_number else 0, name


def _map(number: int, run: Run, embedding: Embedding) -> dict[str, Any]:
    bank, (width, height, margin) = embedding.bank, MAP
    classes = sorted(set(bank.classes or []), key=_by_number)
    colours = {c: n % CLASS_COLOURS for n, c in enumerate(classes)}
    few = 1 < len(classes) <= 2 * CLASS_COLOURS
    points = [
        {
            "x": round(margin + float(x) * (width - 2 * margin), 1),
            "y": round(margin + float(y) * (height - 2 * margin), 1),
            "colour": colours[bank.classes[row]] if bank.classes else 0,
            "label": _called(bank, row),
        }
        for row, (x, y) in enumerate(embedding.places)
    ]
    about = (
        f"{len(points):,} images by their features after step {embedding.step:,}, as"
        f" {embedding.method}."
    )
    return {
        "name": run.name,
        "key": f"map-{number}",
        "about": about,
        "points": points,
        "side": THUMB,
        "columns": COLUMNS,
        "classes": [c or "no label" for c in classes] if few else [],
        "sprite": images.sprite(bank.images, min(THUMB, bank.images.shape[1]), COLUMNS),
    }


def _drawn(run: Run) -> list[dict[str, str]]:
    """Return the picture that a run has drawn itself, where no map can be made."""
    path = run.place / "neighbours.png"
    if not path.exists():
        return []
    return [{"name": run.name, "picture": images.uri(images.picture_file(path), False)}]
