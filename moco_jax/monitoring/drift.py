"""Drift of keys: how far old keys in the queue still agree with the present key encoder.

The paper calls a dictionary of little drift consistent.
"""

import dataclasses

import numpy as np
from jax.sharding import Mesh

from moco_jax.data.sources import Source
from moco_jax.data.views import recipes
from moco_jax.evaluation import features, knn
from moco_jax.method.state import TrainState

IMAGES = 128  # that are encoded twice for a measurement


def drift(before: np.ndarray, now: np.ndarray) -> float:
    """Return how far keys have moved, in units of the distance between keys of different images.

    `mean_i(1 - before_i . now_i) / mean_{i != j}(1 - now_i . now_j)` of unit vectors `[n, C]`: 0
    where the key encoder has not moved; 1 where an old key is as far from its image's present key
    as the keys of other images are. Returns 0 where all keys are equal.
    """
    number = len(now)
    if number < 2:
        return 0.0
    total = now.sum(0, dtype=np.float64)
    others = 1 - (float(total @ total) - number) / (number * (number - 1))
    moved = 1 - float(np.mean(np.sum(before * now, -1, dtype=np.float64)))
    return moved / others if others > np.finfo(np.float32).eps * number else 0.0


@dataclasses.dataclass
class Consistency:
    """Measures the drift of keys while they are in the queue (MoCo v1, section 3.2).

    Every host must call it.

    A key in the queue was made of a random view, with the BatchNorm statistics of its batch; to
    compare it with a fresh one would measure those too. So the same few images in their evaluation
    view are encoded twice: as many steps before a measurement as a key stays in the queue, and at
    the measurement. What lies between is the key encoder's own movement: how far the oldest keys in
    the queue are from what they would be if they were made now.

    Attributes:
        source, indices: the images.
        recipe: for the evaluation view.
        encode: from variables and uint8 images to what keys are, in evaluation mode.
        mesh, batch_size, workers: as in the config.
        life: steps that a key stays in the queue; 0 where there is no queue.
        pending: the step of a measurement -> what was encoded for it. Lost when a run stops, so
            that a measurement less than `life` after it went on is left out.
    """

    source: Source
    indices: np.ndarray
    recipe: recipes.Recipe
    encode: features.Encode
    mesh: Mesh
    batch_size: int
    workers: int
    life: int
    pending: dict[int, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)

    def _keys(self, state: TrainState) -> tuple[np.ndarray, np.ndarray]:
        variables = {"params": state.key_params, "batch_stats": state.key_batch_stats}
        found, kept = features.extract(
            self.source,
            self.recipe,
            self.indices,
            self.batch_size,
            self.workers,
            self.mesh,
            lambda images: self.encode(variables, images),
        )
        return knn.unit(found), kept

    def prepare(self, step: int, state: TrainState) -> None:
        """Encode images with the present key encoder, to compare `life` steps after `step`."""
        self.pending[step + self.life] = self._keys(state)

    def measure(self, step: int, state: TrainState) -> dict[str, float]:
        """Measure the drift at `step`; empty where nothing was prepared for it."""
        if step not in self.pending:
            return {}
        (before, kept_before), (now, kept) = self.pending.pop(step), self._keys(state)
        return {"drift": drift(before, now)} if np.array_equal(kept, kept_before) else {}
