"""Records are read whatever is damaged among them; what is taken out of their file is kept."""

import json

import numpy as np
import pytest
from etils import epath

from moco_jax.base import files
from moco_jax.base.errors import UserError
from moco_jax.monitoring import record_files, run_log
from moco_jax.monitoring.diagnosis import rules

START = {"step": 0, "event": "start", "examples": 1437, "steps_per_epoch": 22, "schedule_shift": 0}
LOGS = [{"step": n, "loss": 5.0 - n / 10, "top1": 0.1, "lr": 0.06} for n in range(1, 9)]
SCORE = {"step": 8, "knn": 0.5, "feature_spread": float("nan")}
EVENT = {"step": 4, "event": "skipped_step", "grad_norm": "nan", "indices": [1, 2]}
WHOLE = [START, *LOGS[:4], EVENT, *LOGS[4:], SCORE]
DAMAGE = [
    bytes(100),
    b"7",
    b'{"loss": 1.5}',
    b"\xff\xfe",
    b'{"step": 5, "lo',
    b"null",
    b"[]",
    b'"text"',
    b"true",
    b"1e999",
    b'{"step": "5", "loss": 1}',
    b'{"step": 5.5, "loss": 1}',
    b'{"step": -1, "loss": 1}',
    b'{"step": null}',
    b'{"step": true}',
    b'{"step": 1' + b"0" * 400 + b"}",
    b'{"step": 5, "loss": "high"}',
    b'{"step": 5, "loss": null}',
    b'{"step": 5, "loss": [1]}',
    b'{"step": 5, "loss": 1' + b"0" * 400 + b"}",
    b"[" * 100_000,
    b'{"step": 5, "event": "start"}',
    b'{"step": 5, "event": 7}',
    b'{"step": 5, "event": "finding", "name": 3}',
    b'{"step": 5}}',
    b"{'step': 5}",
    b"\r",
    b" ",
    b"nan",
    b'{"step": NaN}',
    b'{"step": 5, "event": "start", "examples": "x", "steps_per_epoch": 1, "schedule_shift": 0}',
]


def lines_of(records):
    return [json.dumps(r).encode() for r in records]


def write(folder, lines, end=b"\n"):
    (folder / "metrics.jsonl").write_bytes(b"\n".join(lines) + end)
    return epath.Path(folder)


def same(one, other):
    return json.dumps(one) == json.dumps(other)


@pytest.mark.parametrize("number", range(len(DAMAGE)))
def test_a_damaged_line_is_left_out_and_the_others_are_read(tmp_path, number):
    """Thirty-one kinds of line, each at a place drawn at random.

    The run goes on, and what was taken out is kept.
    """
    rng = np.random.default_rng(number)
    lines = lines_of(WHOLE)
    at = int(rng.integers(1, len(lines) + 1))
    lines.insert(at, DAMAGE[number])
    place = write(tmp_path, lines)
    found = run_log.read(place)
    assert same(found.records, WHOLE)
    assert found.damaged == {at + 1: DAMAGE[number]}
    assert found.remarks == [f"{place}/metrics.jsonl: line {at + 1} is damaged and left out"]
    rules.examine(found.records, rules.facts_of({}, rules.images_of(found.records)))
    log = run_log.Writers(place, True, 8)
    (line,) = log.remarks
    assert "earlier/1/metrics.jsonl" in line
    assert (place / "earlier/1/metrics.jsonl").read_bytes() == DAMAGE[number] + b"\n"
    assert same(log.records, WHOLE)
    again = run_log.Writers(place, True, 8)
    assert again.remarks == []
    assert same(again.records, WHOLE)


@pytest.mark.parametrize("cut", range(1, 25))
def test_a_last_line_that_is_cut_off_is_left_out(tmp_path, cut):
    whole = b"\n".join(lines_of(WHOLE)) + b"\n"
    place = write(tmp_path, [whole[:-cut]], b"")
    found = run_log.read(place)
    assert same(found.records, WHOLE[:-1])
    assert found.only_cut
    assert same(run_log.records(place), WHOLE[:-1])
    assert len(run_log.Writers(place, True, 8).remarks) == 1


