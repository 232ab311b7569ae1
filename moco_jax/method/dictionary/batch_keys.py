"""The batch as a dictionary: the keys of one step, each a negative of the others' queries."""

import dataclasses
from typing import ClassVar, Self

import flax.struct
import jax

from moco_jax.method.dictionary.protocol import Dictionary, Negatives, Sizes


@flax.struct.dataclass
class BatchKeys(Dictionary):
    """The keys of one batch, each a negative of the others' queries (MoCo v3; v1, figure 2a).

    A step makes it of its own keys and forgets it: nothing is in the train state.

    Attributes:
        keys: `[B, C]`, unit vectors.
        index: int32 `[B]`, by which a query's own key is told from its negatives.
    """

    key_encoders: ClassVar[tuple[str, ...]] = ("momentum", "query")
    persists: ClassVar[bool] = False

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
