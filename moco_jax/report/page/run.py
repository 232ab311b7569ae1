"""Reads a run from its workdir: settings, records, starts, evaluations, checkpoints."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from moco_jax.base import files, storage
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.data.configured import open_images
from moco_jax.inference import trained_encoder
from moco_jax.method.configured import method_of
from moco_jax.monitoring import record_files, run_log
from moco_jax.monitoring.diagnosis import rules
from moco_jax.monitoring.verdict import Verdict, judge
from moco_jax.report.page import records as records_lib
from moco_jax.report.page.records import Record
from moco_jax.workdir import integrity


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, as read from its workdir.

    Attributes:
        name: short, and no other run's on the page.
        place: the workdir.
        config: its settings.
        records: those of metrics.jsonl, oldest first, events among them.
        evaluations: name -> what `moco_jax.evaluate` wrote.
        left_out: what of its files is not as a run writes it, a line each.
    """

    name: str
    place: epath.Path
    config: ConfigDict
    records: list[Record]
    evaluations: dict[str, Record]
    left_out: list[str] = dataclasses.field(default_factory=list)

    @property
    def starts(self) -> list[Record]:
        """The records of where the run began and went on; empty if the run did not record them."""
        return [r for r in self.records if r.get("event") == "start"]

    @property
    def events(self) -> list[Record]:
        """The records of what happened during the run, without starts."""
        return [r for r in self.records if r.get("event", "start") != "start"]

    @property
    def step(self) -> int:
        """The last step that is recorded."""
        return max((r["step"] for r in self.records), default=0)

    @functools.cached_property
    def chance(self) -> float | None:
        """The chance level of the loss: that of queries that are as close to every key."""
        return method_of(self.config).chance_level(self.config.batch_size)

    @functools.cached_property
    def steps_per_epoch(self) -> int | None:
        """Steps in an epoch now; None if neither the records nor the images tell."""
        if self.starts:
            return self.starts[-1]["steps_per_epoch"]
        try:
            images = open_images(self.config, self.config.split, str(self.place / "index"))
        except (UserError, OSError):
            return None
        return max(len(images) // self.config.batch_size, 1)

    @property
    def is_finished(self) -> bool:
        """Whether the run came to the end of its epochs."""
        if self.steps_per_epoch is None:
            return False
        return self.planned is not None and float(self.epochs([self.step])[0]) >= self.planned

    @property
    def planned(self) -> float | None:
        """Epochs of the whole run; None of one that goes by time and has not measured its steps."""
        if not self.config.minutes:
            return self.config.epochs
        last = self._last_step
        return None if last is None else float(self.epochs([last])[0])

    @property
    def _last_step(self) -> int | None:
        """The last step of a run that goes by time, as it was told last."""
        told = [e["last"] for e in self.events if e["event"] == "length"]
        return told[-1] if told and self.config.minutes else None

    @property
    def ended_by(self) -> str:
        """The `stop_when` by which the run ended itself early; '' if not, or if it went on since.

        It is that of then, as a later command may have changed the setting.
        """
        stops = [r for r in self.events if r["event"] == "stopped"]
        ended = bool(stops) and stops[-1]["step"] == self.step
        return str(stops[-1].get("stop_when", self.config.stop_when)) if ended else ""

    @property
    def facts(self) -> rules.Facts:
        """What the records are read with."""
        found = rules.facts_of(self.config, self.starts[-1]["examples"] if self.starts else None)
        return found if self._last_step is None else found.of_length(self._last_step)

    @property
    def verdict(self) -> Verdict | None:
        """The verdict on the run after its last score; None where epochs are not known."""
        if self.steps_per_epoch is None:
            return None
        return self.judged(self.records)

    def judged(self, records: Sequence[Record]) -> Verdict:
        """Return the verdict by `records` of the run, whose epochs must be known."""
        return judge(records, self.facts, self._epoch, self.config.patience)

    def _epoch(self, step: int) -> float:
        return float(self.epochs([step])[0])

    def epochs(self, steps: Sequence[int]) -> np.ndarray:
        """Return how many epochs were over after each of `steps`: float64 `[N]`.

        `steps_per_epoch` must be known. Where the batch size was changed on the way, the epochs
        are those of the schedule.
        """
        at = np.asarray(steps, np.float64)
        starts = self.starts or [
            {"step": 0, "schedule_shift": 0, "steps_per_epoch": self.steps_per_epoch}
        ]
        # A start at step s holds from step s + 1 on.
        which = np.searchsorted([s["step"] for s in starts], at, side="left") - 1
        chosen = [starts[max(w, 0)] for w in which]
        shifts = np.asarray([s["schedule_shift"] for s in chosen])
        return (at + shifts) / np.asarray([s["steps_per_epoch"] for s in chosen])

    def checkpoint(self) -> int | None:
        """Return the step of the last whole checkpoint, without reading its content."""
        folder = self.place / "digests"
        if not folder.is_dir():
            return None
        steps = (integrity.step_of(p.name) for p in folder.iterdir())
        return max(
            (s for s in steps if s is not None and (self.place / "checkpoints" / str(s)).exists()),
            default=None,
        )


def read(places: Sequence[str]) -> list[Run]:
    """Read the runs in these workdirs.

    Raises:
        UserError: one is no workdir, or its settings are damaged.
    """
    workdirs = [files.absolute(place) for place in places]
    names = [printable(place.name) for place in workdirs]
    if len(set(names)) < len(names):
        names = [printable(place) for place in workdirs]
    return [_read(name, place) for name, place in zip(names, workdirs, strict=True)]


def _read(name: str, place: epath.Path) -> Run:
    config = trained_encoder.read_config(str(place))
    left_out: list[str] = []
    try:
        log = run_log.read(place)
        # A last line without an end may be one that is just being written.
        records, odd = records_lib.sound(log.records, () if log.only_cut else log.damaged)
        left_out += odd
    except storage.OF_STORES:
        raise
    except (ValueError, OSError, RecursionError) as error:
        records = []
        left_out.append(
            f"all records, as {printable(place / 'metrics.jsonl')} is damaged ({_line(error)})"
        )
    evaluations = {}
    for path in sorted(place.glob("evaluate_*.json")):
        called = printable(path.stem.removeprefix("evaluate_"))
        try:
            evaluations[called] = records_lib.evaluation(path)
        except storage.OF_STORES:
            raise
        except (ValueError, OSError) as error:
            left_out.append(
                f"the evaluation {called}, as {printable(path)} is damaged ({_line(error)}); the"
                " same evaluation writes it anew"
            )
    return Run(name, place, config, records, evaluations, [f"{name}: {line}" for line in left_out])


def _line(error: Exception) -> str:
    return printable(" ".join(str(error).split())[:200])


def stamp(places: Sequence[str]) -> tuple[Any, ...]:
    """Return a value that changes whenever something that the page shows may have changed."""
    state: list[Any] = []
    for place in map(files.absolute, places):
        for path in (
            *record_files.paths(place),
            place / "config.json",
            *sorted(place.glob("evaluate_*.json")),
        ):
            if path.exists():
                stat = path.stat()
                state.append((str(path), stat.length, stat.mtime))
        digests = place / "digests"
        state.append(sorted(p.name for p in digests.iterdir()) if digests.is_dir() else None)
    return tuple(map(str, state))
