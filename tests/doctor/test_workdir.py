"""A workdir is read, told apart and left as it is; room is counted."""

import json

import pytest
from etils import epath

from moco_jax.base import digests, files, findings
from moco_jax.doctor import workdir
from tests.doctor.test_doctor import begin, line_with, small
from tests.training.test_checkpoint import files_of, flip


def save(place, step):
    """What a run leaves of a checkpoint, its arrays aside: files and their digests."""
    folder = epath.Path(place) / "checkpoints" / str(step)
    about = {"format_version": 2, "step": step, "config": small("").to_dict()}
    files.write(folder / "about/metadata", json.dumps(about).encode())
    files.write(folder / "state/d/array", f"array at {step}".encode())
    digests.write(folder, epath.Path(place) / "digests" / str(step))


@pytest.fixture
def place(tmp_path):
    """A workdir with checkpoints at 2, 4 and 6."""
    for step in (2, 4, 6):
        save(tmp_path / "run", step)
    (tmp_path / "run/config.json").write_text(json.dumps(small("").to_dict()))
    return tmp_path / "run"


def look_at(place, allow_change=(), **changes):
    """The section on a workdir alone."""
    examination, out = begin(small("", **changes))
    examination.workdir(epath.Path(place), set(allow_change))
    return examination.report.marks, out.getvalue()


def test_a_workdir_with_a_damaged_checkpoint_and_another_recipe(place):
    flip(files_of(place, 6)[0], 5)
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*")}
    marks, text = look_at(place)
    assert findings.verdict(marks) == "ready, with 1 warning", text
    assert line_with(text, "checkpoint 6 is damaged") == "warning"
    assert line_with(text, "checkpoint 4 is sound: the run goes on after step 4") == "ok"
    changed = look_at(place, temperature=0.1)[1]
    assert line_with(changed, "(temperature: 0.2 -> 0.1)") == "fault"
    assert line_with(changed, "checkpoint 6 is damaged") == "warning"
    allowed = look_at(place, ["temperature"], temperature=0.1)[1]
    assert line_with(allowed, "changed by --allow_change: temperature") == "note"
    assert {p: p.stat().st_mtime_ns for p in place.rglob("*")} == before


def test_a_finished_run_and_one_without_a_sound_checkpoint_are_told(place):
    (told,) = workdir.checkpoints(epath.Path(place), 6)
    assert "at its end, step 6 of 6" in told.text
    for step in (2, 4, 6):
        flip(files_of(place, step)[0], 0)
    marks, text = look_at(place)
    assert marks.count("fault") == 1, text
    assert line_with(text, "has no sound checkpoint left") == "fault"
    (place / "config.json").write_text("{")
    assert line_with(look_at(place)[1], "config.json is damaged") == "fault"


def test_room_for_checkpoints():
    mega = 10**6
    assert workdir.room(1000 * mega, 0, 100 * mega, 2).severity == "ok"
    assert workdir.room(300 * mega, 0, 100 * mega, 2).severity == "warning"
    assert workdir.room(300 * mega, 200 * mega, 100 * mega, 2).severity == "ok"
    assert workdir.room(110 * mega, 300 * mega, 100 * mega, 2).severity == "fault"
