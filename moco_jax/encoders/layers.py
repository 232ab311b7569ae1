"""Convolution and dense layer with a chosen precision for the sums of their weights' gradients.

These gradients add up over the images of a batch, on a device and then between devices. With
bfloat16 activations JAX's own rules round each device's sum to bfloat16 before it travels; here
it stays in the parameters' dtype unless `reduce` is 'compute'.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

REDUCE = ("parameter", "compute")
FEW_PIXELS = 2  # a side of a result, up to which XLA's convolutions on CPUs are slow


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    pad = dilation * (kernel.shape[0] // 2)
    return lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride, stride),
        [(pad, pad)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int, reduce: str, dilation: int = 1
) -> jax.Array:
    """Convolve `x` `[B, H, W, C]` with `kernel` `[k, k, C, D]`, k odd, in the dtype of `x`.

    `x` is padded by `dilation * (k // 2)` pixels on every side.

    Args:
        x: images.
        kernel: of at least the precision of `x`.
        stride: in both directions.
        reduce: the dtype in which the kernel's gradient is summed: that of the 'parameter' or
            that of 'compute'.
        dilation: pixels from one tap of the kernel to the next.
    """
    if x.dtype == kernel.dtype:
        # Both dtypes are the same, so nothing is rounded on the way, and JAX's own gradient is the
        # fastest on CPUs (69 ms beside 97, a 3x3 kernel of 64 channels at 32 px, 64 images, two
        # cores), but where a product of matrices is.
        if kernel.shape[0] == 1 or max(x.shape[1:3]) <= FEW_PIXELS * stride:
            return convolve_by_product(x, kernel, stride, dilation)
        return _convolve(x, kernel, stride, dilation)
    return mixed_convolve(x, kernel, stride, reduce, dilation)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_by_product(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """Convolve as `convolve` does, on CPUs by a product of matrices.

    For kernels of one pixel: XLA for CPUs makes a convolution of the kernel's gradient too, and
    turns the images round to `[C, H, W, B]` for it, which took a third of the step of a ResNet-50.
    For results of one or two pixels: its convolutions take up to a hundred times as long there.
    """
    by_product = partial(_by_product, stride=stride, dilation=dilation)
    as_convolution = partial(_convolve, stride=stride, dilation=dilation)
    return lax.platform_dependent(x, kernel, cpu=by_product, default=as_convolution)


def _by_product(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    side, pad = kernel.shape[0], dilation * (kernel.shape[0] // 2)
    height, width = (-(-pixels // stride) for pixels in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    seen = [
        padded[:, row : row + stride * height : stride, column : column + stride * width : stride]
        for row in range(0, dilation * side, dilation)
        for column in range(0, dilation * side, dilation)
    ]
    # Rows of pixels: with more axes XLA would again turn the images round for the gradient.
    rows = jnp.concatenate(seen, -1).reshape(-1, side * side * x.shape[-1])
    return (rows @ kernel.reshape(-1, kernel.shape[-1])).reshape(len(x), height, width, -1)


def _by_product_forward(x: jax.Array, kernel: jax.Array, stride: int, dilation: int):
    return convolve_by_product(x, kernel, stride, dilation), (x, kernel)


def _by_product_backward(
    stride: int, dilation: int, saved: tuple[jax.Array, jax.Array], g: jax.Array
):
    def gradients(form, x: jax.Array, kernel: jax.Array, g: jax.Array):
        return jax.vjp(partial(form, stride=stride, dilation=dilation), x, kernel)[1](g)

    by_product, as_convolution = partial(gradients, _by_product), partial(gradients, _convolve)
    return lax.platform_dependent(*saved, g, cpu=by_product, default=as_convolution)


convolve_by_product.defvjp(_by_product_forward, _by_product_backward)


def _product_of_matrices(x: jax.Array, g: jax.Array, dtype: Any) -> jax.Array:
    """Sum `x` `[..., C]` times `g` `[..., D]` over all rows: `[C, D]` in `dtype`."""
    x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    return lax.dot_general(x, g, (((0,), (0,)), ((), ())), preferred_element_type=dtype)


def _product_over_rows(x: jax.Array, g: jax.Array, dtype: Any) -> jax.Array:
    """Compute what `_product_of_matrices` does; but for CPUs with the axes as they are.

    With more than two axes XLA for CPUs turns `x` round first, which takes longer than the product.
    """

    def as_they_are(x: jax.Array, g: jax.Array) -> jax.Array:
        rows = tuple(range(x.ndim - 1))
        return lax.dot_general(x, g, ((rows, rows), ((), ())), preferred_element_type=dtype)

    if x.ndim == 2:
        return as_they_are(x, g)
    product = partial(_product_of_matrices, dtype=dtype)
    return lax.platform_dependent(x, g, cpu=product, default=as_they_are)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def mixed_convolve(
    x: jax.Array, kernel: jax.Array, stride: int, reduce: str, dilation: int
) -> jax.Array:
    """Convolve as `convolve` does, with the kernel's gradient summed in the precision `reduce`."""
    return _convolve(x, kernel, stride, dilation)


