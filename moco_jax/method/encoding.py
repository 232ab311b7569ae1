"""From images to queries and keys under given parameters: normalisation, backbone (in parts if asked), head.

Going through a batch in parts is gradient accumulation without its usual error: only the backbone runs in parts, its
outputs are put together again, and heads and loss see the whole batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from moco_jax.encoders import Encoder
from moco_jax.method import info_nce
from moco_jax.parallel import mesh as mesh_lib


def to_network_input(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype
) -> jax.Array:
    """uint8 images `[B, H, W, channels]` -> `(x / 255 - mean) / std` per channel, worked out in at least float32."""
    exact = jnp.promote_types(dtype, jnp.float32)
    center, scale = jnp.asarray(mean, exact), jnp.asarray(std, exact)
    return ((images.astype(exact) / 255 - center) / scale).astype(dtype)


def in_parts(x: jax.Array, parts: int, devices: int) -> jax.Array:
    """`x` `[B, ...]` -> `[parts, B / parts, ...]`, every part with an equal share of each of `devices`."""
    shares = x.reshape(devices, parts, -1, *x.shape[1:])
    return shares.swapaxes(0, 1).reshape(parts, -1, *x.shape[1:])


def whole(x: jax.Array, devices: int) -> jax.Array:
    """What `in_parts` undid: `[parts, B / parts, ...]` -> `[B, ...]`."""
    parts = x.shape[0]
    shares = x.reshape(parts, devices, -1, *x.shape[2:])
    return shares.swapaxes(0, 1).reshape(-1, *x.shape[2:])


class Encoding:
    """Queries and keys of images, as pure functions of parameters and statistics."""

    def __init__(
        self,
        encoder: Encoder,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: Any,
        accumulate: int = 1,
        bn_groups: int | None = None,
        mesh: Mesh | None = None,
    ):
        """`mean`, `std` and `dtype` as in `to_network_input`.

        `accumulate`: parts in which the backbone goes through a batch. Each part is forgotten and made once more on the
        way back, so that memory holds one part at a time, at the cost of a second forward pass.
        `bn_groups`: BatchNorm groups that the backbone has in a whole batch, None without BatchNorm; a part holds whole
        groups, `bn_groups / accumulate` of them, which is what the backbone itself was made with.
        """
        self.encoder, self.mesh, self.accumulate = encoder, mesh, accumulate
        devices = 1 if mesh is None else mesh.size
        # Rows stay on their devices, unless a BatchNorm group lies on several.
        stays = bn_groups is None or bn_groups % (devices * accumulate) == 0
        self._shares = devices if stays else 1
        self._input = lambda images: to_network_input(images, mean, std, dtype)

    def query(self, params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        """uint8 `[B, H, W, channels]` -> unit vectors `[B, C]` (with the predictor), and the new statistics."""
        return self._encode(self.encoder.query, params, stats, images)

    def key(self, params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        """uint8 `[B, H, W, channels]` -> unit vectors `[B, C]` (without the predictor), and the new statistics."""
        return self._encode(self.encoder.project, params, stats, images)

    def _encode(
        self, head: Callable, params: Any, stats: Any, images: jax.Array
    ) -> tuple[jax.Array, Any]:
        backbone = self._backbone if self.accumulate == 1 else self._backbone_in_parts
        features, updated = backbone(params, stats, images)
        stats = stats | updated
        found, updated = self.encoder.apply(
            {"params": params, "batch_stats": stats}, features, train=True, method=head, mutable=["batch_stats"]
        )  # fmt: skip
        return info_nce.normalize(found), stats | updated.get("batch_stats", {})

    def _backbone(self, params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        features, updated = self.encoder.apply(
            {"params": params, "batch_stats": stats}, self._input(images), train=True,
            method=self.encoder.features, mutable=["batch_stats"],
        )  # fmt: skip
        return features, updated.get("batch_stats", {})

    def _backbone_in_parts(
        self, params: Any, stats: Any, images: jax.Array
    ) -> tuple[jax.Array, Any]:
        devices = self._shares
        parts = in_parts(images, self.accumulate, devices)
        if self.mesh is not None:
            layout = mesh_lib.sharded(self.mesh, axis=1)
            parts = jax.lax.with_sharding_constraint(parts, layout)
        one = jax.checkpoint(lambda part: self._backbone(params, stats, part))
        features, updated = jax.lax.map(one, parts)
        # Statistics move linearly: the mean over parts, each from the same start, is the undivided step's.
        updated = jax.tree.map(lambda s: s.mean(0), updated)
        return mesh_lib.divide(whole(features, devices), self.mesh), updated
