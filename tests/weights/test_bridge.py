"""Weights to every format and back, files under others' names, outputs beside PyTorch's."""

import copy
from functools import cache, partial

import jax
import numpy as np
import pytest

from moco_jax import encoders
from moco_jax.base.errors import UserError
from moco_jax.encoders.vit import sincos_positions
from moco_jax.weights import bridge, files, verify
from moco_jax.weights.pretrained import Pretrained, joined, part, template

torch = pytest.importorskip("torch", reason="these files are PyTorch's: pip install '.[torch]'")
torchvision = pytest.importorskip("torchvision", reason="pip install '.[torch]'")
nn = torch.nn

from tests.method.torch_moco_v3 import batch_norm_mlp

RESNET = dict(name="resnet10", width=8, stem="imagenet")
VIT = dict(name="vit_small", width=24)
CONV_VIT = dict(name="vit_conv_small", width=24)
V3_VIT = dict(head="v3_vit", predictor="v3_vit", head_width=10, dim=6)
MADE = {
    "v1": RESNET | dict(head="linear", dim=6),
    "v2": RESNET | dict(head="mlp", head_width=10, dim=6, stem="cifar"),
    "v3 resnet": RESNET | dict(head="v3_resnet", predictor="v3_resnet", head_width=10, dim=6),
    "v3 vit": VIT | V3_VIT,
    "v3 conv vit": CONV_VIT | V3_VIT,
}


