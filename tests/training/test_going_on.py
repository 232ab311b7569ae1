"""Damaged copies of one small run: each goes on, or is refused each time; its readers read it."""

import errno
import json
import os
import shutil
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import linen as nn

from moco_jax import encoders
from moco_jax.base.errors import UserError
from moco_jax.encoders.norm import BatchNorm
from moco_jax.inference import trained_encoder
from moco_jax.monitoring import record_files, run_log
from moco_jax.report.page import render
from moco_jax.report.page import run as runs_lib
from moco_jax.report.page.renewal import Renewal
from moco_jax.training import assembly, checkpoint
from moco_jax.training import loop as train
from moco_jax.workdir import integrity, recipe_check
from tests import states
from tests.training.test_loop import tiny

pytestmark = pytest.mark.usefixtures("programs_kept")

# From this step on the rate makes every weight overflow, though it is a number of float32.
BREAKS = 20


class Small(nn.Module):
    """A backbone that compiles in an instant, and has kernels and statistics as every state has."""

    bn_groups: int = 1
    dtype: Any = jnp.float32
    reduce: str = "float32"

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), (2, 2), dtype=self.dtype)(x)
        x = BatchNorm(self.bn_groups, dtype=self.dtype)(x, train)
        return nn.relu(x).mean((1, 2))


def settings(**changes):
    encoder = dict(arch="tiny", stem="imagenet", width=0, image_size=16)
    run = dict(epochs=3, checkpoint_every=2, keep=2, monitor_every=0)
    return tiny(**encoder, **run, **changes)


@pytest.fixture(scope="module")
def run():
    """What goes on in a workdir to a step; all runs of this file share one compiled program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders.BACKBONES, "tiny", partial(Small))
        real = assembly.optimizers.learning_rate

        def learning_rate(*arguments, **named):
            rate = real(*arguments, **named)
            return lambda s: jnp.where(s < BREAKS, rate(s), 3e38)

        patch.setattr(assembly.optimizers, "learning_rate", learning_rate)
        built = train.build(settings(), "")
        compiled = built.program.compile_step()
        patch.setattr(train, "build", lambda config, index: built)
        patch.setattr(assembly.Program, "compile_step", lambda self: compiled)

        def go_on(workdir, stop, allow_change=(), **changes):
            config = settings(stop_at_step=stop, **changes)
            return train.train(config, str(workdir), set(allow_change))

        yield go_on


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """A run of eight steps with checkpoints at 6 and 8."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert run(workdir, 8) == 0
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def read_all(workdir):
    """What the report and the evaluations read of a workdir."""
    (found,) = runs_lib.read([str(workdir)])
    assert "<html" in render.page([found], [Renewal(0, print).at(found)])
    return found, trained_encoder.load(str(workdir))


def append(content):
    def damage(workdir):
        with open(workdir / "metrics.jsonl", "ab") as file:
            file.write(content)

    return damage


def dangle(workdir):
    victim = sorted(p for p in (workdir / "checkpoints/8").iterdir() if p.is_file())[-1]
    victim.unlink()
    victim.symlink_to("nowhere")


def cut(workdir):
    path = workdir / "metrics.jsonl"
    os.truncate(path, path.stat().st_size - 20)


def config_json(content):
    def damage(workdir):
        (workdir / "config.json").unlink()
        if content is not None:
            (workdir / "config.json").write_text(content)

    return damage


GOES_ON = {  # name: what is done, the step it goes on from, words that are said
    "no config.json": (config_json(None), 8, "config.json is missing: checkpoint 8"),
    "config.json of null": (config_json("null"), 8, "config.json is damaged"),
    "config.json of a list": (config_json("[]"), 8, "config.json is damaged"),
    "a link to nothing": (dangle, 6, "checkpoint 8 is damaged"),
    "NULs": (append(bytes(100) + b"\n"), 8, "is damaged and left out"),
    "a number": (append(b"7\n"), 8, "is damaged and left out"),
    "no step": (append(b'{"loss": 1.5}\n'), 8, "is damaged and left out"),
    "no UTF-8": (append(b"\xff\xfe\n"), 8, "is damaged and left out"),
    "a cut line": (cut, 8, "is damaged and left out"),
    "a superscript": (lambda w: (w / "checkpoints/²").mkdir(), 8, ""),
    "leading zeros": (lambda w: (w / "checkpoints/08").mkdir(), 8, ""),
    "a file named as a step": (
        lambda w: (w / "checkpoints/58").write_text(""),
        8,
        "checkpoint 58 is damaged",
    ),
    "a checkpoint under another step": (
        lambda w: (w / "checkpoints/8").rename(w / "checkpoints/9"),
        6,
        "checkpoint 9 is damaged",
    ),
}


