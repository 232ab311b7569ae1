"""Files of lightly and solo-learn: which heads, predictors and queues are taken, and which not."""

import copy
from functools import partial

import numpy as np
import pytest

import moco_jax
from moco_jax.base.errors import UserError
from moco_jax.encoders.vit import sincos_positions
from moco_jax.weights import bridge, files, layouts, timm
from moco_jax.weights.pretrained import part
from tests.weights.test_bridge import (
    assert_same_bits,
    features,
    in_parts,
    made,
    resnet10,
    run,
    under,
    worst,
)

torch = pytest.importorskip("torch", reason="these files are PyTorch's: pip install '.[torch]'")
torchvision = pytest.importorskip("torchvision", reason="pip install '.[torch]'")
nn = torch.nn


def images(side=32):
    ours = np.random.default_rng(0).normal(size=(3, side, side, 3)).astype(np.float32)
    return ours, torch.tensor(ours).permute(0, 3, 1, 2)


def shaken(net):
    """With every entry away from its start, positions apart."""
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point() and "pos" not in name:
                noise, spread = torch.randn_like(value), "running_var" in name
                value.copy_(torch.exp(0.2 * noise) if spread else value + 0.05 * noise)
    return net


def mlp(inside, hidden, dim):
    return nn.Sequential(nn.Linear(inside, hidden), nn.ReLU(), nn.Linear(hidden, dim))


def small_resnet(padding, relu):
    net = resnet10(nn.Identity())
    net.conv1 = nn.Conv2d(3, 64, 3, 1, padding, bias=False)
    net.maxpool = nn.Identity()
    net.relu = net.relu if relu else nn.Identity()
    return shaken(net)


@pytest.mark.parametrize("library", ["lightly", "solo-learn"])
def test_moco_v2_on_cifar_gives_the_outputs_of_both_encoders(tmp_path, library):
    """lightly puts its ResNet's parts in a row, without ReLU after bn1; solo-learn pads by two."""
    torch.manual_seed(0)
    solo = library == "solo-learn"
    net = small_resnet(padding=2 if solo else 1, relu=solo)
    head, momentum_net = mlp(512, 9, 6), shaken(copy.deepcopy(net))
    momentum_head = shaken(copy.deepcopy(head))
    queue = nn.functional.normalize(torch.randn(2, 6, 8), dim=1)
    if solo:
        state_dict = (
            under("backbone.", net.state_dict())
            | under("momentum_backbone.", momentum_net.state_dict())
            | under("projector.", head.state_dict())
            | under("momentum_projector.", momentum_head.state_dict())
            | {"queue": queue, "queue_ptr": torch.tensor([3])}
            | {"classifier.weight": torch.zeros(2, 512)}
        )
    else:
        numbered = [
            {k.replace("downsample", "shortcut"): v for k, v in in_parts(n, 2).items()}
            for n in (net, momentum_net)
        ]
        state_dict = (
            under("backbone.", numbered[0])
            | under("backbone_momentum.", numbered[1])
            | under("projection_head.layers.", head.state_dict())
            | under("projection_head_momentum.layers.", momentum_head.state_dict())
        )
    path = str(tmp_path / "epoch=9.ckpt")
    torch.save({"state_dict": state_dict}, path)
    found = bridge.load(path)
    assert found.options == {
        "name": "resnet10",
        "stem": "cifar_pad2" if solo else "cifar_no_relu",
        "head": "mlp",
        "head_width": 9,
        "dim": 6,
    }
    assert found.left_out == (("classifier.weight",) if solo else ())
    assert found.remarks == ()
    ours, theirs = images()
    both = (found.query, net, head), (found.key, momentum_net, momentum_head)
    for variables, encoder, on_top in both:
        pooled = features(found, variables, ours)
        assert worst(pooled, run(encoder, theirs)) <= 1e-4
        projected = found.encoder.apply(variables, pooled, method="project")
        assert worst(projected, run(on_top, run(encoder, theirs))) <= 1e-4
    if solo:
        # Queries of the first view meet the second view's keys; the pointer is at the oldest.
        np.testing.assert_array_equal(found.queue, queue[1].numpy().T[[3, 4, 5, 6, 7, 0, 1, 2]])
    else:
        assert found.queue is None
    says = f"{library}'s network has stem='cifar_.*stem='cifar' it is another"
    with pytest.raises(UserError, match=says):
        bridge.load(path, stem="cifar")


