"""Heads and predictors against PyTorch with the same weights, in training; their first weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.encoders import HEADS, PREDICTORS, create

torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install '.[torch]'")
from tests.method.torch_moco_v3 import batch_norm_mlp, mlp_variables


@pytest.mark.parametrize(
    ("table", "name", "layers", "last_norm"),
    [
        (HEADS, "v3_resnet", 2, True),
        (HEADS, "v3_vit", 3, True),
        (PREDICTORS, "v3_resnet", 2, False),
        (PREDICTORS, "v3_vit", 2, True),
    ],
)
def test_a_head_of_v3_equals_pytorchs(float64, table, name, layers, last_norm):
    head = table[name](6, hidden=10, dtype=jnp.float64)
    x = np.random.default_rng(0).normal(size=(12, 8))
    variables = head.init(jax.random.key(0), jnp.asarray(x), True)
    kernels = variables["params"]["fc1"]["kernel"]
    theirs = batch_norm_mlp(layers, 8, 10, 6, last_norm).double()
    same = jax.tree.structure(variables) == jax.tree.structure(mlp_variables(theirs))
    assert same, "other parameters than PyTorch's"
    variables = mlp_variables(theirs)
    variables = jax.tree.map(jnp.array, variables)
    ours, updated = head.apply(variables, jnp.asarray(x), True, mutable=["batch_stats"])
    expected = theirs.train()(torch.from_numpy(x))
    np.testing.assert_allclose(ours, expected.detach(), rtol=1e-10, atol=1e-12)
    after = head.apply({**variables, **updated}, jnp.asarray(x), False)
    np.testing.assert_allclose(after, theirs.eval()(torch.from_numpy(x)).detach(), atol=1e-12)
    assert float(jnp.abs(kernels).max()) <= 8**-0.5
    assert float(jnp.abs(kernels).max()) > 0.9 * 8**-0.5


def test_published_widths():
    for head, predictor, layers in (("v3_resnet", "v3_resnet", 2), ("v3_vit", "v3_vit", 3)):
        encoder = create("resnet10", head=head, predictor=predictor, dim=256)
        shapes = jax.eval_shape(
            lambda e=encoder: e.init(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), method=e.predict)
        )["params"]
        assert shapes["head"]["fc1"]["kernel"].shape == (512, 4096)
        assert shapes["head"][f"fc{layers}"]["kernel"].shape == (4096, 256)
        assert shapes["predictor"]["fc1"]["kernel"].shape == (256, 4096)
        assert shapes["predictor"]["fc2"]["kernel"].shape == (4096, 256)
        assert "bias" not in shapes["head"]["fc1"]


def test_a_predictor_acts_on_queries_alone():
    parts = dict(head="v3_resnet", predictor="v3_resnet", dim=4, head_width=16)
    encoder = create("resnet10", width=8, stem="cifar", **parts)
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    variables = encoder.init(jax.random.key(0), images, method=encoder.predict)
    without = {
        kind: {k: v for k, v in tree.items() if k != "predictor"}
        for kind, tree in variables.items()
    }
    keys = encoder.apply(without, images)
    queries = encoder.apply(variables, images, method=encoder.predict)
    np.testing.assert_allclose(encoder.apply(variables, images), keys, rtol=1e-6)
    assert jnp.abs(queries - keys).max() > 1e-3
    features = encoder.apply(variables, images, method=encoder.features)
    again = encoder.apply(variables, features, method=encoder.query)
    np.testing.assert_allclose(again, queries, rtol=1e-6)
