"""Fine-tuning: step and optimizer against PyTorch, mixing against timm, rates in closed form."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import beta

from moco_jax import encoders
from moco_jax.evaluation import finetune_recipe, finetune_step, linear, mixing
from moco_jax.parallel import mesh as mesh_lib
from moco_jax.weights import torchvision as torchvision_weights

MEAN, STD, CLASSES = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), 5
QUICK = {"xla_backend_optimization_level": 0}  # compiled in a fourth of the time


def batch_of(rng, size, present):
    return {
        "image": rng.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8),
        "classes": rng.integers(0, CLASSES, size),
        "present": np.arange(size) < present,
    }


def tiny(dtype):
    """Two blocks, the second with a shortcut that halves: 8 features."""
    backbone = encoders.ResNet((1, 1), False, width=4, stem="cifar_stride2", dtype=dtype)
    return encoders.Encoder(backbone, encoders.LinearHead(8))


def torchs_tiny(torch):
    """The same from torchvision's blocks and under its names, with a classifier, in float64."""
    from torchvision.models.resnet import BasicBlock, conv1x1

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 4, 3, 2, 1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(4)
            self.layer1 = torch.nn.Sequential(BasicBlock(4, 4))
            down = torch.nn.Sequential(conv1x1(4, 8, 2), torch.nn.BatchNorm2d(8))
            self.layer2 = torch.nn.Sequential(BasicBlock(4, 8, 2, down))
            self.fc = torch.nn.Linear(8, CLASSES)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))

    torch.manual_seed(0)
    return Net().double().train()


def test_steps_of_sgd_equal_pytorch(float64):
    """Losses, the change of every weight, and BatchNorm's statistics agree, at two rates.

    Two rows do not count, except for BatchNorm.
    """
    torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install '.[torch]'")
    net = torchs_tiny(torch)
    encoder = tiny(jnp.float64)
    shapes = jax.eval_shape(
        functools.partial(encoder.init, jax.random.key(0)), jnp.zeros((1, 16, 16, 3))
    )
    template = {kind: shapes[kind]["backbone"] for kind in ("params", "batch_stats")}

    def ours_of(net):
        found = {name: value.numpy() for name, value in net.state_dict().items()}
        loaded = torchvision_weights.load(found, template)
        classifier = linear.Classifier(found["fc.weight"].T.copy(), found["fc.bias"].copy())
        return {"backbone": loaded["params"], "classifier": classifier}, loaded["batch_stats"]

    how = finetune_recipe.training("sgd", weight_decay=1e-3)
    params, stats = jax.tree.map(np.copy, ours_of(net))
    state = finetune_step.State(
        params, {"backbone": stats}, finetune_step.make_optimizer(how).init(params)
    )
    rates = finetune_step.learning_rates(params, encoder, how)
    step = jax.jit(
        finetune_step.make_step(encoder, how, CLASSES, mean=MEAN, std=STD, dtype=jnp.float64)
    )
    body = [p for name, p in net.named_parameters() if not name.startswith("fc.")]
    theirs = torch.optim.SGD(
        [{"params": body}, {"params": net.fc.parameters()}], 0.0, momentum=0.9, weight_decay=1e-3
    )
    rng = np.random.default_rng(0)
    for factor, present in ((1.0, 8), (0.6, 6), (0.1, 8)):
        batch = batch_of(rng, 8, present)
        state, loss = step(state, batch, rates, factor, None, jax.random.key(0))
        for group, rate in zip(theirs.param_groups, (0.01, 0.2), strict=True):
            group["lr"] = rate * factor
        images = (batch["image"] / 255 - np.asarray(MEAN)) / np.asarray(STD)
        out = net(torch.tensor(images).permute(0, 3, 1, 2))[:present]
        expected = torch.nn.functional.cross_entropy(out, torch.tensor(batch["classes"][:present]))
        theirs.zero_grad()
        expected.backward()
        theirs.step()
        assert float(loss) == pytest.approx(expected.item(), rel=1e-9)
    after, statistics = ours_of(net)
    for begin, ours, reference in zip(
        *map(jax.tree.leaves, (params, state.params, after)), strict=True
    ):
        change = reference - begin
        assert np.linalg.norm(ours - begin - change) <= 1e-8 * np.linalg.norm(change)
    for ours, reference in zip(
        jax.tree.leaves(state.batch_stats), jax.tree.leaves(statistics), strict=True
    ):
        np.testing.assert_allclose(ours, reference, rtol=1e-8, atol=1e-12)