# What the authors call encoders, in v3 and before: "q" is the query encoder, "k" the key encoder.
AUTHORS = {"base_encoder": "q", "momentum_encoder": "k", "encoder_q": "q", "encoder_k": "k"}
# Prefixes of the heads of queries and of keys, and of the backbones of queries and of keys.
PREFIXES = {
    "lightly": (
        "projection_head.layers.",
        "projection_head_momentum.layers.",
        "backbone.",
        "backbone_momentum.",
    ),
    "lightly's benchmark": (
        "query_projection_head.layers.",
        "projection_head.layers.",
        "query_backbone.",
        "backbone.",
    ),
    "solo-learn": ("projector.", "momentum_projector.", "backbone.", "momentum_backbone."),
    "old solo-learn": ("projector.", "momentum_projector.", "encoder.", "momentum_encoder."),
}


def as_of(library, name):
    """The weights `made(name)` under another library's names."""
    entries, _ = bridge.entries(made(name), "moco")
    entries = {k.removeprefix("module."): v for k, v in entries.items()}
    head = "head" if "vit" in name else "fc"
    rules = {f"{encoder}.{head}.": f"{short}_head." for encoder, short in AUTHORS.items()}
    rules |= {f"{encoder}.": f"{short}." for encoder, short in AUTHORS.items()}
    names = dict(zip(("q_head.", "k_head.", "q.", "k."), PREFIXES[library], strict=True))
    renamed = {}
    for key, array in entries.items():
        for old, new in rules.items():
            if key.startswith(old):
                key = names[new] + key.removeprefix(old)
                break
        renamed[key] = array
    return {k: v for k, v in renamed.items() if not k.startswith("queue")}


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("lightly's benchmark", "v2"),
        ("lightly", "v2"),
        ("solo-learn", "v3 resnet"),
        ("old solo-learn", "v3 resnet"),
        ("solo-learn", "v3 vit"),
    ],
)
def test_heads_and_predictors_keep_every_bit(tmp_path, library, name):
    path = str(tmp_path / "weights.pth")
    files.write(path, as_of(library, name), {})
    found = bridge.load(path)
    assert_same_bits(found.query, made(name).query)
    assert_same_bits(found.key, made(name).key)
    assert (found.left_out, found.remarks, found.queue) == ((), (), None)
    out = str(tmp_path / "moco.pth.tar")
    bridge.save(found, out, "moco")
    assert_same_bits(bridge.load(out).query, made(name).query)


def test_heads_of_other_kinds_are_left_out_and_the_reason_is_said(tmp_path):
    path = str(tmp_path / "weights.pth")
    entries = as_of("solo-learn", "v3 resnet")
    entries["predictor.0.weight"] = entries["predictor.0.weight"][1:]
    files.write(path, entries, {})
    found = bridge.load(path)
    assert_same_bits(part(found.query, "head"), part(made("v3 resnet").query, "head"))
    assert "predictor" not in found.options
    assert {n.split(".")[0] for n in found.left_out} == {"predictor"}
    (said,) = found.remarks
    assert said.startswith("no predictor of this kind is here: weights do not fit the head: ")
    assert "predictor.0.weight has shape (9, 6), not (10, 6)" in said
    # As lightly's head for v3, whose last BatchNorm has scale and bias.
    entries["projector.4.weight"] = np.ones(6, np.float32)
    files.write(path, entries, {})
    found = bridge.load(path)
    assert "head" not in found.options
    assert "unexpected projector.4.weight" in found.remarks[0]
    left_out = {n.split(".")[0] for n in found.left_out}
    assert left_out == {"projector", "momentum_projector", "predictor"}
    assert_same_bits(part(found.query, "backbone"), part(made("v3 resnet").query, "backbone"))


