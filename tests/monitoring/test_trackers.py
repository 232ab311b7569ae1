"""Trackers get each thing of a run once, in order, over stops and kills, and never harm the run.

Most of it is tested with a stand-in (`tests/fake_tracker.py`); what the packages themselves have in
the end is read back where they are installed, from files of this machine alone.
"""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath
from PIL import Image

from moco_jax.base import packages
from moco_jax.base.errors import UserError
from moco_jax.config.settings import SETTINGS
from moco_jax.config.settings.kinds import words_in
from moco_jax.monitoring.trackers import items, outlet
from moco_jax.monitoring.trackers.outlet import Patience
from moco_jax.monitoring.trackers.trackers import Trackers
from tests import fake_tracker

ROOT = Path(__file__).parents[2]
START = {"step": 0, "event": "start", "examples": 1437, "steps_per_epoch": 22, "schedule_shift": 0}
FINDING = {
    "step": 4,
    "event": "finding",
    "name": "loss_flat",
    "severity": "warning",
    "seen": "The loss is flat.",
    "since_step": 2,
    "meaning": "Nothing is learnt.",
    "change": "Raise lr.",
}
SKIPPED = {"step": 7, "event": "skipped_step", "grad_norm": "nan"}
SETTINGS_OF_IT = {"lr": 0.06, "arch": "resnet4", "lr_steps": [120, 160]}


