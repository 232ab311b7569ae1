"""Random numbers drawn in a jitted program are TensorFlow's, to the last bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from moco_jax.data.views import philox


@pytest.mark.parametrize("seed", [0, 1, 17, 2**31, 2**32 + 5, 2**63 - 1, -1, -(2**40)])
def test_numbers_are_tensorflows_bit_for_bit(seed):
    rng = np.random.default_rng(abs(seed))
    edges = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 199 * 2**31 + 49_999, 2**62, 2**63 - 1]
    second = np.concatenate([edges, rng.integers(0, 2**63, 91)]).astype(np.uint64)
    high, low = (second >> np.uint64(32)).astype(np.uint32), second.astype(np.uint32)
    for count in (64, 30):
        drawn = jax.jit(philox.uniforms, static_argnums=(0, 3))(seed, high, low, count)
        for row, number in zip(np.asarray(drawn), second.astype(np.int64), strict=True):
            expected = tf.random.stateless_uniform([count], [seed, number], alg="philox").numpy()
            np.testing.assert_array_equal(row.view(np.int32), expected.view(np.int32))


def test_the_published_block_of_zeros():
    """The known answer for Philox 4x32-10 with counter and key 0 (Random123's kat_vectors)."""
    zero = jnp.zeros((), jnp.uint32)
    found = [int(x) for x in philox.philox((zero,) * 4, (zero,) * 2)]
    assert found == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_numbers_are_the_same_where_jax_has_64_bits(float64):
    low = jnp.asarray([3], jnp.uint32)
    found = philox.uniforms(5, jnp.zeros_like(low), low, 8)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(
        found[0], tf.random.stateless_uniform([8], [5, 3], alg="philox").numpy()
    )
