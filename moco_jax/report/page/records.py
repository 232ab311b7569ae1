"""What the files of a run hold, looked at before the page believes it: it may be any JSON, or none.

What is not as a run writes it is left out, each record or evaluation by itself, with a sentence
that says so.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from moco_jax.base import files
from moco_jax.base.text import printable

Record = dict[str, Any]

# What curves and diagnosis read of whatever record has it; an event's `grad_norm` may be text.
MEASURED = frozenset(
    (
        "loss",
        "top1",
        "knn",
        "raw_knn",
        "feature_spread",
        "raw_feature_spread",
        "spread",
        "drift",
        "effective_rank",
        "lr",
        "waiting_share",
    )
)
MOST = 2**53  # of a step or a count; a float holds each of them


def short(value: Any, length: int = 60) -> str:
    """`value`, as JSON gave it, in a few characters on one line."""
    try:
        said = repr(value)
    except (ValueError, RecursionError):
        said = type(value).__name__
    return printable(said if len(said) <= length else f"{said[: length - 3]}...")


def is_number(value: Any) -> bool:
    """Whether `value` is a number that a float can hold; NaN and the infinities are."""
    if type(value) is not int:
        return isinstance(value, float)
    return abs(value) < 2**1000


def is_count(value: Any, least: int = 0) -> bool:
    """Whether `value` is a whole number from `least` to `MOST`."""
    return type(value) is int and least <= value <= MOST


def wrong(record: Any) -> str:
    """What keeps the page from using `record`; empty where nothing does."""
    if not isinstance(record, dict):
        return f"it is {short(record)} and no object"
    if not is_count(record.get("step")):
        return f"step={short(record.get('step'))} is no number of steps"
    # An event may tell anything beside, but what is measured is a number there too.
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


def sound(found: Iterable[Any], damaged: Iterable[int]) -> tuple[list[Record], list[str]]:
    """The records among `found` that the page can use, and a sentence on the others, if any.

    `damaged`: the numbers of the lines that are no records at all.
    """
    kept: list[Record] = []
    odd = [f"line {number:,} of metrics.jsonl is damaged" for number in damaged]
    for record in found:
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
    """What an evaluation wrote to `path`.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds something else; the text says what.
    """
    if files.is_remote(path):
        content = path.read_bytes()
    else:
        with files.open_regular(path) as file:
            content = file.read()
    try:
        found = json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"it holds {short(found)}, and an object is meant")
    rows = found.get("results", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"results={short(rows)}, and a list of objects is meant")
    known = found.get("published")
    if known is not None and not (
        isinstance(known, dict) and {"percent", "source"} <= known.keys()
    ):
        raise ValueError(
            f"published={short(known)}, and an object with percent and source is meant"
        )
    return found