def drawn(options, seed, predictor=True):
    """Variables with every leaf away from its start."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        spread = rng.normal(size=leaf.shape)
        if path[-1].key in ("scale", "var"):
            return np.exp(0.2 * spread).astype(leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 4
        return (spread / np.sqrt(fan_in)).astype(leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(draw, template(options, 32))
    names = ("backbone", "head", *(["predictor"] if predictor else []))
    return joined(**{name: part(variables, name) for name in names})


@cache
def made(name):
    """A pretraining of the kind `name`."""
    options = MADE[name]
    rng = np.random.default_rng(3)
    queue = rng.normal(size=(16, 6)).astype(np.float32) if name in ("v1", "v2") else None
    return Pretrained(options, drawn(options, 0), drawn(options, 1, False), queue, image_size=32)


def assert_same_bits(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


@partial(jax.jit, static_argnums=0)
def pooled(backbone, variables, images):
    return backbone.apply(variables, images)


def features(pretrained, variables, images):
    """Ours; tests of the same architecture share the program."""
    options = {k: v for k, v in pretrained.options.items() if k in ("name", "width", "stem")}
    backbone = {k: v["backbone"] for k, v in variables.items() if "backbone" in v}
    return pooled(encoders.create(**options).backbone, backbone, images)


def worst(ours, theirs):
    theirs = theirs.detach().numpy()
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("ending", ["pth.tar", "safetensors"])
@pytest.mark.parametrize("name", MADE)
def test_the_authors_layout_keeps_every_bit_of_everything(tmp_path, name, ending):
    if ending == "safetensors":
        pytest.importorskip("safetensors", reason="pip install '.[safetensors]'")
    pretrained, path = made(name), str(tmp_path / f"moco.{ending}")
    bridge.save(pretrained, path, "moco")
    again = bridge.load(path)
    assert_same_bits(again.query, pretrained.query)
    assert_same_bits(again.key, pretrained.key)
    assert_same_bits(again.queue, pretrained.queue)
    for key, value in again.options.items():
        assert pretrained.options.get(key) == value
    assert again.image_size == (32 if "vit" in name else 224)
    assert again.left_out == ()


@pytest.mark.parametrize(
    ("name", "kind", "ending"),
    [
        ("v2", "torchvision", "pth"),
        ("v2", "timm", "bin"),
        ("v1", "detectron2", "pkl"),
        ("v1", "torchvision", "safetensors"),
        ("v3 vit", "timm", "pth"),
        ("v3 vit", "torchvision", "pt"),
        ("v3 vit", "timm", "safetensors"),
        ("v3 conv vit", "torchvision", "pth"),
    ],
)
@pytest.mark.parametrize("which", ["query", "key"])
def test_a_backbone_there_and_back_keeps_every_bit(tmp_path, name, kind, ending, which):
    if ending == "safetensors":
        pytest.importorskip("safetensors", reason="pip install '.[safetensors]'")
    pretrained, path = made(name), str(tmp_path / f"weights.{ending}")
    bridge.save(pretrained, path, kind, which)
    again = bridge.load(path)
    assert_same_bits(again.query, joined(backbone=part(pretrained.chosen(which), "backbone")))
    assert again.key is None
    assert "head" not in again.options


@pytest.mark.parametrize(
    ("name", "kind", "ending", "outputs"),
    [
        ("v1", "moco", "pth.tar", 4),
        ("v2", "moco", "pth.tar", 4),
        ("v3 resnet", "moco", "pth.tar", 5),
        ("v3 vit", "moco", "pth.tar", 5),
        ("v3 conv vit", "moco", "pth.tar", 5),
        ("v1", "detectron2", "pkl", 1),
        ("v3 vit", "torchvision", "pth", 1),
        ("v3 conv vit", "torchvision", "pth", 1),
    ],
)
def test_pytorch_computes_the_same_with_what_is_written(tmp_path, name, kind, ending, outputs):
    """`--verify`: its networks are torchvision's and timm's, filled strictly from the file."""
    if "vit" in name and kind == "moco":
        pytest.importorskip("timm", reason="timm's ViT: pip install '.[torch]'")
    pretrained, path = made(name), str(tmp_path / f"weights.{ending}")
    bridge.save(pretrained, path, kind)
    found = verify.compare(pretrained, path, verify.random_pictures(pretrained))
    assert len(found) == outputs
    for difference in found:
        assert difference.largest <= 1e-4 * difference.size, difference


def test_verification_sees_another_encoder(tmp_path):
    pretrained, path = made("v1"), str(tmp_path / "weights.pth")
    bridge.save(pretrained, path, "torchvision", "key")
    (found,) = verify.compare(pretrained, path, verify.random_pictures(pretrained), "query")
    assert found.largest > 0.1 * found.size


# The authors' networks, built here as their code builds them.


def resnet10(head):
    net = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    net.fc = head
    return net


def vit(head, conv_stem):
    timm = pytest.importorskip("timm", reason="the authors' ViT is timm's: pip install '.[torch]'")
    own_stem = {"embed_layer": partial(verify._conv_stem, torch, [3, 6, 12, 24])}
    net = timm.models.vision_transformer.VisionTransformer(
        img_size=32,
        patch_size=16,
        embed_dim=24,
        depth=11 if conv_stem else 12,
        num_heads=12,
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        **(own_stem if conv_stem else {}),
    )
    table = np.pad(sincos_positions(2, 2, 24), ((1, 0), (0, 0)))[None]
    net.pos_embed = nn.Parameter(torch.tensor(table, dtype=torch.float32), requires_grad=False)
    net.head = head
    return net


class MoCo(nn.Module):
    """The modules and buffers of the authors' v1, v2 and v3."""

    def __init__(self, kind):
        super().__init__()
        if kind in ("v1", "v2"):
            head = nn.Linear(512, 6)
            if kind == "v2":
                head = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 6))
            self.encoder_q = resnet10(head)
            self.encoder_k = copy.deepcopy(self.encoder_q)
            self.register_buffer("queue", nn.functional.normalize(torch.randn(6, 8), dim=0))
            self.register_buffer("queue_ptr", torch.tensor([2]))
        else:
            on_vit = kind != "v3 resnet"
            if on_vit:
                self.base_encoder = vit(
                    batch_norm_mlp(3, 24, 10, 6, True), conv_stem="conv" in kind
                )
            else:
                self.base_encoder = resnet10(batch_norm_mlp(2, 512, 10, 6, True))
            self.momentum_encoder = copy.deepcopy(self.base_encoder)
            self.predictor = batch_norm_mlp(2, 6, 10, 6, on_vit)
        with torch.no_grad():
            for name, value in self.state_dict().items():
                if value.is_floating_point() and not name.endswith(("queue", "pos_embed")):
                    noise, spread = torch.randn_like(value), "running_var" in name
                    value.copy_(torch.exp(0.2 * noise) if spread else value + 0.05 * noise)


def run(net, images):
    with torch.no_grad():
        return net.eval()(images)


