"""Whole runs through the command line's own path: learning, resuming, refusing, damaged images."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from sklearn.datasets import load_sample_images
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from moco_jax.base import packages
from moco_jax.base.errors import UserError
from moco_jax.data import pipeline
from moco_jax.data.sources.memory import ArraySource
from moco_jax.monitoring import run_log
from moco_jax.training import assembly, loop, throughput
from tests import fake_tracker, smallest
from tests.command_lines import command_lines
from tests.config.test_config import load

pytestmark = pytest.mark.usefixtures("programs_kept")

TINY = {
    "arch": smallest.ARCH,
    "width": 8,
    "epochs": 2,
    "batch_size": 64,
    "bn_groups": 8,
    "shuffle_groups": 8,
    "queue_size": 256,
    "log_every": 1,
    "workers": 2,
}


def tiny(name="digits", **changes):
    config = load(name)
    config.update(TINY | changes)
    return config


def losses(workdir):
    return [r["loss"] for r in run_log.records(loop.epath.Path(workdir)) if "loss" in r]


def test_a_run_cut_in_two_equals_a_whole_run(tmp_path, capsys):
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    scored = dict(monitor_every=1, knn_examples=256)
    loop.train(tiny(stop_at_step=8, **scored), whole, set())
    for stop in (5, 8):
        loop.train(tiny(stop_at_step=stop, **scored), cut, set())
    assert len(losses(whole)) == 8
    assert losses(whole) == losses(cut)
    probed = [
        [r["probe_train"] for r in run_log.records(loop.epath.Path(place)) if "loss" in r]
        for place in (whole, cut)
    ]
    assert probed[0] == probed[1]
    found = [(tmp_path / place / "neighbours.json").read_text() for place in ("whole", "cut")]
    assert found[0] == found[1]
    assert "resumed" in capsys.readouterr().out


def test_a_tracked_run_that_is_cut_in_two_has_its_records_in_the_tracker(
    tmp_path, monkeypatch, capfd
):
    """A stand-in takes wandb's place; the settings change while the run goes on."""
    fake_tracker.put(tmp_path / "packages")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls"))
    scored = dict(monitor_every=1, knn_examples=256, track="(wandb)")
    monkeypatch.delenv("FAKE_FAULT", raising=False)
    loop.train(tiny(stop_at_step=5, **scored), str(tmp_path / "run"), set())
    loop.train(tiny(stop_at_step=8, keep=3, **scored), str(tmp_path / "run"), set())
    assert "wandb" not in sys.modules
    told = fake_tracker.calls(tmp_path / "calls", "log")
    recorded = [
        [record["step"], name, value]
        for record in run_log.records(loop.epath.Path(tmp_path / "run"))
        for name, value in record.items()
        if "event" not in record and name != "step"
    ]
    pictures = [call[:2] for call in told if isinstance(call[2], list) and call[1] != "events"]
    assert [call for call in told if not isinstance(call[2], list)] == recorded
    assert pictures == [[0, "neighbours"]]
    settings = [call[0]["keep"] for call in fake_tracker.calls(tmp_path / "calls", "settings")]
    assert settings == [2, 3]
    said = capfd.readouterr()
    assert "wandb: new run fake1" in said.out
    assert "wandb: goes on with run fake1" in said.out
    assert "chatter" not in said.out + said.err

    monkeypatch.setenv("FAKE_FAULT", "log raise")
    assert loop.train(tiny(stop_at_step=9, **scored), str(tmp_path / "run"), set()) == 0
    assert capfd.readouterr().out.count("wandb is off for the rest of this run: OSError") == 1
    there = packages.is_there
    monkeypatch.setattr(packages, "is_there", lambda name: name != "mlflow" and there(name))
    refused = r"^track='wandb,mlflow' needs the package mlflow, .*; pip install mlflow, or go"
    with pytest.raises(UserError, match=refused):
        loop.train(tiny(track="wandb,mlflow"), str(tmp_path / "run"), set())


def test_views_finished_on_the_devices_train_as_those_of_the_host_do(tmp_path):
    found = {}
    for place in ("host", "device"):
        changes = dict(augment="cifar", augment_on=place, stop_at_step=3, monitor_every=0)
        loop.train(tiny(**changes), str(tmp_path / place), set())
        found[place] = np.asarray(losses(tmp_path / place))
    np.testing.assert_allclose(
        found["device"], found["host"], rtol=0.02
    )  # pixels differ by rounding
    resident = tiny(**(changes | {"augment_on": "resident", "stop_at_step": 4}))
    with pytest.raises(UserError, match=r"augment_on: 'device' -> 'resident'"):
        loop.train(resident, str(tmp_path / "device"), set())
    loop.train(resident, str(tmp_path / "device"), {"augment_on"})
    assert len(losses(tmp_path / "device")) == 4


