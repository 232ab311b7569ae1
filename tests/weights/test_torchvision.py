"""torchvision's names and layouts: nothing lost on the way there and back, nothing wrong let in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import encoders
from moco_jax.weights import torchvision as weights


@pytest.fixture(scope="module")
def variables():
    """A small bottleneck network's variables, every leaf random bits (NaNs and -0 among them)."""
    backbone = encoders.ResNet((1, 2), bottleneck=True, width=4)
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.integers(0, 2**32, x.shape, np.uint32).view(np.float32), shapes
    )


def test_there_and_back_keeps_every_bit(variables):
    again = weights.load(weights.save(variables), variables)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(variables), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def test_torchvision_loads_what_save_writes_and_gets_it_back():
    torch = pytest.importorskip("torch", reason="torch's own loader: pip install '.[torch]'")
    models = pytest.importorskip("torchvision.models", reason="pip install '.[torch]'")
    net = models.resnet18()
    theirs = {k: v.numpy() for k, v in net.state_dict().items()}
    backbone = encoders.create("resnet18").backbone
    template = jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    saved = weights.save(weights.load(theirs, template))
    other = models.resnet18()
    result = other.load_state_dict({k: torch.tensor(v) for k, v in saved.items()}, strict=False)
    assert result.missing_keys == ["fc.weight", "fc.bias"]
    assert result.unexpected_keys == []
    for name, value in other.state_dict().items():
        if not name.startswith("fc."):
            np.testing.assert_array_equal(value.numpy(), theirs[name], err_msg=name)
            assert value.dtype == net.state_dict()[name].dtype


def test_every_fault_is_named(variables):
    state_dict = weights.save(variables)
    del state_dict["bn1.bias"], state_dict["layer2.0.downsample.1.running_var"]
    state_dict["conv1.weight"] = state_dict["conv1.weight"].transpose(2, 3, 1, 0)
    state_dict["layer2.1.bn3.running_mean"] = state_dict["layer2.1.bn3.running_mean"][:-1]
    state_dict["layer9.0.conv1.weight"] = np.zeros(3, np.float32)
    state_dict["fc.weight"] = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError, match="do not fit") as error:
        weights.load(state_dict, variables)
    faults = str(error.value).split(": ", 1)[1].split("; ")
    assert sorted(faults) == [
        "conv1.weight has shape (7, 7, 3, 4), not (4, 3, 7, 7)",
        "layer2.1.bn3.running_mean has shape (31,), not (32,)",
        "missing bn1.bias",
        "missing layer2.0.downsample.1.running_var",
        "unexpected layer9.0.conv1.weight",
    ]


def test_weights_take_the_templates_dtype(variables):
    half = {k: np.ones_like(v, np.float16) for k, v in weights.save(variables).items()}
    loaded = weights.load(half, variables)
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