def columns_first(rows, columns, width):
    """The table of MAE and lightly."""
    return np.roll(sincos_positions(rows, columns, width), width // 2, 1)


@pytest.mark.parametrize("order", ["columns", "rows"])
def test_lightlys_wrapped_vits_are_read(tmp_path, order):
    torch.manual_seed(0)
    norm = partial(nn.LayerNorm, eps=1e-6)
    net = shaken(torchvision.models.VisionTransformer(32, 16, 12, 12, 24, 96, norm_layer=norm))
    net.heads, head = nn.Identity(), mlp(24, 9, 6)
    table = (columns_first if order == "columns" else sincos_positions)(2, 2, 24)
    with torch.no_grad():
        net.encoder.pos_embedding.copy_(torch.tensor(np.pad(table, ((1, 0), (0, 0)))[None]))
    entries = under("vit.", net.state_dict()) | {"mask_token": torch.zeros(1, 1, 24)}
    on_top = under("projection_head.layers.", head.state_dict())
    path = str(tmp_path / "weights.ckpt")
    torch.save({"state_dict": under("backbone.", entries) | on_top}, path)
    found = bridge.load(path)
    assert found.left_out == ("backbone.mask_token",)
    ours, theirs = images()
    expected, pooled = run(net, theirs), features(found, found.query, ours)
    assert worst(timm.exchanged(pooled, 1) if order == "columns" else pooled, expected) <= 1e-4
    projected = found.encoder.apply(found.query, pooled, method="project")
    assert worst(projected, run(head, expected)) <= 1e-4
    assert [("columns first" in said) for said in found.remarks] == [True] * (order == "columns")
    assert ("columns first" in moco_jax.load(path).about) == (order == "columns")

    # timm's names, and the wrapper alone.
    plain = layouts.plain({k: v.numpy() for k, v in entries.items()})
    files.write(path, under("vit.", plain) | {"mask_token": np.zeros((1, 1, 24))}, {})
    alone = bridge.load(path)
    assert_same_bits(part(alone.query, "backbone"), part(found.query, "backbone"))
    assert (alone.key, alone.left_out) == (None, ("mask_token",))

    plain["pos_embed"] = plain["pos_embed"] + 0.1
    files.write(path, under("vit.", plain), {})
    with pytest.raises(UserError, match=r"pos_embed is not the fixed .*no learnt ones") as error:
        bridge.load(path)
    assert "\n" not in str(error.value)


def test_split_statistics_become_their_mean_and_stems_are_told_apart(tmp_path):
    split = {
        "0.weight": np.zeros((2, 3, 3, 3)),
        "1.weight": np.ones(2),
        "2.0.conv1.weight": np.zeros((2, 2, 3, 3)),
        "1.running_mean": np.array([1.0, 2, 3, 6]),
        "1.running_var": np.array([1.0, 2]),
    }
    plain = layouts.plain(split)
    np.testing.assert_array_equal(plain["bn1.running_mean"], [2, 4])
    np.testing.assert_array_equal(plain["bn1.running_var"], [1, 2])
    numbered = under("backbone.", split)
    assert layouts.stem_of(numbered, layouts.recognise(numbered)) == "cifar_no_relu"
    numbered["backbone.3.0.conv1.weight"] = numbered.pop("backbone.2.0.conv1.weight")
    assert layouts.stem_of(numbered, layouts.recognise(numbered)) == ""
    numbered["backbone.0.weight"] = np.zeros((2, 3, 7, 7))
    with pytest.raises(UserError, match="7x7 stem without ReLU and pool"):
        layouts.stem_of(numbered, layouts.recognise(numbered))

    entries, _ = bridge.entries(made("v2"), "torchvision")
    path = str(tmp_path / "weights.pth")
    files.write(path, under("backbone.", entries), {})
    with pytest.raises(UserError, match="nothing says which 3x3 stem this is"):
        bridge.load(path)
    assert bridge.load(path, stem="cifar").options["stem"] == "cifar"
    files.write(path, under("backbone.", entries) | {"classifier.weight": np.zeros((2, 2))}, {})
    assert bridge.load(path).options["stem"] == "cifar_pad2"


def test_lightlys_own_modules_compute_the_same(tmp_path):
    models = pytest.importorskip("lightly.models", reason="pip install lightly")
    modules = pytest.importorskip("lightly.models.modules", reason="pip install lightly")
    torch.manual_seed(0)
    path, (ours, theirs) = str(tmp_path / "weights.pth"), images()
    generated = list(models.ResNetGenerator("resnet-9", 0.125, num_splits=2).children())[:-1]
    vit = torchvision.models.VisionTransformer(32, 16, 12, 12, 24, 96)
    for backbone, width, order in (
        (nn.Sequential(*generated, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 64, [0, 1]),
        (modules.MaskedVisionTransformerTorchvision(vit), 24, [1, 0]),
    ):
        net = nn.Module()
        net.backbone = shaken(backbone)
        net.projection_head = modules.MoCoProjectionHead(width, 9, 6)
        expected = run(net.backbone, theirs)
        torch.save(net.state_dict(), path)
        found = bridge.load(path)
        pooled = features(found, found.query, ours)
        halves = np.split(np.asarray(pooled), 2, 1)
        assert worst(np.concatenate([halves[i] for i in order], 1), expected) <= 1e-4
        projected = found.encoder.apply(found.query, pooled, method="project")
        assert worst(projected, run(net.projection_head, expected)) <= 1e-4