def test_a_run_on_images_that_the_devices_hold_is_the_hosts_run(
    tmp_path, monkeypatch, capsys, float64
):
    """Also where it is cut in two, and on one device: views of the digits are equal to the bit."""
    common = dict(stop_at_step=4, monitor_every=0, compute_dtype="float64")
    held = common | {"augment_on": "resident"}
    loop.train(tiny(**common), str(tmp_path / "host"), set())
    loop.train(tiny(**held), str(tmp_path / "resident"), set())
    said = "1,437 of digits (train), 553 kB on each device; a step moves its batch's, "
    assert said in capsys.readouterr().out
    for stop in (2, 4):
        loop.train(tiny(**(held | {"stop_at_step": stop})), str(tmp_path / "cut"), set())
    every = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: every[:1])
    loop.train(tiny(**held), str(tmp_path / "one"), set())
    assert "1 x cpu" in capsys.readouterr().out
    expected = losses(tmp_path / "host")
    assert len(set(expected)) == len(expected) == 4
    # Other programs round differently, and the difference grows from step to step: in float32 to
    # 6e-4 within four steps.
    np.testing.assert_allclose(losses(tmp_path / "resident"), expected, rtol=1e-9)
    np.testing.assert_allclose(losses(tmp_path / "one"), expected, rtol=1e-9)
    assert losses(tmp_path / "cut") == losses(tmp_path / "resident")


def test_a_run_whose_devices_wait_for_images_says_so_once(tmp_path, capsys, monkeypatch):
    """Each batch comes four times as late as a step takes, however busy the machine is."""
    made, count, latest = pipeline.train_batches, throughput.Clock.count, []

    def counted(clock, metrics):
        latest.append(count(clock, metrics))
        return latest[-1]

    def slow(*arguments, **named):
        latest.clear()
        for batch in made(*arguments, **named):
            began = time.perf_counter()
            if latest:
                latest[-1].wait()
            time.sleep(max(0.1, 4 * (time.perf_counter() - began)))
            yield batch

    monkeypatch.setattr(throughput.Clock, "count", counted)
    monkeypatch.setattr(pipeline, "train_batches", slow)
    loop.train(tiny(stop_at_step=26, monitor_every=0, log_every=2), str(tmp_path), set())
    assert capsys.readouterr().out.count("The devices wait for images") == 1
    loop.train(tiny(stop_at_step=28, monitor_every=0, log_every=1), str(tmp_path), set())
    assert "The devices wait for images" not in capsys.readouterr().out
    found = run_log.records(loop.epath.Path(tmp_path))
    starved = [r for r in found if r.get("name") == "starved"]
    assert [(e["event"], e["step"], e["since_step"]) for e in starved] == [("finding", 26, 22)]
    assert starved[0]["severity"] == "note"  # on a CPU; a warning elsewhere


def test_a_whole_run_ends_with_table_and_picture(tmp_path, capsys):
    loop.train(tiny(monitor_every=1), str(tmp_path), set())
    out = capsys.readouterr().out
    for words in (
        "raw pixels",
        "encoder before training",
        "encoder after",
        "(chance 5.55)",
        "8 x cpu",
    ):
        assert words in out
    assert (tmp_path / "neighbours.png").stat().st_size > 10_000
    assert (tmp_path / "views.png").stat().st_size > 10_000
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Tensors("neighbours")] == [0, 22, 44]
    assert [event.step for event in board.Tensors("view pairs")] == [44]
    assert len((tmp_path / "tensorboard/features.tsv").read_text().splitlines()) == 1000
    scores = [r for r in run_log.records(loop.epath.Path(tmp_path)) if "knn" in r]
    assert len(scores) == 3
    assert ["drift" in r for r in scores] == [False, True, True]
    assert all(1 < r["effective_rank"] <= 128 for r in scores)
    assert ["probe" in r for r in scores] == [False, True, True]
    assert f"online probe, on the images that kNN classifies: {scores[-1]['probe']:.2%}" in out
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert kept[-1] == 44


def test_another_recipe_in_the_same_workdir_is_refused_unless_allowed(tmp_path, capsys):
    loop.train(tiny(stop_at_step=1, monitor_every=0), str(tmp_path), set())
    changed = tiny(stop_at_step=2, monitor_every=0, lr=0.01)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError, match=r"lr: 0.06 -> 0.01.*--allow_change=lr"):
        loop.train(changed, str(tmp_path), set())
    assert (tmp_path / "config.json").read_text() == before
    with pytest.raises(UserError, match="--allow_change=rate names no recipe setting"):
        loop.train(changed, str(tmp_path), {"rate"})
    loop.train(changed, str(tmp_path), {"lr"})
    assert "changed by --allow_change: lr: 0.06 -> 0.01" in capsys.readouterr().out