@pytest.mark.parametrize("kind", MADE)
def test_a_checkpoint_of_the_authors_gives_their_outputs(tmp_path, kind):
    torch.manual_seed(0)
    theirs, path = MoCo(kind), str(tmp_path / "checkpoint_0199.pth.tar")
    state_dict = {f"module.{k}": v for k, v in theirs.state_dict().items()}
    optimizer = torch.optim.SGD(theirs.parameters(), 0.03, momentum=0.9)
    checkpoint = {"epoch": 200, "arch": "vit_small" if "vit" in kind else "resnet10"}
    checkpoint |= {"state_dict": state_dict, "optimizer": optimizer.state_dict()}
    torch.save(checkpoint, path)
    found = bridge.load(path)
    vits = {"v3 vit": "vit_small", "v3 conv vit": "vit_conv_small"}
    assert found.options["name"] == vits.get(kind, "resnet10")
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    inputs = torch.tensor(images).permute(0, 3, 1, 2)
    encoder = found.encoder

    def ours(variables, method):
        return encoder.apply(variables, features(found, variables, images), method=method)

    query, key = (
        (theirs.base_encoder, theirs.momentum_encoder)
        if kind.startswith("v3")
        else (theirs.encoder_q, theirs.encoder_k)
    )
    assert worst(ours(found.query, "project"), run(query, inputs)) <= 1e-4
    assert worst(ours(found.key, "project"), run(key, inputs)) <= 1e-4
    if kind.startswith("v3"):
        assert found.queue is None
        expected = run(theirs.predictor, run(query, inputs))
        assert worst(ours(found.query, "query"), expected) <= 1e-4
    else:
        order = [2, 3, 4, 5, 6, 7, 0, 1]  # the pointer is at the oldest
        np.testing.assert_array_equal(found.queue, theirs.queue.numpy().T[order])

    out = str(tmp_path / "again.pth.tar")
    bridge.save(found, out, "moco")
    again = torch.load(out, weights_only=True)
    assert set(again) == {"epoch", "arch", "state_dict"}
    assert set(again["state_dict"]) == set(state_dict)
    for name, value in state_dict.items():
        if not name.endswith(("num_batches_tracked", "queue", "queue_ptr", "pos_embed")):
            assert torch.equal(again["state_dict"][name], value), name
        assert again["state_dict"][name].shape == value.shape, name
        assert again["state_dict"][name].dtype == value.dtype, name
    named = {k.removeprefix("module."): v for k, v in again["state_dict"].items()}
    MoCo(kind).load_state_dict(named)


# What other libraries call the same network.


def in_parts(net, first):
    """A ResNet's weights, named as in a Sequential of its parts, which lightly's examples have.

    The part layer1 has the number `first`.
    """
    numbers = {"conv1": 0, "bn1": 1} | {f"layer{i + 1}": first + i for i in range(4)}
    return {
        f"{numbers[name.split('.')[0]]}.{name.split('.', 1)[1]}": value
        for name, value in net.state_dict().items()
        if not name.startswith("fc.")
    }


def under(prefix, state_dict):
    return {f"{prefix}{name}": value for name, value in state_dict.items()}


@pytest.mark.parametrize(
    ("library", "left_out"),
    [
        ("torchvision", ("fc.weight", "fc.bias")),
        ("lightly", ("projection_head.layers.0.weight",)),
        ("solo-learn", ("classifier.weight",)),
        ("old solo-learn", ("classifier.weight",)),
    ],
)
def test_state_dicts_of_other_libraries_give_their_features(tmp_path, library, left_out):
    torch.manual_seed(0)
    net = resnet10(nn.Linear(512, 3))
    own = {k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}
    beside = {} if library == "torchvision" else {left_out[0]: torch.zeros(2, 2)}
    parts = in_parts(net, 4)
    state_dict = {
        "torchvision": net.state_dict(),
        "lightly": under("backbone.", parts) | under("backbone_momentum.", parts),
        "solo-learn": under("backbone.", own) | under("momentum_backbone.", own),
        "old solo-learn": under("encoder.", own) | under("momentum_encoder.", own),
    }[library]
    path = str(tmp_path / "weights.ckpt")
    torch.save({"state_dict": state_dict | beside}, path)
    found = bridge.load(path)
    assert found.left_out == left_out
    assert (found.key is None) == (library == "torchvision")
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    net.fc = nn.Identity()
    expected = run(net, torch.tensor(images).permute(0, 3, 1, 2))
    assert worst(features(found, found.query, images), expected) <= 1e-4
    if found.key is not None:
        assert_same_bits(found.key, found.query)


