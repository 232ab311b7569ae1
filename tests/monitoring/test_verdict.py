"""The verdict on a run: curves cut short, plateaus, collapses, noise, and rates that fall later."""

import numpy as np
import pytest

from moco_jax.monitoring import verdict
from moco_jax.monitoring.diagnosis.rules import facts_of
from tests.config.test_config import load

EVERY, STEPS = 2, 22  # epochs between scores, steps of an epoch
BEGUN = 4  # the epoch from which on scores count
PATIENCE = 5


def facts(**settings):
    return facts_of({**load("digits").to_dict(), "epochs": 40, **settings}, 1437)


def scores(values, key="knn", spread=0.5, first=BEGUN):
    """Scores at every second epoch; `spread` is a number or one for each."""
    spreads = np.broadcast_to(spread, len(values)).tolist()
    return [
        (first + EVERY * n, {"step": (first + EVERY * n) * STEPS, key: v, "feature_spread": s})
        for n, (v, s) in enumerate(zip(np.asarray(values, float).tolist(), spreads, strict=True))
    ]


def judged(some, patience=PATIENCE, **settings):
    """The verdict after each of the scores."""
    known, records = facts(**settings), [record for _, record in some]
    return [
        verdict.judge(records[: n + 1], known, lambda step: step / STEPS, patience)
        for n in range(len(some))
    ]


def states(some, **changes):
    return [found.state for found in judged(some, **changes)]


def noisy(values, deviation, seed):
    return np.asarray(values) + np.random.default_rng(seed).normal(0, deviation, len(values))


RISING = 0.55 + 0.3 * (1 - np.exp(-np.arange(40) / 15))  # half a point a score at its end
REACHED = np.r_[RISING[:12], np.full(28, RISING[11])]


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_is_cut_short_still_improves(seed):
    found = states(scores(noisy(RISING[:20], 0.01, seed)))
    assert verdict.NO_GAIN not in found
    assert found[-1] == verdict.IMPROVING


@pytest.mark.parametrize("seed", range(20))
def test_a_plateau_is_seen_as_soon_as_the_patience_says(seed):
    found = judged(scores(noisy(REACHED, 0.005, seed)))
    first = next(n for n, v in enumerate(found) if v.state == verdict.NO_GAIN)
    # At 11 the plateau begins; the last rises before it may be within the scores' noise.
    assert 11 + PATIENCE - 2 <= first <= 11 + 3 * PATIENCE
    assert all(v.stops == (v.state == verdict.NO_GAIN) for v in found)
    since = found[first]
    assert since.line.endswith(": you can stop")
    assert "nothing gained for 1" in since.line


def test_noise_around_a_plateau_seldom_looks_like_a_gain():
    after = [states(scores(noisy(np.full(40, 0.8), 0.01, seed)))[15:] for seed in range(50)]
    assert np.mean([s == verdict.NO_GAIN for run in after for s in run]) > 0.9


def test_one_score_decides_nothing_however_bad_or_good():
    some = [0.6, 0.65, 0.7, 0.75, 0.1, 0.8, 0.85, 0.99, 0.9, 0.92, 0.94]
    assert verdict.NO_GAIN not in states(scores(some))
    assert judged(scores([0.6]))[0].line == "too early to say whether it improves"
    assert states(scores([0.6, 0.6])) == [verdict.EARLY] * 2


def test_the_patience_is_that_of_the_settings():
    flat = scores([0.5, 0.6, 0.7] + [0.7] * 30)
    for patience in (2, 5, 11):
        found = states(flat, patience=patience)
        assert found.index(verdict.NO_GAIN) == 2 * patience + 1  # both means are of the plateau


@pytest.mark.parametrize("key", ["knn", "effective_rank"])
def test_a_collapsed_run_never_improves(key):
    """Not even where its number rises, as a rank does of features that are but rounding."""
    rising = np.linspace(0.4, 0.9, 12)
    found = judged(scores(rising, key=key, spread=0.02))
    assert {v.state for v in found} == {verdict.COLLAPSED}
    assert [v.stops for v in found] == [False] * (PATIENCE - 1) + [True] * (13 - PATIENCE)
    assert found[3].line == "the run has collapsed, since epoch 4: begin again"
    # Sound at first, then collapsed while the number rises on.
    spread = np.r_[np.full(6, 0.5), np.full(6, 0.01)]
    found = judged(scores(rising, key=key, spread=spread))
    assert [v.state for v in found[5:7]] == [verdict.IMPROVING, verdict.COLLAPSED]
    assert not found[9].stops
    assert found[10].stops