def test_too_few_examples_and_an_unwritable_workdir_are_refused(tmp_path):
    with pytest.raises(
        UserError, match="has 1437 examples in split 'train', fewer than batch_size=2048"
    ):
        loop.train(tiny(batch_size=2048, queue_size=2048), str(tmp_path), set())
    one = ArraySource(np.zeros((1, 32, 32, 3), np.uint8), None, "one")
    with pytest.raises(UserError, match="has 1 example in split 'train', and there is no other"):
        assembly.require_a_batch(tiny(batch_size=1), one)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"workdir=.*cannot be written"):
        loop.train(tiny(), str(tmp_path / "file"), set())


def test_a_folder_of_images_trains_and_names_what_is_damaged(tmp_path, capsys):
    from PIL import Image

    photo = load_sample_images().images[1]
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(70):
        y, x = rng.integers(0, 300, 2)
        Image.fromarray(photo[y : y + 80, x : x + 90]).save(tmp_path / f"images/{number:03}.jpg")
    (tmp_path / "images/005.jpg").write_bytes(b"")
    config = tiny("folder", image_size=32, stem="cifar_stride2", stop_at_step=2, epochs=2)
    config.update(data_dir=str(tmp_path / "images"), eval_batch_size=8, monitor_every=2)
    loop.train(config, str(tmp_path / "run"), set())
    out = capsys.readouterr().out
    assert "feature spread" in out
    assert "1 damaged images were replaced" in out
    assert "005.jpg" in out
    assert (tmp_path / "run/neighbours.png").exists()


REFUSED = {
    "--config.batchsize is not a setting": ["--workdir=w", "--config.batchsize=3"],
    "batch_size=30 does not divide": ["--workdir=w", "--config.batch_size=30"],
    "variant='v7' is unknown": ["--config=configs/imagenet.py:v7", "--workdir=w"],
    "configs/none.py": ["--config=configs/none.py", "--workdir=w"],
    "--workdir=FOLDER": [],
    "data_dir='' names no folder": ["--config=configs/folder.py", "--workdir=w"],
    "lr": ["--workdir=w", "--config.lr=fast"],
}


def test_the_command_line_refuses_with_one_line():
    lines = [["--config=configs/digits.py", *words] for words in REFUSED.values()]
    printed = command_lines("moco_jax.pretrain", lines)
    for message, (out, errors) in zip(REFUSED, printed, strict=True):
        assert "ended with 2" in out
        (said,) = [line for line in errors.splitlines() if line.startswith("error:")]
        assert message in said
        assert "Traceback" not in errors


def test_a_cpu_is_divided_into_the_devices_asked_for(tmp_path):
    command = [sys.executable, "-m", "moco_jax.main", "--config=configs/digits.py"]
    command += [f"--workdir={tmp_path}", "--config.cpu_devices=3"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    ended = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert ended.returncode == 2
    assert "batch_size=64 does not divide over 3 devices" in ended.stderr


def test_records_are_json_lines_in_a_relative_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loop.train(tiny(stop_at_step=1, monitor_every=0), "runs/here", set())
    assert (tmp_path / "runs/here/checkpoints/1").is_dir()
    lines = (tmp_path / "runs/here/metrics.jsonl").read_text().splitlines()
    start, record = map(json.loads, lines)
    assert (start["event"], start["examples"], start["steps_per_epoch"]) == ("start", 1437, 22)
    assert start["chance"] == pytest.approx(np.log(1 + 256))
    assert {"command", "versions", "code", "devices", "device_kind", "hosts"} <= start.keys()
    assert record["step"] == 1
    assert {"loss", "top1", "lr", "images_per_second", "waiting_share", "spread"} <= record.keys()


def test_a_signal_saves_and_the_run_goes_on_there(tmp_path, monkeypatch):
    after = loop.Loop.after

    def interrupt(self, step, *arguments, **named):
        after(self, step, *arguments, **named)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Loop, "after", interrupt)
    config = tiny(stop_at_step=6, monitor_every=0)
    assert loop.train(config, str(tmp_path), set()) == signal.SIGTERM
    saved = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert saved == [4]
    assert loop.train(config, str(tmp_path), set()) == 0
    assert len(losses(tmp_path)) == 6
