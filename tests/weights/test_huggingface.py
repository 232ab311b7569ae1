"""Hugging Face folders: names, shapes, bits, refusals; transformers' models and processors load."""

import json
import math
import os

import numpy as np
import pytest
from PIL import Image

import moco_jax
from moco_jax.base.errors import UserError
from moco_jax.weights import bridge, files, huggingface, verify
from moco_jax.weights.pretrained import Pretrained, joined, part
from tests.data.pictures import PHOTO
from tests.weights import odd_files
from tests.weights.test_bridge import CONV_VIT, RESNET, VIT, assert_same_bits, drawn

pytest.importorskip("safetensors", reason="pip install '.[safetensors]'")

SEEN = dict(image_size=32, mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.25), resize=37)
MADE = {
    "basic": RESNET,
    "bottleneck": dict(name="resnet50", width=8, stem="imagenet"),
    "vit": VIT,
}


def made(name):
    options = MADE[name]
    key = drawn(options, 1, False)
    return Pretrained(options, drawn(options, 0, False), key, image_size=32, preprocessing=SEEN)


@pytest.fixture(params=MADE)
def folder(request, tmp_path):
    """One that was written, and what it was written from."""
    pretrained = made(request.param)
    bridge.save(pretrained, str(tmp_path / "hf"), "huggingface", "key")
    return tmp_path / "hf", pretrained


def backbone_of(pretrained, which):
    return joined(backbone=part(pretrained.chosen(which), "backbone"))


def test_a_folder_there_and_back_keeps_every_bit(folder, tmp_path):
    place, pretrained = folder
    for source in (place, place / "model.safetensors"):
        again = bridge.load(str(source))
        assert_same_bits(again.query, backbone_of(pretrained, "key"))
        assert again.options == {k: v for k, v in pretrained.options.items() if k != "head"}
        assert (again.key, again.left_out) == (None, ())
    assert bridge.load(str(place)).preprocessing == SEEN
    bridge.save(bridge.load(str(place)), str(tmp_path / "again"), "huggingface")
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (place / name).read_bytes()
    assert "shorter side to 37 pixels, centre 32 x 32" in moco_jax.load(place).about


def test_names_and_architecture_are_as_on_the_hub(tmp_path):
    bridge.save(made("vit"), str(tmp_path / "vit"), "huggingface")
    bridge.save(made("bottleneck"), str(tmp_path / "resnet"), "huggingface")
    vit, resnet = (files.read(str(tmp_path / n / "model.safetensors")) for n in ("vit", "resnet"))
    assert len(vit) == 4 + 12 * 16 + 2
    assert vit["embeddings.position_embeddings"].shape == (1, 5, 24)
    assert vit["embeddings.patch_embeddings.projection.weight"].shape == (24, 3, 16, 16)
    assert vit["encoder.layer.11.attention.attention.value.weight"].shape == (24, 24)
    assert vit["encoder.layer.0.attention.output.dense.bias"].shape == (24,)
    assert vit["encoder.layer.0.output.dense.weight"].shape == (24, 96)
    assert resnet["embedder.embedder.convolution.weight"].shape == (8, 3, 7, 7)
    assert resnet["encoder.stages.1.layers.0.shortcut.convolution.weight"].shape == (64, 32, 1, 1)
    assert resnet["encoder.stages.3.layers.2.layer.1.convolution.weight"].shape == (64, 64, 3, 3)
    assert resnet["encoder.stages.0.layers.0.layer.2.normalization.running_var"].shape == (32,)
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    assert (config["num_attention_heads"], config["layer_norm_eps"]) == (12, 1e-6)
    config = json.loads((tmp_path / "resnet" / "config.json").read_text())
    assert (config["embedding_size"], config["hidden_sizes"]) == (8, [32, 64, 128, 256])


NEWER = {
    "encoder.layer.": "layers.",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    ".output.dense": ".mlp.fc2",
}


def test_a_classifiers_file_and_newer_names_are_read(tmp_path):
    path = str(tmp_path / "classifier.safetensors")
    for name, prefix in (("vit", "vit."), ("basic", "resnet."), ("vit", "")):
        entries, _ = bridge.entries(made(name), "huggingface")
        if not prefix:
            for old, new in NEWER.items():
                entries = {key.replace(old, new): array for key, array in entries.items()}
        entries = {f"{prefix}{key}": array for key, array in entries.items()}
        beside = [f"{prefix}pooler.dense.bias", *(["classifier.weight"] if prefix else [])]
        files.write(path, entries | {key: np.zeros(2, np.float32) for key in beside}, {})
        again = bridge.load(path)
        assert_same_bits(again.query, backbone_of(made(name), "query"))
        assert sorted(again.left_out) == sorted(beside)
    del entries["layers.3.attention.k_proj.bias"]
    files.write(path, entries, {})
    with pytest.raises(UserError, match=r"missing blocks\.3\.attn\.qkv\.bias"):
        bridge.load(path)


