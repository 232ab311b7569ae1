"""Batches end cleanly, whatever is under way: after an error in reading, and when they are thrown away."""

import subprocess
import sys
import time
from collections import deque

import numpy as np
import pytest
import tensorflow as tf

from moco_jax.data import pipeline, recipes


class Slow:
    """Images whose reading gives Python up and wants it back all the time, and fails at `last`."""

    record_spec = tf.TensorSpec([32, 32, 3], tf.uint8)

    def __init__(self, last):
        self.reads, self.last = 0, last

    def __len__(self):
        return 512

    def read(self, indices):
        for _ in range(20):
            time.sleep(0.001)
        self.reads += 1
        if self.reads == self.last:
            raise ValueError("the disk is gone")
        return np.zeros((len(indices), 32, 32, 3), np.uint8)

    def decode(self, record):
        # A Python call for each image, as for formats that TensorFlow does not know.
        return tf.ensure_shape(tf.numpy_function(lambda x: x + 1, [record], tf.uint8), record.shape)

    def labels(self, indices):
        return None

    def name(self, index):
        return f"image {index}"


def batches(source):
    return pipeline.train_batches(
        source, recipes.create("digits", 32), seed=0, batch_size=8, rows=np.arange(8), examples_seen=0,
        workers=4, damaged=pipeline.DamagedImages(0),
    )  # fmt: skip


def test_an_error_in_reading_reaches_the_reader():
    some = batches(Slow(last=4))
    with pytest.raises(tf.errors.OpError, match="the disk is gone"):
        deque(some, maxlen=0)


def test_batches_thrown_away_while_they_are_made_do_not_hold_the_process():
    """In a process of its own: where it fails, TensorFlow and Python wait for each other without end."""
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
