"""ResNets and ViTs in the folders of Hugging Face's transformers.

A folder holds weights, their architecture and their images' preprocessing, which `AutoModel` and
`AutoImageProcessor` load. The names of the weights are those that files on its hub have.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from moco_jax.base import files
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.config import imagenet
from moco_jax.encoders.resnet import ResNet
from moco_jax.weights import files as weight_files
from moco_jax.weights.pretrained import Pretrained

Arrays = Mapping[str, np.ndarray]

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
LARGEST = 100_000  # pixels, far above any side of an image that an encoder takes
BILINEAR = 2  # PIL's number
EPSILON = 1e-6  # of every LayerNorm here; transformers' own is 1e-12
# Parts of transformers' models that come after the backbone.
ON_TOP = ("pooler.", "embeddings.mask_token")

# torchvision's names of a ResNet and timm's of a ViT, as expressions, with transformers' names.
_RESNET = (
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"^layer(\d)\.(\d+)\.downsample\.0\.", r"encoder.stages.\1.layers.\2.shortcut.convolution."),
    (r"^layer(\d)\.(\d+)\.downsample\.1\.", r"encoder.stages.\1.layers.\2.shortcut.normalization."),
    (r"^layer(\d)\.(\d+)\.conv(\d)\.", r"encoder.stages.\1.layers.\2.layer.\3.convolution."),
    (r"^layer(\d)\.(\d+)\.bn(\d)\.", r"encoder.stages.\1.layers.\2.layer.\3.normalization."),
)
_VIT = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "norm.": "layernorm.",
}
_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.query": "attention.attention.query",
    "attn.key": "attention.attention.key",
    "attn.value": "attention.attention.value",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
# Names of the same parts in version 5 of the library, in memory and so in a state_dict.
_NEWER = {
    "attention.q_proj": "attn.query",
    "attention.k_proj": "attn.key",
    "attention.v_proj": "attn.value",
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_THREE = ("query", "key", "value")


def from_torchvision(arrays: Arrays) -> dict[str, np.ndarray]:
    """Rename torchvision's entries of a ResNet to transformers', which count from 0."""

    def lowered(match: re.Match) -> str:
        return f"{match[1]}.{int(match[2]) - 1}."

    renamed = {}
    for name, array in arrays.items():
        new = name
        for pattern, replacement in _RESNET:
            new = re.sub(pattern, replacement, new)
        renamed[re.sub(r"\b(stages|layer)\.(\d+)\.", lowered, new)] = array
    return renamed


def from_timm(arrays: Arrays) -> dict[str, np.ndarray]:
    """Rename timm's entries of a ViT to transformers', which keeps query, key and value apart."""
    renamed = {}
    for name, array in arrays.items():
        block = re.match(r"blocks\.(\d+)\.(.+)\.(weight|bias)$", name)
        if block and block[2] == "attn.qkv":
            parts = {f"attn.{part}": a for part, a in zip(_THREE, np.split(array, 3), strict=True)}
        else:
            parts = {block[2]: array} if block else {}
        for part, values in parts.items():
            assert block
            renamed[f"encoder.layer.{block[1]}.{_BLOCK[part]}.{block[3]}"] = values
        if not block:
            start = next(known for known in _VIT if name.startswith(known))
            renamed[_VIT[start] + name.removeprefix(start)] = array
    return renamed


def is_theirs(arrays: Arrays) -> bool:
    """Return whether these are the entries of one of transformers' encoders.

    The prefix that a classifier's file puts before the names must be off.
    """
    return "embedder.embedder.convolution.weight" in arrays or "embeddings.cls_token" in arrays


def to_plain(arrays: Arrays) -> dict[str, np.ndarray]:
    """Rename transformers' entries to torchvision's for a ResNet, or timm's for a ViT.

    What stands on top of the backbone is left out.
    """
    arrays = {name: array for name, array in arrays.items() if not name.startswith(ON_TOP)}
    return _to_timm(arrays) if "embeddings.cls_token" in arrays else _to_torchvision(arrays)


def _to_torchvision(arrays: Arrays) -> dict[str, np.ndarray]:
    plain = {}
    for name, array in arrays.items():
        new = name.replace("embedder.embedder.convolution.", "conv1.")
        new = new.replace("embedder.embedder.normalization.", "bn1.")
        block = re.match(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(.*)", new)
        if block:
            inner = block[3].replace("shortcut.convolution.", "downsample.0.")
            inner = inner.replace("shortcut.normalization.", "downsample.1.")
            layer = re.match(r"layer\.(\d+)\.(convolution|normalization)\.(.*)", inner)
            if layer:
                kind = "conv" if layer[2] == "convolution" else "bn"
                inner = f"{kind}{int(layer[1]) + 1}.{layer[3]}"
            new = f"layer{int(block[1]) + 1}.{block[2]}.{inner}"
        plain[new] = array
    return plain


def _to_timm(arrays: Arrays) -> dict[str, np.ndarray]:
    plain, known = {}, {theirs: ours for ours, theirs in _BLOCK.items()} | _NEWER
    for name, array in arrays.items():
        block = re.match(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)\.(weight|bias)$", name)
        if block:
            plain[f"blocks.{block[1]}.{known.get(block[2], block[2])}.{block[3]}"] = array
            continue
        start = next((ours for ours, theirs in _VIT.items() if name.startswith(theirs)), "")
        plain[start + name.removeprefix(_VIT[start]) if start else name] = array
    for name in [name for name in plain if ".attn.query." in name]:
        three = [plain.pop(name.replace("query", part), np.zeros(0)) for part in _THREE]
        if len({array.shape for array in three}) == 1:
            plain[name.replace("query", "qkv")] = np.concatenate(three)
    return plain


def entries(pretrained: Pretrained, plain: Arrays) -> dict[str, np.ndarray]:
    """Return transformers' entries of the backbone that `plain` holds.

    Args:
        pretrained: the encoders, for their architecture.
        plain: the backbone's entries under torchvision's or timm's names.

    Raises:
        UserError: transformers has no such network.
    """
    backbone: Any = pretrained.encoder.backbone
    if isinstance(backbone, ResNet):
        if backbone.stem != "imagenet":
            raise UserError(
                "format=huggingface has only ResNets with the 7x7 stem, and this one has"
                f" stem={backbone.stem!r}; format=torchvision holds it"
            )
        return from_torchvision(plain)
    if backbone.conv_stem:
        raise UserError(
            "format=huggingface has only ViTs with a patch projection, and"
            f" {pretrained.options['name']} has a convolutional stem; format=timm and"
            " format=torchvision hold it"
        )
    return from_timm(plain)


def config_of(pretrained: Pretrained) -> dict[str, Any]:
    """Return the content of transformers' `config.json`, which describes the architecture."""
    backbone: Any = pretrained.encoder.backbone
    if isinstance(backbone, ResNet):
        widen = 4 if backbone.bottleneck else 1
        return {
            "architectures": ["ResNetModel"],
            "model_type": "resnet",
            "num_channels": pretrained.channels,
            "embedding_size": backbone.width,
            "depths": list(backbone.stage_sizes),
            "hidden_sizes": [
                backbone.width * widen * 2**i for i in range(len(backbone.stage_sizes))
            ],
            "layer_type": "bottleneck" if backbone.bottleneck else "basic",
            "hidden_act": "relu",
            "downsample_in_first_stage": False,
            "downsample_in_bottleneck": False,
        }
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "num_channels": pretrained.channels,
        "image_size": pretrained.image_size,
        "patch_size": backbone.patch,
        "hidden_size": backbone.width,
        "intermediate_size": 4 * backbone.width,
        "num_hidden_layers": backbone.depth,
        "num_attention_heads": backbone.heads,
        "layer_norm_eps": EPSILON,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def preprocessor_of(pretrained: Pretrained) -> dict[str, Any]:
    """Return transformers' `preprocessor_config.json`: resize, centre crop, mean and deviation.

    They are those of evaluation, and ImageNet's where nothing is known of them.
    `BitImageProcessor` is the processor of transformers that resizes to one length and crops to
    another, for models of any kind.
    """
    values, side = pretrained.preprocessing, pretrained.image_size
    if pretrained.channels != 3 and not {"mean", "std"} <= values.keys():
        raise UserError(
            f"these weights are of images of {pretrained.channels} channels, and nothing says with"
            " which mean and deviation; format=huggingface needs them: convert the workdir of"
            " the run"
        )
    usual: dict[str, Any] = {
        "mean": imagenet.MEAN,
        "std": imagenet.STD,
        "resize": round(side * 256 / 224),
    }
    values = usual | values
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": pretrained.channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": values["resize"]},
        "resample": BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(values["mean"]),
        "image_std": list(values["std"]),
    }


