"""Settings that are chosen fit what they are chosen by, and never change what a user has given."""

import itertools

import numpy as np
import pytest

from moco_jax.base.errors import UserError
from moco_jax.config import recipe_files
from moco_jax.data.sources.memory import ArraySource
from moco_jax.pretraining import choices, places
from moco_jax.pretraining.choices import Facts
from moco_jax.training import checks

COUNTS = (32, 100, 700, 5_000, 80_000, 1_281_167)
SIDES = (8, 28, 40, 96, 130, 500)


def facts(**changes):
    usual = dict(images=5000, side=500, labelled=True, on_cpu=True, devices=1)
    return Facts(**usual | changes)


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("devices", [1, 8])
def test_every_choice_is_one_that_a_run_accepts(on_cpu, devices):
    for images, side, labelled in itertools.product(COUNTS, SIDES, (True, False)):
        config = recipe_files.load("folder:cpu" if on_cpu else "folder")
        known = facts(images=images, side=side, labelled=labelled, on_cpu=on_cpu, devices=devices)
        chosen = choices.fitting(known, config, set())
        for one in chosen:
            assert config[one.name] != one.value, "a choice that changes nothing is no choice"
            config[one.name] = one.value
            assert str(one).startswith(f"{one.name}=")
        checks.check(config, devices)
        assert config.batch_size <= images
        assert config.queue_size <= max(images // 2, config.batch_size)
        assert config.image_size <= max(side, 32) * 1.4
        assert bool(config.minutes) == on_cpu
        assert config.signals == (not labelled)


def test_what_a_user_gives_stays():
    config = recipe_files.load("folder:cpu")
    known = facts(images=100, side=20, labelled=False)
    everything = {one.name for one in choices.fitting(known, config, set())}
    assert {"image_size", "batch_size", "lr", "queue_size", "minutes", "signals"} <= everything
    for name in everything:
        left = {one.name for one in choices.fitting(known, config, {name})}
        # A rate goes with a batch that was chosen.
        assert everything - left == ({name, "lr"} if name == "batch_size" else {name})
    assert "minutes" not in {one.name for one in choices.fitting(known, config, {"epochs"})}


def test_images_are_looked_at_and_too_few_refused():
    pixels = np.zeros((40, 24, 48, 3), np.uint8)
    found = Facts.of(ArraySource(pixels, np.arange(40) % 2, "some"))
    assert (found.images, found.side, found.labelled) == (40, 24, True)
    assert not Facts.of(ArraySource(pixels, np.zeros(40, np.int64), "some")).labelled
    with pytest.raises(UserError, match="fewer than the 64 of the smallest batch on 64 devices"):
        choices.fitting(facts(images=40, devices=64), recipe_files.load("folder:cpu"), set())
    with pytest.raises(UserError, match=r"31 images are too few .*docs/judging.md"):
        Facts.of(ArraySource(pixels[:31], np.arange(31), "some"))


def test_the_kind_of_images_is_seen(tmp_path):
    for name, inside in (("photos", "1.jpg"), ("shards", "0.tar"), ("records", "x.tfrecord-00000")):
        (tmp_path / name).mkdir()
        (tmp_path / name / inside).write_bytes(b"")
    (tmp_path / "list.txt").write_text("a.jpg\n")
    for name, kind in (
        ("photos", "folder"),
        ("shards", "tar"),
        ("records", "tfrecord"),
        ("list.txt", "folder"),
        ("shards/0.tar", "tar"),
    ):
        assert places.kind_of(str(tmp_path / name)) == (kind, str(tmp_path / name))
    assert places.kind_of("tfds:cifar10") == ("tfds:cifar10", "")
    with pytest.raises(UserError, match=r"^data=.*1.jpg is one image"):
        places.kind_of(str(tmp_path / "photos/1.jpg"))
    with pytest.raises(UserError, match=r"^data=.*none is not there; give a folder"):
        places.kind_of(str(tmp_path / "none"))
