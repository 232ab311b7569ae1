"""The memory bank: one vector for each image of the dataset (InstDisc; MoCo v1, figure 2b)."""

import dataclasses
from typing import Any, ClassVar, Self

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from moco_jax.base.errors import UserError, nearest_multiples
from moco_jax.method.dictionary.protocol import Dictionary, Negatives, Sizes, random_unit_vectors
from moco_jax.parallel import mesh as mesh_lib

# A bank has a multiple of this many rows, so that it divides over as many devices.
BANK_ROWS = 512


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

        An entry becomes `momentum` old + (1 - `momentum`) new. Where the old entry and the feature
        cancel out, the new entry is NaN, and the step is not applied.
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
