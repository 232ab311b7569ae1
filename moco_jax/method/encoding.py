"""Encodes images to queries and keys: normalisation, backbone (in parts if asked), head.

Going through a batch in parts is gradient accumulation without its usual error: only the backbone
runs in parts, its outputs are put together again, and heads and loss see the whole batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from moco_jax.encoders import Encoder
from moco_jax.method import info_nce, shuffle
from moco_jax.method.choice import Method
from moco_jax.parallel import mesh as mesh_lib


def to_network_input(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype
) -> jax.Array:
    """Normalise uint8 images `[B, H, W, channels]`: `(x / 255 - mean) / std` per channel.

    Computed in at least float32, returned in `dtype`.
    """
    exact = jnp.promote_types(dtype, jnp.float32)
    center, scale = jnp.asarray(mean, exact), jnp.asarray(std, exact)
    return ((images.astype(exact) / 255 - center) / scale).astype(dtype)


def in_parts(x: jax.Array, parts: int, devices: int) -> jax.Array:
    """Cut `x` `[B, ...]` into `[parts, B / parts, ...]`, equal shares of each device in each."""
    shares = x.reshape(devices, parts, -1, *x.shape[1:])
    return shares.swapaxes(0, 1).reshape(parts, -1, *x.shape[1:])


def whole(x: jax.Array, devices: int) -> jax.Array:
    """Undo `in_parts`: `[parts, B / parts, ...]` -> `[B, ...]`."""
    parts = x.shape[0]
    shares = x.reshape(parts, devices, -1, *x.shape[2:])
    return shares.swapaxes(0, 1).reshape(-1, *x.shape[2:])


@dataclasses.dataclass(frozen=True)
class Encoding:
    """Queries and keys of images, as pure functions of parameters and statistics.

    Attributes:
        encoder: called with `train=True` and its `batch_stats` mutable.
        method: how key images are shuffled.
        mean, std, dtype: as in `to_network_input`.
        accumulate: parts in which the backbone goes through a batch. The activations of a part are
            recomputed in the backward pass, so that memory holds those of one part at a time, at
            the cost of a second forward pass.
        bn_groups: BatchNorm groups that the backbone has in a whole batch, None without BatchNorm;
            a part holds whole groups, `bn_groups / accumulate` of them, which is what the backbone
            itself was made with.
        mesh: the device mesh, or None on one device.
    """

    encoder: Encoder
    method: Method
    mean: Sequence[float]
    std: Sequence[float]
    dtype: Any = jnp.float32
    accumulate: int = 1
    bn_groups: int | None = None
    mesh: Mesh | None = None

    def queries(
        self, params: Any, stats: Any, views: Sequence[jax.Array]
    ) -> tuple[list[jax.Array], Any, jax.Array]:
        """Encode each of `views` in turn, uint8 `[B, H, W, channels]`, with the predictor.

        Returns:
            Unit vectors `[B, C]` of each, the statistics after the last, and the pooled features
            `[B, D]` of the first, through which no gradient goes.
        """
        found, pooled = [], []
        for images in views:
            query, stats, features = self._encode(self.encoder.query, params, stats, images)
            found.append(query)
            pooled.append(features)
        return found, stats, jax.lax.stop_gradient(pooled[0])

    def keys(
        self,
        params: Any,
        stats: Any,
        views: Sequence[jax.Array],
        rng: jax.Array,
        *,
        last_first: bool = False,
    ) -> tuple[list[jax.Array], Any]:
        """Encode each of `views` in turn, uint8 `[B, H, W, channels]`, shuffled, without predictor.

        Args:
            params, stats: of the encoder that makes the keys.
            views: of the key images.
            rng: of permutations.
            last_first: begin with the last view. Statistics run through the views one after the
                other, so that the order counts.

        Returns:
            Unit vectors `[B, C]` of each of `views`, and the statistics after the last encoded.
        """
        numbers = range(len(views))
        found: dict[int, jax.Array] = {}
        for number in reversed(numbers) if last_first else numbers:
            encode = functools.partial(self._key, params, stats)
            draw = jax.random.fold_in(rng, number)
            images = views[number]
            found[number], stats = shuffle.shuffled(encode, images, self.method, draw, self.mesh)
        return [found[number] for number in numbers], stats

    def _key(self, params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        key, stats, _ = self._encode(self.encoder.project, params, stats, images)
        return key, stats

    def _encode(
        self, head: Callable, params: Any, stats: Any, images: jax.Array
    ) -> tuple[jax.Array, Any, jax.Array]:
        backbone = self._backbone if self.accumulate == 1 else self._backbone_in_parts
        features, updated = backbone(params, stats, images)
        stats = stats | updated
        variables = {"params": params, "batch_stats": stats}
        found, updated = self.encoder.apply(
            variables, features, train=True, method=head, mutable=["batch_stats"]
        )
        return info_nce.normalize(found), stats | updated.get("batch_stats", {}), features

    def _backbone(self, params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        features, updated = self.encoder.apply(
            {"params": params, "batch_stats": stats},
            to_network_input(images, self.mean, self.std, self.dtype),
            train=True,
            method=self.encoder.features,
            mutable=["batch_stats"],
        )
        return features, updated.get("batch_stats", {})

    def _backbone_in_parts(
        self, params: Any, stats: Any, images: jax.Array
    ) -> tuple[jax.Array, Any]:
        shares = self._shares()
        parts = in_parts(images, self.accumulate, shares)
        if self.mesh is not None:
            layout = mesh_lib.sharded(self.mesh, axis=1)
            parts = jax.lax.with_sharding_constraint(parts, layout)
        one = jax.checkpoint(functools.partial(self._backbone, params, stats))
        features, updated = jax.lax.map(one, parts)
        # Statistics move linearly: the mean over parts, each from the same start, is the undivided
        # step's.
        updated = jax.tree.map(lambda s: s.mean(0), updated)
        return mesh_lib.divide(whole(features, shares), self.mesh), updated

    def _shares(self) -> int:
        """Count the shares in which parts are taken: one a device, so that rows stay there."""
        devices = 1 if self.mesh is None else self.mesh.size
        # Where a BatchNorm group lies on several devices, rows have to move.
        stays = self.bn_groups is None or self.bn_groups % (devices * self.accumulate) == 0
        return devices if stays else 1