def logs(first, last):
    return [{"step": n, "loss": 5.0 - n / 10, "lr": 0.06} for n in range(first, last + 1)]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Lay the stand-in on the path of processes that are started; its calls are in the file."""
    fake_tracker.put(tmp_path / "packages")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'packages'}:{ROOT}")
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls"))
    monkeypatch.delenv("FAKE_FAULT", raising=False)
    monkeypatch.delenv("WANDB_NAME", raising=False)
    return tmp_path / "calls"


def open_trackers(workdir, history=(), names=("wandb",), patience=None):
    """Trackers of a run, and the lines that they have printed."""
    workdir.mkdir(exist_ok=True)
    lines = []
    opened = Trackers(names, epath.Path(workdir), lines.append, patience)
    opened.begin(SETTINGS_OF_IT, history)
    return opened, lines


def sent(workdir, name="wandb"):
    """What a tracker has, as it is kept for a run that goes on."""
    kept = workdir / "trackers.json"
    return json.loads(kept.read_text())[name]["sent"] if kept.exists() else {}


def wait_until(happens, seconds=60):
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def picture(folder):
    path = folder / "neighbours.png"
    Image.new("RGB", (20, 10), "red").save(path)
    return epath.Path(path)


def test_a_tracker_gets_numbers_settings_pictures_and_findings(tmp_path, fake, capfd):
    opened, lines = open_trackers(tmp_path / "mine")
    for record in (START, *logs(1, 4), {"step": 4, "knn": 0.5}, FINDING, *logs(5, 6)):
        opened.record(record)
    opened.picture(6, "neighbours", picture(tmp_path))
    opened.close(failed=False)
    assert fake_tracker.calls(fake, "init") == [["fake1", "mine"]]
    assert fake_tracker.calls(fake, "settings") == [[SETTINGS_OF_IT]]
    numbers = [call for call in fake_tracker.calls(fake, "log") if call[1] != "events"]
    expected = [[n, "loss", 5.0 - n / 10] for n in range(1, 7)] + [[4, "knn", 0.5]]
    assert sorted(c for c in numbers if c[1] not in ("lr", "neighbours")) == sorted(expected)
    assert [6, "neighbours", [20, 10]] in numbers
    text = "The loss is flat. Nothing is learnt. Raise lr."
    assert fake_tracker.calls(fake, "summary") == [["finding/loss_flat/warning", f"step 4: {text}"]]
    tables = [call[2] for call in fake_tracker.calls(fake, "log") if call[1] == "events"]
    told = "examples=1437, steps_per_epoch=22, schedule_shift=0"
    assert tables[-1] == [[0, "start", told], [4, "finding/loss_flat/warning", text]]
    assert fake_tracker.calls(fake, "finish") == [[0]]
    assert not fake_tracker.calls(fake, "refused")
    assert len(lines) == 1
    assert lines[0].startswith(f"wandb: new run fake1, offline in {tmp_path}/mine/wandb/offline")
    assert capfd.readouterr() == ("", "")  # the stand-in prints at every call


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.monitoring import test_trackers as t
opened, lines = t.open_trackers(Path(sys.argv[1]))
for record in (t.START, *t.logs(1, 7), t.SKIPPED, *t.logs(8, 8)):
    opened.record(record)
told = Path(os.environ["FAKE_CALLS"])
t.wait_until(lambda: opened.idle() or (Path(sys.argv[1]) / "trackers.json").exists())
t.wait_until(lambda: [8, "loss", 4.2] in t.fake_tracker.calls(told, "log"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_goes_on_in_the_trackers_run_without_a_step_twice(tmp_path, fake):
    """Killed at step 8, it goes on from its checkpoint of step 5, by one setting changed."""
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "mine"], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: fake_tracker.calls(fake, "finish"))  # it outlives the run, and closes
    assert fake_tracker.calls(fake, "finish") == [[1]]

    opened, lines = open_trackers(tmp_path / "mine", [START, *logs(1, 5)])
    for record in (START | {"step": 5}, *logs(6, 7), SKIPPED, *logs(8, 10)):
        opened.record(record)
    opened.close(failed=False)
    assert fake_tracker.calls(fake, "init") == [["fake1", "mine"], ["fake1", "mine"]]
    assert lines[0].startswith("wandb: goes on with run fake1")
    losses = [call[:1] for call in fake_tracker.calls(fake, "log") if call[1] == "loss"]
    assert losses == [[step] for step in range(1, 11)]
    assert not fake_tracker.calls(fake, "refused")
    *_, events = (call[2] for call in fake_tracker.calls(fake, "log") if call[1] == "events")
    assert [row[:2] for row in events] == [[0, "start"], [5, "start"], [7, "skipped_step"]]


def test_a_tracker_that_is_named_later_gets_the_records_from_the_first_on(
    tmp_path, fake, monkeypatch
):
    monkeypatch.setattr(outlet, "BATCH", 3)
    opened, _ = open_trackers(tmp_path / "mine", [START, *logs(1, 8)])
    for record in logs(9, 10):
        opened.record(record)
    opened.close(failed=False)
    losses = [call[0] for call in fake_tracker.calls(fake, "log") if call[1] == "loss"]
    assert losses == list(range(1, 11))


def test_what_is_damaged_in_trackers_json_begins_a_new_run(tmp_path, fake):
    for content in (b"{", b"[]", b'{"wandb": {"run": {}, "sent": {"numbers/loss": "8"}}}'):
        (tmp_path / "trackers.json").write_bytes(content)
        opened, lines = open_trackers(tmp_path, logs(1, 2))
        opened.close(failed=False)
        assert "trackers.json is damaged" in lines[0]
        assert json.loads((tmp_path / "trackers.json").read_text())["wandb"]["sent"] == {
            "numbers/loss": 2,
            "numbers/lr": 2,
        }


FAULTS = {
    "init raise": "OSError: [Errno 28] No space left on device",
    "log raise": "OSError: [Errno 28] No space left on device",
    "finish raise": "OSError: [Errno 28] No space left on device",
    "log die": "its process has ended (fatal: it was shot)",
    "init hang": "it gave no answer for 1 s",
    "log hang": "it gave no answer for 1 s",
    "finish hang": "it did not close within 1 s",
}
SHORT = {"init": Patience(begin=1), "log": Patience(answer=1), "finish": Patience(close=1)}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tracker_that_fails_or_hangs_says_so_once_and_the_run_goes_on(
    tmp_path, fake, monkeypatch, fault, capfd
):
    monkeypatch.setenv("FAKE_FAULT", fault)
    where, how = fault.split()
    patience = SHORT[where] if how == "hang" else None
    opened, lines = open_trackers(tmp_path / "mine", patience=patience)
    for record in (START, *logs(1, 400)):  # no call waits for what hangs
        opened.record(record)
    if where == "finish":
        wait_until(lambda: opened.idle() or sent(tmp_path / "mine").get("numbers/loss") == 400)
    else:
        wait_until(lambda: opened.idle() or any("off" in line for line in lines))
    opened.close(failed=False)
    off = [line for line in lines if " is off " in line]
    assert len(off) == 1
    assert off[0].startswith(f"wandb is off for the rest of this run: {FAULTS[fault]}; ")
    assert capfd.readouterr() == ("", "")


def test_a_tracker_that_fails_leaves_the_others_alone(tmp_path, fake):
    """mlflow is here a package that cannot be imported."""
    (tmp_path / "packages/mlflow.py").write_text("raise ImportError('built for another Python')\n")
    opened, lines = open_trackers(tmp_path / "mine", names=("mlflow", "wandb"))
    for record in logs(1, 5):
        opened.record(record)
    opened.close(failed=True)
    assert sum("mlflow is off" in line for line in lines) == 1
    assert "ImportError: built for another Python" in "".join(lines)
    assert len([call for call in fake_tracker.calls(fake, "log") if call[1] == "loss"]) == 5
    assert fake_tracker.calls(fake, "finish") == [[1]]


def test_a_tracker_that_hangs_may_not_be_waited_for_by_more_than_there_is_room_for(
    tmp_path, fake, monkeypatch
):
    monkeypatch.setenv("FAKE_FAULT", "log hang")
    monkeypatch.setattr(outlet, "ROOM", 50)
    opened, lines = open_trackers(tmp_path / "mine")
    for record in logs(1, 200):
        opened.record(record)
    assert "it is 50 records behind" in lines[-1]
    opened.close(failed=False)


def test_marks_keep_what_a_tracker_has_and_no_more():
    marks = items.Marks({"numbers/loss": 5})
    assert marks.take(items.Item("numbers", 5, {"loss": 1.0})) is None
    assert marks.take(items.Item("numbers", 5, {"loss": 1.0, "knn": 0.5})).content == {"knn": 0.5}
    assert marks.take(items.Item("numbers", 6, {"loss": 1.0})).content == {"loss": 1.0}
    assert marks.steps == {"numbers/loss": 6, "numbers/knn": 5}


def test_settings_name_trackers_and_refuse_others():
    assert words_in("(wandb, mlflow)") == words_in("'wandb','mlflow'") == ("wandb", "mlflow")
    assert words_in("trackio,trackio,") == ("trackio",)
    SETTINGS["track"].check("wandb,mlflow,trackio")
    with pytest.raises(UserError, match="track='wandb,comet' has 'comet', which is unknown"):
        SETTINGS["track"].check("wandb,comet")


def test_a_folder_of_the_same_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "wandb_output").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("wandb_output") is not None
    assert not packages.is_there("wandb_output")
