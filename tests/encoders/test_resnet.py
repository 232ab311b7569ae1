"""Encoders against torchvision's with the same weights, and PyTorch's initialisation."""

import copy
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from moco_jax import encoders
from moco_jax.encoders.norm import BatchNorm
from moco_jax.weights import torchvision as weights

torch = pytest.importorskip("torch", reason="compares with torchvision: pip install '.[torch]'")
models = pytest.importorskip("torchvision.models", reason="pip install '.[torch]'")
from tests.encoders import narrow


def torch_network(name, width=narrow.WIDTH):
    torch.manual_seed(0)
    net = narrow.resnet(name, width)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    net.fc = torch.nn.Identity()
    return net


def arrays(net):
    return {k: v.numpy().copy() for k, v in net.state_dict().items()}


def our_network(net, name, dtype, width=narrow.WIDTH):
    encoder = encoders.create(name, width=width, dtype=dtype)
    template = jax.eval_shape(
        lambda: encoder.init(jax.random.key(0), jnp.zeros((2, 32, 32, 3), dtype))
    )
    loaded = weights.load(
        arrays(net), {c: template[c]["backbone"] for c in ("params", "batch_stats")}
    )
    return encoder.backbone, loaded


def worst(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def outputs(net, images):
    """Of a torch network, evaluated and then trained."""
    with torch.no_grad():
        return net.eval()(images).numpy(), net.train()(images).numpy()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_outputs_and_statistics_equal_torchvisions(name, dtype):
    """Torchvision computes in float64 both times, so that only our own rounding counts.

    In float32 the statistics of few values in the last stages make much of any rounding, in
    whatever order a compiler sums up: there ours may be four times as far from float64 as
    torchvision's own float32 is.
    """
    with jax.enable_x64(dtype == "float64"):
        # Rounding is that of as many channels as torchvision's networks have.
        width = narrow.WIDTH if dtype == "float64" else 64
        net = torch_network(name, width)
        backbone, variables = our_network(net, name, jnp.dtype(dtype), width)
        variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)
        images = np.random.default_rng(0).normal(size=(6, 65, 97, 3)).astype(np.float32)
        torch_images = torch.tensor(images).permute(0, 3, 1, 2)
        rounded = outputs(copy.deepcopy(net), torch_images)
        net = net.double()
        evaluated, trained = outputs(net, torch_images.double())
        if dtype == "float64":
            bound, trained_bound = 1e-9, 1e-9
        else:
            bound, trained_bound = 1e-5, 4 * worst(rounded[1], trained)
        images = images.astype(dtype)
        assert worst(backbone.apply(variables, images, False), evaluated) <= bound
        ours, updated = backbone.apply(variables, images, True, mutable=["batch_stats"])
        assert worst(ours, trained) <= trained_bound
        after = weights.save({"params": variables["params"], **updated})
        for key, value in arrays(net).items():
            if "running" in key:
                assert worst(after[key], value) <= trained_bound, key


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet50", 23.508), ("resnet50w2", 93.9), ("resnet50w4", 375.4)]
)
def test_parameter_counts(name, millions):
    """torchvision's ResNet-50 without fc, and the paper's Figure 6 (94 M, 375 M)."""
    encoder = encoders.create(name)
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros((2, 64, 64, 3))))
    count = sum(x.size for x in jax.tree.leaves(shapes["params"]["backbone"]))
    assert abs(count / 1e6 - millions) < 0.1


