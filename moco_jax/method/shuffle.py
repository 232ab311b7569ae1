"""Shuffled BatchNorm: key images change their BN groups before encoding (v1, section 3.3).

A query and its key must not share BatchNorm statistics, or the statistics give the answer away.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from moco_jax.method.choice import Method
from moco_jax.parallel import mesh as mesh_lib


def exchange(
    x: jax.Array, bn_groups: int, shuffle_groups: int, mesh: Mesh | None = None
) -> jax.Array:
    """Shuffle `x` `[B, ...]` by a transposition, so that each BatchNorm group gets other images.

    The batch is viewed as `[G/S, S, S, B/(G S), ...]` and its middle axes change places (G =
    `bn_groups`, S = `shuffle_groups`, G where smaller): each group of S takes an equal part of all
    S. Its own inverse, so it also puts the keys back in order. Does the work of the paper's random
    permutation (v1, section 3.3).
    """
    span = min(shuffle_groups, bn_groups)
    # Both sides are held divided over the devices: the compiler then moves each device's share and
    # no more, where it would otherwise gather the whole batch.
    blocks = mesh_lib.divide(x, mesh).reshape(bn_groups // span, span, span, -1, *x.shape[1:])
    return mesh_lib.divide(blocks.swapaxes(1, 2).reshape(x.shape), mesh)


def shuffled(
    encode: Callable[[jax.Array], tuple[jax.Array, Any]],
    images: jax.Array,
    method: Method,
    rng: jax.Array,
    mesh: Mesh | None,
) -> tuple[jax.Array, Any]:
    """Encode `images` `[B, ...]` in other BatchNorm groups, and put the keys back in order.

    Args:
        encode: from images to keys `[B, C]` and BatchNorm statistics.
        images: in the order of the batch.
        method: its `shuffle`, `bn_groups` and `shuffle_groups` count.
        rng: of the permutation, where one is drawn.
        mesh: the device mesh, or None on one device.

    Returns:
        Keys in the order of `images`, and the statistics.
    """
    if method.shuffle == "none":
        return encode(images)
    if method.shuffle == "permutation":
        order = jax.random.permutation(rng, images.shape[0])
        keys, stats = encode(mesh_lib.divide(images[order], mesh))
        return mesh_lib.divide(keys[jnp.argsort(order)], mesh), stats
    groups = method.bn_groups, method.shuffle_groups, mesh
    keys, stats = encode(exchange(images, *groups))
    return exchange(keys, *groups), stats
