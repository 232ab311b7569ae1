"""The training loop, readable as a table of contents: prepare, take steps, conclude."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from moco_jax.base.console import Console
from moco_jax.data.damaged import DamagedImages
from moco_jax.data.sources import fingerprint
from moco_jax.method.state import TrainState, count_examples
from moco_jax.monitoring import online_probe
from moco_jax.parallel import failures, hosts, known_answers
from moco_jax.training import bad_steps, ending, feed
from moco_jax.training.assembly import RunSetup, build
from moco_jax.training.budget import Budget
from moco_jax.training.checkpoint import Checkpoints, place_of
from moco_jax.training.journal import Journal, Scores
from moco_jax.training.start import Start, begin_or_go_on
from moco_jax.training.step_plan import StepPlan
from moco_jax.training.stop_signals import StopSignals
from moco_jax.training.throughput import Clock, Profile
from moco_jax.workdir import run_lock
from moco_jax.workdir.lock import Lock


def train(
    config: ConfigDict, workdir: str, allow_change: set[str], began: float | None = None
) -> int:
    """Pretrain as `config` says, in `workdir`, from its last checkpoint if there is one.

    Args:
        config: the settings of the run.
        workdir: the folder of the run, here or in a bucket.
        allow_change: recipe settings that may differ from those the workdir was begun with.
        began: when the time of the run begins to count, by `time.perf_counter`; None: now.

    Returns:
        The signal number that asked the run to stop early, after its state was saved; 0 at the end.

    Raises:
        UserError: a setting or file that the user can mend.
        Busy: another run is at work in `workdir`; LockLost: another run has taken `workdir` from
            this one, which was suspended.
    """
    began = time.perf_counter() if began is None else began
    place = hosts.each(lambda: place_of(workdir))
    console = Console(speaks=jax.process_index() == 0)
    # A compiler that computes wrong values is silent: it is asked before anything is trusted to it.
    hosts.each(known_answers.require_right)
    # Processes with different settings would compile different programs and wait for each other.
    hosts.require_agreement(hosts.facts_of(config))
    # Until the end nobody else writes to the workdir.
    with run_lock.hold(place, console.line) as lock, ExitStack() as last:
        return _train(config, place, allow_change, console, lock, began, last)


def _train(
    config: ConfigDict,
    workdir: epath.Path,
    allow_change: set[str],
    console: Console,
    lock: Lock,
    began: float,
    last: ExitStack,
) -> int:
    """Train in `workdir`, whose `lock` is held; arguments and result as of `train`.

    `last`: closes what is entered there after all else.
    """
    # Settings and images that cannot work are refused here, before the workdir is looked at.
    setup = hosts.each(lambda: build(config, str(workdir / "index")))
    known = fingerprint.agreed(setup.source)
    start = begin_or_go_on(config, workdir, allow_change, setup.program, lock, known)
    damaged = DamagedImages(config.max_bad_images, hosts.Board("damaged images"))
    # The stacks close what is in them from the last to the first, however the run ends. Signals
    # are given back at the very end: until all is saved one must not end the process.
    with ExitStack() as signals, ExitStack() as opened:
        opened.enter_context(closing(start.checkpoints.close, lock))
        plan, budget = planned(config, setup, start, began)
        journal = hosts.each(lambda: Journal(config, setup, workdir, console, lock, plan))
        last.enter_context(closing(journal.close_trackers, lock))
        opened.enter_context(closing(journal.close, lock))
        journal.begin(start)
        seen = count_examples(start.state.examples_seen)
        host_batches, images = feed.open_batches(config, setup, seen, damaged, console)
        # Before the first score: a step that does not fit on the devices ends the run at once.
        train_step = setup.program.compile_step()
        probe = open_probe(config, setup, start, journal)
        scores = Scores(setup, journal, probe)
        if plan.start == 0 and config.monitor_every:
            scores.before_training(start.state, budget.scoring)
        batches = feed.device_batches(
            host_batches, setup.program, images, None if probe is None else probe.classes_of
        )
        batches = damaged.counted(batches, first=console.speaks)
        loop = Loop(config, journal, scores, start.checkpoints, train_step, budget)
        signals.callback(loop.stop.release)
        opened.enter_context(closing(loop.close, lock))
        # Closed first: its threads would go on reading while checkpoints are written.
        opened.enter_context(closing(host_batches.close))
        state, step, signal = loop.take_steps(start.state, batches)
    lock.check()
    if signal:
        console.line(
            f"stopped by signal {signal}; saved at step {step}, the same command goes on from there"
        )
        return signal
    waited = start.checkpoints.seconds / loop.clock.age
    console.line(f"saving took {waited:.2%} of the time")
    if plan.end == plan.last or scores.verdicts.stops:
        ending.conclude(config, journal, scores, state, step)
    names = damaged.everywhere()
    if names:
        console.line(f"{len(names)} damaged images were replaced: {', '.join(names)}")
    return 0


def planned(
    config: ConfigDict, setup: RunSetup, start: Start, began: float
) -> tuple[StepPlan, Budget]:
    """Plan the steps of the run from `start` on, and the time that they may take."""
    schedule_step = int(start.state.schedule_step)
    plan = StepPlan.of(config, setup, start.step, schedule_step)
    budget = Budget(60 * config.minutes, start.seconds, plan, began)
    if config.minutes:
        budget.spread(schedule_step, setup.total_steps)
    return plan, budget


def open_probe(
    config: ConfigDict, setup: RunSetup, start: Start, journal: Journal
) -> online_probe.OnlineProbe | None:
    """Make the online probe of the run, which goes on where the run does; None without one."""
    if not (config.online_probe and config.monitor_every):
        return None
    width = setup.program.features.shape[1]
    # Labels are read now: those that the monitor would read for its first score.
    probe, remarks = hosts.each(lambda: online_probe.beside(setup.monitor, width))
    if probe is not None and start.step and not start.checkpoints.restore_probe(start.step, probe):
        remarks.append(f"the online probe begins here: checkpoint {start.step} has none like it")
    for line in remarks:
        journal.console.line(line)
    return probe


@contextmanager
def closing(close: Callable[[], object], lock: Lock | None = None) -> Iterator[None]:
    """Call `close` when the block ends; an error of the block goes before one of closing.

    `lock`: what is closed writes to its workdir, and is left as it is once another run has that.
    """
    try:
        yield
    except BaseException as error:
        # Before anything is closed, which may wait for processes that do not know of it.
        failures.tell(error)
        with suppress(Exception):
            if lock is None or not lock.lost:
                close()
        raise
    if lock is None or not lock.lost:
        close()


class Loop:
    """Takes the steps of a run, and does after each of them what is due.

    Attributes:
        clock: measures the steps.
    """

    def __init__(
        self,
        config: ConfigDict,
        journal: Journal,
        scores: Scores,
        checkpoints: Checkpoints,
        train_step: Any,
        budget: Budget,
    ):
        """Make ready to run the compiled `train_step`; from here on signals are noted."""
        self.config, self.journal, self.scores = config, journal, scores
        self.plan, self.checkpoints, self.train_step = journal.plan, checkpoints, train_step
        self.probe, self.budget = scores.probe, budget
        self.stop = StopSignals()
        flops = (train_step.cost_analysis() or {}).get("flops")
        self.clock = Clock(config.batch_size, self.plan.last, self.plan.start, flops)
        self.profile = Profile(config.profile_steps, journal.workdir / "profile")
        self.guard = bad_steps.Guard(
            config.max_bad_steps,
            config.spike_factor,
            journal.setup.source.name,
            journal.event,
            checkpoints.good,
        )

    def take_steps(
        self, state: TrainState, batches: Iterator[feed.Fed]
    ) -> tuple[TrainState, int, int]:
        """Train from `state` to the end of the plan, or until a signal or the verdict stops it.

        Returns:
            the state, its step, and the number of the signal; 0 without one.
        """
        step, signal = self.plan.start, 0
        verdicts = self.scores.verdicts
        if verdicts.stops:  # by the scores of an earlier part of the run
            self.journal.say(verdicts.ending(step))
        while step < self.plan.end and not verdicts.stops and not signal:
            step += 1
            with self.clock.waiting():
                batch, classes = next(batches)
            self.profile.before(step)
            state, metrics, features = self.train_step(state, batch)
            if self.probe is not None and classes is not None:
                metrics |= self.probe.learn(features, classes)
            self.profile.after(step, metrics)
            # This judges the step two before, whose numbers are there: no device waits for it.
            arrival = self.clock.count(metrics)
            self.guard.observe(step, arrival, batch.index)
            state = self.in_time(step, state, arrival.wait)
            # Asked before anything is written, so that the last log and checkpoint are of this
            # step.
            signal = self.stop.asked(step)
            self.after(step, state, stops=bool(signal))
        # The last steps are judged too, although nothing follows them.
        self.guard.finish()
        self.journal.written()()
        return state, step, signal

    def in_time(self, step: int, state: TrainState, wait: Callable[[], object]) -> TrainState:
        """Return `state` after `step` with its schedules where the minutes of the run want them.

        `wait` waits until the step has run.
        """
        if not self.config.minutes:
            return state
        told = self.budget.after(step, self.clock, wait)
        if told:
            self.clock.total = self.plan.last
            self.journal.lasts(step, told)
        return self.budget.place(state, step + 1)

    def after(self, step: int, state: TrainState, stops: bool) -> None:
        """Log, score, diagnose and save after `step`, each if it is due, or the run `stops`.

        What is logged is written by the journal's thread, once the step has run.
        """
        self.journal.check()
        logs = self.plan.logs(step) or stops
        if logs:
            self.journal.progress(step, self.clock)
        with self.budget.scoring(self.plan.scores(step)):
            score = self.scores.after(step, state, self.clock)
        ends = stops or step == self.plan.end or self.scores.verdicts.stops
        if ends and not logs:
            self.journal.progress(step, self.clock)
        # Rules read the records of the log and the score, so these are written by now.
        self.journal.diagnose(step, at_once=bool(score) or ends)
        # Saved last: a run that goes on from a checkpoint keeps the records up to its step, and
        # all of them have to be there before it counts.
        if self.plan.saves(step) or score or ends:
            recorded = self.journal.written()
            if ends:
                recorded()
            self.journal.lock.check()
            settings = self.config.to_dict()
            taken = self.budget.spent
            self.checkpoints.save(step, state, settings, score, recorded, self.probe, taken)

    def close(self) -> None:
        """End what watches the steps; a trace that is under way is written."""
        self.clock.close()
        self.profile.close()