def test_batch_norm_groups_equal_separate_passes(float64):
    x = np.random.default_rng(0).normal(2, 3, (8, 5, 4, 6))
    module = BatchNorm(groups=4, dtype=jnp.float64)
    variables = module.init(jax.random.key(0), x, True)
    ours, updated = module.apply(variables, x, True, mutable=["batch_stats"])
    parts, means, variances = [], [], []
    for part in np.split(x, 4):
        norm = torch.nn.BatchNorm2d(6).double()
        parts.append(
            norm(torch.tensor(part).permute(0, 3, 1, 2)).detach().permute(0, 2, 3, 1).numpy()
        )
        means.append(norm.running_mean.numpy())
        variances.append(norm.running_var.numpy())
    np.testing.assert_allclose(ours, np.concatenate(parts), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], np.mean(means, 0), rtol=1e-10)
    np.testing.assert_allclose(updated["batch_stats"]["var"], np.mean(variances, 0), rtol=1e-10)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_initialisation_has_torchvisions_moments(stem):
    """Convolutions' means and deviations within four standard errors; bounds of uniform layers."""
    net = models.resnet18()
    net.fc = torch.nn.Linear(512, 128)
    if stem == "cifar":  # as the authors' demo puts a fresh layer there
        net.conv1 = torch.nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    encoder = encoders.create("resnet18", head="linear", stem=stem)
    variables = jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((2, 32, 32, 3)))
    variables = jax.device_get(variables)
    ours = weights.save({c: variables[c]["backbone"] for c in ("params", "batch_stats")})
    for key, theirs in arrays(net).items():
        if key.startswith("fc") or "num_batches" in key:
            continue
        assert (
            abs(ours[key].mean() - theirs.mean()) <= 6 * theirs.std() / theirs.size**0.5 + 1e-12
        ), key
        assert abs(ours[key].std() - theirs.std()) <= 6 * theirs.std() / theirs.size**0.5 + 1e-12, (
            key
        )
    layer = variables["params"]["head"]["fc"]
    for mine, theirs in ((layer["kernel"], net.fc.weight), (layer["bias"], net.fc.bias)):
        bound = 512**-0.5
        assert np.abs(mine).max() <= bound * (1 + 1e-6)
        assert np.abs(mine).max() > 0.95 * bound
        assert abs(np.std(mine) - bound / 3**0.5) < 0.1 * bound
        assert abs(np.std(mine) - theirs.detach().numpy().std()) < 0.1 * bound


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
    encoder = encoders.create("resnet6", width=8, stem="cifar", dtype=jnp.bfloat16)
    images = jnp.ones((8, 32, 32, 3), jnp.bfloat16)
    variables = jax.jit(encoder.init)(jax.random.key(0), images)
    apply = jax.jit(partial(encoder.apply, train=True, mutable=["batch_stats"]))
    out, updated = apply(variables, images)
    assert {x.dtype for x in jax.tree.leaves((variables, updated))} == {jnp.dtype("float32")}
    assert out.dtype == jnp.float32


def test_weights_round_trip_bitwise_and_refuse_what_does_not_fit():
    net = torch_network("resnet18")
    _, variables = our_network(net, "resnet18", jnp.float32)
    again = weights.save(variables)
    for key, value in arrays(net).items():
        if "num_batches" not in key:
            np.testing.assert_array_equal(again[key], value)
    broken = dict(arrays(net))
    broken["conv1.weight"] = broken["conv1.weight"][:3]
    del broken["bn1.bias"]
    with pytest.raises(ValueError, match=r"(?s)bn1\.bias.*conv1\.weight|conv1\.weight.*bn1\.bias"):
        weights.load(broken, variables)


@pytest.mark.parametrize(("bottleneck", "last"), [(False, "bn2"), (True, "bn3")])
@pytest.mark.parametrize("zero", [False, True])
def test_blocks_may_start_as_the_identity(bottleneck, last, zero):
    """Only the scale of each block's last BatchNorm starts at 0: `zero_init_residual`."""
    name = "resnet50" if bottleneck else "resnet10"
    backbone = encoders.create(name, width=4, zero_init_residual=zero).backbone
    backbone = backbone.clone(stage_sizes=(2, 1))
    params = jax.jit(backbone.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    scales = {k: v for k, v in traverse_util.flatten_dict(params).items() if k[-1] == "scale"}
    assert len({path[0] for path in scales if path[-2] == last}) == 3
    for path, scale in scales.items():
        wanted = 0 if zero and path[-2] == last else 1
        np.testing.assert_array_equal(scale, np.full(scale.shape, wanted), err_msg=str(path))
