"""A run that ends early by its verdict ends as any other, and goes on only where it is told to."""

from functools import partial

import pytest

from moco_jax import encoders
from moco_jax.base import packages
from moco_jax.base.errors import UserError
from moco_jax.data.sources.memory import ArraySource
from moco_jax.monitoring import run_log
from moco_jax.monitoring.diagnosis import feature_rules
from moco_jax.monitoring.scores import Monitor
from moco_jax.report.page import run as runs_lib
from moco_jax.report.page import tables
from moco_jax.training import assembly, loop, verdicts
from tests.config.test_config import load
from tests.parallel.several import Small

pytestmark = pytest.mark.usefixtures("programs_kept")

STEPS = 11  # of an epoch
SCRIPT = (0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5)  # kNN after each epoch; the first does not count
STOP = 6 * STEPS  # two scores no better than two before them


@pytest.fixture(scope="module")
def steps():
    """Compiled steps, by the program that they are of."""
    return {}


@pytest.fixture(autouse=True)
def compiled_once(steps, monkeypatch):
    """Let all runs of the file have one compiled step, of an encoder that is soon compiled.

    They do without TensorFlow, whose import takes longer than they do.
    """
    is_there = packages.is_there
    monkeypatch.setattr(packages, "is_there", lambda name: name != "tensorflow" and is_there(name))
    monkeypatch.setitem(encoders.BACKBONES, "tiny", partial(Small))
    compile_step = assembly.Program.compile_step

    def kept(self):
        if id(self) not in steps:
            steps[id(self)] = compile_step(self)
        return steps[id(self)]

    monkeypatch.setattr(assembly.Program, "compile_step", kept)


@pytest.fixture
def scripted(monkeypatch):
    """Let kNN be as in SCRIPT, epoch after epoch, of features that have not collapsed."""
    measure, left = Monitor.measure, []

    def scripted_measure(self, variables, probe=None):
        score, found = measure(self, variables, probe)
        if not left:  # before training
            left.extend(SCRIPT)
            return score, found
        return score | {"knn": left.pop(0), "feature_spread": 0.5}, found

    monkeypatch.setattr(Monitor, "measure", scripted_measure)
    monkeypatch.setattr(feature_rules, "collapsed", lambda history, facts: None)
    return left


def settings(**changes):
    config = load("digits")
    config.update(
        arch="tiny",
        stem="imagenet",
        width=0,
        image_size=16,
        epochs=20,
        batch_size=128,
        bn_groups=8,
        shuffle_groups=8,
        queue_size=256,
        augment_on="resident",
        log_every=10,
        monitor_every=1,
        knn_examples=64,
        patience=2,
    )
    config.update(changes)
    return config


def test_a_run_that_gains_nothing_ends_as_a_finished_one_and_goes_on_only_if_told(
    tmp_path, scripted, capsys
):
    place = str(tmp_path)
    assert loop.train(settings(stop_when="no_gain"), place, set()) == 0
    out = capsys.readouterr().out
    assert "epoch 3: kNN 50.00%" in out
    assert "; still improving" in out
    said = (
        f"ended by stop_when='no_gain' at step {STOP}, epoch 6 of 20: nothing gained for 2 epochs"
    )
    assert out.count(said) == 1
    assert "--config.stop_when=never" in out
    assert "encoder after" in out
    records = run_log.records(loop.epath.Path(place))
    assert [r["step"] for r in records if r.get("event") == "stopped"] == [STOP]
    assert [r["step"] for r in records if "loss" in r] == [10, 20, 30, 40, 50, 60, STOP]
    assert max(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == STOP
    for picture in ("neighbours.png", "views.png"):
        assert (tmp_path / picture).exists()

    (run,) = runs_lib.read([place])
    shown = {row[0]: row[1] for row in tables.summary([run])}
    assert shown["state"] == "epoch 6 of 20, ended by stop_when='no_gain'"
    assert shown["verdict"] == "nothing gained for 2 epochs (kNN 50.00% in the mean of 2 scores)"

    # The same command ends at once, and says why.
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert loop.train(settings(stop_when="no_gain"), place, set()) == 0
    assert capsys.readouterr().out.count(said) == 1
    after = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [line for line in after if '"start"' not in line] == [
        line for line in before if '"start"' not in line
    ]
    # Told to go on, but not a step: the page says what ended it, not what holds now.
    assert loop.train(settings(stop_when="never", stop_at_step=STOP), place, set()) == 0
    (run,) = runs_lib.read([place])
    assert tables.summary([run])[0][1] == shown["state"]
    capsys.readouterr()
    # It goes on where it is told to.
    for more in (dict(stop_when="never"), dict(stop_when="no_gain", patience=4)):
        stop = runs_lib.read([place])[0].step + 1
        assert loop.train(settings(stop_at_step=stop, **more), place, set()) == 0
        assert "ended by stop_when" not in capsys.readouterr().out
        (run,) = runs_lib.read([place])
        assert run.step == stop
        assert not run.ended_by


def test_a_run_without_labels_is_judged_by_what_needs_none(tmp_path, monkeypatch, capsys):
    """Scores have the signals of drawn views where the settings ask for them, and no kNN."""
    monkeypatch.setattr(ArraySource, "labels", lambda self, indices: None)
    in_vain = dict(stop_when="no_gain", patience=10)
    config = settings(stop_at_step=2 * STEPS, signals=True, **in_vain)
    loop.train(config, str(tmp_path), set())
    scores = [r for r in run_log.records(loop.epath.Path(tmp_path)) if "feature_spread" in r]
    assert len(scores) == 3
    for score in scores:
        assert "knn" not in score
        assert 1 < score["lidar"] <= 8
        assert 0 < score["alignment"] < 4
        assert -4 < score["uniformity"] < 0
    out = capsys.readouterr().out
    assert "LiDAR" in out
    assert "kNN" not in out
    assert "will not end this run early, unless it collapses: that takes 20 scores" in out


def test_stopping_by_scores_needs_scores(tmp_path):
    with pytest.raises(UserError, match="stop_when='no_gain' goes by scores, and monitor_every=0"):
        loop.train(settings(stop_when="no_gain", monitor_every=0), str(tmp_path), set())


def test_signals_are_measured_at_scores(tmp_path):
    with pytest.raises(UserError, match="signals=True is measured at each score, and monitor_ev"):
        loop.train(settings(signals=True, monitor_every=0), str(tmp_path), set())


@pytest.mark.parametrize("name", ["digits", "imagenet:v1", "cifar10", "imagenet_v3"])
def test_who_asks_in_vain_for_an_early_end_is_told_what_gives_one(name):
    config = load(name)
    assert verdicts.never_stops(config, 50_000) == ""  # nobody asks
    config.update(stop_when="no_gain", monitor_every=config.epochs // 7, patience=5)
    said = verdicts.never_stops(config, 50_000)
    assert f"before the last of {config.epochs} epochs" in said
    remedies = dict(word.split("=") for word in said.rpartition("use ")[2].split(" or "))
    assert "monitor_every" in remedies
    for setting, value in remedies.items():
        better = config.copy_and_resolve_references()
        better[setting] = int(value)
        assert verdicts.never_stops(better, 50_000) == ""
        better[setting] += 1
        assert verdicts.never_stops(better, 50_000)
    config.epochs, config.warmup_epochs = 3, 0
    assert verdicts.never_stops(config, 50_000).endswith("use more epochs")
