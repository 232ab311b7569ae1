"""Whether a host feeds its devices, and what would help."""

from moco_jax.checks import rate


def test_whether_a_host_feeds_its_devices():
    remedies = ["more"]
    assert rate.feeds(1000, 256, 0.5, False, remedies).mark == "ok"
    assert rate.feeds(500, 256, 0.5, False, remedies).mark == "note"
    starved = rate.feeds(100, 256, 0.5, False, remedies)
    assert (starved.mark, starved.details) == ("warning", ("more",))
    assert "steps of 0.5 s ask for 512" in starved.text
    assert "wait 80% of the time" in starved.text
    assert rate.feeds(100, 256, 0.5, True, remedies).mark == "note"


def test_remedies_follow_from_what_is_slow():
    common = dict(cores=8, folder=True, image_size=224, on_device=False, blurs=True)
    slow_disk = rate.remedies(100, 400, 110, workers=0, side=300, **common)
    assert "pack the folder" in slow_disk[0]
    assert any("36 cores" in x for x in slow_disk)
    few_workers = rate.remedies(100, 500, 5000, workers=2, side=2000, **common)
    assert few_workers[0].startswith("--config.workers=0")
    assert "shorter side is 256 instead of 2000" in few_workers[1]
    assert not any("pack" in x for x in few_workers)
