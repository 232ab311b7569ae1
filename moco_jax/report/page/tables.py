"""Tables of the page: how far each run is, what it reported, its settings and environment."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moco_jax.base.text import printable
from moco_jax.report.page import charts, settings
from moco_jax.report.page.records import short
from moco_jax.report.page.run import Run


def summary(runs: Sequence[Run]) -> list[list[str]]:
    """Return how far each of `runs` is and how well it does: rows of a name and a cell per run."""

    def last(run: Run, key: str) -> list[Any]:
        return [r[key] for r in run.records if key in r and "event" not in r]

    def share(values: Sequence[float], place: int = -1) -> str:
        return f"{100 * values[place]:.2f} %" if values else ""

    def loss(run: Run) -> str:
        values = last(run, "loss")
        beside = "" if run.chance is None else f" (chance {run.chance:.2f})"
        return f"{values[-1]:.3f}{beside}" if values else ""

    def verdict(run: Run) -> str:
        found = run.verdict
        if found is None:
            return ""
        return found.at_end if run.is_finished or run.ended_by else found.line

    def best(run: Run) -> str:
        scored = [(r["knn"], r["step"]) for r in run.records if "knn" in r and r["step"]]
        scored = [(value, step) for value, step in scored if np.isfinite(value)]
        value, step = max(scored, default=(None, 0))
        return "" if value is None else f"{100 * value:.2f} % at step {step:,}"

    def before(run: Run) -> str:
        return share([r["knn"] for r in run.records if "knn" in r and r["step"] == 0], 0)

    facts = {
        "state": _state,
        "verdict": verdict,
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
        "online probe, last": lambda run: share(last(run, "probe")),
        "effective rank, last": lambda run: (
            f"{last(run, 'effective_rank')[-1]:.2f}" if last(run, "effective_rank") else ""
        ),
        "images per second, median": lambda run: _median(last(run, "images_per_second"), "{:,.0f}"),
        "time spent waiting, median": lambda run: _median(last(run, "waiting_share"), "{:.1%}"),
        "workdir": lambda run: str(run.place),
    }
    rows = [[name, *(tell(run) for run in runs)] for name, tell in facts.items()]
    return [row for row in rows if any(row[1:])]


def _state(run: Run) -> str:
    """Say how far `run` is, and whether it has ended."""
    if run.steps_per_epoch is None:
        return f"step {run.step:,}"
    done = f"epoch {run.epochs([run.step])[0]:.4g}"
    if run.planned is not None:
        done += f" of {run.planned:.4g}"
    if run.ended_by:
        return f"{done}, ended by stop_when={printable(run.ended_by)!r}"
    return f"{done}, finished" if run.is_finished else f"{done}, step {run.step:,}"


def _median(values: Sequence[float], form: str) -> str:
    finite = [value for value in values if np.isfinite(value)]
    return form.format(float(np.median(finite))) if finite else ""


def events(run: Run) -> list[list[str]]:
    """Return the events that `run` recorded: rows of step, kind and details."""
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


def setting_rows(
    runs: Sequence[Run], chosen: Sequence[settings.Setting], default: bool = False
) -> list[list[str]]:
    """Return rows of a setting: its name, its value in each run, and its default."""
    beside = default or len(runs) == 1
    return [[s.name, *s.values, *([s.default] if beside else [])] for s in chosen]


def environment(run: Run) -> dict[str, Any]:
    """Return versions and devices of `run` at each of its starts."""
    rows = settings.environment(run)
    heads = [f"start {n}" for n in range(1, len(run.starts) + 1)]
    return {"name": run.name, "heads": heads, "rows": [[name, *values] for name, values in rows]}