def _convolve_forward(x: jax.Array, kernel: jax.Array, stride: int, reduce: str, dilation: int):
    return _convolve(x, kernel, stride, dilation), (x, kernel)


def _convolve_backward(
    stride: int, reduce: str, dilation: int, saved: tuple[jax.Array, jax.Array], g: jax.Array
):
    x, kernel = saved
    (x_gradient,) = jax.vjp(lambda x: _convolve(x, kernel, stride, dilation), x)[1](g)
    # Each tap of the kernel sums the products of `g`, spread by the stride, with the part of the
    # padded `x` that lies below it.
    reach = dilation * (kernel.shape[0] - 1)
    pad = reach // 2
    pads = [
        (pad, reach + 1 + (out - 1) * stride - side - pad)
        for side, out in zip(x.shape[1:3], g.shape[1:3], strict=True)
    ]
    kernel_gradient = lax.conv_general_dilated(
        x,
        g,
        (dilation, dilation),
        pads,
        rhs_dilation=(stride, stride),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        preferred_element_type=kernel.dtype if reduce == "parameter" else x.dtype,
    )
    return x_gradient, kernel_gradient.astype(kernel.dtype)


mixed_convolve.defvjp(_convolve_forward, _convolve_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array, reduce: str) -> jax.Array:
    """Compute `x` `[..., C]` times `kernel` `[C, D]` plus `bias` `[D]`, in the dtype of `x`.

    `reduce` as in `convolve`.
    """
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


def _affine_forward(x: jax.Array, kernel: jax.Array, bias: jax.Array, reduce: str):
    return affine(x, kernel, bias, reduce), (x, kernel)


def _affine_backward(reduce: str, saved: tuple[jax.Array, jax.Array], g: jax.Array):
    x, kernel = saved
    dtype = kernel.dtype if reduce == "parameter" else x.dtype
    kernel_gradient = _product_over_rows(x, g, dtype)
    bias_gradient = jnp.sum(g, tuple(range(g.ndim - 1)), dtype=dtype)
    exact = (kernel_gradient.astype(kernel.dtype), bias_gradient.astype(kernel.dtype))
    return g @ kernel.astype(x.dtype).T, *exact


affine.defvjp(_affine_forward, _affine_backward)


class Conv(nn.Module):
    """A convolution without bias, padded by half its odd `kernel` on every side.

    Attributes:
        channels: out.
        kernel: side of the kernel.
        stride: in both directions.
        dtype: compute dtype; the parameter `kernel` `[k, k, C, channels]` is at least float32.
        reduce: see `convolve`.
        kernel_init: initialiser.
        dilation: see `convolve`; the padding is as much wider.
    """

    channels: int
    kernel: int
    stride: int
    dtype: Any
    reduce: str
    kernel_init: nn.initializers.Initializer
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve `[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), channels]`."""
        shape = (self.kernel, self.kernel, x.shape[-1], self.channels)
        exact = jnp.promote_types(self.dtype, jnp.float32)
        kernel = self.param("kernel", self.kernel_init, shape, exact)
        return convolve(x.astype(self.dtype), kernel, self.stride, self.reduce, self.dilation)


class Dense(nn.Module):
    """A dense layer.

    Attributes:
        dim: features out.
        dtype: compute dtype; the parameters `kernel` `[C, dim]` and `bias` `[dim]` are at least
            float32.
        reduce: see `convolve`.
        initializer: of both.
        use_bias: whether there is a bias.
    """

    dim: int
    dtype: Any
    reduce: str
    initializer: nn.initializers.Initializer
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., C]` to `[..., dim]`, in `dtype`."""
        exact = jnp.promote_types(self.dtype, jnp.float32)
        kernel = self.param("kernel", self.initializer, (x.shape[-1], self.dim), exact)
        if self.use_bias:
            bias = self.param("bias", self.initializer, (self.dim,), exact)
        else:
            bias = jnp.zeros((self.dim,), exact)
        return affine(x.astype(self.dtype), kernel, bias, self.reduce)
