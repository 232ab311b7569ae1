"""Compares a written file of weights with PyTorch: its network and ours on the same pictures."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from PIL import Image

from moco_jax.base import files
from moco_jax.base.errors import UserError
from moco_jax.config import imagenet
from moco_jax.encoders.resnet import STEMS
from moco_jax.weights import files as weight_files
from moco_jax.weights import layouts
from moco_jax.weights.pretrained import Pretrained, joined, part

Arrays = Mapping[str, np.ndarray]
PICTURES = 8  # read of a folder at most


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far the outputs of two networks are apart.

    Attributes:
        of: which encoder and which of its outputs.
        largest: largest difference of two values.
        size: the largest value.
    """

    of: str
    largest: float
    size: float


def random_pictures(pretrained: Pretrained) -> np.ndarray:
    """Draw two pictures of standard normal noise, float32 `[2, H, W, C]`."""
    side = pretrained.image_size
    shape = (2, side, side, pretrained.channels)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def read_pictures(folder: str, pretrained: Pretrained) -> np.ndarray:
    """Read the first `PICTURES` images in `folder`, float32 `[B, H, W, 3]`.

    They are resized and normalised with ImageNet's mean and deviation.

    Raises:
        UserError: none there, or the encoder is not one of three channels.
    """
    if pretrained.channels != 3:
        raise UserError(
            f"--pictures have three channels, and the encoder takes {pretrained.channels}; leave"
            " them out"
        )
    side, pictures = pretrained.image_size, []
    try:
        paths = sorted(files.absolute(folder).iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}") from error
    for path in paths:
        try:
            with Image.open(path) as image:
                pictures.append(np.asarray(image.convert("RGB").resize((side, side))))
        except OSError:
            continue  # no image
        if len(pictures) == PICTURES:
            break
    if not pictures:
        raise UserError(f"{folder} holds no pictures")
    return ((np.stack(pictures) / 255 - imagenet.MEAN) / imagenet.STD).astype(np.float32)


def compare(
    pretrained: Pretrained, path: str, pictures: np.ndarray, which: str = "query"
) -> list[Difference]:
    """Compare PyTorch's outputs with the weights in the file `path` to ours.

    Args:
        pretrained: what was written there.
        path: any file or folder that `bridge.save` writes.
        pictures: float32 `[B, H, W, C]`, normalised.
        which: the encoder in the file, where it holds only one.

    Returns:
        For each encoder in the file the difference of the features, and of head and predictor if
        they are there.

    Raises:
        UserError: PyTorch, torchvision, timm or transformers is not installed.
    """
    if files.absolute(path).is_dir():
        ours = _ours(pretrained, which, pictures, {})["features"]
        return [_difference(f"{which} features", ours, _huggingface(path, pictures))]
    arrays = layouts.bare(weight_files.read(path))
    layout = layouts.recognise(arrays)
    both = layout.name.startswith("MoCo") and pretrained.key is not None
    differences = []
    for name in ("query", "key") if both else (which,):
        prefix = (layout.key or "") if both and name == "key" else layout.query
        entries = layouts.under(arrays, prefix)
        on_top = {"head": _under_head(entries)} if layout.name.startswith("MoCo") else {}
        if name == "query" and on_top:
            on_top["predictor"] = layouts.under(arrays, "predictor.")
        theirs = _their_outputs(
            pretrained, entries, {k: v for k, v in on_top.items() if v}, pictures
        )
        ours = _ours(pretrained, name, pictures, theirs)
        differences += [
            _difference(f"{name} {output}", ours[output], value) for output, value in theirs.items()
        ]
    return differences


def _difference(of: str, ours: Any, theirs: np.ndarray) -> Difference:
    apart, size = np.abs(np.asarray(ours) - theirs).max(), np.abs(theirs).max()
    return Difference(of, float(apart), float(size))


