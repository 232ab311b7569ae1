"""Whether a host feeds its devices, and what would help."""

import itertools

from moco_jax.doctor import rate


def test_the_rate_is_taken_once_it_is_steady(monkeypatch):
    """A clock that only the batches move: the first take seconds, later ones come ever faster."""
    now = [0.0]
    monkeypatch.setattr(rate.time, "perf_counter", lambda: now[0])

    def batches(waits):
        for wait in itertools.chain(waits, itertools.repeat(0.1)):
            now[0] += wait
            yield {"index": [0, 1]}

    assert round(rate.pairs_per_second(batches([]), 1.0), 6) == 20
    slow_start = [9.0] + [0.5] * 2 + [0.2] * 5
    assert abs(rate.pairs_per_second(batches(slow_start), 1.0) - 20) < 1e-9
    began = now[0]
    rate.pairs_per_second(batches(0.9**n for n in range(1000)), 1.0)
    assert rate.WINDOWS - 2 < now[0] - began < 2 * rate.WINDOWS


def test_whether_a_host_feeds_its_devices():
    remedies = ["more"]
    assert rate.feeds(1000, 256, 0.5, False, remedies).severity == "ok"
    assert rate.feeds(500, 256, 0.5, False, remedies).severity == "note"
    starved = rate.feeds(100, 256, 0.5, False, remedies)
    assert (starved.severity, starved.details) == ("warning", ("more",))
    assert "steps of 0.5 s ask for 512" in starved.text
    assert "wait 80% of the time" in starved.text
    assert rate.feeds(100, 256, 0.5, True, remedies).severity == "note"


def test_a_run_of_days_on_a_cpu_is_told_what_takes_less():
    room = rate.room(64, 64, 0.5, True, 10, 100)
    assert "about 400 steps here, 4 epochs" in room.seen
    short, long = (rate.pace(300, 64, step, True, 2400) for step in (0.5, 28.0))
    assert (short.severity, long.severity) == ("ok", "note")
    assert "18h48m" in long.text
    assert "folder:cpu" in long.text


def test_remedies_follow_from_what_is_slow():
    common = dict(
        cores=8,
        folder=True,
        image_size=224,
        on_device=False,
        blurs=True,
        scaled=False,
        could_reside=False,
    )
    slow_disk = rate.remedies(100, 400, 110, rate.Input(workers=0, side=300, **common))
    assert "pack the folder" in slow_disk[0]
    assert any("36 cores" in x for x in slow_disk)
    few_workers = rate.remedies(100, 500, 5000, rate.Input(workers=2, side=2000, **common))
    assert few_workers[0].startswith("--config.workers=0")
    assert few_workers[1].startswith("--config.scaled_decoding=True")
    assert "shorter side is 256 instead of 2000" in few_workers[2]
    assert not any("pack" in x for x in few_workers)
    common |= {"could_reside": True}
    small = rate.remedies(100, 500, 5000, rate.Input(workers=0, side=32, **common))
    assert small[0].startswith("--config.augment_on=resident")
