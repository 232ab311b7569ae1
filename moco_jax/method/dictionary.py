"""Dictionaries that queries are matched against: where keys are kept, and how they are renewed.

A dictionary is one class that keeps the protocol `Dictionary`, and one row of `DICTIONARIES`. It
knows arrays and devices, neither encoder nor loss.
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from moco_jax.base.errors import UserError, nearest_multiples
from moco_jax.parallel import mesh as mesh_lib

# A bank has a multiple of this many rows, so that it divides over as many devices.
BANK_ROWS = 512


@dataclasses.dataclass(frozen=True)
class Negatives:
    """Keys that queries are told apart from.

    Attributes:
        keys: `[S, n, C]`, unit vectors, divided over devices on the middle axis.
        index: int32 `[S, n]`, the example each key was made from; -1 for none.
        counts: bool `[S, n]`, which keys count; None where all do.
    """

    keys: jax.Array
    index: jax.Array
    counts: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes that a run gives its dictionary.

    Attributes:
        negatives: K, keys that a query is told apart from.
        batch_size: B.
        examples: N, images in the dataset.
        dim: C, length of a key.
        dtype: of a key, at least float32.
    """

    negatives: int
    batch_size: int
    examples: int
    dim: int
    dtype: Any = jnp.float32


class Dictionary(Protocol):
    """What a training step and a run ask of a dictionary.

    A dictionary is a frozen pytree (`flax.struct.dataclass`) in the train state, and its arrays are
    saved with it. A class that names this one as its base inherits the methods that have a body.

    Attributes:
        key_encoders: the key encoders that the dictionary goes with, of `choice.KEY_ENCODERS`.
        losses: the losses that it goes with, of `choice.LOSSES`.
        lasts: whether keys of one step are negatives of later ones; if not, the state has none.
        size_setting: name of the setting that is K.
    """

    key_encoders: ClassVar[tuple[str, ...]] = ("momentum",)
    losses: ClassVar[tuple[str, ...]] = ("info_nce",)
    lasts: ClassVar[bool] = True
    size_setting: ClassVar[str] = "queue_size"

    @classmethod
    @abstractmethod
    def of_run(cls, rng: jax.Array, sizes: Sizes) -> Self | None:
        """Make the dictionary that a run starts with; None for one that does not last."""

    @abstractmethod
    def negatives(
        self, real_only: bool = False, *, rng: jax.Array | None = None, number: int = 0
    ) -> Negatives:
        """Hand out the negatives of a step.

        Args:
            real_only: leave out keys that were made from no image.
            rng: the step's random key, for a dictionary that draws.
            number: K, how many to draw.
        """

    @abstractmethod
    def renew(self, index: jax.Array, made: Any, accept: jax.Array | bool = True) -> Self:
        """Take in what a step made; return the same dictionary where `accept` is false.

        Args:
            index: int32 `[B]`, the step's examples.
            made: with a momentum encoder the keys `[B, C]` of each view, a sequence in the order
                of views; without a key encoder the new entries `[B, C]`.
            accept: whether the step is applied. It is traced: choose by `jnp.where`.
        """

    def shardings(self, mesh: Mesh) -> Self:
        """Say how each array lies on the devices: whole on every one, unless a class says else."""
        return jax.tree.map(lambda _: mesh_lib.replicated(mesh), self)

    def for_batch_size(self, batch_size: int) -> Self:
        """Return the same keys in the form that batches of `batch_size` need."""
        return self

    @classmethod
    def compared(cls, negatives: int, batch_size: int) -> int:
        """Count the keys that a query is compared with, its own among them: chance is their log."""
        return 1 + negatives

    @classmethod
    def lifetime(cls, negatives: int, keys: int) -> int:
        """Count the steps that a key stays if each step makes `keys`; 0: keys do not grow old."""
        return 0

    @classmethod
    @abstractmethod
    def describe(cls, negatives: int) -> str:
        """Name the dictionary and its size in a few words."""

    @classmethod
    def require(cls, negatives: int, devices: int) -> None:
        """Refuse, by a UserError, what does not divide over so many `devices`."""
        return


