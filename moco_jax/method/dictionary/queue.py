"""The queue: the keys of the last batches, the oldest out first (MoCo v1, section 3.2)."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from moco_jax.method.dictionary.protocol import Dictionary, Negatives, Sizes, random_unit_vectors
from moco_jax.parallel import mesh as mesh_lib


@flax.struct.dataclass
class Queue(Dictionary):
    """A first-in first-out dictionary of K keys in slots of one batch each (MoCo v1, section 3.2).

    Sharded on the axis within a slot, so that renewing a slot moves nothing between devices. Where
    B does not divide K there is room for more than K keys; the oldest ones above K do not count.

    Attributes:
        keys: `[ceil(K / B), B, C]`, L2-normalised, at least float32.
        index: int32 `[ceil(K / B), B]`, the dataset index each key was made from; -1 for the random
            vectors that the queue starts with.
        pointer: int32, the slot that the next keys go to: the oldest.
        count: int32, how many keys of real images the queue holds, at most K.
        size: K; no array.
    """

    keys: jax.Array
    index: jax.Array
    pointer: jax.Array
    count: jax.Array
    size: int = flax.struct.field(pytree_node=False)

    @classmethod
    def create(
        cls, rng: jax.Array, size: int, batch_size: int, dim: int, dtype=jnp.float32
    ) -> Self:
        """Make a queue of `size` random unit vectors, as the authors' code starts with."""
        shape = (-(-size // batch_size), batch_size, dim)
        return cls(
            keys=random_unit_vectors(rng, shape, dtype),
            index=jnp.full(shape[:2], -1, jnp.int32),
            pointer=jnp.zeros((), jnp.int32),
            count=jnp.zeros((), jnp.int32),
            size=size,
        )

    @classmethod
    def of_run(cls, rng: jax.Array, sizes: Sizes) -> Self:
        """Make the queue that a run starts with."""
        return cls.create(rng, sizes.negatives, sizes.batch_size, sizes.dim, sizes.dtype)

    def negatives(
        self, real_only: bool = False, *, rng: jax.Array | None = None, number: int = 0
    ) -> Negatives:
        """Hand out the K newest keys; with `real_only` those of them that were made from images."""
        slots, batch_size = self.index.shape
        surplus, counts = slots * batch_size - self.size, None
        if surplus:
            oldest = jnp.arange(slots)[:, None] == self.pointer
            counts = ~(oldest & (jnp.arange(batch_size) < surplus))
        if real_only:
            real = self.index >= 0
            counts = real if counts is None else counts & real
        return Negatives(self.keys, self.index, counts)

    def enqueue(self, keys: jax.Array, index: jax.Array, accept: jax.Array | bool = True) -> Self:
        """Replace the oldest slot by `keys` `[B, C]` of the examples `index` int32 `[B]`.

        With `accept` false (a step that is not applied) the queue stays as it is, without a copy of
        the whole.
        """
        old_keys = jax.lax.dynamic_index_in_dim(self.keys, self.pointer, keepdims=False)
        old_index = jax.lax.dynamic_index_in_dim(self.index, self.pointer, keepdims=False)
        new_keys = jnp.where(accept, keys.astype(self.keys.dtype), old_keys)
        new_index = jnp.where(accept, index, old_index)
        moved = jnp.asarray(accept, jnp.int32)
        zero = jnp.zeros((), jnp.int32)
        return dataclasses.replace(
            self,
            keys=jax.lax.dynamic_update_slice(
                self.keys, new_keys[None], (self.pointer, zero, zero)
            ),
            index=jax.lax.dynamic_update_slice(self.index, new_index[None], (self.pointer, zero)),
            pointer=(self.pointer + moved) % self.keys.shape[0],
            count=jnp.minimum(self.count + moved * keys.shape[0], self.size),
        )

    def renew(
        self, index: jax.Array, made: Sequence[jax.Array], accept: jax.Array | bool = True
    ) -> Self:
        """Enqueue the keys `[B, C]` of each view, a slot for each."""
        queue = self
        for keys in made:
            queue = queue.enqueue(keys, index, accept)
        return queue

    def shardings(self, mesh: Mesh) -> Self:
        """Say how each array lies on the devices: slots divided within themselves."""
        by_row = mesh_lib.sharded(mesh, axis=1)
        layout: Any = super().shardings(mesh)
        return dataclasses.replace(layout, keys=by_row, index=by_row)

    def for_batch_size(self, batch_size: int) -> Self:
        """Return the same keys, in the same order, in slots of `batch_size`.

        Places for which there is no key do not count.
        """
        slots, width = self.index.shape
        order = (jnp.arange(slots) + self.pointer) % slots  # oldest first

        def in_order(x: jax.Array) -> jax.Array:
            return x[order].reshape(slots * width, *x.shape[2:])[-self.size :]

        rows = -(-self.size // batch_size) * batch_size

        def in_slots(x: jax.Array, fill: int) -> jax.Array:
            before = jnp.full((rows - self.size, *x.shape[1:]), fill, x.dtype)
            return jnp.concatenate([before, x]).reshape(-1, batch_size, *x.shape[1:])

        return dataclasses.replace(
            self,
            keys=in_slots(in_order(self.keys), 0),
            index=in_slots(in_order(self.index), -1),
            pointer=jnp.zeros((), jnp.int32),
        )

    @classmethod
    def lifetime(cls, negatives: int, keys: int) -> int:
        """Count the steps that a key stays if each step makes `keys`: K / B, rounded up."""
        return -(-negatives // keys)

    @classmethod
    def describe(cls, negatives: int) -> str:
        """Name the queue and its size."""
        return f"queue of {negatives:,} keys"
