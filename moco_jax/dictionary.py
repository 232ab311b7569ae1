"""Where keys are kept and how they are renewed: the dictionary that queries are matched against.

A dictionary is a pytree inside the train state with two duties: hand out the negatives of a step, and take
in the keys of that step. It knows neither encoder nor loss.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Queue:
    """A first-in first-out dictionary of K keys in slots of one batch each (MoCo v1, section 3.2).

    Sharded on the axis within a slot, so that renewing a slot moves nothing between devices.

    Attributes:
        keys: `[K / B, B, C]`, L2-normalised, at least float32.
        index: int32 `[K / B, B]`, the dataset index each key was made from; -1 for the random vectors
            that the queue starts with.
        pointer: int32, the slot that the next keys go to.
        count: int32, how many keys of real images the queue holds, at most K.
    """

    keys: jax.Array
    index: jax.Array
    pointer: jax.Array
    count: jax.Array

    @classmethod
    def create(cls, rng: jax.Array, size: int, batch_size: int, dim: int, dtype=jnp.float32):
        """A queue of `size` random unit vectors, as the authors' code starts with; `size` % `batch_size` = 0."""
        shape = (size // batch_size, batch_size, dim)
        vectors = jax.random.normal(rng, shape, dtype)
        return cls(
            keys=vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True),
            index=jnp.full(shape[:2], -1, jnp.int32),
            pointer=jnp.zeros((), jnp.int32),
            count=jnp.zeros((), jnp.int32),
        )

    @property
    def size(self) -> int:
        """K, the number of keys."""
        return self.keys.shape[0] * self.keys.shape[1]

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
        return Queue(
            keys=jax.lax.dynamic_update_slice(
                self.keys, new_keys[None], (self.pointer, zero, zero)
            ),
            index=jax.lax.dynamic_update_slice(self.index, new_index[None], (self.pointer, zero)),
            pointer=(self.pointer + moved) % self.keys.shape[0],
            count=jnp.minimum(self.count + moved * keys.shape[0], self.size),
        )
