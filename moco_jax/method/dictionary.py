"""Where keys are kept and how they are renewed: the dictionaries that queries are matched against.

A dictionary is a pytree inside the train state with two duties: hand out the negatives of a step, and take
in what that step made. It knows neither encoder nor loss.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

BANK_ROWS = 512  # a bank has a multiple of this many rows, so that it divides over as many devices


@dataclasses.dataclass(frozen=True)
class Negatives:
    """What queries are matched against.

    Attributes:
        keys: `[S, n, C]`, unit vectors, divided over devices on the middle axis.
        index: int32 `[S, n]`, the example each was made from; -1 for none.
        counts: bool `[S, n]`, whether it is one; None where all are.
    """

    keys: jax.Array
    index: jax.Array
    counts: jax.Array | None = None


def random_unit_vectors(rng: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    """Evenly over the sphere, `shape` `[..., C]`."""
    vectors = jax.random.normal(rng, shape, dtype)
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


@flax.struct.dataclass
class Queue:
    """A first-in first-out dictionary of K keys in slots of one batch each (MoCo v1, section 3.2).

    Sharded on the axis within a slot, so that renewing a slot moves nothing between devices. Where B does not divide
    K there is room for more than K keys; the oldest ones above K do not count.

    Attributes:
        keys: `[ceil(K / B), B, C]`, L2-normalised, at least float32.
        index: int32 `[ceil(K / B), B]`, the dataset index each key was made from; -1 for the random vectors
            that the queue starts with.
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
    def create(cls, rng: jax.Array, size: int, batch_size: int, dim: int, dtype=jnp.float32):
        """A queue of `size` random unit vectors, as the authors' code starts with."""
        shape = (-(-size // batch_size), batch_size, dim)
        return cls(
            keys=random_unit_vectors(rng, shape, dtype),
            index=jnp.full(shape[:2], -1, jnp.int32),
            pointer=jnp.zeros((), jnp.int32),
            count=jnp.zeros((), jnp.int32),
            size=size,
        )

    def negatives(self, real_only: bool = False) -> Negatives:
        """The K newest keys; with `real_only` those of them that were made from images."""
        slots, batch_size = self.index.shape
        surplus, counts = slots * batch_size - self.size, None
        if surplus:
            oldest = jnp.arange(slots)[:, None] == self.pointer
            counts = ~(oldest & (jnp.arange(batch_size) < surplus))
        if real_only:
            real = self.index >= 0
            counts = real if counts is None else counts & real
        return Negatives(self.keys, self.index, counts)

    def enqueue(
        self, keys: jax.Array, index: jax.Array, accept: jax.Array | bool = True
    ) -> "Queue":
        """The queue with its oldest slot replaced by `keys` `[B, C]` of the examples `index` int32 `[B]`.

        With `accept` false (a step that is not applied) it stays as it is, without a copy of the whole.
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

    def for_batch_size(self, batch_size: int) -> "Queue":
        """The same keys in the same order, in slots of `batch_size`; what there is no key for does not count."""
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


@flax.struct.dataclass
class MemoryBank:
    """One vector an example, renewed whenever the example is seen (InstDisc; MoCo v1, figure 2b).

    Attributes:
        keys: `[R, C]`, L2-normalised, at least float32; R is `size` rounded up to a multiple of `BANK_ROWS`.
        constant: the normalising constant Z of the loss 'nce', fixed at the first step; 0 before.
        size: N, the number of examples; no array.
    """

    keys: jax.Array
    constant: jax.Array
    size: int = flax.struct.field(pytree_node=False)

    @classmethod
    def create(cls, rng: jax.Array, size: int, dim: int, dtype=jnp.float32):
        """A bank of random unit vectors for `size` examples."""
        rows = -(-size // BANK_ROWS) * BANK_ROWS
        return cls(random_unit_vectors(rng, (rows, dim), dtype), jnp.zeros((), dtype), size)

    def entries(self, index: jax.Array) -> jax.Array:
        """The vectors `[B, C]` of the examples `index` int32 `[B]`."""
        return self.keys[index]

    def draw(self, rng: jax.Array, number: int) -> Negatives:
        """`number` entries drawn with replacement, the same for the whole batch, `[1, number, C]`."""
        index = jax.random.randint(rng, (1, number), 0, self.size, jnp.int32)
        return Negatives(self.keys[index], index)

    def moved(self, index: jax.Array, features: jax.Array, momentum: float) -> jax.Array:
        """The entries of `index` moved towards `features` `[B, C]`: `momentum` old + (1 - `momentum`) new, unit length.

        One that its feature cancels out has no direction: it is NaN.
        """
        old = self.keys[index]
        moved = momentum * old + (1 - momentum) * features.astype(old.dtype)
        return moved / jnp.linalg.norm(moved, axis=-1, keepdims=True)

    def renew(
        self, index: jax.Array, moved: jax.Array, accept: jax.Array | bool = True
    ) -> "MemoryBank":
        """The bank with `moved` `[B, C]` in the places of `index`; as it is where `accept` is false."""
        kept = jnp.where(accept, moved, self.keys[index])
        return dataclasses.replace(self, keys=self.keys.at[index].set(kept))
