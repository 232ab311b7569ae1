"""The max-pool and its gradient equal XLA's own and PyTorch's, whatever ties there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from moco_jax.encoders.pooling import max_pool


def of_xla(x):
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def drawn(side, dtype):
    """Return images with many ties, as after a ReLU, and a cotangent of whole numbers.

    Sums of whole numbers are exact in any order.
    """
    rng = np.random.default_rng(sum(side))
    x = jnp.asarray(rng.integers(0, 4, (2, *side, 3)), dtype)
    return x, jnp.asarray(rng.integers(-9, 9, of_xla(x).shape), dtype)


@pytest.mark.parametrize(
    ("side", "dtype"),
    [
        *(((8, 8), dtype) for dtype in (jnp.float32, jnp.bfloat16, jnp.float64)),
        *((side, jnp.float32) for side in ((7, 9), (6, 5), (1, 2))),
    ],
)
def test_values_and_gradients_are_xlas_own(float64, side, dtype):
    x, g = drawn(side, dtype)
    expected, expected_back = jax.vjp(of_xla, x)
    found, back = jax.vjp(max_pool, x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(back(g)[0], expected_back(g)[0])
    assert back(g)[0].dtype == dtype


@pytest.mark.parametrize("side", [(8, 8), (7, 9)])
def test_a_tie_gives_the_gradient_to_the_pixel_that_pytorch_takes(side):
    torch = pytest.importorskip("torch", reason="install moco_jax[torch] for this test")
    x, g = drawn(side, jnp.float32)
    images = torch.tensor(np.array(x)).permute(0, 3, 1, 2).requires_grad_()
    torch.nn.functional.max_pool2d(images, 3, 2, 1).backward(
        torch.tensor(np.array(g)).permute(0, 3, 1, 2)
    )
    ours = jax.vjp(max_pool, x)[1](g)[0]
    np.testing.assert_array_equal(ours, images.grad.permute(0, 2, 3, 1).numpy())


def test_a_pixel_that_is_no_number_is_not_hidden():
    x = jnp.ones((1, 4, 4, 1)).at[0, 2, 2, 0].set(jnp.nan)
    np.testing.assert_array_equal(
        jnp.isnan(max_pool(x))[0, ..., 0], [[False, False], [False, True]]
    )