def _ours(
    pretrained: Pretrained, which: str, pictures: np.ndarray, wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """Compute the features of the encoder `which`, and the `wanted` outputs of its heads."""
    with jax.default_matmul_precision("highest"):
        variables: Any = pretrained.chosen(which)
        backbone = joined(backbone=part(variables, "backbone"))
        ours = {"features": _features(pretrained.encoder, backbone, pictures)}
        for output, method in (("head", "project"), ("predictor", "query")):
            if output in wanted:
                ours[output] = pretrained.encoder.apply(variables, ours["features"], method=method)
    return ours


@partial(jax.jit, static_argnums=0)
def _features(encoder: Any, variables: Any, pictures: jax.Array) -> jax.Array:
    return encoder.apply(variables, pictures, method="features")


def _under_head(entries: Arrays) -> dict[str, np.ndarray]:
    return layouts.under(entries, "head.") or layouts.under(entries, "fc.")


def _their_outputs(
    pretrained: Pretrained, entries: Arrays, on_top: Mapping[str, Arrays], pictures: np.ndarray
) -> dict[str, np.ndarray]:
    torch = weight_files.torch()
    network = _vit if pretrained.is_vit else _resnet
    outputs = {}
    with torch.no_grad():
        x = torch.tensor(pictures).permute(0, 3, 1, 2).contiguous()
        x = network(torch, pretrained, entries).eval()(x)
        outputs["features"] = x.numpy()
        for name, layers in on_top.items():
            x = _mlp(torch, layers).eval()(x)
            outputs[name] = x.numpy()
    return outputs


def _huggingface(folder: str, pictures: np.ndarray) -> np.ndarray:
    """Compute the features of the model that transformers' `AutoModel` loads from `folder`."""
    torch, library = weight_files.torch(), weight_files.library("transformers", "huggingface")
    is_vit = library.AutoConfig.from_pretrained(folder).model_type == "vit"
    without = {"add_pooling_layer": False} if is_vit else {}
    network, report = library.AutoModel.from_pretrained(
        folder, output_loading_info=True, local_files_only=True, **without
    )
    odd = [name for kind in ("missing_keys", "unexpected_keys") for name in report[kind]]
    if odd:
        raise UserError(
            f"{folder} does not fill the model in transformers: {', '.join(sorted(odd)[:5])}"
        )
    with torch.no_grad():
        outputs = network.eval()(torch.tensor(pictures).permute(0, 3, 1, 2).contiguous())
        return (
            outputs.last_hidden_state[:, 0] if is_vit else outputs.pooler_output.flatten(1)
        ).numpy()


def _filled(torch: Any, network: Any, entries: Arrays) -> Any:
    state_dict = {name: torch.tensor(array) for name, array in entries.items()}
    network.load_state_dict(state_dict, strict=True)
    return network


def _without_classifier(entries: Arrays) -> dict[str, np.ndarray]:
    return {k: v for k, v in entries.items() if not k.startswith(("fc.", "head.", "heads."))}


def _resnet(torch: Any, pretrained: Pretrained, entries: Arrays) -> Any:
    """Build torchvision's ResNet with the channels and the stem of ours."""
    resnet: Any = weight_files.library("torchvision.models.resnet", "torch")
    backbone: Any = pretrained.encoder.backbone
    stem = STEMS[backbone.stem]

    class Network(resnet.ResNet):
        def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> Any:
            if planes == 64:
                self.inplanes = backbone.width
            return super()._make_layer(block, planes * backbone.width // 64, *args, **kwargs)

    block = resnet.Bottleneck if backbone.bottleneck else resnet.BasicBlock
    network = Network(block, list(backbone.stage_sizes))
    network.conv1 = torch.nn.Conv2d(
        pretrained.channels, backbone.width, stem.kernel, stem.stride, stem.padding, bias=False
    )
    network.bn1 = torch.nn.BatchNorm2d(backbone.width)
    network.relu = network.relu if stem.relu else torch.nn.Identity()
    network.maxpool = network.maxpool if stem.pool else torch.nn.Identity()
    network.fc = torch.nn.Identity()
    return _filled(torch, network, _without_classifier(layouts.plain(entries)))


def _vit(torch: Any, pretrained: Pretrained, entries: Arrays) -> Any:
    """Build torchvision's or timm's ViT, whichever the entries' names are of."""
    backbone: Any = pretrained.encoder.backbone
    stem = [backbone.width // part for part in (8, 4, 2, 1)] if backbone.conv_stem else []
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    if "class_token" in entries:
        library = weight_files.library("torchvision.models.vision_transformer", "torch")
        network = library.VisionTransformer(
            pretrained.image_size,
            backbone.patch,
            backbone.depth,
            backbone.heads,
            backbone.width,
            4 * backbone.width,
            norm_layer=norm,
            conv_stem_configs=[library.ConvStemConfig(width, 3, 2) for width in stem] or None,
        )
        network.heads = torch.nn.Identity()
    else:
        library = weight_files.library("timm.models.vision_transformer", "torch")
        own_stem = {"embed_layer": partial(_conv_stem, torch, stem)} if stem else {}
        network = library.VisionTransformer(
            img_size=pretrained.image_size,
            patch_size=backbone.patch,
            embed_dim=backbone.width,
            depth=backbone.depth,
            num_heads=backbone.heads,
            num_classes=0,
            norm_layer=norm,
            in_chans=pretrained.channels,
            **own_stem,
        )
    return _filled(torch, network, _without_classifier(entries))


def _conv_stem(
    torch: Any, widths: list[int], img_size: int, patch_size: int, in_chans: int, **_: Any
) -> Any:
    """Build the convolutional stem as timm wants it: images to tokens, with the number of them."""
    layers, inside = [], in_chans
    for width in widths:
        layers += [
            torch.nn.Conv2d(inside, width, 3, 2, 1, bias=False),
            torch.nn.BatchNorm2d(width),
            torch.nn.ReLU(),
        ]
        inside = width

    class Stem(torch.nn.Module):
        def forward(self, images: Any) -> Any:
            return self.proj(images).flatten(2).transpose(1, 2)

    stem = Stem()
    stem.proj = torch.nn.Sequential(*layers, torch.nn.Conv2d(inside, inside, 1))
    stem.num_patches = (img_size // patch_size) ** 2
    return stem


def _mlp(torch: Any, entries: Arrays) -> Any:
    """Build the Linear, or the Sequential, of these entries; places without entries are ReLU's."""
    if "weight" in entries:
        dim, width = entries["weight"].shape
        return _filled(torch, torch.nn.Linear(width, dim), entries)
    layers = []
    for place in range(max(int(name.split(".")[0]) for name in entries) + 1):
        of_place = layouts.under(entries, f"{place}.")
        if "running_mean" in of_place:
            size = len(of_place["running_mean"])
            layers.append(torch.nn.BatchNorm1d(size, affine="weight" in of_place))
        elif of_place:
            dim, width = of_place["weight"].shape
            layers.append(torch.nn.Linear(width, dim, bias="bias" in of_place))
        else:
            layers.append(torch.nn.ReLU())
    return _filled(torch, torch.nn.Sequential(*layers), entries)
