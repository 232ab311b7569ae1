"""Rules of the diagnosis, on recorded runs of the digits and on made-up records.

Recorded runs are healthy and faulty; a real run tells a finding once.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from moco_jax.monitoring import drift, run_log
from moco_jax.monitoring.diagnosis import announce, rules
from tests.config.test_config import load

RECORDED = json.loads(Path(__file__).with_name("recorded_runs.json").read_text())
HEALTHY = (
    "moco",
    "moco_20_epochs",
    "symmetric",
    "v3",
    "end_to_end",
    "memory_bank",
    "momentum_0.999",
)
IMAGES = 1437


def facts(images=IMAGES, **settings):
    return rules.facts_of({**load("digits").to_dict(), **settings}, images)


def told(records, known):
    """Every finding that a run would tell, by name and severity."""
    found = {}
    for end in range(1, len(records) + 1):
        for finding in rules.examine(records[:end], known):
            found.setdefault((finding.name, finding.severity), finding)
    return found


def recorded(name):
    return told(RECORDED[name]["records"], facts(**RECORDED[name]["config"]))


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_held_against_a_healthy_run(name):
    assert {severity for _, severity in recorded(name)} <= {"note"}


@pytest.mark.parametrize(
    ("name", "finding", "severity"),
    [
        ("moco_20_epochs", "queue_filling", "note"),
        ("v3", "below_pixels", "note"),
        ("momentum_0", "collapsed", "fault"),
        ("momentum_0.9", "loss_rising", "warning"),
        ("not_shuffled", "batch_norm_leak", "warning"),
        ("end_to_end_not_shuffled", "batch_norm_leak", "warning"),
        ("memory_bank_collapsed", "collapsed", "fault"),
    ],
)
def test_what_recorded_runs_show(name, finding, severity):
    assert (finding, severity) in recorded(name)


def test_a_collapse_names_its_cause():
    found = recorded("momentum_0")["collapsed", "fault"]
    assert found.since_step == 110
    assert "momentum=0 lets keys change as fast as queries" in found.change
    assert "lower lr" in recorded("memory_bank_collapsed")["collapsed", "fault"].change
    decayed = told(course(spread=0.01), facts(epochs=91, weight_decay=2.0))
    assert "weight_decay=2 shrinks" in decayed["collapsed", "fault"].change
    assert found.line.startswith("fault: Nearly all images have the same queries (spread 0.002")


def course(steps=2000, every=20, **numbers):
    """Records of a healthy run, with `numbers` in place of its own.

    Each is a constant, or a function of the share of steps done.
    """
    usual = {
        "loss": lambda x: 5.5 - 2 * x,
        "top1": lambda x: 0.1 + 0.3 * x,
        "spread": 0.6,
        "waiting_share": 0.03,
        "knn": lambda x: 0.6 + 0.3 * x,
        "feature_spread": 0.5,
        "effective_rank": 30.0,
        "drift": 0.03,
        "raw_knn": 0.5,
        "lr": 0.06,
    }
    at = usual | numbers

    def value(name, step):
        return at[name](step / steps) if callable(at[name]) else at[name]

    def some(step, *names):
        return {"step": step, **{n: value(n, step) for n in names if at[n] is not None}}

    scores = ("knn", "feature_spread", "effective_rank")
    found = [{"step": 0, "event": "start", "examples": IMAGES, "device_kind": "an accelerator"}]
    found += [some(0, "raw_knn"), some(0, *scores)]
    for step in range(every, steps + 1, every):
        found.append(some(step, "loss", "top1", "spread", "waiting_share", "lr"))
        if step % (10 * every) == 0:
            found.append(some(step, *scores, "drift"))
    return found


def share(below, above, at=0.5):
    return lambda x: below if x < at else above


MADE = [
    ("at_chance", "fault", {}, dict(loss=6.9)),
    ("collapsed", "fault", {}, dict(spread=0.01)),
    ("collapsed", "fault", {}, dict(feature_spread=0.05)),
    ("loss_rising", "warning", {}, dict(loss=lambda x: 4 + 2 * x)),
    ("loss_rising", "note", {}, dict(loss=share(4.5, 5.0, at=0.9), lr=share(0.06, 0.02, at=0.9))),
    ("shortcut", "warning", {}, dict(top1=0.95, knn=0.6)),
    ("shortcut", "warning", {}, dict(top1=0.99, knn=None, raw_knn=None)),
    ("shortcut", "note", {}, dict(top1=0.99)),
    ("drift", "warning", {}, dict(drift=0.5)),
    ("few_directions", "warning", {}, dict(effective_rank=2.0)),
    ("batch_norm_leak", "warning", dict(shuffle="none"), {}),
    ("batch_norm_leak", "fault", dict(shuffle="none"), dict(top1=0.99, knn=0.55)),
    ("batch_norm_leak", "warning", dict(bn_groups=1), {}),
    ("starved", "warning", {}, dict(waiting_share=share(0.03, 0.3))),
    ("knn_falling", "warning", {}, dict(knn=share(0.8, 0.7))),
    ("shortcut", "warning", {}, dict(knn=0.6)),
    ("knn_stuck", "warning", {}, dict(knn=0.6, loss=6.0)),
    ("knn_stuck", "note", {}, dict(knn=share(0.6, 0.8))),
    ("below_pixels", "warning", {}, dict(knn=0.6, raw_knn=0.9)),
    ("below_pixels", "note", {}, dict(raw_knn=0.95)),
]


@pytest.mark.parametrize(("name", "severity", "settings", "numbers"), MADE)
def test_each_rule(name, severity, settings, numbers):
    found = told(course(**numbers), facts(epochs=91, **settings))
    finding = found[name, severity]
    assert 0 <= finding.since_step <= 2000
    for sentence in (finding.seen, finding.meaning, finding.change):
        assert sentence.endswith(".")


def test_of_a_collapsed_run_only_the_collapse_is_told():
    numbers = dict(spread=0.01, loss=lambda x: 4 + 2 * x, drift=5.0, effective_rank=1.0)
    found = rules.examine(course(**numbers), facts(epochs=91))
    assert [finding.name for finding in found] == ["collapsed"]


def test_the_made_course_is_a_healthy_one():
    assert told(course(), facts(epochs=91)) == {}


def test_spikes_must_come_close_together():
    def with_events(steps):
        events = [{"step": s, "event": "gradient_spike"} for s in steps]
        return {name for name, _ in told(course() + events, facts(epochs=91))}

    assert with_events([900, 920, 940, 960, 999]) == {"spikes"}
    assert with_events(range(0, 1000, 100)) == set()


def test_a_start_is_no_starving():
    records = course(steps=200)
    restarted = [{**r, "waiting_share": 0.9} if r["step"] in (20, 120) else r for r in records]
    second = {"step": 100, "event": "start", "examples": IMAGES}
    at = next(i for i, r in enumerate(records) if r["step"] > 100)
    assert told([*restarted[:at], second, *restarted[at:]], facts(epochs=91)) == {}


def test_losses_that_are_no_numbers_are_passed_over():
    records = course(loss=lambda x: math.nan if x > 0.5 else 5.0)
    assert told(records, facts(epochs=91)) == {}


def test_facts_follow_from_settings_and_images():
    known = facts()
    assert (known.renewed_steps, known.total_steps, known.leaks) == (16, 150 * 22, False)
    assert known.chance == pytest.approx(math.log(1025))
    assert facts(symmetric=True).renewed_steps == 8
    assert facts(images=None).total_steps == 0
    bank = facts(dictionary="memory_bank", key_encoder="none", shuffle="none")
    assert (bank.renewed_steps, bank.leaks) == (22, False)
    assert not facts(dictionary="batch", bn_groups=1, shuffle="none").leaks
    assert not facts(arch="vit_small", shuffle="none").leaks
    assert facts(augment="v2").changes_colours
    gray = facts(augment="v2", jitter_probability=0, grayscale_probability=0)
    assert (gray.changes_colours, gray.views) == (
        False,
        "augment='v2', jitter_probability=0.0, grayscale_probability=0.0",
    )
    assert not known.changes_colours
    # As config.json has them: with lists for tuples, and without settings that came later.
    saved = json.loads(json.dumps(load("digits").to_dict()))
    del saved["queue_start"]
    assert rules.facts_of(saved, IMAGES) == known


def test_a_workdir_is_enough(tmp_path):
    config = load("digits").to_dict() | dict(shuffle="none", epochs=91)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in course()))
    (found,) = rules.of_workdir(epath.Path(tmp_path))
    assert (found.name, found.since_step) == ("batch_norm_leak", 0)


class Log:
    """Writers without files."""

    def __init__(self, held):
        self.records = list(held)

    def event(self, step, kind, facts):
        self.records.append({"step": step, "event": kind, **facts})


class Said(list):
    """A console that remembers."""

    line = list.append


def test_a_finding_is_told_once_also_after_a_restart_and_again_where_it_gets_worse():
    records = course(top1=0.99, knn=0.55)
    known, said = facts(shuffle="none", epochs=91), Said()
    log = Log([])
    teller = announce.Announcer(said, log, known)
    for number, record in enumerate(records[: len(records) // 2]):
        log.records.append(record)
        teller.consider(record["step"], at_once=number == 0)
    events = [r for r in log.records if r.get("event") == "finding"]
    told = [(e["name"], e["severity"]) for e in events]
    assert told[:2] == [("batch_norm_leak", "warning"), ("batch_norm_leak", "fault")]
    assert len(said) == len(events)
    again, once_more = Said(), Log(log.records)
    announce.Announcer(again, once_more, known).consider(1000, at_once=True)
    assert again == []
    assert once_more.records == log.records


def test_a_rule_that_fails_ends_the_diagnosis_and_not_the_run(monkeypatch):
    monkeypatch.setattr(rules, "examine", lambda *_: 1 / 0)
    said = Said()
    teller = announce.Announcer(said, Log(course()), facts())
    for step in (20, 40):
        teller.consider(step, at_once=True)
    failure = "ZeroDivisionError('division by zero')"
    assert said == [f"the diagnosis failed and is left out from here on: {failure}"]


def test_long_runs_keep_scores_and_events_and_thin_out_old_losses():
    records = course(steps=20 * 3 * run_log.KEPT)
    kept: list = []
    for record in records:
        kept = run_log.thinned([*kept, record])
    assert len(kept) <= run_log.KEPT
    scores = [r for r in records if "loss" not in r]
    assert [r for r in kept if "loss" not in r] == scores
    assert kept[-1000:] == records[-1000:]
    steps = [r["step"] for r in kept if "loss" in r]
    assert steps == sorted(steps)
    assert steps[0] == 20


def test_drift_is_the_way_of_keys_in_units_of_their_distances():
    now = np.eye(6, dtype=np.float32)[:4]
    turned = np.cos(0.5) * now + np.sin(0.5) * np.eye(6, dtype=np.float32)[4]
    assert drift.drift(now, now) == pytest.approx(0, abs=1e-6)
    assert drift.drift(turned, now) == pytest.approx(1 - np.cos(0.5), rel=1e-5)
    assert drift.drift(now[[1, 2, 3, 0]], now) == pytest.approx(1)
    # Keys that share a direction lie closer together, and the same way is longer in that unit.
    shared = np.float32([0, 0, 0, 0, 0, 1])
    close, moved = (np.sqrt(0.5) * x + np.sqrt(0.5) * shared for x in (now, now[[1, 2, 3, 0]]))
    assert drift.drift(moved, close) == pytest.approx(1, rel=1e-5)
    assert drift.drift(np.tile(shared, (4, 1)), np.tile(shared, (4, 1))) == 0