def vit_params(**options):
    encoder = encoders.create("vit_small", **options)
    shapes = jax.eval_shape(
        functools.partial(encoder.init, jax.random.key(0)), jnp.zeros((1, 32, 32, 3))
    )
    classifier = linear.Classifier(np.zeros((384, CLASSES)), np.zeros(CLASSES))
    return encoder, {"backbone": shapes["params"]["backbone"], "classifier": classifier}


def named(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_rates_fall_from_layer_to_layer():
    encoder, params = vit_params(stop_patch_gradient=False)
    how = finetune_recipe.training("deit", layer_decay=0.75)
    assert how.backbone_rate == 1e-3  # 5e-4 at 512 images, 1024 of them
    rates = named(finetune_step.learning_rates(params, encoder, how))
    # Twelve blocks: the classifier and the last norm are layer 13, patches and class token layer 0.
    powers = {
        "classifier.kernel": 0,
        "classifier.bias": 0,
        "backbone.norm.scale": 0,
        "backbone.blocks_11.qkv.kernel": 1,
        "backbone.blocks_11.norm1.bias": 1,
        "backbone.blocks_1.fc1.bias": 11,
        "backbone.blocks_0.proj.kernel": 12,
        "backbone.cls_token": 13,
        "backbone.patch_embed.kernel": 13,
    }
    for name, power in powers.items():
        assert rates[name] == pytest.approx(1e-3 * 0.75**power), name
    assert set(
        named(finetune_step.learning_rates(params, encoder, how, scratch=True)).values()
    ) == {1e-3}
    encoder, params = vit_params()
    rates = named(finetune_step.learning_rates(params, encoder, how))
    unmoved = {name for name, rate in rates.items() if rate == 0}
    assert unmoved == {"backbone.patch_embed.kernel", "backbone.patch_embed.bias"}


def test_adamw_equals_torchs_with_groups_that_do_not_decay():
    torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install '.[torch]'")
    rng = np.random.default_rng(0)
    shapes = {"cls_token": (1, 1, 4), "kernel": (4, 3), "bias": 3}
    params = {name: rng.normal(size=size).astype(np.float32) for name, size in shapes.items()}
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in params.items()}
    plain = [tensors["cls_token"], tensors["bias"]]
    decaying = {"params": [tensors["kernel"]], "weight_decay": 0.05}
    theirs = torch.optim.AdamW([decaying, {"params": plain, "weight_decay": 0.0}])
    optimizer = finetune_step.make_optimizer(finetune_recipe.training("deit"))
    state = optimizer.init(params)
    for rate in (1e-2, 5e-3, 1e-3):
        gradients = {n: rng.normal(size=p.shape).astype(np.float32) for n, p in params.items()}
        updates, state = optimizer.update(gradients, state, params)
        params = {name: params[name] - rate * updates[name] for name in params}
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradients[name])
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(params[name], tensor.detach().numpy(), rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(("cut", "share"), [(False, 0.3), (True, 0.4), (True, 0.9)])
def test_mixing_equals_timms(monkeypatch, cut, share):
    reason = "compares with timm: pip install '.[torch]'"
    torch = pytest.importorskip("torch", reason=reason)
    theirs = pytest.importorskip("timm.data.mixup", reason=reason, exc_type=ImportError)
    rng = np.random.default_rng(0)
    images = rng.random((6, 12, 10, 3)).astype(np.float32)
    classes, center = rng.integers(0, CLASSES, 6), [2, 7]
    reference = theirs.Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=CLASSES)
    monkeypatch.setattr(reference, "_params_per_batch", lambda: (share, cut))
    places = iter(center)
    monkeypatch.setattr(theirs.np.random, "randint", lambda *_, **__: next(places))
    expected, targets = reference(torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(classes))
    own = mixing.piece(share, *center, 12, 10) if cut else mixing.blend(share, 12, 10)
    smooth = 0.9 * jax.nn.one_hot(classes, CLASSES) + 0.1 / CLASSES
    mixed, found = mixing.apply(jnp.asarray(images), smooth, own)
    np.testing.assert_allclose(mixed, expected.permute(0, 2, 3, 1), atol=1e-6)
    np.testing.assert_allclose(found, targets, atol=1e-6)


