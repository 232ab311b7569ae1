"""Encoders by name: a backbone that pools an image to features, and a head that projects them.

To add one, write a Linen module with the fields `width`, `stem`, `bn_groups`, `dtype` and `reduce` that maps images
`[B, H, W, 3]` and `train` to features `[B, D]`, and name it in `BACKBONES`. To add a head, write a module
with the fields of those in `heads.py` that maps `[B, D]` and `train` to `[B, dim]`, and name it in `HEADS`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from moco_jax.encoders.heads import BatchNormHead, LinearHead, MLPHead
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
HEADS: dict[str, Callable[..., nn.Module]] = {
    "linear": LinearHead,
    "mlp": MLPHead,
    "v3_resnet": partial(BatchNormHead, 2, True),
    "v3_vit": partial(BatchNormHead, 3, True),
}
PREDICTORS: dict[str, Callable[..., nn.Module] | None] = {
    "none": None,
    "v3_resnet": partial(BatchNormHead, 2, False),
    "v3_vit": partial(BatchNormHead, 2, True),
}


def has_batch_norm(name: str) -> bool:
    """Whether the backbone `name` has BatchNorm, which looks at whole groups of images at once."""
    return not name.startswith("vit_") or name.startswith("vit_conv_")


class Encoder(nn.Module):
    """A backbone with a head on it, and a predictor on that where the method has one (MoCo v3).

    Variables: `{'params': {'backbone', 'head', 'predictor'}, 'batch_stats': ...}`; the momentum encoder's are the same
    without the predictor.
    """

    backbone: nn.Module
    head: nn.Module
    predictor: nn.Module | None = None

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Images `[B, H, W, 3]` -> projections `[B, dim]`, not normalised, at least float32."""
        return self.project(self.backbone(images, train), train)

    def predict(self, images: jax.Array, train: bool = False) -> jax.Array:
        """As a call, with the predictor on top where there is one: what queries are."""
        return self.query(self.backbone(images, train), train)

    def project(self, features: jax.Array, train: bool = False) -> jax.Array:
        """Pooled features `[B, D]` -> what keys are, `[B, dim]`."""
        return self.head(features, train)

    def query(self, features: jax.Array, train: bool = False) -> jax.Array:
        """Pooled features `[B, D]` -> what queries are, `[B, dim]`."""
        projected = self.head(features, train)
        return projected if self.predictor is None else self.predictor(projected, train)

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Images `[B, H, W, 3]` -> pooled features `[B, D]` before the head, at least float32."""
        return self.backbone(images, train)


def create(
    name: str,
    *,
    head: str = "linear",
    head_width: int = 0,
    predictor: str = "none",
    dim: int = 128,
    width: int | None = None,
    stem: str = "imagenet",
    bn_groups: int = 1,
    accumulate: int = 1,
    zero_init_residual: bool = False,
    dtype: Any = jnp.float32,
    reduce: str = "parameter",
) -> Encoder:
    """The encoder `name` with its head.

    Args:
        name: a key of `BACKBONES`.
        head: a key of `HEADS`; 'linear' in MoCo v1, 'mlp' in v2.
        head_width: features between the layers of head and predictor; 0 is each one's own.
        predictor: a key of `PREDICTORS`; only MoCo v3 has one.
        dim: size of the projection.
        width: channels of the stem, all others in proportion; None is the architecture's own.
        stem: 'imagenet', 'cifar' or 'cifar_stride2', see `ResNet`.
        bn_groups: G, groups of samples that share BatchNorm statistics; G must divide the batch.
        accumulate: parts in which the backbone goes through a batch; each holds `bn_groups / accumulate` groups.
        zero_init_residual: a ResNet's blocks start as the identity: the scale of their last BatchNorm is 0.
        dtype: compute dtype; parameters, statistics and outputs are at least float32.
        reduce: precision in which weights' gradients are summed, a member of `layers.REDUCE`.

    Raises:
        UserError: unknown `name`, `head`, `predictor` or `stem`.
    """
    for setting, value, known in (
        ("encoder", name, BACKBONES),
        ("head", head, HEADS),
        ("predictor", predictor, PREDICTORS),
        ("stem", stem, STEMS),
        ("reduce", reduce, REDUCE),
    ):
        if value not in known:
            raise UserError(f"{setting}={value!r} is unknown; known are {', '.join(known)}")
    own_width = {} if width is None else {"width": width}
    backbone = BACKBONES[name](
        stem=stem, bn_groups=max(bn_groups // accumulate, 1), dtype=dtype, reduce=reduce,
        zero_init_residual=zero_init_residual, **own_width,
    )  # fmt: skip
    common = dict(hidden=head_width, bn_groups=bn_groups, dtype=dtype, reduce=reduce)
    on_top = PREDICTORS[predictor]
    return Encoder(backbone, HEADS[head](dim, **common), on_top and on_top(dim, **common))