def test_a_run_whose_queries_collapse_never_improves_though_its_features_differ():
    """As with momentum=0: the backbone's features keep a spread of 0.45, those of the head none."""
    rising = np.linspace(0.4, 0.9, 12)
    some = scores(rising, spread=0.45)
    logs = [{"step": r["step"] - 1, "loss": 6.9, "spread": 0.002} for _, r in some]
    records = [x for log, (_, r) in zip(logs, some, strict=True) for x in (log, r)]
    found = [
        verdict.judge(records[:n], facts(), lambda step: step / STEPS, PATIENCE)
        for n in range(2, len(records) + 1, 2)
    ]
    assert {v.state for v in found[3:]} == {verdict.COLLAPSED}
    assert verdict.IMPROVING not in {v.state for v in found}
    assert found[-1].stops


def test_a_run_that_comes_back_from_a_collapse_is_judged_by_what_it_gains_then():
    spread = np.r_[np.full(4, 0.01), np.full(10, 0.5)]
    found = states(scores(np.linspace(0.4, 0.9, 14), spread=spread))
    assert found[-1] == verdict.IMPROVING


def test_no_run_is_told_to_stop_before_its_rate_falls_for_the_last_time():
    """A plateau while the rate is high says nothing of what follows the next fall."""
    steps = dict(lr_schedule="steps", lr_steps=(30, 60, 120), epochs=100, first_epoch=1)
    some = scores(np.r_[REACHED[:40], [0.8] * 8])
    found = judged(some, **steps)
    states_at = {epoch: v for (epoch, _), v in zip(some, found, strict=True)}
    assert states_at[50].state == verdict.WAITING
    assert "the learning rate falls at epoch 59, which may bring a gain" in states_at[50].line
    assert not any(v.stops for epoch, v in states_at.items() if epoch < 60 + EVERY * (PATIENCE - 1))
    assert states_at[70].stops


def test_the_beginning_and_the_encoder_before_training_do_not_count():
    """A memory bank's entries are random at first, and its features collapse for a while."""
    bank = dict(key_encoder="none", dictionary="memory_bank", shuffle="none", epochs=100)
    spread = np.r_[np.full(12, 0.01), np.full(10, 0.5)]
    some = [(0, {"step": 0, "knn": 0.99, "feature_spread": 0.5})]
    some += scores(np.linspace(0.4, 0.9, 22), spread=spread)
    found = states(some, **bank)
    assert set(found) == {verdict.EARLY, verdict.IMPROVING}


def test_labels_go_before_the_best_signal_without_them():
    falling, rising = np.linspace(0.8, 0.6, 12), np.linspace(10, 30, 12)
    both = [
        (e, r | {"effective_rank": x}) for (e, r), x in zip(scores(falling), rising, strict=True)
    ]
    assert judged(both)[-1].line.startswith(
        "nothing gained for 14 epochs (kNN 63.64% in the mean of 5 scores)"
    )
    without = scores(rising, key="effective_rank")
    assert states(without)[-1] == verdict.IMPROVING


def test_scores_that_are_no_numbers_are_no_gain():
    some = scores([0.5, 0.6, np.nan, np.inf, 1e308, -1e308, 0.7, np.nan, np.nan])
    with np.errstate(all="raise"):
        assert len(states(some)) == len(some)
    assert verdict.scatter([np.nan] * 5) != verdict.scatter([0.5] * 5) == 0


def test_scatter_is_the_deviation_of_scores_about_their_course():
    course = np.linspace(0, 5, 4000)
    assert verdict.scatter(noisy(course, 0.3, 0)) == pytest.approx(0.3, rel=0.1)
    assert verdict.scatter(course) == pytest.approx(0, abs=1e-9)
    assert verdict.scatter([1.0, 2.0]) == 0


@pytest.mark.parametrize("patience", [2, 5])
@pytest.mark.parametrize("drops", [(), (30,), (10, 41)])
def test_the_first_stop_is_where_a_run_that_gains_nothing_is_told_to_stop(patience, drops):
    steps = dict(lr_schedule="steps", lr_steps=drops, epochs=60, first_epoch=0) if drops else {}
    some = scores(np.full(24, 0.5))
    epochs = [epoch for epoch, _ in some]
    found = states(some, patience=patience, **steps)
    told = epochs[found.index(verdict.NO_GAIN)]
    assert verdict.first_stop(epochs, drops, patience) == told
    before = epochs[: epochs.index(told)]
    assert verdict.first_stop(before, drops, patience) is None
