"""The protocol that every dictionary implements, and the negatives that it returns."""

import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar, Protocol, Self

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from moco_jax.parallel import mesh as mesh_lib


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
    """The methods that a training step and a run call on a dictionary.

    A dictionary is a frozen pytree (`flax.struct.dataclass`) in the train state, and its arrays are
    saved with it. A class that names this one as its base inherits the methods that have a body.

    Attributes:
        key_encoders: the key encoders that the dictionary goes with, of `choice.KEY_ENCODERS`.
        losses: the losses that it goes with, of `choice.LOSSES`.
        persists: whether keys of one step are negatives of later ones; if not, the state has none.
        size_setting: name of the setting that is K.
    """

    key_encoders: ClassVar[tuple[str, ...]] = ("momentum",)
    losses: ClassVar[tuple[str, ...]] = ("info_nce",)
    persists: ClassVar[bool] = True
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
