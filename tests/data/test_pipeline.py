"""Batches are functions of seed and place alone; damaged images are replaced and named."""

import os

import numpy as np
import pytest

from moco_jax.data import augment, pipeline
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.memory import digits
from moco_jax.errors import UserError
from tests.data.pictures import encoded, write


def test_damaged_images_are_replaced_by_the_next_and_named(tmp_path):
    files = {f"{name}.jpg": encoded(quality=90) for name in "abcdef"}
    cut = encoded()[: len(encoded()) * 2 // 3]
    bad = {"z_cut.jpg": cut, "z_empty.jpg": b"", "z_text.jpg": b"these are words"}
    images = FolderSource(write(tmp_path, files | bad))

    def first_epoch(limit):
        damaged = pipeline.DamagedImages(limit)
        batches = pipeline.train_batches(
            images, augment.recipe("digits", 32), seed=0, batch_size=9, rows=np.arange(9),
            examples_seen=0, workers=2, damaged=damaged,
        )  # fmt: skip
        return next(batches), damaged

    batch, damaged = first_epoch(3)
    assert {os.path.basename(n) for n in damaged.names} == set(bad)
    assert set(batch["index"]) == {i for i in range(9) if "z_" not in images.name(i)}
    assert batch["query"].std((1, 2, 3)).min() > 1
    with pytest.raises(UserError, match=r"max_bad_images=2 .*z_"):
        first_epoch(2)


def test_batches_are_the_same_from_any_start_with_any_workers_and_split_over_hosts():
    images = digits("train")

    def batches(start, workers, rows, count):
        iterator = pipeline.train_batches(
            images, augment.recipe("digits", 32), seed=1, batch_size=16, rows=np.asarray(rows),
            examples_seen=start, workers=workers, damaged=pipeline.DamagedImages(0),
        )  # fmt: skip
        return [next(iterator) for _ in range(count)]

    whole = batches(0, 1, range(16), 4)
    later = batches(48, 3, range(16), 1)[0]
    half = batches(48, 2, range(8, 16), 1)[0]
    for key in ("query", "key", "index"):
        np.testing.assert_array_equal(whole[3][key], later[key])
        np.testing.assert_array_equal(whole[3][key][8:], half[key])
