"""What is written in another form for CPUs leaves the programs of TPUs and GPUs as they were."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from moco_jax.encoders import layers, norm, pooling

IMAGES, KERNEL = jnp.zeros((8, 6, 6, 4)), jnp.zeros((1, 1, 4, 5))
SMALL, WIDE = jnp.zeros((8, 3, 4, 4)), jnp.zeros((3, 3, 4, 5))


def convolve(x, kernel):
    return layers.convolve(x, kernel, 2, "parameter")


def plain_convolve(x, kernel):
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (2, 2), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def plain_pool(x):
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def normalize(x):
    return norm.normalize(x, jnp.ones(4), jnp.zeros(4), 2, 1e-5)[0]


def plain_normalize(x):
    grouped = x.reshape(2, 4, 6, 6, 4)
    mean = jnp.mean(grouped, (1, 2, 3), keepdims=True)
    var = jnp.maximum(jnp.mean(grouped * grouped, (1, 2, 3), keepdims=True) - mean * mean, 0)
    factor = jnp.ones(4) * jax.lax.rsqrt(var + 1e-5)
    return (grouped * factor + (jnp.zeros(4) - mean * factor)).reshape(x.shape)


def dense(x, kernel):
    return layers.affine(x, kernel[0, 0], jnp.zeros(5), "parameter")


def operations(function, inputs, platform):
    """Return all kinds of operations, with their shapes, of value and gradient on a platform.

    Without the choice of the platform: it is known when the program is compiled, and falls away.
    """

    def both(*inputs):
        out, back = jax.vjp(function, *inputs)
        return out, back(jnp.ones_like(out))

    lowered = jax.jit(both).trace(*inputs).lower(lowering_platforms=(platform,))
    lines = (line.strip() for line in lowered.as_text().splitlines() if " = " in line)
    choosing = ("stablehlo.case", ": tensor<i32>")
    return {re.sub(r"%[\w#]+", "%", x) for x in lines if not any(word in x for word in choosing)}


@pytest.mark.parametrize(
    ("ours", "plain", "inputs"),
    [
        (convolve, plain_convolve, (IMAGES, KERNEL)),
        (convolve, plain_convolve, (SMALL, WIDE)),
        (pooling.max_pool, plain_pool, (IMAGES,)),
        (normalize, plain_normalize, (IMAGES,)),
    ],
)
def test_the_program_is_that_of_the_plain_form(ours, plain, inputs):
    for platform in ("tpu", "cuda"):
        assert operations(ours, inputs, platform) == operations(plain, inputs, platform)
    assert operations(ours, inputs, "cpu") != operations(plain, inputs, "cpu")


def test_only_on_cpus_are_the_rows_of_a_dense_layer_put_together():
    products = {
        platform: [op for op in operations(dense, (IMAGES, KERNEL), platform) if "dot_gen" in op]
        for platform in ("tpu", "cuda", "cpu")
    }
    assert products["tpu"] == products["cuda"]
    assert any("contracting_dims = [0, 1, 2] x [0, 1, 2]" in op for op in products["tpu"])
    assert any("contracting_dims = [0] x [0]" in op for op in products["cpu"])
