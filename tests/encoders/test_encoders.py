"""Widths, stems and heads against torchvision's network of the same weights; names; gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import encoders
from moco_jax.encoders.resnet import ResNet
from moco_jax.weights import torchvision as weights

REASON = "the second implementation is PyTorch's: pip install '.[torch]'"


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason=REASON)


@pytest.fixture(scope="module")
def resnet():
    return pytest.importorskip("torchvision.models.resnet", reason=REASON)


def assert_same_network(torch, net, backbone, size):
    """`net` and `backbone` agree in float64: outputs in both modes, statistics and gradients."""
    net.fc = torch.nn.Identity()
    net.double().train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    images = np.random.default_rng(0).normal(size=(4, *size, 3))
    template = jax.eval_shape(partial(backbone.init, jax.random.key(0)), images)
    variables = weights.load({k: v.numpy() for k, v in net.state_dict().items()}, template)

    def loss(params):
        stats = variables["batch_stats"]
        out, updated = backbone.apply(
            {"params": params, "batch_stats": stats}, images, True, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.sin(out)), (out, updated)

    evaluated = jax.jit(partial(backbone.apply, train=False))(variables, images)
    (_, (trained, updated)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        variables["params"]
    )

    inputs = torch.tensor(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        assert worst(evaluated, net.eval()(inputs).numpy()) <= 1e-9
    out = net.train()(inputs)
    out.sin().sum().backward()
    assert worst(trained, out.detach().numpy()) <= 1e-9
    after = weights.save({"params": grads, **updated})
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    for name, value in {**net.state_dict(), **gradients}.items():
        if "num_batches" not in name:
            assert worst(after[name], value.numpy()) <= 1e-9, name


def worst(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("bottleneck", [False, True])
def test_double_width_doubles_every_channel(float64, torch, bottleneck):
    from tests.encoders import narrow

    torch.manual_seed(0)
    width = 2 * narrow.WIDTH
    net = narrow.resnet("bottlenecks" if bottleneck else "resnet6", width)
    ours = ResNet((1, 1), bottleneck, width=width, dtype=jnp.float64)
    assert_same_network(torch, net, ours, (33, 47))


@pytest.mark.parametrize(("stem", "stride"), [("cifar", 1), ("cifar_stride2", 2)])
def test_cifar_stems_are_a_3x3_convolution_without_pool(float64, torch, stem, stride):
    from tests.encoders import narrow

    torch.manual_seed(0)
    net = narrow.resnet("resnet6")
    net.conv1 = torch.nn.Conv2d(3, narrow.WIDTH, 3, stride, 1, bias=False)
    net.maxpool = torch.nn.Identity()
    ours = encoders.create("resnet6", width=narrow.WIDTH, stem=stem, dtype=jnp.float64).backbone
    assert_same_network(torch, net, ours, (17, 23))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_names_shapes_and_counts_are_torchvisions(torch, resnet, name):
    with torch.device("meta"):
        net = getattr(resnet, name)()
    wanted = {k: tuple(v.shape) for k, v in net.state_dict().items() if not k.startswith("fc.")}
    backbone = encoders.create(name).backbone
    shapes = jax.eval_shape(partial(backbone.init, jax.random.key(0)), jnp.zeros((1, 64, 64, 3)))
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), shapes)
    assert {k: v.shape for k, v in weights.save(zeros).items()} == wanted


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_heads_are_torchs_linear_layers(float64, torch, head):
    width, dim = 8, 16
    encoder = encoders.create(
        "resnet6", head=head, dim=dim, width=width, stem="cifar", dtype=jnp.float64
    )
    images = np.random.default_rng(0).normal(size=(3, 9, 9, 3))
    variables = jax.jit(encoder.init)(jax.random.key(0), images)
    assert set(variables["params"]) == {"backbone", "head"}
    assert set(variables["batch_stats"]) == {"backbone"}
    features = jax.jit(partial(encoder.apply, method="features"))(variables, images)
    assert features.shape == (3, 2 * width)

    layers = []
    for _, layer in sorted(variables["params"]["head"].items()):
        fan_in, fan_out = layer["kernel"].shape
        linear = torch.nn.Linear(fan_in, fan_out).double()
        linear.load_state_dict(
            {
                "weight": torch.tensor(np.asarray(layer["kernel"]).T),
                "bias": torch.tensor(np.asarray(layer["bias"])),
            }
        )
        layers += [linear, torch.nn.ReLU()]
    theirs = torch.nn.Sequential(*layers[:-1])(torch.tensor(np.asarray(features)))
    assert len(layers) == {"linear": 2, "mlp": 4}[head]
    ours = jax.jit(partial(encoder.apply, train=False))(variables, images)
    assert worst(ours, theirs.detach().numpy()) <= 1e-12


def test_head_layers_start_as_torchs_do(torch):
    """Uniform within +-1/sqrt(fan_in), weights and biases, in both layers of the MLP head."""
    features = 512
    head = encoders.HEADS["mlp"](2048)
    variables = head.init(jax.random.key(0), jnp.zeros((1, features)))["params"]
    torch.manual_seed(0)
    for name, width in (("fc1", features), ("fc2", 2048)):
        linear = torch.nn.Linear(features, width)
        for ours, theirs in (
            (variables[name]["kernel"], linear.weight),
            (variables[name]["bias"], linear.bias),
        ):
            ours, theirs = np.asarray(ours).ravel(), theirs.detach().numpy().ravel()
            assert np.abs(ours).max() <= features**-0.5
            grid = np.linspace(0.05, 0.95, 10)
            difference = np.quantile(ours, grid) - np.quantile(theirs, grid)
            # Six deviations of the difference of two medians, the quantile that varies most.
            assert np.abs(difference).max() <= 6 * features**-0.5 * (2 / ours.size) ** 0.5


@pytest.mark.parametrize(
    ("setting", "known"),
    [
        ({"name": "resnet51"}, ["resnet10", "resnet50w4"]),
        ({"head": "mpl"}, ["linear", "mlp"]),
        ({"stem": "cifar10"}, ["imagenet", "cifar", "cifar_stride2"]),
    ],
)
def test_an_unknown_word_is_refused_with_the_known_ones(setting, known):
    with pytest.raises(ValueError, match="is unknown; use one of") as error:
        encoders.create(**{"name": "resnet18", **setting})
    assert all(word in str(error.value) for word in known)


def test_gradients_are_slopes(float64):
    """Along a random direction of all parameters, gradients are limits of central differences."""
    encoder = encoders.create(
        "resnet6", head="mlp", dim=8, width=8, stem="cifar_stride2", bn_groups=2, dtype=jnp.float64
    )
    images = jax.random.normal(jax.random.key(0), (8, 16, 16, 3), jnp.float64)
    variables = jax.jit(encoder.init)(jax.random.key(1), images)
    params, stats = variables["params"], variables["batch_stats"]

    @jax.jit
    def loss(params):
        out, _ = encoder.apply(
            {"params": params, "batch_stats": stats}, images, True, mutable=["batch_stats"]
        )
        return jnp.sum(out**3)

    rng = np.random.default_rng(2)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    grads = jax.jit(jax.grad(loss))(params)
    slope = sum(jax.tree.leaves(jax.tree.map(np.vdot, *jax.device_get((grads, direction)))))

    def at(t):
        moved = jax.tree.map(lambda p, d: p + t * d, *jax.device_get((params, direction)))
        return loss(moved)

    np.testing.assert_allclose((at(1e-7) - at(-1e-7)) / 2e-7, slope, rtol=1e-4)
