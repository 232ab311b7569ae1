"""BatchNorm over groups: what it costs in communication, how exact it is, and what it refuses."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.encoders.norm import BatchNorm
from moco_jax.parallel import mesh as mesh_lib


def updated_by(module, x):
    variables = module.init(jax.random.key(0), x, False)
    return variables, *module.apply(variables, x, True, mutable=["batch_stats"])


@pytest.mark.parametrize("shape", [(12, 7), (12, 5, 4, 7)])
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_each_group_is_normalised_by_itself_from_any_affine_and_any_statistics(
    float64, shape, groups
):
    rng = np.random.default_rng(groups)
    x = rng.normal(2, 3, shape)
    scale, bias, mean = rng.normal(size=(3, 7))
    var = rng.uniform(0.5, 2, 7)
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": mean, "var": var},
    }
    module = BatchNorm(groups, dtype=jnp.float64)
    ours, updated = module.apply(variables, x, True, mutable=["batch_stats"])

    parts = [part.reshape(-1, 7) for part in np.split(x, groups)]
    wanted = [(p - p.mean(0)) / np.sqrt(p.var(0) + 1e-5) * scale + bias for p in parts]
    np.testing.assert_allclose(ours, np.concatenate(wanted).reshape(shape), rtol=1e-9, atol=1e-11)
    means, variances = [p.mean(0) for p in parts], [p.var(0, ddof=1) for p in parts]
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.9 * mean + 0.1 * np.mean(means, 0), rtol=1e-10)
    np.testing.assert_allclose(stats["var"], 0.9 * var + 0.1 * np.mean(variances, 0), rtol=1e-10)

    evaluated = module.apply(variables, x, False)
    wanted = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(evaluated, wanted, rtol=1e-9, atol=1e-11)


def test_statistics_of_bfloat16_images_are_as_exact_as_float32():
    """Held in bfloat16, a mean of 1 and a variance of 1 would be off by parts in a thousand."""
    x = jnp.asarray(np.random.default_rng(0).normal(1, 1, (16, 16, 16, 8)), jnp.bfloat16)
    _, out, updated = updated_by(BatchNorm(dtype=jnp.bfloat16), x)
    assert out.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64).reshape(-1, 8)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * exact.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * exact.var(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("groups", [8, 16])
def test_groups_that_fit_the_devices_move_nothing_but_channel_vectors(groups):
    """Forward, backward and update of 8 devices: the images stay; only `[C]` sums cross."""
    mesh = mesh_lib.create_mesh(jax.devices()[:8])
    module = BatchNorm(groups)
    x = jax.random.normal(jax.random.key(0), (32, 6, 6, 5))
    variables = module.init(jax.random.key(0), x, False)

    def loss(params, x):
        out, updated = module.apply(
            {**variables, "params": params}, x, True, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.sin(out)), (out, updated)

    step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    whole, rows = mesh_lib.replicated(mesh), mesh_lib.sharded(mesh)
    layout = ((whole, (rows, whole)), (whole, rows))
    program = jax.jit(step, in_shardings=(whole, rows), out_shardings=layout)
    text = program.lower(variables["params"], x).compile().as_text()
    assert not re.search(r"all-gather|all-to-all|collective-permute", text)
    shapes = re.findall(r"= (.*?) all-reduce(?:-start)?\(", text)
    sizes = [dims for shape in shapes for dims in re.findall(r"f32\[([\d,]*)\]", shape)]
    assert sizes
    assert set(sizes) <= {"", "5", "1,5", "1,1,1,5", "1,1,1,1,5"}

    split = program(variables["params"], jax.device_put(x, rows))
    alone = jax.jit(step)(variables["params"], x)
    for a, b in zip(jax.tree.leaves(split), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_batch_without_equal_groups_or_without_variance_is_refused():
    module = BatchNorm(groups=8)
    images = jnp.ones((250, 2, 2, 3))
    variables = module.init(jax.random.key(0), images, False)
    with pytest.raises(ValueError, match=r"batch_size=250 .* bn_groups=8; use 248 or 256"):
        module.apply(variables, images, True, mutable=["batch_stats"])
    with pytest.raises(ValueError, match="no variance"):
        module.apply(variables, images[:8, :1, :1], True, mutable=["batch_stats"])
    assert module.apply(variables, images, False).shape == images.shape