@pytest.mark.parametrize(
    ("options", "out", "says"),
    [
        (RESNET | dict(stem="cifar"), "hf", "only ResNets with the 7x7 stem, .*stem='cifar'"),
        (
            CONV_VIT,
            "hf",
            "only ViTs with a patch projection, and vit_conv_small has a convolutional",
        ),
        (RESNET, "hf.safetensors", "is a folder; .* is named as a file"),
        (RESNET, "", "exists and is not empty"),
    ],
)
def test_what_a_folder_cannot_hold_is_said(tmp_path, options, out, says):
    (tmp_path / "config.json").write_text("of a run")
    pretrained = Pretrained(options, drawn(options, 0, False), image_size=32)
    with pytest.raises(UserError, match=says):
        bridge.save(pretrained, str(tmp_path / out), "huggingface")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_network_that_none_here_is_refused(tmp_path):
    for name, changes, says in (
        ("vit", {"num_attention_heads": 6}, "num_attention_heads=6 .*here it is 12"),
        ("vit", {"layer_norm_eps": None}, "layer_norm_eps=1e-12 .*here it is 1e-06"),
        ("bottleneck", {"downsample_in_bottleneck": True}, "downsample_in_bottleneck=True"),
    ):
        place = tmp_path / next(iter(changes))
        bridge.save(made(name), str(place), "huggingface")
        config = json.loads((place / "config.json").read_text()) | changes
        config = {key: value for key, value in config.items() if value is not None}
        (place / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=says):
            bridge.load(str(place))


def test_other_preprocessors_are_understood(tmp_path):
    statistics = {"image_mean": [0.5] * 3, "image_std": [0.2] * 3}
    known = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    for said, understood in (
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, {"image_size": 224, "resize": 256}),
        ({"size": {"height": 224, "width": 224}}, {"image_size": 224, "resize": 224}),
        ({"size": 224}, {"image_size": 224, "resize": 224}),
        ({"rescale_factor": 1.0}, None),
    ):
        path = tmp_path / huggingface.PREPROCESSOR
        path.write_text(json.dumps(said | statistics))
        expected = {} if understood is None else known | understood
        assert huggingface.preprocessing(str(tmp_path)) == expected


def test_transformers_computes_the_same_from_the_same_picture(folder):
    transformers = pytest.importorskip("transformers", reason="pip install '.[huggingface]'")
    place, pretrained = folder
    pictures = verify.random_pictures(pretrained)
    (found,) = verify.compare(pretrained, str(place), pictures, "key")
    assert found.largest <= 1e-4 * found.size
    (other,) = verify.compare(pretrained, str(place), pictures, "query")
    assert other.largest > 0.1 * other.size

    processor = transformers.AutoImageProcessor.from_pretrained(place)
    seen = processor(Image.fromarray(PHOTO), return_tensors="np")["pixel_values"][0]
    encoder = moco_jax.load(place)
    ours = (encoder._view(PHOTO) / 255 - np.asarray(SEEN["mean"])) / np.asarray(SEEN["std"])
    # Resized by PIL here, by torchvision there: values differ by a level of 255.
    assert np.abs(seen.transpose(1, 2, 0) - ours).max() <= 1.01 / 255 / min(SEEN["std"])


WHOLE = {
    "image_mean": [0.5] * 3,
    "image_std": [0.2] * 3,
    "size": {"shortest_edge": 256},
    "crop_size": 224,
    "do_center_crop": True,
    "rescale_factor": 1 / 255,
}
ODD = [
    {"image_mean": None},
    {"image_mean": 3},
    {"image_mean": ["a"]},
    {"image_mean": [[1]]},
    {"image_mean": [math.nan] * 3},
    {"image_std": None},
    {"image_std": [0, 1, 1]},
    {"image_std": [-1] * 3},
    {"image_std": [math.inf] * 3},
    {"image_std": []},
    {"size": "large"},
    {"size": -3},
    {"size": 10**12},
    {"size": [224, 224]},
    {"size": {"height": None, "shortest_edge": "x"}},
    {"size": math.nan},
    {"size": math.inf},
    {"crop_size": "x"},
    {"crop_size": {"height": []}},
    {"crop_size": 10**9},
    {"rescale_factor": None},
    {"rescale_factor": "1"},
    {"do_center_crop": False, "crop_pct": 1e-9},
    {"do_center_crop": False, "crop_pct": "x"},
]


def test_a_preprocessor_of_odd_numbers_is_one_line(tmp_path):
    place = tmp_path / huggingface.PREPROCESSOR
    place.write_text(json.dumps(WHOLE))
    assert huggingface.preprocessing(str(tmp_path))["resize"] == 256
    for odd in ODD:
        place.write_text(json.dumps(WHOLE | odd))
        said = odd_files.refusal(huggingface.preprocessing, str(tmp_path))
        assert said.startswith(f"{place} has no usable numbers: "), odd
    for content in (b"{", b"\xff", b"[" * 100_000, b""):
        place.write_bytes(content)
        assert "is damaged" in odd_files.refusal(huggingface.preprocessing, str(tmp_path))
    place.unlink()
    os.mkfifo(place)
    assert "no regular file" in odd_files.refusal(huggingface.preprocessing, str(tmp_path))
