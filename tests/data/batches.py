"""Training batches, with values for all arguments that a test does not care about."""

import numpy as np

from moco_jax.data import pipeline


def train_batches(source, recipe, size, **changes):
    """Batches of `size` from the first example on; no image may be damaged.

    `changes` are other values for arguments of `pipeline.train_batches`.
    """
    settings = dict(seed=0, batch_size=size, rows=np.arange(size), examples_seen=0, workers=2)
    settings["damaged"] = pipeline.DamagedImages(0)
    return pipeline.train_batches(source, recipe, **(settings | changes))