@pytest.mark.parametrize("name", GOES_ON)
def test_it_goes_on_and_says_what_was_wrong(run, workdir, name, capsys):
    damage, step, words = GOES_ON[name]
    damage(workdir)
    read_all(workdir)
    assert run(workdir, 10) == 0
    out = capsys.readouterr().out
    assert words in out
    assert f"at step {step}" in out
    assert json.loads((workdir / "config.json").read_text())["temperature"] == 0.1
    records = run_log.records(epath.Path(workdir))
    assert [r["step"] for r in records if "loss" in r][-1] == 10
    found, loaded = read_all(workdir)
    assert loaded.step == found.checkpoint() == 10
    if step == 6:
        aside = [p.name.split("_")[0] for p in (workdir / "damaged").iterdir()]
        assert aside == ["8" if "link" in name else "9"]


def warmer(workdir):
    path = workdir / "config.json"
    old, new = '"temperature": 0.1,', '"temperature": 0.9,'
    path.write_text(path.read_text().replace(old, new))


REFUSED = {
    "another recipe, no config.json": (config_json(None), dict(lr=9.0), "lr: 0.06 -> 9.0"),
    "another recipe, config.json of null": (config_json("null"), dict(lr=9.0), "lr: 0.06 -> 9.0"),
    "another config.json": (
        warmer,
        {},
        "temperature: 0.9 in config.json, 0.1 in checkpoint 8 -> 0.1",
    ),
    "no digests": (
        lambda w: shutil.rmtree(w / "digests"),
        {},
        "/digests has no digests of checkpoint 8, 6",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_again_and_nothing_is_moved(run, workdir, name):
    damage, changes, words = REFUSED[name]
    damage(workdir)
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    for _ in range(2):
        with pytest.raises(UserError) as raised:
            run(workdir, 10, **changes)
        assert words in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1
        assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_weights_that_overflow_are_neither_applied_nor_saved(run, workdir, capsys):
    with pytest.raises(
        UserError, match=r"max_bad_steps=10 .* \(21 to 30\).* Checkpoint (28|30) is good"
    ):
        run(workdir, 60)
    assert "what the update would make of the weights is not finite" in capsys.readouterr().out
    kept = integrity.steps(epath.Path(workdir))
    assert len(kept) == 2
    expected = None
    for step in kept:
        found = states.load(workdir, step)
        assert all(np.isfinite(x).all() for x in found.values() if x.dtype.kind == "f")
        weights = {
            n: x for n, x in found.items() if n.startswith(("params", "key_params", "opt_state"))
        }
        if expected is not None:
            states.assert_bitwise_equal(expected, weights)
        expected = weights
    assert read_all(workdir)[1].step == kept[0]


def test_records_that_cannot_be_written_end_the_run_and_no_checkpoint_counts(
    run, workdir, monkeypatch
):
    """A thread writes them: its error ends the run in one line, as if the loop had written."""
    append = record_files.Appended.append

    def fills(self, line):
        if b'"step": 9' in line:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, line)

    monkeypatch.setattr(record_files.Appended, "append", fills)
    with pytest.raises(UserError, match="is on a full disk; make room") as raised:
        run(workdir, 60)
    assert len(str(raised.value).splitlines()) == 1
    monkeypatch.undo()
    assert run_log.records(epath.Path(workdir))[-1]["step"] == 8
    assert integrity.find(epath.Path(workdir))[0] == 8


def test_a_checkpoint_that_is_not_finite_is_passed_over(run, workdir, monkeypatch, capsys):
    """As a version that looked at the gradient alone left them."""
    real = checkpoint.is_finite
    monkeypatch.setattr(checkpoint, "is_finite", lambda state: int(state.step) != 8 and real(state))
    assert run(workdir, 7) == 0
    out = capsys.readouterr().out
    assert "checkpoint 8 is damaged (it holds numbers that are not finite); moved to" in out
    assert "at step 6" in out
    monkeypatch.setattr(checkpoint, "is_finite", lambda state: False)
    before = sorted(map(str, (workdir / "checkpoints").rglob("*")))
    for _ in range(2):
        with pytest.raises(UserError, match="no sound checkpoint left"):
            run(workdir, 9)
        assert sorted(map(str, (workdir / "checkpoints").rglob("*"))) == before


def test_a_run_that_begins_anew_sets_the_records_aside(run, workdir, capsys):
    shutil.rmtree(workdir / "checkpoints")
    shutil.rmtree(workdir / "digests")
    before = (workdir / "metrics.jsonl").read_bytes()
    assert run(workdir, 2) == 0
    assert "begins at step 0: the records that were there are in" in capsys.readouterr().out
    assert (workdir / "earlier/1/metrics.jsonl").read_bytes() == before
    assert [r["step"] for r in run_log.records(epath.Path(workdir)) if "loss" in r] == [1, 2]
    assert recipe_check.settings(epath.Path(workdir)).lr == 0.06
