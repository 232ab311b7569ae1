"""Two processes of one run: they find what one finds, and agree or end together, whatever fails.

The encoder compiles in an instant (`several.py`), so that the time goes into starting Python.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from benchmarks import machine
from moco_jax.monitoring import run_log
from tests import states, xla
from tests.parallel import several

ROOT = Path(__file__).parents[2]
SCRIPT = Path(several.__file__)
ENOUGH = 120  # seconds for a test, of which the program itself takes few


def environment(**plan):
    return os.environ | {
        "PLAN": json.dumps(plan),
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": xla.flags(1),
    }


def pair(workdir, *words, **plan):
    """Run two processes of `several.py`; return the status, lines and errors of each."""
    port = machine.free_port()
    joined = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *joined, f"--process_id={n}", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(**plan),
        )
        for n in range(2)
    ]
    try:
        outcomes = [process.communicate(timeout=ENOUGH) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(p.returncode, *o) for p, o in zip(started, outcomes, strict=True)]


def losses(workdir, name="loss"):
    return [r[name] for r in run_log.records(epath.Path(workdir)) if "loss" in r]


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """All cases, played by two processes that both take themselves for process 1 of a machine."""
    folder = tmp_path_factory.mktemp("several")
    found = pair(folder, f"--workdir={folder}", cases=True, pid=1)
    for status, _, errors in found:
        assert status == 0, errors
    lines = [[x for x in out.splitlines() if x.startswith('{"case"')] for _, out, _ in found]
    return folder, [{e["case"]: e for e in map(json.loads, some)} for some in lines]


SAID = {
    "70 and 60 images": "process 0 has images=70, names and sizes of images=",
    "other images": "differ in names and sizes of images: process 0 has",
    "a compiler that is wrong": "process 1 of 2: jaxlib",
    "an image source that is refused": "process 1 of 2: no good",
    "no room on a device": "process 1 of 2: augment_on='resident' divides 1,437 images",
    "records that cannot be read": "process 1 of 2: no good",
    "no sound checkpoint": "no sound checkpoint left",
    "a workdir that cannot be written": "no good",
    "a folder of checkpoints that cannot be moved": "no good",
    "a workdir that others do not see": "is not the folder that process 0 writes to",
    "a full disk": "process 1 of 2: workdir=",
}


@pytest.mark.parametrize("case", SAID)
def test_what_one_process_alone_finds_ends_both_with_one_line(case, played):
    ended = [found[case] for found in played[1]]
    assert ended[0] == ended[1], "both have the same status and line"
    (line,) = ended[0]["errors"].splitlines()
    assert ended[0]["status"] == 2
    assert line.startswith("error: ")
    assert SAID[case] in line
    if case == "70 and 60 images":
        assert "and process 1 has images=60" in line


@pytest.fixture(scope="module")
def whole(played):
    """The run that nothing has stopped."""
    folder, found = played
    assert [each["nothing"] for each in found] == [
        {"case": "nothing", "status": 0, "errors": ""}
    ] * 2
    return folder / "nothing"


def test_the_verdict_of_process_0_ends_both_after_the_same_step(played):
    """The other one's own is to go on: there would be five more steps, and it would wait."""
    folder, found = played
    case = "nothing gained"
    assert [each[case] for each in found] == [{"case": case, "status": 0, "errors": ""}] * 2
    place = epath.Path(folder / "nothing_gained")
    stopped = [r["step"] for r in run_log.records(place) if r.get("event") == "stopped"]
    assert stopped == [5]
    assert max(int(p.name) for p in (place / "checkpoints").iterdir()) == 5


def test_two_processes_train_as_one_does(whole, tmp_path):
    line = several.words(tmp_path / "one", **several.PROBED)
    one = subprocess.run(
        [sys.executable, str(SCRIPT), *line],
        cwd=ROOT,
        env=environment() | {"XLA_FLAGS": xla.flags(2)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert one.returncode == 0, one.stderr
    assert losses(whole) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    told = [losses(place, "probe_train") for place in (whole, tmp_path / "one")]
    assert max(told[1]) > 0
    assert told[0] == pytest.approx(told[1], abs=0.05)
    about = json.loads((whole / "checkpoints/12/about/metadata").read_text())
    assert about["images"]["images"] == 1437


@pytest.mark.parametrize(
    ("events", "statuses", "said"),
    [
        ([[1, 3, "bug"]], (75, 1), ("process 1 on ", ": ZeroDivisionError: a bug")),
        (
            [[0, 3, "damage"], [1, 3, "damage"]],
            (2, 2),
            ("more than max_bad_images=3 damaged", "image 1 of process 0, image 0 of process 1"),
        ),
        ([[0, 1, "digests"]], (2, 2), ("no good",)),
        # Process 0 leaves at once, as the workdir is another run's now: the other hears no reason.
        ([[0, 3, "lock"]], (75, 75), ()),
    ],
)
def test_what_happens_to_one_process_ends_the_other(events, statuses, said, tmp_path):
    line = several.words(tmp_path / "run", max_bad_images=3)
    found = pair(tmp_path, *line, events=events)
    assert tuple(status for status, _, _ in found) == statuses, found
    for status, _, errors in found:
        lines = errors.splitlines()
        if status == 1:
            assert lines[-1] == "ZeroDivisionError: a bug"
            continue
        (line,) = [x for x in lines if "damaged image" not in x or x.startswith("error")]
        assert line.startswith("error: ")
        for words in said:
            assert words in line
    if "lock" in events[0]:
        assert "taken by another run" in found[0][2]
        assert "process 0 of this run cannot be reached" in found[1][2]


def test_a_run_interrupted_and_killed_goes_on_by_the_launcher_to_the_same_numbers(whole, tmp_path):
    """SIGINT to process 1 saves and ends both; kill -9 of either is mended by a restart."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{SCRIPT}" "$@"\n')
    python.chmod(0o755)
    workdir = tmp_path / "run"
    events = [[1, 1, "interrupt"], [1, 5, "kill"], [0, 11, "kill"]]
    settings = {"PYTHON": str(python), "LOGDIR": str(tmp_path / "logs"), "GRACE": "60"}
    command = ["launch/local.sh", "--processes=2", "--devices-per-process=1", "--restarts=3", "--"]
    ended = subprocess.run(
        [*command, *several.words(workdir)],
        cwd=ROOT,
        env=environment(events=events) | {"XLA_FLAGS": xla.flags(1)} | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * ENOUGH,
    )
    assert ended.returncode == 0, ended.stderr
    saved = re.search(r"stopped by signal 15; saved at step (\d)", ended.stdout)
    assert saved, ended.stdout + ended.stderr
    assert f"resumed     at step {saved[1]}" in ended.stdout
    assert ended.stderr.count("launcher: all processes start again") == 3
    assert re.search("process [01] ended with status (130|143)", ended.stderr)
    assert ended.stderr.count("status 137") >= 1  # kill -9
    states.assert_bitwise_equal(states.load(whole, 12), states.load(workdir, 12))
