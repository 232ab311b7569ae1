"""Encoders by name: a backbone that pools an image to features, and a head that projects them.

To add one, write a Linen module with the fields `width`, `bn_groups`, `dtype` and `reduce`, and
those of `OPTIONS` that mean something to it, that maps images `[B, H, W, channels]` and `train`
to features `[B, D]`, and name it in `BACKBONES`. It may have a property `frozen` and a method
`require`, see `frozen` and `check` here. To add a head, write a module with the fields of those
in `heads.py` that maps `[B, D]` and `train` to `[B, dim]`, and name it in `HEADS`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from moco_jax.base.errors import UserError
from moco_jax.encoders.attention import ATTENTIONS
from moco_jax.encoders.heads import BatchNormHead, LinearHead, MLPHead
from moco_jax.encoders.layers import REDUCE
from moco_jax.encoders.resnet import STEMS, ResNet
from moco_jax.encoders.vit import REMATS, ViT

BACKBONES: dict[str, partial[Any]] = {
    "resnet10": partial(ResNet, (1, 1, 1, 1), bottleneck=False),
    "resnet18": partial(ResNet, (2, 2, 2, 2), bottleneck=False),
    "resnet34": partial(ResNet, (3, 4, 6, 3), bottleneck=False),
    "resnet50": partial(ResNet, (3, 4, 6, 3), bottleneck=True),
    "resnet101": partial(ResNet, (3, 4, 23, 3), bottleneck=True),
    "resnet152": partial(ResNet, (3, 8, 36, 3), bottleneck=True),
    "resnet50w2": partial(ResNet, (3, 4, 6, 3), bottleneck=True, width=128),
    "resnet50w4": partial(ResNet, (3, 4, 6, 3), bottleneck=True, width=256),
    "vit_small": partial(ViT, 12, 12, width=384),
    "vit_base": partial(ViT, 12, 12, width=768),
    "vit_large": partial(ViT, 24, 16, width=1024),
    "vit_huge": partial(ViT, 32, 16, width=1280, patch=14),
    "vit_conv_small": partial(ViT, 11, 12, width=384, conv_stem=True, stop_patch_gradient=False),
    "vit_conv_base": partial(ViT, 11, 12, width=768, conv_stem=True, stop_patch_gradient=False),
}
# Options that only some backbones know, each with the value that leaves a backbone at its default.
OPTIONS: dict[str, Any] = {
    "stem": "imagenet",
    "zero_init_residual": False,
    "stop_patch_gradient": None,
    "remat": "none",
    "attention": "plain",
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
    """Return whether the backbone `name` has BatchNorm, which needs whole groups of images."""
    return not name.startswith("vit_") or name.startswith("vit_conv_")


class Encoder(nn.Module):
    """A backbone with a head on it, and a predictor on that where the method has one (MoCo v3).

    Variables: `{'params': {'backbone', 'head', 'predictor'}, 'batch_stats': ...}`; the momentum
    encoder's are the same without the predictor.
    """

    backbone: nn.Module
    head: nn.Module
    predictor: nn.Module | None = None

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Project images `[B, H, W, channels]` to `[B, dim]`, not normalised, at least float32."""
        return self.project(self.backbone(images, train), train)

    def predict(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Encode images to queries `[B, dim]`: head, then predictor where there is one."""
        return self.query(self.backbone(images, train), train)

    def project(self, features: jax.Array, train: bool = False) -> jax.Array:
        """Project pooled features `[B, D]` to keys `[B, dim]`."""
        return self.head(features, train)

    def query(self, features: jax.Array, train: bool = False) -> jax.Array:
        """Project pooled features `[B, D]` to queries `[B, dim]`, through a predictor if any."""
        projected = self.head(features, train)
        return projected if self.predictor is None else self.predictor(projected, train)

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Pool images `[B, H, W, channels]` to features `[B, D]`, at least float32."""
        return self.backbone(images, train)


def frozen(encoder: Encoder, params: Any) -> Any:
    """Mark the parameters of `encoder` that no gradient reaches: `params` as a tree of booleans.

    A backbone names such parameters, at its top level, in its property `frozen`; an optimizer
    leaves them out, decay and state too. `params` may lack head or predictor.
    """
    names = getattr(encoder.backbone, "frozen", ())

    def is_frozen(path: Any, _: Any) -> bool:
        return path[0].key == "backbone" and path[1].key in names

    return jax.tree_util.tree_map_with_path(is_frozen, params)


def frozen_in(encoder: Encoder) -> Callable[[Any], Any] | None:
    """Bind `frozen` to this `encoder`: a function of parameters; None where nothing is frozen."""
    return partial(frozen, encoder) if getattr(encoder.backbone, "frozen", ()) else None


def check(name: str, image_size: int, width: int | None = None, **options: Any) -> None:
    """Refuse what `create` would refuse, and images of `image_size` pixels that do not fit.

    Whether images fit is asked of the backbone's own `require(height, width)`, where it has one.

    Raises:
        UserError: names the setting, its value, and what works.
    """
    backbone = _backbone(name, width, options)
    require = getattr(backbone, "require", None)
    if require is not None:
        require(image_size, image_size)


def _backbone(name: str, width: int | None, options: Mapping[str, Any], **common: Any) -> nn.Module:
    module = BACKBONES[name]
    known: Any = module.func
    fields = {field.name for field in dataclasses.fields(known)}
    chosen = {key: value for key, value in options.items() if value != OPTIONS[key]}
    for key, value in chosen.items():
        if key not in fields:
            raise UserError(
                f"{key}={value!r} means nothing to {name}; leave it at {OPTIONS[key]!r}, "
                "or take another encoder"
            )
    own_width = {} if width is None else {"width": width}
    return module(**common, **chosen, **own_width)


def _require_known(**chosen: str) -> None:
    """Refuse, by a UserError that lists those known, a name that is in no table."""
    tables: dict[str, Mapping[str, Any] | tuple[str, ...]] = {
        "encoder": BACKBONES,
        "head": HEADS,
        "predictor": PREDICTORS,
        "stem": STEMS,
        "remat": REMATS,
        "attention": ATTENTIONS,
        "reduce": REDUCE,
    }
    for setting, value in chosen.items():
        if value not in tables[setting]:
            known = ", ".join(tables[setting])
            raise UserError(f"{setting}={value!r} is unknown; use one of {known}")


def create(
    name: str,
    *,
    head: str = "linear",
    head_width: int = 0,
    predictor: str = "none",
    dim: int = 128,
    width: int | None = None,
    stem: str = "imagenet",
    zero_init_residual: bool = False,
    stop_patch_gradient: bool | None = None,
    remat: str = "none",
    attention: str = "plain",
    bn_groups: int = 1,
    accumulate: int = 1,
    dtype: Any = jnp.float32,
    reduce: str = "parameter",
) -> Encoder:
    """Create an encoder: a backbone with its head, and a predictor where one is asked for.

    Args:
        name: a key of `BACKBONES`.
        head: a key of `HEADS`; 'linear' in MoCo v1, 'mlp' in v2.
        head_width: features between the layers of head and predictor; 0 is each one's own.
        predictor: a key of `PREDICTORS`; only MoCo v3 has one.
        dim: size of the projection.
        width: channels of a ResNet's stem, all others in proportion, or of a ViT's tokens; None
            is the architecture's own.
        stem: of a ResNet, a key of `resnet.STEMS`.
        zero_init_residual: of a ResNet: its blocks start as the identity.
        stop_patch_gradient: of a ViT: its patch projection stays as drawn; None: yes, unless it
            is a conv stem.
        remat: of a ViT, 'none' or 'block': blocks are computed again going backward.
        attention: of a ViT, a key of `attention.ATTENTIONS`.
        bn_groups: G, groups of samples that share BatchNorm statistics; G must divide the batch.
        accumulate: parts in which the backbone goes through a batch; each holds `bn_groups /
            accumulate` groups.
        dtype: compute dtype; parameters, statistics and outputs are at least float32.
        reduce: precision in which weights' gradients are summed, a member of `layers.REDUCE`.

    Raises:
        UserError: unknown `name`, `head`, `predictor`, `stem`, `remat` or `attention`, or an
            option of another kind of encoder.
    """
    options = dict(
        stem=stem,
        zero_init_residual=zero_init_residual,
        stop_patch_gradient=stop_patch_gradient,
        remat=remat,
        attention=attention,
    )
    known = dict(encoder=name, head=head, predictor=predictor, reduce=reduce)
    _require_known(**known, stem=stem, remat=remat, attention=attention)
    backbone = _backbone(
        name, width, options, bn_groups=max(bn_groups // accumulate, 1), dtype=dtype, reduce=reduce
    )
    common = dict(hidden=head_width, bn_groups=bn_groups, dtype=dtype, reduce=reduce)
    on_top = PREDICTORS[predictor]
    return Encoder(backbone, HEADS[head](dim, **common), on_top and on_top(dim, **common))
