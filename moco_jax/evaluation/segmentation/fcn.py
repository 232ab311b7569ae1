"""The fully convolutional network of MoCo v1's appendix A.5.

A ResNet whose last stage has dilation 2 and stride 1, two 3x3 convolutions of dilation 6, and a
classifier of each place, whose logits are resized to the image. Images of many sizes go through
it at once.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from moco_jax.encoders.layers import Conv
from moco_jax.encoders.norm import BatchNorm
from moco_jax.encoders.resnet import ResNet, kaiming_normal


class Head(nn.Module):
    """Two dilated 3x3 convolutions with BatchNorm and ReLU, and a classifier of each place.

    Attributes:
        classes: their number.
        dtype: compute dtype; parameters, statistics and logits are at least float32.
        reduce: see `layers.convolve`.
        channels: of the convolutions.
        dilation: of the convolutions.
    """

    classes: int
    dtype: Any
    reduce: str
    channels: int = 256
    dilation: int = 6

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Compute logits `[B, h, w, classes]` from `[B, h, w, D]`."""
        for i in (1, 2):
            x = Conv(
                self.channels,
                3,
                1,
                self.dtype,
                self.reduce,
                kaiming_normal,
                self.dilation,
                name=f"conv{i}",
            )(x)
            x = nn.relu(BatchNorm(dtype=self.dtype, name=f"bn{i}")(x, train))
        exact = jnp.promote_types(self.dtype, jnp.float32)
        start = nn.initializers.normal(0.01)
        x = Conv(self.classes, 1, 1, exact, self.reduce, start, name="classifier")(x)
        return x + self.param("bias", nn.initializers.zeros, (self.classes,), exact)


class FCN(nn.Module):
    """A ResNet with a head that classifies places.

    Variables: `{'params': {'backbone', 'head'}, 'batch_stats': ...}`; the backbone's are those
    of the ResNet that was pretrained.
    """

    backbone: ResNet
    head: Head

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Compute logits `[B, h, w, classes]` from normalised images `[B, H, W, C]`.

        A place is 16 pixels wide with the 7x7 stem.
        """
        return self.head(self.backbone.feature_map(images, train), train)


def create(backbone: ResNet, classes: int, dtype: Any, **head: Any) -> FCN:
    """Build the FCN on a pretrained ResNet: dilated, in `dtype`, BatchNorm over whole batches.

    `head`: fields of `Head`.
    """
    dilated = backbone.clone(dilated=True, bn_groups=1, dtype=dtype, parent=None)
    return FCN(dilated, Head(classes, dtype, backbone.reduce, **head))


def _places(sizes: jax.Array, shape: tuple[int, ...], full: tuple[int, ...]) -> jax.Array:
    """Return the part of a map of `shape` that images of `sizes` cover: int `[B, 2]`.

    `sizes`: int `[B, 2]`, of images padded to `full`.
    """
    return -(-sizes * jnp.asarray(shape) // jnp.asarray(full))


def _inside(x: jax.Array, sizes: jax.Array, full: tuple[int, ...]) -> jax.Array:
    """Set `x` `[B, h, w, C]` to zero where there is no image."""
    height, width = x.shape[1:3]
    ends = _places(sizes, (height, width), full)
    rows = jnp.arange(height) < ends[:, :1]
    columns = jnp.arange(width) < ends[:, 1:]
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], x, 0)


def apply_padded(network: FCN, variables: Any, images: jax.Array, sizes: jax.Array) -> jax.Array:
    """Compute logits of padded images, in evaluation mode, as if there were no padding.

    Images are padded below and on the right. Without padding a convolution meets zeros beyond
    the image's border. So it does here: the inputs of all convolutions and outputs of all
    BatchNorms (after which the pooling comes) are zero there.

    Args:
        network, variables: the FCN.
        images: `[B, H, W, C]`, normalised; H and W multiples of all strides together.
        sizes: int `[B, 2]`, height and width of each.

    Returns:
        Logits `[B, h, w, classes]`; those beyond `ceil(sizes * h / H)` mean nothing.
    """
    full = images.shape[1:3]

    def at_borders(next_function, arguments, named, context):
        module, called = context.module, context.method_name == "__call__"
        if called and isinstance(module, Conv):
            return next_function(_inside(arguments[0], sizes, full), *arguments[1:], **named)
        output = next_function(*arguments, **named)
        return _inside(output, sizes, full) if called and isinstance(module, BatchNorm) else output

    with nn.intercept_methods(at_borders):
        logits: Any = network.apply(variables, images, train=False)
    return logits


def _weights(inner: jax.Array, outer: jax.Array, places: int, pixels: int) -> jax.Array:
    """Return the share `[B, pixels, places]` that each place has in each pixel.

    Sides are of `inner` places and `outer` pixels, int `[B]`.
    """
    exact = jnp.result_type(float)
    inner, outer = (x[:, None].astype(exact) for x in (inner, outer))
    at = (jnp.arange(pixels) + 0.5) * inner / outer - 0.5
    at = jnp.clip(at, 0, inner - 1)
    return jnp.maximum(1 - jnp.abs(at[..., None] - jnp.arange(places)), 0)


def resize(logits: jax.Array, full: tuple[int, ...], sizes: jax.Array | None = None) -> jax.Array:
    """Resize logits `[B, h, w, K]` of images `[B, H, W]` to `[B, H, W, K]`.

    Interpolation is bilinear, with the centres of pixels as PyTorch's `align_corners=False`.

    Args:
        logits: of each place.
        full: H and W.
        sizes: int `[B, 2]`, where the images are padded as in `apply_padded`; pixels beyond mean
            nothing.
    """
    shape = logits.shape[1:3]
    if sizes is None:
        outer = jnp.tile(jnp.asarray(full), (len(logits), 1))
        inner = jnp.tile(jnp.asarray(shape), (len(logits), 1))
    else:
        outer, inner = sizes, _places(sizes, shape, full)
    rows, columns = (_weights(inner[:, d], outer[:, d], shape[d], full[d]) for d in (0, 1))
    tall = jnp.einsum("byh,bhwk->bywk", rows, logits, precision="highest")
    return jnp.einsum("bxw,bywk->byxk", columns, tall, precision="highest")
