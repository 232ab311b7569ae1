"""The Vision Transformer of MoCo v3: fixed positions, frozen patch projection.

It is that of section 4 of arXiv 2104.02057. Names and layouts are close to timm's, so that
weights pass both ways (`weights/timm.py`). The blocks are unrolled, which takes the TPU compiler
twice the time of `nn.scan` but half the memory for what is kept, and leaves each parameter an
array of its own, with the rank and the norm that optimizers and checkpoints look at.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from moco_jax.base.errors import UserError, nearest_multiples
from moco_jax.encoders.attention import ATTENTIONS
from moco_jax.encoders.heads import linear
from moco_jax.encoders.layers import Conv, Dense, affine
from moco_jax.encoders.norm import BatchNorm

REMATS = ("none", "block")


def sincos_positions(rows: int, columns: int, width: int) -> np.ndarray:
    """Compute the fixed positions of a grid of patches, float64 `[rows * columns, width]`.

    They go row by row. With omega_i = 10000^(-i / (width / 4)): sin(omega row), cos(omega row),
    sin(omega column), cos(omega column). The authors call the first half w and the second h, but
    their table is read row by row, as here.
    """
    omega = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    row, column = np.divmod(np.arange(rows * columns), columns)
    angles = row[:, None] * omega, column[:, None] * omega
    return np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)


def xavier(fan_in: int, fan_out: int) -> nn.initializers.Initializer:
    """Initialise weights uniform within +-sqrt(6 / (fan_in + fan_out)), biases (rank 1) zero."""
    bound = math.sqrt(6 / (fan_in + fan_out))

    def initializer(rng: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        if len(shape) == 1:
            return jnp.zeros(shape, dtype)
        return jax.random.uniform(rng, shape, dtype, -bound, bound)

    return initializer


class PatchProjection(nn.Module):
    """Multiplies each patch of `patch` x `patch` pixels by one matrix.

    Params: `kernel` `[patch, patch, 3, width]`, `bias`.
    """

    width: int
    patch: int
    dtype: Any
    reduce: str

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Project `[B, H, W, channels]` to `[B, H / patch, W / patch, width]`."""
        (batch, height, width, channels), side = images.shape, self.patch
        exact = jnp.promote_types(self.dtype, jnp.float32)
        init = xavier(channels * side**2, self.width)
        kernel = self.param("kernel", init, (side, side, channels, self.width), exact)
        bias = self.param("bias", init, (self.width,), exact)
        x = images.reshape(batch, height // side, side, width // side, side, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // side, width // side, -1)
        return affine(x.astype(self.dtype), kernel.reshape(-1, self.width), bias, self.reduce)


class ConvStem(nn.Module):
    """Four 3x3/2 convolutions with BatchNorm and ReLU, then a 1x1 convolution.

    They are those of arXiv 2106.14881, started as torch starts them.
    """

    width: int
    bn_groups: int
    dtype: Any
    reduce: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `[B, H, W, channels]` to `[B, H / 16, W / 16, width]`."""
        for i, part in enumerate((8, 4, 2, 1), start=1):
            # U(+-1/sqrt(fan_in)) has the variance 1 / (3 fan_in).
            init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
            name = f"conv{i}"
            x = Conv(self.width // part, 3, 2, self.dtype, self.reduce, init, name=name)(x)
            x = nn.relu(BatchNorm(self.bn_groups, dtype=self.dtype, name=f"bn{i}")(x, train))
        return linear(self.width, self.width, self.dtype, self.reduce, "proj")(x)


class Block(nn.Module):
    """A Transformer block: attention and an MLP of four times the width.

    Each reads the LayerNorm of what it is given, and its result is added to that. The sum stays
    in at least float32; products are computed in `dtype`. With probability `drop_path` an image
    goes past either of the two.
    """

    heads: int
    attention: str
    dtype: Any
    reduce: str
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, N, width]` to `[B, N, width]`."""
        width = x.shape[-1]
        dense = partial(Dense, dtype=self.dtype, reduce=self.reduce)
        square = xavier(width, width)  # query, key and value start as separate matrices
        drop = nn.Dropout(self.drop_path, (1, 2), deterministic=False, rng_collection="drop_path")

        y = layer_norm(self.dtype, "norm1")(x)
        y = dense(3 * width, initializer=square, name="qkv")(y)
        y = y.reshape(*y.shape[:2], 3, self.heads, width // self.heads)
        y = ATTENTIONS[self.attention](y[:, :, 0], y[:, :, 1], y[:, :, 2])
        x += drop(dense(width, initializer=square, name="proj")(y.reshape(x.shape)))

        y = layer_norm(self.dtype, "norm2")(x)
        y = dense(4 * width, initializer=xavier(width, 4 * width), name="fc1")(y)
        y = nn.gelu(y, approximate=False)
        return x + drop(dense(width, initializer=xavier(4 * width, width), name="fc2")(y))


def layer_norm(dtype: Any, name: str | None = None) -> nn.LayerNorm:
    """Create a LayerNorm to `dtype`; parameters and statistics are at least float32."""
    exact = jnp.promote_types(dtype, jnp.float32)
    return nn.LayerNorm(1e-6, dtype=dtype, param_dtype=exact, use_fast_variance=False, name=name)


class ViT(nn.Module):
    """A Vision Transformer up to its class token after the last LayerNorm.

    Attributes:
        depth: blocks.
        heads: of each block's attention; must divide the width. ViT-S of MoCo v3 has 12 (timm's
            own has 6).
        width: of a token; a multiple of 4, with the conv stem of 8.
        patch: side of a patch in pixels; 16 with the conv stem.
        conv_stem: convolutions in the place of the patch projection.
        stop_patch_gradient: no gradient reaches the patch projection, which stays as drawn (v3,
            section 4.2).
        remat: 'block' keeps only the blocks' inputs for the backward pass and computes each
            block again; 'none'.
        attention: 'plain' or 'lean', see `attention.py`.
        bn_groups: G, groups of samples that share BatchNorm statistics in the conv stem; no
            other part has any.
        dtype: compute dtype; parameters, the sum that the blocks add to, and statistics are at
            least float32.
        reduce: precision of the weights' gradients, see `layers.convolve`.
        drop_path: stochastic depth (arXiv 1603.09382) in training: the last block's probability,
            the others' rise to it from 0; needs random numbers, `rngs={'drop_path': key}`.
    """

    depth: int
    heads: int
    width: int
    patch: int = 16
    conv_stem: bool = False
    stop_patch_gradient: bool = True
    remat: str = "none"
    attention: str = "plain"
    bn_groups: int = 1
    dtype: Any = jnp.float32
    reduce: str = "parameter"
    drop_path: float = 0.0

    @property
    def frozen(self) -> tuple[str, ...]:
        """The top-level parameters that no gradient reaches."""
        return ("patch_embed",) if self.stop_patch_gradient else ()

    def require(self, *sides: int) -> None:
        """Check that `sides` pixels divide into patches, and the width into heads.

        Raises:
            UserError: they do not.
        """
        for side in sides:
            if side < self.patch or side % self.patch:
                raise UserError(
                    f"image_size={side} does not divide into patches of {self.patch}; "
                    f"{nearest_multiples(side, self.patch)}"
                )
        unit = math.lcm(self.heads, 8 if self.conv_stem else 4)
        if self.width % unit:
            raise UserError(
                f"width={self.width} does not divide into {self.heads} heads and the parts of"
                f" positions and stem; {nearest_multiples(self.width, unit)}"
            )

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Compute features `[B, width]`, at least float32, of normalised `[B, H, W, channels]`."""
        self.require(*images.shape[1:3])
        exact = jnp.promote_types(self.dtype, jnp.float32)
        if self.conv_stem:
            stem = ConvStem(self.width, self.bn_groups, self.dtype, self.reduce, name="patch_embed")
            x = stem(images, train)
        else:
            x = PatchProjection(
                self.width, self.patch, self.dtype, self.reduce, name="patch_embed"
            )(images)
        if self.stop_patch_gradient:
            x = jax.lax.stop_gradient(x)
        batch, rows, columns, width = x.shape
        positions = jnp.asarray(sincos_positions(rows, columns, width), exact)
        x = x.reshape(batch, rows * columns, width).astype(exact) + positions
        token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, width), exact)
        x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, width)), x], axis=1)
        block = nn.remat(Block) if self.remat == "block" else Block
        for i in range(self.depth):
            rate = self.drop_path * i / max(self.depth - 1, 1) if train else 0.0
            common = (self.heads, self.attention, self.dtype, self.reduce, rate)
            x = block(*common, name=f"blocks_{i}")(x)
        return layer_norm(exact, "norm")(x[:, 0])
