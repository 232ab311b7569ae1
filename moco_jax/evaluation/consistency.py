"""How far the keys in a queue still agree with the key encoder: what the paper means by a consistent dictionary."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moco_jax import mesh as mesh_lib
from moco_jax.data import recipes
from moco_jax.data.sources import Source
from moco_jax.dictionary import Queue
from moco_jax.evaluation import features, knn
from moco_jax.state import TrainState

IMAGES = 128  # of the newest keys, and as many of the oldest: the mean cosine is then known to about 0.02


@functools.cache
def _ends(mesh: Mesh):
    """The program that takes some keys out of both ends of a queue, whole on every device."""

    def ends(queue: Queue) -> tuple[jax.Array, jax.Array]:
        slots, width = queue.index.shape
        surplus = slots * width > queue.size  # then the oldest slot does not count as a whole
        which = jnp.stack([queue.pointer - 1, queue.pointer + surplus]) % slots
        rows = np.linspace(0, width - 1, min(width, IMAGES)).astype(int)
        return queue.keys[which][:, rows], queue.index[which][:, rows]

    return jax.jit(ends, out_shardings=mesh_lib.replicated(mesh))


def drift(
    newest: np.ndarray, oldest: np.ndarray, newest_now: np.ndarray, oldest_now: np.ndarray
) -> dict[str, float]:
    """What stored keys and fresh ones of the same images say; all unit vectors `[n, C]`.

    Args:
        newest, oldest: keys as they lie in the queue.
        newest_now, oldest_now: the same images under the key encoder of now.

    Returns:
        `key_agreement`: mean cosine of the newest keys with their fresh ones, and `drift`: by how much less the oldest
        keys agree. A stored key was made of a random view and with the BatchNorm statistics of its batch, a fresh one of the
        whole image and with running statistics; that costs both ends of the queue the same, and falls out of the difference.
        What remains is how far the key encoder has moved since: 0 in a consistent dictionary (MoCo v1, section 3.2).
    """
    agreement = float(np.mean(np.sum(newest * newest_now, -1)))
    return {
        "key_agreement": agreement,
        "drift": agreement - float(np.mean(np.sum(oldest * oldest_now, -1))),
    }


@dataclasses.dataclass(frozen=True)
class Consistency:
    """Measures `drift` within a run; every host must call it.

    Attributes:
        source: the images that the queue's keys are of.
        recipe: for the evaluation view.
        encode: from variables and uint8 images to what keys are, in evaluation mode.
        mesh, batch_size, workers: as in the config.
    """

    source: Source
    recipe: recipes.Recipe
    encode: features.Encode
    mesh: Mesh
    batch_size: int
    workers: int

    def measure(self, state: TrainState) -> dict[str, float]:
        """`drift`'s numbers for the queue in `state`; empty without a queue of two slots of keys of images."""
        queue = state.dictionary
        if not isinstance(queue, Queue) or len(queue.keys) < 2 or not len(state.key_params):
            return {}
        keys, index = jax.device_get(_ends(self.mesh)(queue))
        if index.min() < 0:  # random vectors are still among them
            return {}
        variables = {"params": state.key_params, "batch_stats": state.key_batch_stats}
        found, kept = features.extract(
            self.source, self.recipe, np.unique(index), self.batch_size, self.workers, self.mesh,
            lambda images: self.encode(variables, images),
        )  # fmt: skip
        now = dict(zip(kept.tolist(), knn.unit(found), strict=True))
        pairs = []  # at each end: stored keys and fresh ones, of images that could be read
        for some, places in zip(keys, index.tolist(), strict=True):
            there = [row for row, place in enumerate(places) if place in now]
            if not there:
                return {}
            pairs.append((some[there], np.stack([now[places[row]] for row in there])))
        (newest, newest_now), (oldest, oldest_now) = pairs
        return drift(newest, oldest, newest_now, oldest_now)
