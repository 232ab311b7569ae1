"""The time that a run takes, and a run of so many minutes: its steps, and their schedules.

The schedules of the recipe's epochs are gone through faster or slower, so that they end with the
time. How long a step takes is measured on the run's own steps, again and again, and what is left
of the schedules is spread over the steps for which there is time.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from moco_jax.base.console import duration
from moco_jax.method.state import TrainState
from moco_jax.parallel import hosts
from moco_jax.training.step_plan import StepPlan
from moco_jax.training.throughput import Clock

FIRST = 3  # steps after which the first estimate is made; the next after twice as many, and so on
SHARE = 50  # of the steps to come, after which the next is made at the latest
FIRST_SCORE = 0.03
TOLD = 0.05  # by so much of the length an estimate differs that is told


class Budget:
    """Knows how long a run has taken, and ends it with its minutes, where it has any.

    Then it moves the end of a `StepPlan` to where the time ends, and the schedules with it. Every
    process has the same steps and schedules: process 0 measures for all.
    """

    def __init__(self, seconds: float, used: float, plan: StepPlan, began: float):
        """Begin to count.

        Args:
            seconds: all that the run may take; 0 where epochs decide.
            used: what it had taken before this command.
            plan: its steps.
            began: when the command began, by `time.perf_counter`.
        """
        self._seconds, self._used, self._plan, self._began = seconds, used, plan, began
        self._measured: list[tuple[int, float]] = []  # steps, and when each had run
        self._next, self._score, self._told = plan.start + FIRST, 0.0, 0

    def spread(self, schedule_step: int, schedule_end: int) -> None:
        """Spread the schedules from `schedule_step` to `schedule_end` over the time.

        Until steps are measured each goes as far as in a run of epochs.
        """
        plan, left = self._plan, schedule_end - schedule_step
        over = left <= 0 or self._used >= self._seconds
        plan.last = plan.start + (0 if over else max(left, 2 * FIRST))
        self._from, self._at, self._end = plan.start, schedule_step, schedule_end

    @property
    def spent(self) -> float:
        """Seconds that the run has taken by now, with those of earlier commands."""
        return self._used + time.perf_counter() - self._began

    @contextlib.contextmanager
    def scoring(self, scores: bool = True, first: bool = False) -> Iterator[None]:
        """Give a context that takes as long as later scores will, if it `scores`.

        Of the `first` of a command this is not said: much is loaded and compiled in it. It counts
        for no more than `FIRST_SCORE` of all time.
        """
        began = time.perf_counter()
        yield
        if scores:
            self._score = time.perf_counter() - began
            if first:
                self._score = min(self._score, FIRST_SCORE * self._seconds)

    def _position(self, step: int) -> int:
        """Return where the schedules are for `step`, counted from 1."""
        share = (step - 1 - self._from) / max(self._plan.last - self._from, 1)
        return round(self._at + share * (self._end - self._at))

    def place(self, state: TrainState, step: int) -> TrainState:
        """Return `state`, before `step`, with its schedules where they are for that."""
        now = jnp.asarray(self._position(step), jnp.int32)
        now = jax.device_put(now, state.schedule_step.sharding)
        return dataclasses.replace(state, schedule_step=now)

    def _seconds_of_a_step(self) -> float:
        """Return the mean over the later half of the steps so far: machines change their pace."""
        (first, _), (now, at) = self._measured[0], self._measured[-1]
        step, began = [m for m in self._measured if m[0] <= (first + now) / 2][-1]
        return (at - began) / (now - step)

    def after(self, step: int, clock: Clock, wait: Callable[[], object]) -> str:
        """Estimate the end anew if that is due after `step`; every process must call this.

        `wait` waits until the step has run.

        Returns:
            what to tell of it; '' where there is nothing.
        """
        plan = self._plan
        if step >= plan.last:
            return f"{plan.epochs:.4g} epochs took {duration(self.spent)}"
        if step < self._next and self._measured:  # the first step, which takes longer, is left out
            return ""
        wait()
        self._measured.append((step, time.perf_counter() - clock.pauses))
        if step < self._next:
            return ""
        each = self._seconds_of_a_step()
        left = self._seconds - self.spent
        if plan.score_every:  # and one after the last step
            left, each = left - self._score, each + self._score / plan.score_every
        steps = hosts.broadcast(max(int(left / each), 1))
        self._from, self._at = step, self._position(step + 1)
        plan.last = step + steps
        self._next = step + max(min(step - plan.start, steps // SHARE), 1)
        if abs(plan.last - self._told) <= TOLD * plan.last:
            return ""
        self._told = plan.last
        return f"by now there is time for {plan.epochs:.4g} epochs, {plan.last:,} steps"
