"""The Vision Transformer against timm's of the same weights, and what MoCo v3 fixes of it.

MoCo v3 fixes first weights, positions, and the frozen patch projection.
"""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import encoders
from moco_jax.encoders import attention, vit
from moco_jax.weights import timm as weights

SMALL = dict(depth=2, heads=3, width=24, patch=4)


@pytest.fixture(scope="module")
def timm():
    """timm's own modules; torch comes with it."""
    pytest.importorskip("torch", reason="timm needs PyTorch: pip install '.[torch]'")
    return pytest.importorskip(
        "timm.models.vision_transformer",
        reason="the second implementation is timm's: pip install '.[torch]'",
        exc_type=ImportError,
    )


def shapes_of(backbone, size=224):
    return jax.eval_shape(
        partial(backbone.init, jax.random.key(0)), jnp.zeros((2, size, size, 3), backbone.dtype)
    )


def drawn(backbone, size, seed=0):
    """Variables with every leaf away from its start: biases, scales and the class token, too."""
    shapes, rng = shapes_of(backbone, size), np.random.default_rng(seed)

    def draw(path, leaf):
        spread = rng.normal(size=leaf.shape)
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(np.exp(0.2 * spread), leaf.dtype)
        return jnp.asarray(spread / math.sqrt(leaf.shape[-2] if leaf.ndim > 1 else 4), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def worst(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def conv_stem(torch):
    """MoCo v3's stem as an `embed_layer` of timm."""

    class Stem(torch.nn.Module):
        def __init__(self, img_size, patch_size, in_chans, embed_dim, **_):
            super().__init__()
            layers, inside = [], in_chans
            for part in (8, 4, 2, 1):
                outside = embed_dim // part
                layers += [
                    torch.nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False),
                    torch.nn.BatchNorm2d(outside),
                    torch.nn.ReLU(),
                ]
                inside = outside
            self.proj = torch.nn.Sequential(*layers, torch.nn.Conv2d(inside, embed_dim, 1))
            self.num_patches = (img_size // patch_size) ** 2

        def forward(self, images):
            return self.proj(images).flatten(2).transpose(1, 2)

    return Stem


def timm_network(timm, backbone, variables, size):
    """timm's network in float64 with these variables, and images for it and for us.

    Ours are `[2, size, size, 3]`, the same for timm `[2, 3, size, size]`.
    """
    import torch

    own_stem = {"embed_layer": conv_stem(torch)} if backbone.conv_stem else {}
    kind = dict(mlp_ratio=4, qkv_bias=True, class_token=True, global_pool="token", num_classes=0)
    net = timm.VisionTransformer(
        img_size=size,
        patch_size=backbone.patch,
        embed_dim=backbone.width,
        depth=backbone.depth,
        num_heads=backbone.heads,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        **kind,
        **own_stem,
    ).double()
    saved = weights.save(variables, size)
    net.load_state_dict({k: torch.tensor(v) for k, v in saved.items()}, strict=True)
    images = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(backbone.dtype)
    return net, images, torch.tensor(images).double().permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("name", "depth", "size", "dtype", "bound"),
    [
        ("vit_small", 12, 64, "float64", 1e-10),
        ("vit_base", 2, 32, "float64", 1e-10),
        ("vit_conv_small", 2, 64, "float64", 1e-10),
        ("vit_small", 12, 224, "float32", 1e-4),
    ],
)
def test_features_are_timms(timm, name, depth, size, dtype, bound):
    """timm computes in float64 each time, so that only our own rounding counts.

    All blocks are alike: all twelve are compared of one network, two of the others.
    """
    with jax.enable_x64(dtype == "float64"):
        backbone = encoders.create(name, dtype=jnp.dtype(dtype)).backbone.clone(depth=depth)
        variables = drawn(backbone, size)
        net, images, inputs = timm_network(timm, backbone, variables, size)
        theirs = net.eval()(inputs).detach().numpy()
        assert worst(jax.jit(backbone.apply)(variables, images), theirs) <= bound


@pytest.mark.parametrize("name", ["vit_small", "vit_conv_small"])
def test_gradients_are_timms(timm, float64, name):
    """Of two blocks, in training mode; the patch projection is frozen, the conv stem is not."""
    backbone = encoders.create(name, width=96, dtype=jnp.float64).backbone.clone(depth=2)
    size = 64
    variables = drawn(backbone, size)
    net, images, inputs = timm_network(timm, backbone, variables, size)

    def loss(params):
        own = {**variables, "params": params}
        out, _ = backbone.apply(own, images, True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(out)), out

    grads, trained = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    out = net.train()(inputs)
    out.sin().sum().backward()
    assert worst(trained, out.detach().numpy()) <= 1e-10
    ours = weights.save({"params": grads}, size)
    for key, parameter in net.named_parameters():
        if key.startswith("patch_embed") and not backbone.conv_stem:
            assert not ours[key].any(), key
        elif key != "pos_embed":
            assert worst(ours[key], parameter.grad.numpy()) <= 1e-9, key


def test_timms_own_vit_small_has_six_heads_and_means_something_else():
    """Why the registry fixes 12: the same weights load into both without complaint."""
    backbone = encoders.create("vit_small").backbone
    assert backbone.heads == 12
    backbone = backbone.clone(depth=1)
    variables, images = drawn(backbone, 32), np.ones((1, 32, 32, 3), np.float32)
    six = backbone.clone(heads=6).apply(variables, images)
    assert worst(six, backbone.apply(variables, images)) > 0.01


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("vit_small", 21_665_664),
        ("vit_base", 85_798_656),
        ("vit_large", 303_301_632),
        ("vit_huge", 630_764_800),
    ],
)
def test_parameter_counts_are_published_ones_less_the_positions(name, published):
    """Published counts are timm's without classifier; there, positions at 224 pixels count too."""
    backbone = encoders.create(name).backbone
    variables = shapes_of(backbone)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert set(variables) == {"params"}
    assert count + ((224 // backbone.patch) ** 2 + 1) * backbone.width == published


@pytest.mark.parametrize("name", ["small", "base"])
def test_the_conv_stem_takes_the_place_of_one_block(name):
    """MoCo v3 (section 4.3) trades a block, 12 width^2 and its vectors, for four convolutions."""
    plain, conv = (encoders.create(f"vit_{stem}{name}").backbone for stem in ("", "conv_"))
    width = plain.width
    block = 12 * width**2 + 13 * width
    projection = 3 * 16**2 * width + width
    sides = [3, width // 8, width // 4, width // 2, width]
    stem = sum(9 * a * b + 2 * b for a, b in itertools.pairwise(sides)) + width**2 + width
    count = {
        backbone: sum(x.size for x in jax.tree.leaves(shapes_of(backbone)["params"]))
        for backbone in (plain, conv)
    }
    assert count[plain] - count[conv] == block + projection - stem


def test_positions_are_the_closed_form():
    """Positions are sin and cos of row and column, each times 1/10000^(i/(dim/4))."""
    rows, columns, width = 3, 5, 16
    table = vit.sincos_positions(rows, columns, width)
    assert table.shape == (rows * columns, width)
    for row in range(rows):
        for column in range(columns):
            for i in range(width // 4):
                omega = 1 / 10000 ** (i / (width / 4))
                found = table[row * columns + column, i :: width // 4]
                angles = (row * omega, column * omega)
                wanted = [function(x) for x in angles for function in (math.sin, math.cos)]
                np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-15)


def test_positions_are_the_authors_table_on_a_square():
    """Their construction in their words: meshgrid(w, h), sin(w) cos(w) sin(h) cos(h)."""
    side, width = 7, 32
    grid_w, grid_h = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    omega = 1 / 10000 ** (np.arange(width // 4) / (width // 4))
    w, h = np.outer(grid_w.ravel(), omega), np.outer(grid_h.ravel(), omega)
    wanted = np.concatenate([np.sin(w), np.cos(w), np.sin(h), np.cos(h)], axis=1)
    np.testing.assert_allclose(vit.sincos_positions(side, side, width), wanted, atol=1e-12)


def test_without_positions_patches_could_change_places(float64):
    """Positions are added in the grid's order: exchanging two patches changes the features."""
    backbone = vit.ViT(**SMALL, dtype=jnp.float64)
    variables = drawn(backbone, 8)
    images = np.random.default_rng(0).normal(size=(1, 8, 12, 3))
    exchanged = images[:, :, [4, 5, 6, 7, 0, 1, 2, 3, 8, 9, 10, 11]]
    features = backbone.apply(variables, images)
    assert worst(backbone.apply(variables, exchanged), features) > 1e-3


def assert_uniform(array, bound):
    """Within the bound, and the deciles of a uniform distribution to six deviations."""
    array = np.asarray(array).ravel()
    assert np.abs(array).max() <= bound
    grid = np.linspace(0.1, 0.9, 9)
    difference = np.quantile(array, grid) - (2 * grid - 1) * bound
    assert np.abs(difference).max() <= 6 * bound / array.size**0.5


def test_everything_starts_as_published():
    backbone = encoders.create("vit_small").backbone.clone(depth=1)
    params = jax.jit(backbone.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    width, block = 384, params["blocks_0"]
    for part in np.split(np.asarray(block["qkv"]["kernel"]), 3, axis=1):
        assert_uniform(part, (6 / (width + width)) ** 0.5)
    assert_uniform(block["proj"]["kernel"], (6 / (width + width)) ** 0.5)
    assert_uniform(block["fc1"]["kernel"], (6 / (width + 4 * width)) ** 0.5)
    assert_uniform(block["fc2"]["kernel"], (6 / (width + 4 * width)) ** 0.5)
    assert_uniform(params["patch_embed"]["kernel"], (6 / (3 * 16**2 + width)) ** 0.5)
    for layer in (*block.values(), params["norm"], params["patch_embed"]):
        assert not np.asarray(layer["bias"]).any()
    for layer in (block["norm1"], block["norm2"], params["norm"]):
        assert np.all(np.asarray(layer["scale"]) == 1)
    token = np.asarray(params["cls_token"])
    assert abs(token.std() / 1e-6 - 1) < 6 / (2 * width) ** 0.5
    assert abs(token.mean()) < 6 * 1e-6 / width**0.5


def test_the_conv_stem_starts_as_torch_starts_convolutions():
    backbone = encoders.create("vit_conv_small").backbone.clone(depth=1)
    variables = jax.jit(backbone.init)(jax.random.key(0), jnp.zeros((2, 16, 16, 3)))
    params = variables["params"]["patch_embed"]
    for name, fan_in in (("conv1", 27), ("conv2", 9 * 48), ("conv3", 9 * 96), ("conv4", 9 * 192)):
        assert set(params[name]) == {"kernel"}
        assert_uniform(params[name]["kernel"], fan_in**-0.5)
    assert_uniform(params["proj"]["kernel"], 384**-0.5)
    assert_uniform(params["proj"]["bias"], 384**-0.5)


@pytest.mark.parametrize(
    ("name", "stop", "wanted"),
    [
        ("vit_small", None, True),
        ("vit_small", False, False),
        ("vit_conv_small", None, False),
        ("vit_conv_small", True, True),
    ],
)
def test_frozen_says_where_no_gradient_arrives(name, stop, wanted):
    """Only the conv stem is not frozen by default; `frozen` and gradients agree leaf by leaf."""
    encoder = encoders.create(name, width=24, dim=4, stop_patch_gradient=stop)
    encoder = encoder.clone(backbone=encoder.backbone.clone(depth=1))
    images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    variables = jax.jit(encoder.init)(jax.random.key(1), images)

    @jax.jit
    def gradients(params):
        def loss(params):
            own = {**variables, "params": params}
            out, _ = encoder.apply(own, images, True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(out))

        return jax.grad(loss)(params)

    still = encoders.frozen(encoder, variables["params"])
    found = jax.tree.map(lambda g: not np.asarray(g).any(), gradients(variables["params"]))
    assert still == found
    assert set(jax.tree.leaves(still["backbone"]["patch_embed"])) == {wanted}
    assert not any(jax.tree.leaves([still["head"], still["backbone"]["blocks_0"]]))


def test_nothing_of_a_resnet_is_frozen():
    encoder = encoders.create("resnet10", width=8)
    params = jax.eval_shape(partial(encoder.init, jax.random.key(0)), jnp.zeros((1, 32, 32, 3)))
    assert not any(jax.tree.leaves(encoders.frozen(encoder, params["params"])))


@pytest.mark.parametrize(
    ("remat", "attend"), [("none", "lean"), ("block", "plain"), ("block", "lean")]
)
def test_savings_of_memory_change_no_value_and_no_gradient(float64, remat, attend):
    """145 tokens, so that the lean attention has two blocks, the last of them padded."""
    reference = vit.ViT(**SMALL, stop_patch_gradient=False, dtype=jnp.float64)
    size = 48
    variables = drawn(reference, size)
    images = np.random.default_rng(0).normal(size=(2, size, size, 3))

    def run(backbone):
        def loss(params):
            out = backbone.apply({"params": params}, images, True)
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    ours, wanted = run(reference.clone(remat=remat, attention=attend)), run(reference)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11 * np.abs(b).max())


@pytest.mark.parametrize("tokens", [5, 128, 129, 300])
def test_lean_attention_is_plain_for_any_number_of_tokens(float64, tokens):
    rng = np.random.default_rng(tokens)
    arrays = rng.normal(size=(3, 2, tokens, 2, 4))
    weights = rng.normal(size=arrays.shape[1:])

    def run(attend):
        return jax.jit(jax.value_and_grad(lambda x: jnp.sum(attend(*x) * weights)))(arrays)

    for a, b in zip(run(attention.lean), run(attention.plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    x = arrays[:, 0, :, 0]
    logits = x[0] @ x[1].T / 2
    exact = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) @ x[2]
    np.testing.assert_allclose(attention.plain(*arrays)[0, :, 0], exact, rtol=1e-10)


def kept(backbone, size):
    """Numbers that the forward pass keeps for the backward pass, without the parameters."""
    shapes = shapes_of(backbone, size)
    images = jnp.zeros((2, size, size, 3), backbone.dtype)

    def forward(params):
        return jax.vjp(lambda p: backbone.apply({"params": p}, images, True), params)[1]

    saved = jax.tree.leaves(jax.eval_shape(forward, shapes["params"]))
    own = sum(x.size for x in jax.tree.leaves(shapes["params"]))
    return sum(x.size for x in saved) - own


def test_what_is_kept_for_the_backward_pass():
    """Lean attention keeps nothing of size N x N; with remat, a block keeps only its input."""
    size = 96
    plain = vit.ViT(**SMALL)
    tokens, images = (size // 4) ** 2 + 1, 2
    logits = images * plain.heads * tokens**2
    stream = images * tokens * plain.width
    assert kept(plain, size) > plain.depth * logits
    assert kept(plain.clone(attention="lean"), size) < logits
    assert kept(plain.clone(remat="block"), size) < (plain.depth + 3) * stream


def test_bfloat16_is_near_float32_and_keeps_parameters_in_it():
    options = dict(width=192, stop_patch_gradient=False)
    exact = encoders.create("vit_small", **options).backbone.clone(depth=3)
    rough = exact.clone(dtype=jnp.bfloat16)
    images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    variables = jax.jit(rough.init)(jax.random.key(1), images)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    def run(backbone):
        def loss(params):
            out = backbone.apply({"params": params}, images, True)
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    (grads, out), (rough_grads, rough_out) = run(exact), run(rough)
    assert rough_out.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(rough_grads)} == {jnp.dtype("float32")}
    difference = np.abs(np.asarray(rough_out - out)).max()
    assert 1e-4 < difference < 0.05
    for a, b in zip(jax.tree.leaves(rough_grads), jax.tree.leaves(grads), strict=True):
        length = np.linalg.norm(b)
        assert np.linalg.norm(a - b) < 0.1 * length


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(image_size=30), "image_size=30 does not divide into patches of 16; use 16 or 32"),
        (dict(image_size=8), "image_size=8 does not divide into patches of 16; use 16"),
        (
            dict(image_size=32, width=100),
            "width=100 does not divide into 12 heads .*; use 96 or 108",
        ),
        (dict(image_size=32, stem="cifar"), "stem='cifar' means nothing to vit_small"),
        (
            dict(image_size=32, zero_init_residual=True),
            "zero_init_residual=True means nothing to vit",
        ),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        encoders.check("vit_small", **settings)


def test_create_and_call_refuse_too():
    says = "stem='cifar' means nothing to vit_small; leave it at 'imagenet'"
    with pytest.raises(ValueError, match=says):
        encoders.create("vit_small", stem="cifar")
    with pytest.raises(ValueError, match="remat='block' means nothing to resnet18"):
        encoders.create("resnet18", remat="block")
    with pytest.raises(ValueError, match="attention='flash' is unknown; use one of plain, lean"):
        encoders.create("vit_small", attention="flash")
    with pytest.raises(ValueError, match="image_size=40 does not divide into patches of 16"):
        shapes_of(encoders.create("vit_small").backbone, 40)