def test_torchvisions_vit_loads_and_gives_its_features(tmp_path):
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(
        32, 16, 12, 12, 24, 96, norm_layer=partial(nn.LayerNorm, eps=1e-6)
    )
    path = str(tmp_path / "weights.pth")
    torch.save(net.state_dict(), path)
    with pytest.raises(UserError, match="pos_embed is not the fixed sine and cosine table"):
        bridge.load(path)
    with torch.no_grad():
        net.class_token.normal_()
        table = np.pad(sincos_positions(2, 2, 24), ((1, 0), (0, 0)))[None]
        net.encoder.pos_embedding.copy_(torch.tensor(table))
    torch.save(net.state_dict(), path)
    found = bridge.load(path)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    net.heads = nn.Identity()
    expected = run(net, torch.tensor(images).permute(0, 3, 1, 2))
    assert worst(features(found, found.query, images), expected) <= 1e-4


def test_faults_are_listed_and_a_wrong_architecture_is_named(tmp_path):
    pretrained, path = made("v2"), str(tmp_path / "weights.pth")
    bridge.save(pretrained, path, "torchvision")
    with pytest.raises(UserError, match="these are weights of resnet10, not of resnet50"):
        bridge.load(path, "resnet50")
    arrays, _ = bridge.entries(pretrained, "moco")
    del arrays["module.encoder_q.fc.2.bias"]
    arrays["module.encoder_q.fc.2.weight"] = arrays["module.encoder_q.fc.2.weight"][:, 1:]
    arrays["module.encoder_q.fc.4.bias"] = np.zeros(2, np.float32)
    files.write(path, arrays, {})
    with pytest.raises(UserError, match="do not fit the head") as error:
        bridge.load(path)
    beginning = f"{path}: weights do not fit the head: "
    assert str(error.value).startswith(beginning)
    faults = str(error.value).removeprefix(beginning).split("; ")
    assert sorted(faults) == [
        "fc.2.weight has shape (6, 9), not (6, 10)",
        "missing fc.2.bias",
        "unexpected fc.4.bias",
    ]
    arrays, _ = bridge.entries(pretrained, "moco")
    arrays["module.other"] = np.zeros(2, np.float32)
    files.write(path, arrays, {})
    with pytest.raises(UserError, match="unexpected other"):
        bridge.load(path)
    files.write(path, {"a": np.zeros(2, np.float32)}, {})
    with pytest.raises(UserError, match="no layout that is known"):
        bridge.load(path)


@pytest.mark.parametrize(
    ("name", "path", "kind", "which", "says"),
    [
        ("v1", "w.pth", "detectron2", "query", "is read from .pkl"),
        ("v1", "w.pkl", "timm", "query", "is not kept in .pkl"),
        ("v2", "w.pkl", "detectron2", "query", "7x7 stem"),
        ("v3 vit", "w.pkl", "detectron2", "query", "7x7 stem"),
        ("v1", "w.pth", "moco", "key", "holds both encoders"),
        ("v1", "w.pth", "keras", "query", "format='keras' is unknown"),
        ("v1", "w.h5", "timm", "query", "has no known ending"),
    ],
)
def test_what_a_format_cannot_hold_is_said(tmp_path, name, path, kind, which, says):
    with pytest.raises(UserError, match=says):
        bridge.save(made(name), str(tmp_path / path), kind, which)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["v1", "v3 vit"])
def test_the_authors_linear_scripts_read_it(tmp_path, kind):
    """Scripts take entries of the query encoder without head; only a classifier may be missing."""
    options = MADE[kind] | ({"width": 64} if kind == "v1" else {})
    path = str(tmp_path / "moco.pth.tar")
    bridge.save(Pretrained(options, drawn(options, 0), image_size=32), path, "moco")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if kind == "v1":
        net, prefix, last = resnet10(nn.Linear(512, 3)), "module.encoder_q.", "fc"
    else:
        net, prefix, last = vit(nn.Linear(24, 3), False), "module.base_encoder.", "head"
    entries = {
        name[len(prefix) :]: value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(prefix) and not name.startswith(prefix + last)
    }
    missing, unexpected = net.load_state_dict(entries, strict=False)
    assert set(missing) == {f"{last}.weight", f"{last}.bias"}
    assert unexpected == []


def test_pictures_of_a_folder_are_resized_and_normalised(tmp_path):
    from PIL import Image

    pretrained = made("v1")
    with pytest.raises(UserError, match="holds no pictures"):
        verify.read_pictures(str(tmp_path), pretrained)
    (tmp_path / "a.txt").write_text("no picture")
    Image.new("RGB", (50, 40), (255, 0, 0)).save(tmp_path / "b.png")
    pictures = verify.read_pictures(str(tmp_path), pretrained)
    assert pictures.shape == (1, 32, 32, 3)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    np.testing.assert_allclose(pictures, np.broadcast_to(expected, pictures.shape), rtol=1e-6)
