"""Encoders by name: a backbone that pools an image to features, and a head that projects them.

To add one, write a Linen module with the fields `width`, `stem`, `bn_groups`, `dtype` and `reduce` that maps images
`[B, H, W, 3]` and `train` to features `[B, D]`, and name it in `BACKBONES`. To add a head, write a module
with `dim`, `dtype` and `reduce` that maps `[B, D]` to `[B, dim]`, and name it in `HEADS`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from moco_jax.encoders.heads import LinearHead, MLPHead
from moco_jax.encoders.layers import REDUCE
from moco_jax.encoders.resnet import STEMS, ResNet
from moco_jax.errors import UserError

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "resnet10": partial(ResNet, (1, 1, 1, 1), bottleneck=False),
    "resnet18": partial(ResNet, (2, 2, 2, 2), bottleneck=False),
    "resnet34": partial(ResNet, (3, 4, 6, 3), bottleneck=False),
    "resnet50": partial(ResNet, (3, 4, 6, 3), bottleneck=True),
    "resnet101": partial(ResNet, (3, 4, 23, 3), bottleneck=True),
    "resnet152": partial(ResNet, (3, 8, 36, 3), bottleneck=True),
    "resnet50w2": partial(ResNet, (3, 4, 6, 3), bottleneck=True, width=128),
    "resnet50w4": partial(ResNet, (3, 4, 6, 3), bottleneck=True, width=256),
}
HEADS: dict[str, Callable[..., nn.Module]] = {"linear": LinearHead, "mlp": MLPHead}


class Encoder(nn.Module):
    """A backbone with a head on it.

    Variables: `{'params': {'backbone', 'head'}, 'batch_stats': {'backbone'}}`.
    """

    backbone: nn.Module
    head: nn.Module

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Images `[B, H, W, 3]` -> projections `[B, dim]`, not normalised, at least float32."""
        return self.head(self.backbone(images, train))

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Images `[B, H, W, 3]` -> pooled features `[B, D]` before the head, at least float32."""
        return self.backbone(images, train)


def create(
    name: str,
    *,
    head: str = "linear",
    dim: int = 128,
    width: int | None = None,
    stem: str = "imagenet",
    bn_groups: int = 1,
    dtype: Any = jnp.float32,
    reduce: str = "parameter",
) -> Encoder:
    """The encoder `name` with its head.

    Args:
        name: a key of `BACKBONES`.
        head: a key of `HEADS`; 'linear' in MoCo v1, 'mlp' in v2.
        dim: size of the projection.
        width: channels of the stem, all others in proportion; None is the architecture's own.
        stem: 'imagenet', 'cifar' or 'cifar_stride2', see `ResNet`.
        bn_groups: G, groups of samples that share BatchNorm statistics; G must divide the batch.
        dtype: compute dtype; parameters, statistics and outputs are at least float32.
        reduce: precision in which weights' gradients are summed, a member of `layers.REDUCE`.

    Raises:
        UserError: unknown `name`, `head` or `stem`.
    """
    for setting, value, known in (
        ("encoder", name, BACKBONES),
        ("head", head, HEADS),
        ("stem", stem, STEMS),
        ("reduce", reduce, REDUCE),
    ):
        if value not in known:
            raise UserError(f"{setting}={value!r} is unknown; known are {', '.join(known)}")
    own_width = {} if width is None else {"width": width}
    backbone = BACKBONES[name](
        stem=stem, bn_groups=bn_groups, dtype=dtype, reduce=reduce, **own_width
    )
    return Encoder(backbone, HEADS[head](dim, dtype=dtype, reduce=reduce))
