"""What a tracker is sent, and the marks that say which of it a tracker has already.

A run that goes on from an earlier checkpoint takes some steps again, to the bit: what a tracker has
of them it is not sent twice.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

NUMBERS, EVENT, PICTURE = "numbers", "event", "picture"


@dataclasses.dataclass(frozen=True)
class Item:
    """Something that a tracker is sent.

    Attributes:
        kind: NUMBERS, EVENT or PICTURE.
        step: of the run.
        content: of numbers name -> value; of a picture name -> its PNG in base 64; of an event
            'name', 'text', 'severity' and 'new', which says whether the tracker lacks it.
    """

    kind: str
    step: int
    content: dict[str, Any]


def of_record(record: Mapping[str, Any], is_live: bool) -> Item:
    """Make the item of a `record` of a run.

    `is_live`: whether it is written now. A start that is written now is always a new one.
    """
    step = record["step"]
    facts = {name: value for name, value in record.items() if name not in ("step", "event")}
    if "event" not in record:
        return Item(NUMBERS, step, facts)
    kind, severity = record["event"], "note"
    if kind == "finding":
        severity, kind = facts["severity"], f"finding/{facts['name']}/{facts['severity']}"
        text = " ".join(str(facts.get(name, "")) for name in ("seen", "meaning", "change"))
    else:
        text = ", ".join(f"{name}={value}" for name, value in facts.items())
    new = is_live and kind == "start"
    return Item(EVENT, step, {"name": kind, "text": text.strip(), "severity": severity, "new": new})


class Marks:
    """The last step of each thing that a tracker has: numbers and pictures by name, events by kind.

    Attributes:
        steps: name -> step.
    """

    def __init__(self, steps: Mapping[str, int] | None = None):
        """Begin with `steps`, those of an earlier part of the run."""
        self.steps = dict(steps or {})

    def take(self, item: Item) -> Item | None:
        """Return what of `item` the tracker lacks, and mark it; None where it lacks nothing.

        Events come back whole, as some trackers have them in one text that is written anew.
        """
        if item.kind == EVENT:
            name = f"{EVENT}/{item.content['name']}"
            new = item.content["new"] or item.step > self.steps.get(name, -1)
            self._mark(name, item.step)
            return dataclasses.replace(item, content=item.content | {"new": new})
        lacking = {}
        for name, value in item.content.items():
            if item.step > self.steps.get(f"{item.kind}/{name}", -1):
                lacking[name] = value
                self._mark(f"{item.kind}/{name}", item.step)
        return dataclasses.replace(item, content=lacking) if lacking else None

    def _mark(self, name: str, step: int) -> None:
        self.steps[name] = max(step, self.steps.get(name, -1))
