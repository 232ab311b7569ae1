"""Which steps are logged, scored and saved, also where the batch size was changed on the way."""

import types

import pytest

from moco_jax.base.errors import UserError
from moco_jax.training.step_plan import StepPlan

PARTS = types.SimpleNamespace(steps_per_epoch=10, total_steps=40)


def plan(start=0, schedule_step=0, **changes):
    settings = {"stop_at_step": 0, "log_every": 4, "monitor_every": 2, "checkpoint_every": 7}
    config = types.SimpleNamespace(minutes=0.0, **settings | changes)
    return StepPlan.of(config, PARTS, start, schedule_step)


def steps(happens, last):
    return [step for step in range(1, last + 1) if happens(step)]


def test_a_whole_run_ends_logged_scored_and_saved():
    whole = plan()
    assert (whole.end, whole.last) == (40, 40)
    assert steps(whole.logs, 40) == [*range(4, 41, 4)]
    assert steps(whole.scores, 40) == [20, 40]
    assert steps(whole.saves, 40) == [7, 14, 21, 28, 35, 40]
    assert whole.epoch(15) == 1.5


def test_a_run_that_is_stopped_logs_and_saves_its_last_step_and_is_not_scored():
    stopped = plan(stop_at_step=13)
    assert (stopped.end, stopped.last) == (13, 40)
    assert stopped.logs(13)
    assert stopped.saves(13)
    assert not stopped.scores(13)
    assert plan(stop_at_step=99).end == 40


def test_a_stop_before_the_checkpoint_is_refused_and_one_at_it_is_not():
    with pytest.raises(UserError, match=r"stop_at_step=13 is before step 20, .* from 20 to 40"):
        plan(start=20, schedule_step=20, stop_at_step=13)
    for stop in (0, 20, 21, 99):
        assert plan(start=20, schedule_step=20, stop_at_step=stop).end >= 20


def test_no_step_is_scored_without_a_monitor():
    assert steps(plan(monitor_every=0).scores, 40) == []


@pytest.mark.parametrize("shift", [-6, 6])
def test_epochs_are_those_of_a_run_that_had_this_batch_size_from_the_beginning(shift):
    changed = plan(start=10, schedule_step=10 + shift)
    assert changed.last == 40 - shift
    assert changed.epoch(changed.last) == 4
    scored = [step for step in steps(changed.scores, changed.last) if step > changed.start]
    assert scored == [20 - shift, 40 - shift]
