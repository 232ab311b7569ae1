"""ResNet as torchvision defines it, so that weights pass both ways without loss.

Strides sit on the 3x3 convolution, padding is explicit and symmetric ('SAME' would shift by a
pixel), and module names follow torchvision's.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from moco_jax.base.errors import UserError
from moco_jax.encoders.layers import Conv
from moco_jax.encoders.norm import BatchNorm
from moco_jax.encoders.pooling import max_pool


class Stem(NamedTuple):
    """The first convolution and what follows it.

    Attributes:
        kernel, stride: of the convolution.
        pool: whether the 3x3/2 max-pool follows.
        padding: pixels on each side of the image.
        initializer: of the convolution's kernel.
        relu: whether a ReLU follows its BatchNorm.
    """

    kernel: int
    stride: int
    pool: bool
    padding: int
    initializer: nn.initializers.Initializer
    relu: bool = True


kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# PyTorch's default, U(+-1 / sqrt(fan_in)): the authors' CIFAR demo, solo-learn and lightly replace
# torchvision's first convolution by a fresh layer, which starts with this default.
fresh_layer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

# 'cifar' is the authors' demo's, 'cifar_stride2' this project's own for small images. The last two
# belong to networks that others trained: solo-learn's for CIFAR, lightly's cut from its ResNet.
STEMS = {
    "imagenet": Stem(7, 2, True, 3, kaiming_normal),
    "cifar": Stem(3, 1, False, 1, fresh_layer),
    "cifar_stride2": Stem(3, 2, False, 1, kaiming_normal),
    "cifar_pad2": Stem(3, 1, False, 2, fresh_layer),
    "cifar_no_relu": Stem(3, 1, False, 1, fresh_layer, relu=False),
}


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times the channels out.

    Attributes:
        channels: of the inner convolutions.
        stride: of the first 3x3 convolution and of the shortcut.
        bottleneck: which of the two kinds.
        bn_groups: G, groups of samples that share BatchNorm statistics.
        dtype: compute dtype.
        reduce: precision of the kernels' gradients, see `layers.convolve`.
        zero_init_residual: the scale of the last BatchNorm starts at 0, the block as the identity.
        dilation: of its 3x3 convolutions.
    """

    channels: int
    stride: int
    bottleneck: bool
    bn_groups: int
    dtype: Any
    reduce: str
    zero_init_residual: bool = False
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `[B, H, W, C]` to `[B, H / stride, W / stride, channels (x 4 in a bottleneck)]`."""
        norm = partial(BatchNorm, groups=self.bn_groups, dtype=self.dtype)
        conv = partial(Conv, dtype=self.dtype, reduce=self.reduce, kernel_init=kaiming_normal)
        inner, outer = self.channels, self.channels * (4 if self.bottleneck else 1)
        if self.bottleneck:
            plan = [(inner, 1, 1), (inner, 3, self.stride), (outer, 1, 1)]
        else:
            plan = [(inner, 3, self.stride), (outer, 3, 1)]

        y = x
        for i, (channels, kernel, stride) in enumerate(plan, start=1):
            y = conv(channels, kernel, stride, dilation=self.dilation, name=f"conv{i}")(y)
            zero = self.zero_init_residual and i == len(plan)
            init = nn.initializers.zeros if zero else nn.initializers.ones
            y = norm(name=f"bn{i}", scale_init=init)(y, train)
            y = nn.relu(y) if i < len(plan) else y
        if self.stride > 1 or x.shape[-1] != outer:
            x = conv(outer, 1, self.stride, name="downsample_conv")(x)
            x = norm(name="downsample_bn")(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network up to its average pooling (He et al. 2015, arXiv 1512.03385).

    Attributes:
        stage_sizes: blocks in each stage; stage i has `width * 2**i` inner channels.
        bottleneck: which kind of block.
        width: channels of the stem; all others follow. 64 is the original, 128 and 256 are the
            R50w2x and R50w4x of MoCo v1, which widen every layer.
        stem: a key of `STEMS`: 'imagenet' (7x7/2 and max-pool), 'cifar' (3x3/1), 'cifar_stride2'
            (3x3/2), 'cifar_pad2' (3x3/1 on the image padded by two pixels) or 'cifar_no_relu'
            (3x3/1, no ReLU after its BatchNorm).
        bn_groups: G, groups of samples that share BatchNorm statistics.
        dtype: compute dtype; parameters and statistics are at least float32.
        reduce: precision of the kernels' gradients, see `layers.convolve`.
        zero_init_residual: see `Block`.
        dilated: the last stage has stride 1 and dilation 2, for features at twice the resolution
            under the same weights.
    """

    stage_sizes: Sequence[int]
    bottleneck: bool
    width: int = 64
    stem: str = "imagenet"
    bn_groups: int = 1
    dtype: Any = jnp.float32
    reduce: str = "parameter"
    zero_init_residual: bool = False
    dilated: bool = False

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Compute features `[B, D]`, at least float32, from normalised images `[B, H, W, C]`."""
        x = self.feature_map(x, train)
        return jnp.mean(x, (1, 2), dtype=jnp.promote_types(self.dtype, jnp.float32))

    @nn.compact
    def feature_map(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Compute the features before the average: `[B, h, w, D]` in `dtype`.

        h and w are the sides of the images divided by all strides.
        """
        if self.stem not in STEMS:
            raise UserError(f"stem={self.stem!r} is unknown; use one of {', '.join(STEMS)}")
        stem = STEMS[self.stem]
        beyond = stem.padding - stem.kernel // 2  # the convolution itself pads by half its kernel
        if beyond:
            x = jnp.pad(x, ((0, 0), (beyond, beyond), (beyond, beyond), (0, 0)))
        common = (self.dtype, self.reduce, stem.initializer)
        x = Conv(self.width, stem.kernel, stem.stride, *common, name="conv1")(x)
        x = BatchNorm(self.bn_groups, dtype=self.dtype, name="bn1")(x, train)
        x = nn.relu(x) if stem.relu else x
        if stem.pool:
            x = max_pool(x)
        for stage, blocks in enumerate(self.stage_sizes):
            last = self.dilated and stage == len(self.stage_sizes) - 1
            for i in range(blocks):
                x = Block(
                    channels=self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 and not last else 1,
                    bottleneck=self.bottleneck,
                    bn_groups=self.bn_groups,
                    dtype=self.dtype,
                    reduce=self.reduce,
                    zero_init_residual=self.zero_init_residual,
                    dilation=2 if last else 1,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
        return x