def assumed(pretrained: Pretrained) -> str:
    """Say which values `preprocessor_of` takes from ImageNet; '' where everything is known."""
    missing = [
        n for n in ("image_size", "resize", "mean", "std") if n not in pretrained.preprocessing
    ]
    if not missing:
        return ""
    return (
        f"{PREPROCESSOR} has ImageNet's {', '.join(missing)}, as nothing says it; correct it where"
        " that is wrong"
    )


def save(folder: str, pretrained: Pretrained, arrays: Arrays) -> None:
    """Write the three files into a new `folder`.

    Args:
        folder: a place where nothing is, or an empty folder.
        pretrained: the encoders; their preprocessing and architecture are written.
        arrays: what `entries` returned for them.

    Raises:
        UserError: there is something at that place, it cannot be written, or a package is
            missing.
    """
    place = files.absolute(folder)
    if str(folder).endswith(weight_files.ENDINGS):
        raise UserError(f"format=huggingface is a folder; {folder} is named as a file is")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{folder} exists and is not empty; name a new folder")
    described = {PREPROCESSOR: preprocessor_of(pretrained), CONFIG: config_of(pretrained)}
    weight_files.write(str(place / WEIGHTS[0]), arrays, {})
    for name, content in described.items():
        files.write(place / name, (json.dumps(content, indent=2) + "\n").encode())


