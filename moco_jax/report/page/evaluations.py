"""The results of evaluations as tables: row by row, with the facts beside them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from moco_jax.report.page.charts import number
from moco_jax.report.page.run import Run

SHARES = ("accuracy", "iou")  # a number whose name ends so is a share


@dataclasses.dataclass(frozen=True)
class Result:
    """One evaluation of one run.

    Attributes:
        run, name: the run's name, and the evaluation's.
        header, rows: the table of its results, as text.
        facts: name -> value, of what is not in the table.
        published: the published number and its source, empty where there is none.
    """

    run: str
    name: str
    header: list[str]
    rows: list[list[str]]
    facts: dict[str, str]
    published: str


def results(run: Run) -> list[Result]:
    """Return the evaluations of `run`."""
    return [_result(run.name, name, content) for name, content in run.evaluations.items()]


def _result(run: str, name: str, content: Mapping[str, Any]) -> Result:
    rows = [r for r in content.get("results", []) if isinstance(r, dict)]
    header = list(dict.fromkeys(key for row in rows for key in row if _is_plain(row[key])))
    header = [key for key in header if all(_is_plain(row.get(key)) for row in rows)]
    known = content.get("published")
    return Result(
        run=run,
        name=name,
        header=[_words(key) for key in header],
        rows=[[_text(key, row.get(key)) for key in header] for row in rows],
        facts={
            _words(key): _text(key, value) for key, value in content.items() if _is_plain(value)
        },
        published=f"{known['percent']} % ({known['source']})" if known else "",
    )


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _text(key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        is_share = key.lower().endswith(SHARES) and 0 <= value <= 1
        return f"{100 * value:.2f} %" if is_share else number(value)
    return f"{value:,}" if isinstance(value, int) else value