def test_draws_are_of_both_kinds_and_of_the_whole_range():
    rng = np.random.default_rng(0)
    own = np.stack([mixing.draw(rng, 8, 8, 0.8, 1.0) for _ in range(4000)])
    pieces = np.all((own == 0) | (own == 1), axis=(1, 2))
    assert abs(pieces.mean() - 0.5) < 0.03
    quartiles = np.quantile(own[~pieces][:, 0, 0], [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quartiles, beta(0.8, 0.8).ppf([0.25, 0.5, 0.75]), atol=0.06)
    assert 0 < np.mean(own[pieces][:, 0, 0] == 0) < np.mean(own[pieces][:, 4, 4] == 0)
    only = np.stack([mixing.draw(rng, 4, 4, 0.0, 1.0) for _ in range(50)])
    assert set(np.unique(only)) == {0, 1}


def drawn(encoder, classes=CLASSES):
    """Variables of the encoder's backbone, and a state, away from their start."""
    shapes = jax.eval_shape(
        functools.partial(encoder.init, jax.random.key(0)), jnp.zeros((1, 16, 16, 3))
    )
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        spread = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key in ("scale", "var"):
            return np.exp(0.2 * spread)
        return spread / math.sqrt(math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1 * spread

    return jax.tree_util.tree_map_with_path(draw, shapes)


def test_one_device_and_four_compute_the_same():
    """DeiT's recipe, so that mixing crosses devices, on a network with BatchNorm.

    Some rows do not count.
    """
    encoder = tiny(jnp.float32)
    how = finetune_recipe.training("deit", batch_size=16)
    variables, optimizer = drawn(encoder), finetune_step.make_optimizer(how)
    rng = np.random.default_rng(0)
    batch, own = batch_of(rng, 16, 11), mixing.piece(0.6, 5, 9, 16, 16)
    results = []
    for count in (1, 4):
        mesh = mesh_lib.create_mesh(jax.devices()[:count])
        step = finetune_step.jitted_step(
            encoder, how, CLASSES, MEAN, STD, np.dtype("float32"), mesh
        )
        state = finetune_step.initial_state(variables, optimizer, 0, 8, CLASSES)
        rates = finetune_step.learning_rates(state.params, encoder, how)
        there = jax.device_put(state, mesh_lib.replicated(mesh))
        rows = mesh_lib.to_devices(mesh, batch)
        arguments = (there, rows, rates, 1.0, own, jax.random.key(0))
        results.append(jax.device_get(step.lower(*arguments).compile(QUICK)(*arguments)))
    (one, loss), (four, other) = results
    assert loss == pytest.approx(other, rel=1e-5)
    leaves = [jax.tree.leaves((r.batch_stats, r.opt_state)) for r in (one, four)]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    # Adam's first step is the rate in the gradient's direction.
    moved = one.params["classifier"].kernel - linear.initial(0, 8, CLASSES).kernel
    assert np.median(np.abs(moved)) == pytest.approx(how.classifier_rate, rel=0.05)


@pytest.mark.parametrize(
    ("batch_size", "number", "devices", "exact", "expected"),
    [
        (256, 12811, 8, False, (256, 51, 20)),  # 1 % of ImageNet: the recipe's own epochs
        (256, 14, 1, False, (14, 1, 1000)),
        (256, 14, 4, True, (16, 1, 20)),
        (64, 1437, 2, False, (64, 23, 44)),
    ],
)
def test_small_sets_get_small_batches_and_enough_steps(
    batch_size, number, devices, exact, expected
):
    how = finetune_recipe.training("sgd", batch_size=batch_size)
    assert finetune_recipe.shape(how, number, devices, exact) == expected


def test_paths_are_dropped_as_often_as_asked_for_and_only_in_training():
    """In the second of two blocks with a probability of 0.5, in the first never."""
    rng = np.random.default_rng(0)
    block = encoders.vit.Block(1, "plain", jnp.float32, "parameter", 0.25)
    backbone = encoders.vit.ViT(2, 1, 4, patch=8, drop_path=0.5)
    x = rng.normal(size=(400, 2, 4)).astype(np.float32)
    images = rng.normal(size=(6, 8, 8, 3)).astype(np.float32)

    def outputs(key):
        rngs = {"drop_path": key}
        weights = block.clone(drop_path=0.0).init(key, x[:1])
        yield block.apply(weights, x, rngs=rngs)
        weights = backbone.init(key, images[:1])
        yield backbone.clone(drop_path=0.0).apply(weights, images, True)
        yield backbone.apply(weights, images, False)
        yield backbone.apply(weights, images, True, rngs=rngs)

    key = jax.random.key(1)
    run = jax.jit(lambda key: tuple(outputs(key))).lower(key).compile(QUICK)
    dropped, plain, tested, trained = run(key)
    untouched = np.all(dropped == x, axis=(1, 2))
    assert abs(untouched.mean() - 0.25**2) < 0.04
    np.testing.assert_allclose(tested, plain, atol=1e-6)
    assert not np.allclose(trained, plain, atol=1e-3)
