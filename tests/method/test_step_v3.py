"""MoCo v3's step against an independent PyTorch writing: ResNet with LARS, ViT with AdamW."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import encoders
from moco_jax.encoders.vit import ViT
from moco_jax.method import optimizers, state, step
from moco_jax.method.choice import Method
from moco_jax.weights import timm as timm_weights
from moco_jax.weights import torchvision as torchvision_weights

torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install '.[torch]'")
from tests.encoders import narrow
from tests.method import torch_moco_v3

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
B, SIDE, DIM, HIDDEN, M, DECAY = 16, 32, 8, 24, 0.5, 1e-2
METHOD = Method(
    dictionary="batch", temperature=0.5, symmetric=True, times_2t=True, bn_groups=1, shuffle="none"
)


def relative(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30)


def backbone_variables(net, encoder):
    shapes = jax.eval_shape(
        lambda: encoder.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3), jnp.float64))
    )
    template = {kind: tree["backbone"] for kind, tree in shapes.items() if "backbone" in tree}
    entries = {k: v.numpy() for k, v in net.state_dict().items()}
    if isinstance(net, torch_moco_v3.ViT):
        entries = {k: v for k, v in entries.items() if not k.startswith("fc.")}
        return {"params": timm_weights.load(entries, template)["params"]}
    return torchvision_weights.load(entries, template)


def our_variables(net, predictor, encoder):
    parts = {
        "backbone": backbone_variables(net, encoder),
        "head": torch_moco_v3.mlp_variables(net.fc),
    }
    if predictor is not None:
        parts["predictor"] = torch_moco_v3.mlp_variables(predictor)
    found = {
        kind: {name: part[kind] for name, part in parts.items() if part.get(kind)}
        for kind in ("params", "batch_stats")
    }
    return jax.tree.map(np.array, found)


def compare(encoder, net, predictor, name, rate):
    """Five steps of both: losses, the change of every parameter, statistics."""
    optimizer = optimizers.create(name, 0.9, DECAY, encoders.frozen_in(encoder))
    settings = dict(momentum=M, temperature=METHOD.temperature, weight_decay=DECAY)
    theirs = torch_moco_v3.MoCo(net, predictor, optimizer=name, **settings)
    before = our_variables(net, predictor, encoder)
    key = {kind: state.key_part(tree) for kind, tree in before.items()}
    ours = jax.jit(
        lambda: state.initial_state(
            0, encoder, optimizer, SIDE, lambda rng: None, dtype=jnp.float64
        )
    )()
    assert jax.tree.structure(ours.params) == jax.tree.structure(before["params"])
    ours = ours.replace(
        params=before["params"],
        batch_stats=before["batch_stats"],
        key_params=key["params"],
        key_batch_stats=key["batch_stats"],
    )
    rules = (lambda s: jnp.asarray(rate), lambda s: M, METHOD)
    images = dict(mean=MEAN, std=STD, dtype=jnp.float64)
    train_step = jax.jit(step.make_train_step(encoder, optimizer, *rules, **images))

    def prepare(x):
        return torch.tensor((x / 255.0 - MEAN) / STD).permute(0, 3, 1, 2)

    rng = np.random.default_rng(0)
    for number in range(5):
        first, second = (rng.integers(0, 256, (B, SIDE, SIDE, 3), dtype=np.uint8) for _ in range(2))
        loss = theirs.step(prepare(first), prepare(second), rate)
        ours, metrics = train_step(ours, step.Batch(first, second, np.arange(B, dtype=np.int32)))
        assert abs(float(metrics["loss"]) - loss) < 1e-8 * loss, number
    last, keys = our_variables(net, predictor, encoder), our_variables(theirs.k, None, encoder)
    unmoved: set[str] = set()
    average = jax.jit(optimizers.moving_average)
    next_keys = jax.device_get(average(keys["params"], state.key_part(last["params"]), M))
    ours = jax.device_get(ours)
    for what, start, new, reference in (
        ("query", before["params"], ours.params, last["params"]),
        ("key", key["params"], ours.key_params, next_keys),
    ):
        paths = jax.tree_util.tree_leaves_with_path(start)
        leaves = jax.tree.leaves(new), jax.tree.leaves(reference)
        for (path, old), n, r in zip(paths, *leaves, strict=True):
            # A bias that a BatchNorm takes out again has no gradient but rounding errors, which
            # AdamW magnifies.
            nothing = 1e-6 * rate * np.sqrt(old.size)
            if np.linalg.norm(r - old) < nothing:
                assert np.linalg.norm(n - old) < nothing, (what, path)
                unmoved.add(path[1].key)
            else:
                change = relative(n - old, r - old)
                assert change < 1e-8, (what, path, change)
    assert unmoved <= {"patch_embed", "norm"}
    for new, reference in ((ours.batch_stats, last), (ours.key_batch_stats, keys)):
        # Means behind a BatchNorm are zero but for rounding errors; means behind an unmoved bias
        # have the bias's.
        pairs = zip(jax.tree.leaves(new), jax.tree.leaves(reference["batch_stats"]), strict=True)
        for n, r in pairs:
            np.testing.assert_allclose(n, r, rtol=1e-8, atol=1e-7 if unmoved else 1e-12)


def test_five_steps_of_a_resnet_with_lars_equal_pytorch(float64):
    torch.manual_seed(0)
    net, predictor = torch_moco_v3.resnet(DIM, HIDDEN)
    with torch.no_grad():  # a scale of zero would hide a block's gradients in the first step
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
    parts = dict(head="v3_resnet", predictor="v3_resnet", head_width=HIDDEN, dim=DIM)
    encoder = encoders.create("resnet6", width=narrow.WIDTH, dtype=jnp.float64, **parts)
    compare(encoder, net, predictor, "lars", 30.0)


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_five_steps_of_a_vit_equal_pytorch(float64, monkeypatch, optimizer):
    """The patch projection is frozen: no gradient, no decay, and so no change."""
    monkeypatch.setitem(encoders.BACKBONES, "vit_tiny", partial(ViT, 2, 3, width=24, patch=8))
    torch.manual_seed(0)
    net, predictor = torch_moco_v3.vit(24, 2, 3, 8, SIDE, DIM, HIDDEN)
    torch.nn.init.normal_(net.cls_token, std=0.1)
    encoder = encoders.create(
        "vit_tiny", head="v3_vit", predictor="v3_vit", head_width=HIDDEN, dim=DIM, dtype=jnp.float64
    )
    compare(encoder, net, predictor, optimizer, 0.01 if optimizer == "adamw" else 10.0)


def test_chance_is_four_t_log_b():
    method = Method(dictionary="batch", temperature=0.2, symmetric=True, times_2t=True)
    assert abs(method.chance_level(4096) - 4 * 0.2 * np.log(4096)) < 1e-12
