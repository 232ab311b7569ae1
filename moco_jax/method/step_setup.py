"""StepSetup: the fixed inputs of a step, and the pieces that the steps of all methods share."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from moco_jax.base import random_keys
from moco_jax.method import info_nce
from moco_jax.method.batch import Batch, Metrics
from moco_jax.method.choice import Method
from moco_jax.method.dictionary import BatchKeys, Negatives
from moco_jax.method.encoding import Encoding
from moco_jax.method.state import TrainState
from moco_jax.parallel import mesh as mesh_lib

Schedule = Callable[[jax.Array], jax.Array | float]


@dataclasses.dataclass(frozen=True)
class StepSetup:
    """What stays the same from step to step; its arguments are those of `step.make_train_step`.

    Attributes:
        method: which keys, which negatives, which loss.
        encoding: the encoder, and how images come into it.
        optimizer: without learning rate.
        learning_rate: the rate, as a function of `state.schedule_step`.
        momentum: m of the momentum encoder, as a function of `state.schedule_step`.
        views: makes query and key view, uint8 `[B, H, W, channels]` each, of a batch.
        seed: of what is drawn within a step.
        mesh: the device mesh, or None on one device.
    """

    method: Method
    encoding: Encoding
    optimizer: optax.GradientTransformation
    learning_rate: Schedule
    momentum: Schedule
    views: Callable[[Batch], tuple[jax.Array, jax.Array]]
    seed: int
    mesh: Mesh | None

    def random_key(self, state: TrainState) -> jax.Array:
        """Make the step's random key from the seed and both words of the examples seen."""
        key = jax.random.fold_in(random_keys.of_seed(self.seed), state.examples_seen[1])
        return jax.random.fold_in(key, state.examples_seen[0])

    def own_example(self, index: jax.Array) -> jax.Array | None:
        """Return `index` where negatives of a query's own example are left out, else None."""
        return index if self.method.mask_same_example else None

    def views_of(self, batch: Batch) -> tuple[list[jax.Array], list[jax.Array]]:
        """Return the views that become queries, and beside each the view that becomes its key."""
        first, second = self.views(batch)
        if self.method.symmetric:
            return [first, second], [second, first]
        return [first], [second]

    def contrast(
        self, query: jax.Array, key: jax.Array, negatives: Negatives, own: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        """Compute InfoNCE of one view's queries, and its metrics.

        Args:
            query: `[B, C]`, unit vectors.
            key: `[B, C]`, the positive of each.
            negatives: what each is told apart from.
            own: int32 `[B]`: for each query, negatives of this index are left out; None: none are.
        """
        loss, metrics = info_nce.info_nce(
            query,
            key,
            negatives.keys,
            self.method.temperature,
            self.mesh,
            counts=negatives.counts,
            query_index=own,
            negative_index=None if own is None else negatives.index,
        )
        return loss, {**metrics, "spread": info_nce.spread(query)}

    def contrast_in_batch(
        self, query: jax.Array, key: jax.Array, index: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Compute InfoNCE of queries `[B, C]` whose negatives are the other keys of the batch."""
        # A query's own key stands among the others and is left out by its place.
        masked = self.method.mask_same_example
        place = index if masked else jnp.arange(len(index), dtype=jnp.int32)
        others = BatchKeys(mesh_lib.divide(key, self.mesh), place)
        return self.contrast(query, key, others.negatives(), place)

    def total(self, terms: Sequence[tuple[jax.Array, Metrics]]) -> tuple[jax.Array, Metrics]:
        """Add the losses of all views' queries, times 2 tau if asked; average their metrics."""
        scale = 2 * self.method.temperature if self.method.times_2t else 1
        total = jnp.asarray(scale * sum(loss for loss, _ in terms))
        return total, jax.tree.map(lambda *x: sum(x) / len(x), *[metrics for _, metrics in terms])
