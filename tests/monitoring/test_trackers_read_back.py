"""What each tracker's own package finds of a run that was killed and went on, on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moco_jax.base import packages
from tests.monitoring.test_trackers import (
    FINDING,
    SKIPPED,
    START,
    logs,
    open_trackers,
    picture,
    wait_until,
)

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.monitoring import test_trackers as t
name, folder = sys.argv[1], Path(sys.argv[2])
opened, lines = t.open_trackers(folder / "mine", names=(name,))
for record in (t.START, *t.logs(1, 4), t.FINDING, *t.logs(5, 7), t.SKIPPED, *t.logs(8, 8)):
    opened.record(record)
opened.picture(8, "neighbours", t.picture(folder))
t.wait_until(lambda: opened.idle() or t.sent(folder / "mine", name).get("picture/neighbours") == 8)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Let trackers keep all on this machine, in a folder of the test."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)  # MLflow's files


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_killed_run_that_goes_on_is_one_run_of_its_tracker(tmp_path, offline, name, capfd):
    if not packages.is_there(name):
        pytest.skip(f"the package {name} is not installed; {packages.how_to_have([name])}")
    command = [sys.executable, "-c", KILLED, name, tmp_path]
    subprocess.run(command, check=False)
    opened, lines = open_trackers(
        tmp_path / "mine", [START, *logs(1, 4), FINDING, *logs(5, 5)], names=(name,)
    )
    wait_until(lambda: opened.idle() or lines, 150)
    for record in (START | {"step": 5}, *logs(6, 7), SKIPPED, *logs(8, 10), {"step": 10, "knn": 1}):
        opened.record(record)
    opened.picture(8, "neighbours", picture(tmp_path))
    opened.picture(10, "neighbours", picture(tmp_path))
    opened.close(failed=False)
    assert [line.split(",")[0].split(" run ")[0] for line in lines] == [f"{name}: goes on with"]
    assert capfd.readouterr() == ("", "")

    reader = [sys.executable, "-m", "tests.tracker_readers", name, tmp_path / "mine"]
    read = subprocess.run(reader, capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    (run,) = json.loads(read.stdout.splitlines()[-1])
    assert run["name"] == "mine"
    assert run["numbers"]["loss"] == run["numbers"]["lr"] == list(range(1, 11))
    assert run["numbers"]["knn"] == [10]
    assert {n: str(run["settings"][n]) for n in ("lr", "arch")} == {"lr": "0.06", "arch": "resnet4"}
    found = [[step, event.partition("/")[0]] for step, event in run["events"]]
    assert sorted(found) == [[0, "start"], [4, "finding"], [5, "start"], [7, "skipped_step"]]
    assert sorted(map(str, run["pictures"])) in (
        ["['neighbours', '10']", "['neighbours', '8']"],
        ["['neighbours', 10]", "['neighbours', 8]"],
    )