def weights_in(folder: str) -> str:
    """Return the path of the weights in transformers' `folder`; '' if it is no such folder.

    The workdir of a run is none.
    """
    place = files.absolute(folder)
    if (place / "checkpoints").exists():
        return ""
    there = [name for name in WEIGHTS if (place / name).is_file()]
    return str(place / there[0]) if there else ""


def _json(folder: str, name: str) -> dict[str, Any]:
    path = files.absolute(folder) / name
    if not path.exists():
        return {}
    try:
        with files.open_to_read(str(path)) as file:
            content = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise UserError(printable(f"{path} is damaged: {error}")) from error
    except OSError as error:
        raise UserError(printable(f"{path} cannot be read: {error.strerror or error}")) from error
    return content if isinstance(content, dict) else {}


def check(folder: str, pretrained: Pretrained) -> None:
    """Refuse a `folder` whose `config.json` asks for another network than the encoder here.

    Raises:
        UserError: a value differs; the text names it.
    """
    theirs, ours = _json(folder, CONFIG), config_of(pretrained)
    # transformers' own default where the file is silent.
    theirs = {"layer_norm_eps": 1e-12} | theirs if ours["model_type"] == "vit" else theirs
    for name in (
        "model_type",
        "layer_type",
        "hidden_act",
        "downsample_in_first_stage",
        "downsample_in_bottleneck",
        "num_attention_heads",
        "layer_norm_eps",
        "patch_size",
    ):
        if name in ours and theirs.get(name, ours[name]) != ours[name]:
            raise UserError(
                f"{folder} is of a network that none here is: {name}={theirs[name]!r} in its"
                f" {CONFIG}, and here it is {ours[name]!r}"
            )


def preprocessing(folder: str) -> dict[str, Any]:
    """Read `preprocessor_config.json` in `folder`, as `Pretrained.preprocessing` keeps it.

    Returns:
        What the file says; empty where there is no file.

    Raises:
        UserError: it is damaged, or says no numbers where numbers belong, or none that make
            sense.
    """
    settings = _json(folder, PREPROCESSOR)
    try:
        return _preprocessing(settings)
    except (TypeError, ValueError, ArithmeticError) as error:
        path = files.absolute(folder) / PREPROCESSOR
        raise UserError(printable(f"{path} has no usable numbers: {error}")) from error


def _preprocessing(settings: dict[str, Any]) -> dict[str, Any]:
    preprocessing: dict[str, Any] = {}

    def side(value: Any) -> int:
        names = ("shortest_edge", "height")
        value = (
            next((value[n] for n in names if n in value), 0) if isinstance(value, dict) else value
        )
        value = 0 if value is None else int(value)  # `or` would take an empty list for none
        if not 0 <= value <= LARGEST:
            raise ValueError(f"a side of {value} pixels")
        return value

    scaled = abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) < 1e-3
    if (
        settings.get("do_normalize", True)
        and scaled
        and {"image_mean", "image_std"} <= settings.keys()
    ):
        for name in ("mean", "std"):
            preprocessing[name] = tuple(float(number) for number in settings[f"image_{name}"])
            if not all(map(math.isfinite, preprocessing[name])):
                raise ValueError(f"image_{name}={preprocessing[name]}")
        if min(preprocessing["std"], default=0) <= 0:
            raise ValueError(f"image_std={preprocessing['std']} is not above 0")
    resized = side(settings.get("size"))
    if resized:
        cropped = side(settings.get("crop_size")) if settings.get("do_center_crop") else 0
        kept = settings.get("crop_pct")
        whole = side(round(resized / (1 if kept is None else kept)))
        preprocessing |= {"image_size": cropped or resized, "resize": resized if cropped else whole}
    return preprocessing
