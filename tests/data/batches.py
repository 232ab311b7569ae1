"""Training batches, with values for all that a test does not care about, and recipes of views."""

import numpy as np

from moco_jax.data import pipeline
from moco_jax.data.views import recipes

# What 'turned' has of its own: operations that no recipe has, and a blur of more than five taps.
TURNED = dict(
    crop_ratio=(0.5, 3.0),
    jitter=(0.1, 0.6, 0.3, 0.2),
    blur_probability=(0.5,),
    blur_sigma=(0.5, 4.0),
    solarize_probability=(0.3, 0.0),
    vertical_flip_probability=(0.5,),
    rotate_probability=(1.0,),
)


def recipe_called(name, size):
    """A recipe of the package, or 'turned', which is v3's with other strengths."""
    if name == "turned":
        return recipes.create("v3", size, strengths=TURNED)
    return recipes.create(name, size)


def train_batches(source, recipe, size, **changes):
    """Batches of `size` from the first example on; no image may be damaged.

    `changes` are other values for arguments of `pipeline.train_batches`.
    """
    settings = dict(seed=0, batch_size=size, rows=np.arange(size), examples_seen=0, workers=2)
    settings["damaged"] = pipeline.DamagedImages(0)
    return pipeline.train_batches(source, recipe, **(settings | changes))
