"""Batches follow from seed and place alone; damaged images are replaced and named.

Batches that nobody waits for any more end cleanly.
"""

import os
import subprocess
import sys
import time
from collections import deque

import numpy as np
import pytest
import tensorflow as tf

from moco_jax.base.errors import UserError
from moco_jax.base.storage import Refused
from moco_jax.data import pipeline
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.memory import digits
from moco_jax.data.sources.pixels import RGB
from moco_jax.data.views import recipes
from tests.data.batches import train_batches
from tests.data.pictures import encoded, write


def test_damaged_images_are_replaced_by_the_next_and_named(tmp_path, monkeypatch):
    decode, traced = pipeline.decode_or_flag, []
    monkeypatch.setattr(pipeline, "decode_or_flag", lambda *a: traced.append(a) or decode(*a))
    files = {f"{name}.jpg": encoded(quality=90) for name in "abcdef"}
    cut = encoded()[: len(encoded()) * 2 // 3]
    bad = {"z_cut.jpg": cut, "z_empty.jpg": b"", "z_text.jpg": b"these are words"}
    images = FolderSource(write(tmp_path, files | bad))

    def first_epoch(limit):
        damaged = pipeline.DamagedImages(limit)
        batches = train_batches(images, recipes.create("digits", 32), 9, damaged=damaged)
        return next(batches), damaged

    batch, damaged = first_epoch(3)
    assert len(traced) == 2  # in tf.data, and once for all replacements
    assert {os.path.basename(n) for n in damaged.names} == set(bad)
    assert set(batch["index"]) == {i for i in range(9) if "z_" not in images.name(i)}
    assert batch["query"].std((1, 2, 3)).min() > 1
    with pytest.raises(UserError, match=r"max_bad_images=2 .*z_"):
        first_epoch(2)


def test_batches_are_the_same_from_any_start_with_any_workers_and_split_over_hosts():
    images = digits("train")

    def batches(start, workers, rows, count):
        place = dict(seed=1, rows=np.asarray(rows), examples_seen=start, workers=workers)
        iterator = train_batches(images, recipes.create("digits", 32), 16, **place)
        return [next(iterator) for _ in range(count)]

    whole = batches(0, 1, range(16), 4)
    later = batches(48, 3, range(16), 1)[0]
    half = batches(48, 2, range(8, 16), 1)[0]
    for key in ("query", "key", "index"):
        np.testing.assert_array_equal(whole[3][key], later[key])
        np.testing.assert_array_equal(whole[3][key][8:], half[key])


class Slow:
    """Images that only PIL decodes; the read number `last` fails.

    Reading them gives Python's lock up and wants it back all the time.
    """

    record_spec, decoding = tf.TensorSpec([], tf.string), RGB

    def __init__(self, last, error=ValueError):
        self.reads, self.last, self.image, self.error = 0, last, encoded("TIFF"), error

    def __len__(self):
        return 512

    def read(self, indices):
        for _ in range(20):
            time.sleep(0.001)
        self.reads += 1
        if self.reads == self.last:
            raise self.error("the disk is gone")
        return np.asarray([self.image] * len(indices), object)

    def encoded(self, record):
        return record

    def labels(self, indices):
        return None

    def name(self, index):
        return f"image {index}"


def batches(source):
    return train_batches(source, recipes.create("digits", 32), 8, workers=4)


@pytest.mark.parametrize(("error", "kind"), [(ValueError, tf.errors.OpError), (Refused, Refused)])
def test_an_error_in_reading_reaches_the_reader(error, kind):
    some = batches(Slow(last=4, error=error))
    with pytest.raises(kind, match="the disk is gone"):
        deque(some, maxlen=0)


def test_batches_thrown_away_while_they_are_made_do_not_hold_the_process():
    """In a process of its own: if it fails, TensorFlow and Python wait for each other for ever."""
    code = (
        "from tests.data.test_pipeline import Slow, batches\n"
        "for _ in range(5):\n"
        "    some = batches(Slow(last=0)); next(some); del some\n"
        "kept = batches(Slow(last=0)); next(kept)\n"
        "print('over')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.stdout == "over\n", ended.stderr
    assert ended.returncode == 0, ended.stderr
