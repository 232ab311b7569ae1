"""Convolution and dense layer equal JAX's own, but bfloat16 rounds gradients only where it must."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.encoders import layers


def drawn(*shape, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), dtype)


def plain(x, kernel, stride, dilation):
    pad = dilation * (kernel.shape[0] // 2)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (7, 1), (3, 2), (5, 3)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [(8, 8), (7, 9), (16, 5), (2, 2), (4, 3), (1, 2)])
@pytest.mark.parametrize("function", [layers.convolve, layers.mixed_convolve])
def test_convolution_and_its_gradients_are_jaxs_own(
    float64, function, kernel, dilation, stride, side
):
    x, k = drawn(3, *side, 4), drawn(kernel, kernel, 4, 5)
    expected, expected_back = jax.vjp(lambda x, k: plain(x, k, stride, dilation), x, k)
    found, back = jax.vjp(lambda x, k: function(x, k, stride, "parameter", dilation), x, k)
    # A product of matrices (small results, kernels of one pixel) adds up in another order.
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    g = drawn(*expected.shape)
    for ours, theirs in zip(back(g), expected_back(g), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [(6,), (3, 2), (3, 2, 7)])
def test_dense_and_its_gradients_are_jaxs_own(float64, rows):
    x, k, b, g = drawn(*rows, 4), drawn(4, 5), drawn(5), drawn(*rows, 5)
    expected, expected_back = jax.vjp(lambda x, k, b: x @ k + b, x, k, b)
    found, back = jax.vjp(lambda x, k, b: layers.affine(x, k, b, "parameter"), x, k, b)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    for ours, theirs in zip(back(g), expected_back(g), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def of_convolution(x, k, reduce):
    return layers.convolve(x, k, 1, reduce)


def of_dense(x, k, reduce):
    return layers.affine(x, k, jnp.zeros(k.shape[-1]), reduce)


@pytest.mark.parametrize(
    ("function", "x_shape", "k_shape"),
    [(of_convolution, (64, 8, 8, 4), (3, 3, 4, 5)), (of_dense, (4096, 4), (4, 5))],
)
def test_bfloat16_gradients_keep_float32_unless_told(function, x_shape, k_shape):
    """Images are bfloat16, so a gradient rounded to it has no more digits than it can hold."""
    x, k = drawn(*x_shape, dtype=jnp.bfloat16), drawn(*k_shape, dtype=jnp.float32)

    def gradient(x, k, reduce):
        y, back = jax.vjp(lambda k: function(x, k, reduce), k)
        wave = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return back(wave.astype(jnp.bfloat16).astype(y.dtype))[0]

    exact = gradient(x.astype(jnp.float32), k, "parameter")
    kept, rounded = gradient(x, k, "parameter"), gradient(x, k, "compute")
    assert kept.dtype == rounded.dtype == jnp.float32
    np.testing.assert_array_equal(rounded, rounded.astype(jnp.bfloat16).astype(jnp.float32))
    scale = float(jnp.abs(exact).max())
    assert float(jnp.abs(kept - exact).max()) < 1e-5 * scale
    assert float(jnp.abs(rounded - exact).max()) > 1e-4 * scale
