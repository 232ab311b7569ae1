"""A run of so many minutes ends with them, and its schedules end with it, stopped or not."""

import re
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import struct

from moco_jax.monitoring import run_log
from moco_jax.report.page import run as runs_lib
from moco_jax.training import budget as budget_lib
from moco_jax.training import loop, throughput
from moco_jax.training.budget import Budget
from moco_jax.training.step_plan import StepPlan
from moco_jax.workdir import integrity
from tests.training.test_loop import tiny


@struct.dataclass
class State:
    schedule_step: jnp.ndarray


class Machine:
    """Steps and scores that take as long as they are said to, by a clock of their own."""

    def __init__(self, monkeypatch):
        self.now, self.pauses, self.total = 1000.0, 0.0, 0
        fake = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr(budget_lib, "time", fake)

    def run(self, seconds, epochs, per_epoch, each, score=0.0, used=0.0, start=(0, 0), stop=0):
        """Train; return the plan, the schedules' places by step, and the seconds over all."""
        every = per_epoch if score else 0
        plan = StepPlan(start[0], epochs * per_epoch, stop, 0, per_epoch, 10, every, 100)
        began, state = self.now, State(jnp.asarray(start[1], jnp.int32))
        kept = Budget(seconds, used, plan, began)
        kept.spread(start[1], epochs * per_epoch)
        self.now += 4.0  # to compile
        if score and not start[0]:
            with kept.scoring(first=True):
                self.now += score
        places, step = [], start[0]
        while step < plan.end:
            places.append(int(state.schedule_step))
            step += 1
            self.now += each(step)
            kept.after(step, self, lambda: None)
            state = kept.place(state, step + 1)
            with kept.scoring(plan.scores(step)):
                pause = score if plan.scores(step) else 0.0
                self.now, self.pauses = self.now + pause, self.pauses + pause
        return plan, [*places, int(state.schedule_step)], kept.spent


EACH = {
    "steady": lambda step: 0.1,
    "slow at first": lambda step: 0.1 + 2.0 * (step < 10),
    "slower in the middle": lambda step: 0.08 if step < 800 else 0.16,
    "faster in the middle": lambda step: 0.16 if step < 800 else 0.08,
    "uneven": lambda step: 0.3 if step % 7 == 0 else 0.05,
}


@pytest.mark.parametrize("each", EACH.values(), ids=EACH)
@pytest.mark.parametrize(("epochs", "per_epoch", "score"), [(150, 22, 1.5), (2, 40_000, 0.0)])
def test_time_and_schedules_end_together(each, epochs, per_epoch, score, monkeypatch):
    plan, places, spent = Machine(monkeypatch).run(300.0, epochs, per_epoch, each, score)
    assert abs(spent / 300 - 1) < 0.02
    assert places[0] == 0
    assert places[-1] == epochs * per_epoch
    assert plan.last == len(places) - 1
    moved = np.diff(places)
    assert moved.min() >= 0
    # No jump, beside the first steps, of which little is known.
    assert moved[len(moved) // 10 :].max() <= max(0.01 * places[-1], 1)


def test_a_run_that_was_stopped_ends_with_its_minutes_too(monkeypatch):
    machine = Machine(monkeypatch)
    _, first, spent = machine.run(300.0, 150, 22, EACH["steady"], 1.0, stop=700)
    machine.now += 5000.0  # the machine was away
    where = (700, first[-1])
    plan, places, spent = machine.run(300.0, 150, 22, EACH["uneven"], 1.0, used=spent, start=where)
    assert abs(spent / 300 - 1) < 0.02
    assert places[0] == where[1]
    assert places[-1] == 150 * 22
    again, places, _ = machine.run(
        300.0, 150, 22, EACH["steady"], used=spent, start=(plan.last, places[-1])
    )
    assert (again.last, len(places)) == (plan.last, 1)  # nothing is left to do


@pytest.mark.parametrize("seconds", [0.5, 6.0])
def test_too_few_minutes_end_after_a_few_steps(seconds, monkeypatch):
    plan, places, _ = Machine(monkeypatch).run(seconds, 150, 22, EACH["steady"])
    assert plan.last <= 25
    assert places[-1] == 150 * 22


@pytest.mark.usefixtures("programs_kept")
def test_a_whole_run_records_its_length_and_goes_on(tmp_path, capsys, monkeypatch):
    count, now = throughput.Clock.count, 0.0

    def counted(clock, metrics):
        nonlocal now
        now += 0.2
        return count(clock, metrics)

    monkeypatch.setattr(throughput.Clock, "count", counted)
    monkeypatch.setattr(budget_lib, "time", SimpleNamespace(perf_counter=lambda: now))
    config = tiny(augment_on="resident", minutes=0.1, monitor_every=0)
    config.lr_schedule = "cosine_per_step"
    for stop in (10, 0, 0):  # the last command finds it at its end
        config.stop_at_step = stop
        loop.train(config, str(tmp_path), set(), began=now)
    found = run_log.records(epath.Path(tmp_path))
    last = [r["last"] for r in found if r.get("event") == "length"][-1]
    steps = [r for r in found if "lr" in r]
    assert steps[-1]["step"] == last
    assert abs(last - 30) <= 1  # steps of 0.2 seconds
    assert steps[-1]["lr"] < 0.02 * config.lr  # a cosine, at its end
    assert integrity.about(epath.Path(tmp_path), last)["seconds"] > 0
    said = capsys.readouterr().out
    assert "as many as fit in minutes=0.1" in said
    assert re.search(r"\n\S+ epochs took \d+s\n", said)
    (run,) = runs_lib.read([epath.Path(tmp_path)])
    assert run.is_finished
    assert run.facts.total_steps == last
