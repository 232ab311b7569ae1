"""Checks the content of a run's files before the page uses it: it may be any JSON, or none.

Each record or evaluation that is not as a run writes it is left out by itself, with a sentence
that says so.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from moco_jax.base import files
from moco_jax.base.text import printable

Record = dict[str, Any]

# Keys that curves and diagnosis read in any record; an event's `grad_norm` may be text.
MEASURED = frozenset(
    (
        "loss",
        "top1",
        "knn",
        "raw_knn",
        "probe",
        "probe_train",
        "feature_spread",
        "raw_feature_spread",
        "spread",
        "drift",
        "effective_rank",
        "lidar",
        "alignment",
        "uniformity",
        "spectrum_decay",
        "lr",
        "waiting_share",
    )
)
MOST = 2**53  # the largest step or count; a float holds each whole number up to it


def short(value: Any, length: int = 60) -> str:
    """Format `value`, as JSON gave it, in a few characters on one line."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return printable(text if len(text) <= length else f"{text[: length - 3]}...")


def is_number(value: Any) -> bool:
    """Return whether `value` is a number that a float can hold, as also NaN and infinity."""
    if type(value) is not int:
        return isinstance(value, float)
    return abs(value) < 2**1000


def is_count(value: Any, least: int = 0) -> bool:
    """Return whether `value` is a whole number from `least` to `MOST`."""
    return type(value) is int and least <= value <= MOST


def wrong(record: Any) -> str:
    """Say what keeps the page from using `record`; '' where nothing does."""
    if not isinstance(record, dict):
        return f"it is {short(record)} and no object"
    if not is_count(record.get("step")):
        return f"step={short(record.get('step'))} is no number of steps"
    # An event may hold anything, but measured values are numbers in it too.
    measured = MEASURED & record.keys() if "event" in record else record
    for name in measured:
        if not is_number(record[name]):
            return f"{printable(name)}={short(record[name])} is no number"
    if "event" not in record:
        return ""
    if not isinstance(record["event"], str):
        return f"event={short(record['event'])} is no name"
    if record["event"] == "start":
        return _wrong_start(record)
    return ""


def _wrong_start(record: Mapping[str, Any]) -> str:
    for name, least in (("steps_per_epoch", 1), ("examples", 0)):
        if not is_count(record.get(name), least):
            return f"{name}={short(record.get(name))} of a start is no count"
    shift = record.get("schedule_shift")
    if not is_count(abs(shift) if type(shift) is int else None):
        return f"schedule_shift={short(shift)} of a start is no number of steps"
    return ""


def sound(records: Iterable[Any], damaged: Iterable[int]) -> tuple[list[Record], list[str]]:
    """Select the records that the page can use, and say in a sentence what the others are.

    `damaged`: the numbers of the lines that are no records at all.
    """
    kept: list[Record] = []
    odd = [f"line {number:,} of metrics.jsonl is damaged" for number in damaged]
    for record in records:
        why = wrong(record)
        if why:
            odd.append(why)
        else:
            kept.append(record)
    if not odd:
        return kept, []
    number = len(kept) + len(odd)
    return kept, [f"{len(odd):,} of {number:,} records, as of the first of them {odd[0]}"]


def evaluation(path: epath.Path) -> Record:
    """Read the file `path` that an evaluation wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds something else; the text says what.
    """
    if files.is_remote(path):
        data = path.read_bytes()
    else:
        with files.open_regular(path) as file:
            data = file.read()
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds {short(content)}; it must hold an object")
    rows = content.get("results", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"results={short(rows)} must be a list of objects")
    known = content.get("published")
    if known is not None and not (
        isinstance(known, dict) and {"percent", "source"} <= known.keys()
    ):
        raise ValueError(f"published={short(known)} must be an object with percent and source")
    return content