def test_records_of_lost_steps_and_of_earlier_runs_are_kept_elsewhere(tmp_path):
    place = write(tmp_path, lines_of(WHOLE))
    (place / "neighbours.json").write_text("{}")
    log = run_log.Writers(place, True, 6)
    assert log.remarks == []  # a run that goes on makes them again
    assert [r["step"] for r in log.records][-1] == 6
    assert same(run_log.records(place / "earlier/1"), [*LOGS[6:], SCORE])
    assert (place / "neighbours.json").exists()
    anew = run_log.Writers(place, True, 0)
    assert len(anew.remarks) == 1
    assert anew.records == run_log.records(place) == []
    assert len(run_log.records(place / "earlier/2")) == 8
    assert not (place / "neighbours.json").exists()
    assert (place / "earlier/2/neighbours.json").exists()
    assert not run_log.Writers(tmp_path / "new", False, 0).remarks


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    place = epath.Path(tmp_path)
    for look in (run_log.records, lambda p: run_log.Writers(p, True, 4)):
        with pytest.raises(UserError, match=r"metrics.jsonl cannot be read and written"):
            look(place)
    (tmp_path / "metrics.jsonl").rmdir()
    log = run_log.Writers(place, True, 4)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be read and written"):
        log.event(5, "stopped", {})


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that is taken for one in a bucket, and the sizes of what is written there."""
    real, sizes = files.write, []

    def write(path, content):
        sizes.append(len(content))
        real(path, content)

    monkeypatch.setattr(files, "is_remote", lambda path: True)
    monkeypatch.setattr(files, "write", write)
    return epath.Path(tmp_path), sizes


def test_records_in_a_bucket_cost_the_same_however_long_the_run(bucket):
    place, sizes = bucket
    now = 0.0
    segments = record_files.Segments(place, 1, lambda: now)
    line = b'{"step": 1}\n'
    for _ in range(5_000):
        now += 1.0
        segments.append(line)
    segments.flush()
    assert 5_000 / record_files.SECONDS <= len(sizes) <= 5_000 / record_files.SECONDS + 1
    assert max(sizes) <= (record_files.FULL + record_files.SECONDS) * len(line)
    assert b"".join(content for _, content in record_files.read(place)) == 5_000 * line
    waiting = len(sizes)
    segments.append(line)
    segments.idle()
    assert len(sizes) == waiting
    now += record_files.SECONDS
    segments.idle()
    assert len(sizes) == waiting + 1


def test_segments_are_joined_and_records_of_lost_steps_taken_out_of_them(bucket, monkeypatch):
    place, sizes = bucket
    monkeypatch.setattr(record_files, "FULL", 4)
    monkeypatch.setattr(run_log.tensorboard_files, "remarks", lambda: ["nothing"])
    log = run_log.Writers(place, True, 0)
    for number, record in enumerate(WHOLE):
        if "event" in record:
            log.event(record["step"], record["event"], {k: record[k] for k in [*record][2:]})
        else:
            log.write(record["step"], {k: record[k] for k in [*record][1:]})
        if number % 3 == 2:
            log.flush()
    log.close()
    assert same(run_log.records(place), WHOLE)
    assert [p.name for p in record_files.paths(place)] == ["000001.jsonl", "000002.jsonl"]
    kept = (place / "metrics/000001.jsonl").read_bytes()
    with open(place / "metrics/000002.jsonl", "ab") as file:
        file.write(b"7\n")
    found = run_log.read(place)
    assert found.damaged == {12: b"7"}
    assert found.remarks == [f"{place}/metrics/000002.jsonl: line 6 is damaged and left out"]
    del sizes[:]
    log = run_log.Writers(place, True, 7)
    assert len(log.remarks) == 2
    assert len(sizes) == 2  # what was taken out, and the segment that it was in
    assert same(log.records, WHOLE[:9])
    assert (place / "earlier/1/metrics.jsonl").read_bytes().startswith(b"7\n")
    log.write(8, {"loss": 1.0})
    log.flush()
    assert same(run_log.records(place), [*WHOLE[:9], {"step": 8, "loss": 1.0}])
    assert (place / "metrics/000001.jsonl").read_bytes() == kept
    monkeypatch.setattr(files, "is_remote", lambda path: False)
    here = run_log.Writers(place, True, 8)  # the run was copied to a disk
    assert same(here.records, [*WHOLE[:9], {"step": 8, "loss": 1.0}])
    assert [p.name for p in record_files.paths(place)] == ["metrics.jsonl"]
    assert run_log.Writers(place, True, 0).records == []
    assert same(run_log.records(place / "earlier/2"), here.records)
