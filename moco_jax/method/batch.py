"""Batch: the input of a training step."""

from typing import Any

import flax.struct
import jax

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class Batch:
    """Two views of the same images in the same order, or the inputs the step makes them from.

    Attributes:
        query: uint8 `[B, H, W, C]`; None where the devices hold all images.
        key: as `query`.
        index: int32 `[B]`, each example's place in the dataset.
        query_view: where images arrive as crops, the drawn parameters of what is left to do,
            `[B, ...]` each.
        key_view: as `query_view`, of the keys.
        images: where the devices hold all images, these: uint8 `[N, H * W * C]`, divided over
            the devices by rows, of which the last may be of no image.
        epoch: with `images`, int32 `[B]`, each example's epoch.
    """

    query: Any
    key: Any
    index: jax.Array
    query_view: Any = None
    key_view: Any = None
    images: Any = None
    epoch: Any = None


def as_they_come(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return query and key views of a batch that brings them finished."""
    return batch.query, batch.key