def random_unit_vectors(rng: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    """Draw vectors evenly over the sphere, `shape` `[..., C]`."""
    vectors = jax.random.normal(rng, shape, dtype)
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


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


@flax.struct.dataclass
class BatchKeys(Dictionary):
    """The keys of one batch, each a negative of the others' queries (MoCo v3; v1, figure 2a).

    A step makes it of its own keys and forgets it: nothing is in the train state.

    Attributes:
        keys: `[B, C]`, unit vectors.
        index: int32 `[B]`, by which a query's own key is told from its negatives.
    """

    key_encoders: ClassVar[tuple[str, ...]] = ("momentum", "query")
    lasts: ClassVar[bool] = False

    keys: jax.Array
    index: jax.Array

    @classmethod
    def of_run(cls, rng: jax.Array, sizes: Sizes) -> None:
        """Make nothing: a run keeps no keys."""
        return None

    def negatives(
        self, real_only: bool = False, *, rng: jax.Array | None = None, number: int = 0
    ) -> Negatives:
        """Hand out all keys, as `[1, B, C]`."""
        return Negatives(self.keys[None], self.index[None])

    def renew(self, index: jax.Array, made: jax.Array, accept: jax.Array | bool = True) -> Self:
        """Return the keys `made` `[B, C]` of another batch: the old ones are forgotten."""
        return dataclasses.replace(self, keys=made, index=index)

    @classmethod
    def compared(cls, negatives: int, batch_size: int) -> int:
        """Count the keys that a query is compared with: those of the batch."""
        return batch_size

    @classmethod
    def describe(cls, negatives: int) -> str:
        """Name the dictionary."""
        return "the other keys of the batch"


@flax.struct.dataclass
class MemoryBank(Dictionary):
    """One vector an example, renewed whenever the example is seen (InstDisc; MoCo v1, figure 2b).

    Attributes:
        keys: `[R, C]`, L2-normalised, at least float32; R is `size` rounded up to a multiple of
            `BANK_ROWS`.
        constant: the normalising constant Z of the loss 'nce', fixed at the first step; 0 before.
        size: N, the number of examples; no array.
    """

    key_encoders: ClassVar[tuple[str, ...]] = ("none",)
    losses: ClassVar[tuple[str, ...]] = ("info_nce", "nce")
    size_setting: ClassVar[str] = "bank_negatives"

    keys: jax.Array
    constant: jax.Array
    size: int = flax.struct.field(pytree_node=False)

    @classmethod
    def create(cls, rng: jax.Array, size: int, dim: int, dtype=jnp.float32) -> Self:
        """Make a bank of random unit vectors for `size` examples."""
        rows = -(-size // BANK_ROWS) * BANK_ROWS
        return cls(random_unit_vectors(rng, (rows, dim), dtype), jnp.zeros((), dtype), size)

    @classmethod
    def of_run(cls, rng: jax.Array, sizes: Sizes) -> Self:
        """Make the bank that a run starts with."""
        return cls.create(rng, sizes.examples, sizes.dim, sizes.dtype)

    def entries(self, index: jax.Array) -> jax.Array:
        """Look up the vectors `[B, C]` of the examples `index` int32 `[B]`."""
        return self.keys[index]

    def draw(self, rng: jax.Array, number: int) -> Negatives:
        """Draw `number` entries with replacement, one draw for the batch: `[1, number, C]`."""
        index = jax.random.randint(rng, (1, number), 0, self.size, jnp.int32)
        return Negatives(self.keys[index], index)

    def negatives(
        self, real_only: bool = False, *, rng: jax.Array | None = None, number: int = 0
    ) -> Negatives:
        """Hand out `number` entries drawn by `rng`, see `draw`."""
        if rng is None:
            raise ValueError("a memory bank draws its negatives: rng=None; pass a random key")
        return self.draw(rng, number)

    def moved(self, index: jax.Array, features: jax.Array, momentum: float) -> jax.Array:
        """Move the entries of `index` towards `features` `[B, C]`, and return them at unit length.

        An entry becomes `momentum` old + (1 - `momentum`) new. One that its feature cancels out has
        no direction: it is NaN.
        """
        old = self.keys[index]
        moved = momentum * old + (1 - momentum) * features.astype(old.dtype)
        return moved / jnp.linalg.norm(moved, axis=-1, keepdims=True)

    def renew(self, index: jax.Array, made: jax.Array, accept: jax.Array | bool = True) -> Self:
        """Put the entries `made` `[B, C]` in the places of `index`."""
        kept = jnp.where(accept, made, self.keys[index])
        return dataclasses.replace(self, keys=self.keys.at[index].set(kept))

    def shardings(self, mesh: Mesh) -> Self:
        """Say how each array lies on the devices: the entries divided."""
        layout: Any = super().shardings(mesh)
        return dataclasses.replace(layout, keys=mesh_lib.sharded(mesh))

    @classmethod
    def describe(cls, negatives: int) -> str:
        """Name the bank and how much of it a step draws."""
        return f"memory bank, {negatives:,} entries drawn at a step"

    @classmethod
    def require(cls, negatives: int, devices: int) -> None:
        """Refuse, by a UserError, what does not divide over so many `devices`."""
        if BANK_ROWS % devices:
            raise UserError(
                f"dictionary='memory_bank' does not divide over {devices} devices; use 1, 2, "
                f"4, ... or {BANK_ROWS}"
            )
        if negatives % devices:
            raise UserError(
                f"bank_negatives={negatives} does not divide over {devices} devices; "
                f"{nearest_multiples(negatives, devices)}"
            )


# The values of the setting `dictionary`.
DICTIONARIES: dict[str, type[Dictionary]] = {
    "queue": Queue,
    "batch": BatchKeys,
    "memory_bank": MemoryBank,
}
