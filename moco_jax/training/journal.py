"""What a run writes while it trains: records for tools, lines for a person, its own scores.

All of it is written by one thread, in order, so that no step waits for a disk or a bucket.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from moco_jax.base.console import Console
from moco_jax.config.settings.kinds import words_in
from moco_jax.data.sources import remarks_of
from moco_jax.method.state import TrainState
from moco_jax.monitoring import neighbours, online_probe, run_log
from moco_jax.monitoring.diagnosis import announce, rules
from moco_jax.monitoring.scores import Classify, Snapshot
from moco_jax.monitoring.trackers.trackers import Trackers
from moco_jax.training import environment, messages
from moco_jax.training.assembly import RunSetup
from moco_jax.training.start import Start, query_variables
from moco_jax.training.step_plan import StepPlan
from moco_jax.training.throughput import Clock
from moco_jax.training.verdicts import Verdicts, never_stops
from moco_jax.training.writer import Writer
from moco_jax.workdir.lock import Lock

PATIENCE = 60.0  # seconds that a run which ends by an error gives what it has not yet written


class Journal:
    """The records and the console of one run; every line and record of the loop goes through it.

    What is told to it is written by its thread, in order, each after a look at the lock: a run that
    was suspended while another one took its workdir must not write there. `check` raises what the
    thread has failed with.

    Attributes:
        log: the records, in `metrics.jsonl` and for TensorBoard.
        console: for a person.
        facts: on the run, with which its records are read.
    """

    def __init__(
        self,
        config: ConfigDict,
        setup: RunSetup,
        workdir: epath.Path,
        console: Console,
        lock: Lock,
        plan: StepPlan,
    ):
        """Open the records of the run with these settings and `setup` in `workdir`."""
        self.config, self.setup, self.plan = config, setup, plan
        self.workdir, self.console, self.lock = workdir, console, lock
        lock.check()
        self.log = run_log.Writers(workdir, jax.process_index() == 0, plan.start)
        self.facts = self._facts = rules.facts_of(config.to_dict(), len(setup.source))
        self._writer = Writer(before=lock.check, idle=self.log.idle)
        self.put, self.check = self._writer.put, self._writer.check

    def begin(self, start: Start) -> None:
        """Record and print with what the run begins, or goes on."""
        # First what a start has moved or changed, which a person may want to undo.
        for line in (*start.remarks, *self.log.remarks):
            self.console.line(line)
        facts = {
            "examples": len(self.setup.source),
            "steps_per_epoch": self.setup.steps_per_epoch,
            "schedule_shift": self.plan.shift,
            "chance": self.facts.chance,
        }
        if self.config.track and self.log.writes:
            # It gets what it lacks of the records, and from the start on all of them.
            self.log.trackers = self._trackers()
        self.log.event(self.plan.start, "start", environment.facts() | facts)
        if not self.plan.start:
            self.log.settings(self.config.to_dict())
        # It reads from the records what was announced before the run was stopped.
        self._announcer = announce.Announcer(self.console, self.log, self.facts)
        self.console.facts(messages.facts(self.config, self.setup, self.workdir, start.state))
        in_vain = never_stops(self.config, len(self.setup.source))
        lines = (*remarks_of(self.setup.source), *start.weights, in_vain)
        for line in filter(None, lines):
            self.console.line(line)

    def _trackers(self) -> Trackers:
        names = words_in(self.config.track)
        opened = Trackers(names, self.workdir, self.console.line)
        opened.begin(self.config.to_dict(), run_log.records(self.workdir))
        return opened

    def event(self, step: int, kind: str, text: str, facts: Mapping[str, Any]) -> None:
        """Print and record that something happened at `step`: `kind` names it, `text` tells it."""

        def write() -> None:
            self.console.line(text)
            self.log.event(step, kind, facts)

        self.put(write)

    def say(self, text: str) -> None:
        """Print `text`, behind all that was told so far."""
        self.put(lambda: self.console.line(text))

    def lasts(self, step: int, text: str) -> None:
        """Print and record, after `step`, how long a run takes whose last step was moved."""
        last = self.plan.last

        def write() -> None:
            self.console.line(text)
            self.log.event(step, "length", {"last": last})
            self.facts = self._announcer.facts = self._facts.of_length(last)

        self.put(write)

    def progress(self, step: int, clock: Clock) -> None:
        """Record the numbers since the last cut of `clock`, and renew the progress line.

        They are of steps that may still be under way: the thread waits for these, nobody else.
        """
        window = clock.cut()

        def write() -> None:
            numbers = online_probe.share(window.read())
            self.log.write(step, numbers)
            where = self.plan.epoch(step), self.plan.epochs
            self.console.progress(messages.progress(*where, numbers, self.config, window.left))

        self.put(write)

    def record(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record `numbers` at `step`."""
        self.put(lambda: self.log.write(step, numbers))

    def score(self, step: int, when: str, score: dict[str, float], verdict: str = "") -> None:
        """Record and print a score of the encoder, and what it leaves out for want of a label.

        `verdict`: on the run after this score.
        """
        lines = [messages.score(when, score, verdict)] if score else []
        lines += self.setup.monitor.new_remarks()

        def write() -> None:
            if score:
                self.log.write(step, score)
            for line in lines:
                self.console.line(line)

        self.put(write)

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all that was told so far; none on hosts that do not write."""
        self.put(lambda: None).result()
        return list(self.log.records)

    def diagnose(self, step: int, at_once: bool) -> None:
        """Print and record what rules find in the records, if there are new ones or `at_once`."""
        self.put(lambda: self._announcer.consider(step, at_once))

    def written(self) -> Callable[[], None]:
        """Return a function that waits until all that was told so far is written.

        It raises what the thread has failed with.
        """
        return self.put(self.log.flush).result

    def close(self) -> None:
        """Write what is left and what is buffered, and end the thread."""
        self._writer.close(PATIENCE)
        self.log.close()

    def close_trackers(self) -> None:
        """Let trackers send what is left, behind the last pictures of the run.

        Called while an error is handled, it tells them that the run failed.
        """
        if self.log.trackers is not None:
            self.log.trackers.close(failed=sys.exception() is not None)


class Scores:
    """The scores that a run gives itself, and the picture of neighbours that is drawn of each.

    Attributes:
        latest: what the monitor found after the latest step; None where it was not scored.
        verdicts: on the run, by its scores.
    """

    def __init__(
        self, setup: RunSetup, journal: Journal, probe: online_probe.OnlineProbe | None = None
    ):
        """Score with the monitor of `setup`, and `probe`; results go to `journal`."""
        self.setup, self.journal, self.plan = setup, journal, journal.plan
        self.probe = probe
        self.picture = neighbours.Picture(
            journal.workdir,
            setup.monitor,
            journal.console,
            journal.log,
            self.plan.start,
            self.plan.last,
        )
        self.latest: Snapshot | None = None
        self.verdicts = Verdicts(
            journal.config, journal.plan, lambda: journal.facts, journal.log.records
        )

    def before_training(
        self, state: TrainState, scoring: Callable[..., AbstractContextManager[None]]
    ) -> None:
        """Score raw pixels and the encoder before the first step, to compare later scores with.

        `scoring`: a context for what takes as long as later scores will.
        """
        monitor = self.setup.monitor
        raw = monitor.raw_pixels()
        if raw:
            self.journal.record(0, {f"raw_{name}": value for name, value in raw.items()})
        with scoring(first=True):
            score, snapshot = self._measure(state)
        self.journal.put(lambda: self.picture.renew(0, snapshot))
        self.journal.score(0, "before training", score)

    def after(self, step: int, state: TrainState, clock: Clock) -> dict[str, float]:
        """Score the encoder after `step` if its time has come; every host must call this.

        Returns:
            the score by name; empty where there is none after this step.
        """
        self.latest = None
        consistency = self.setup.consistency
        # Of the keys that are in the queue at a later score, the oldest are made now: the images
        # whose keys are compared then are encoded for the first time.
        if consistency.life and self.plan.scores(step + consistency.life):
            with clock.pause():
                consistency.prepare(step, state)
        if not self.plan.scores(step):
            return {}
        with clock.pause():
            score, found = self._measure(state, None if self.probe is None else self.probe.score)
            score |= consistency.measure(step, state)
            records = self.journal.records()
        self.latest = found
        self.journal.put(lambda: self.picture.renew(step, found))
        verdict = self.verdicts.after(step, [*records, {"step": step, **score}])
        self.journal.score(step, f"epoch {self.plan.epoch(step):g}", score, verdict.line)
        if self.verdicts.stops:
            facts = {"stop_when": self.journal.config.stop_when, "verdict": verdict.line}
            self.journal.event(step, "stopped", self.verdicts.ending(step), facts)
        return score

    def _measure(
        self, state: TrainState, probe: Classify | None = None
    ) -> tuple[dict[str, float], Snapshot]:
        """Score the query encoder, by drawn views too where the settings ask for it.

        `probe`: scores the same features too.
        """
        variables = query_variables(state)
        score, found = self.setup.monitor.measure(variables, probe)
        if score and self.setup.signals is not None:
            score |= self.setup.signals.measure(variables)
        return score, found
