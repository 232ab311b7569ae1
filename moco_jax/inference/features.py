"""The one path from uint8 images to features: normalised, then encoded in evaluation mode."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn

from moco_jax.method.encoding import to_network_input

Encode = Callable[[Mapping[str, Any], jax.Array], jax.Array]


def make_features(
    encoder: nn.Module, kind: str, mean: Sequence[float], std: Sequence[float], dtype: Any
) -> Encode:
    """Return a pure function, to jit, from variables and uint8 `[B, H, W, C]` to `[B, D]`.

    Args:
        encoder: a `moco_jax.encoders.Encoder`.
        kind: 'backbone' for pooled features, 'output' for those after the head.
        mean, std: per channel, of images scaled to 0..1.
        dtype: of the images that the encoder is given.
    """
    method = encoder.features if kind == "backbone" else None

    def features(variables: Mapping[str, Any], images: jax.Array) -> Any:
        inputs = to_network_input(images, mean, std, dtype)
        return encoder.apply(variables, inputs, train=False, method=method)

    return features
