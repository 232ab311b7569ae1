"""The page that tells how the encoder of a run is used: in JAX, PyTorch, and on a command line."""

from collections.abc import Mapping
from typing import Any

from moco_jax.encoders.resnet import STEMS
from moco_jax.weights.pretrained import Pretrained

# A ResNet of another width or stem than torchvision's own; its class makes it all the same.
NARROW = """\
import torch
from safetensors.torch import load_file
from torchvision.models import resnet


class Narrow(resnet.ResNet):
    def _make_layer(self, block, planes, *args, **kwargs):
        if planes == 64:
            self.inplanes = {width}
        return super()._make_layer(block, planes * {width} // 64, *args, **kwargs)


encoder = Narrow(resnet.{block}, {sizes})
encoder.conv1 = torch.nn.Conv2d({channels}, {width}, {kernel}, {stride}, {padding}, bias=False)
encoder.bn1 = torch.nn.BatchNorm2d({width})
{changes}encoder.fc = torch.nn.Identity()
encoder.load_state_dict(load_file("{file}"))
encoder.eval()"""

TORCHVISION = """\
import torch
import torchvision
from safetensors.torch import load_file

encoder = torchvision.models.{name}()
encoder.fc = torch.nn.Identity()
encoder.load_state_dict(load_file("{file}"))
encoder.eval()"""

TIMM = """\
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

encoder = VisionTransformer(
    img_size={side},
    patch_size={patch},
    embed_dim={width},
    depth={depth},
    num_heads={heads},
    num_classes=0,
)
encoder.load_state_dict(load_file("{file}"))
encoder.eval()"""

OF_TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def in_torch(pretrained: Pretrained, file: str) -> str:
    """Return lines of Python that load `file`, of torchvision's or timm's layout, in PyTorch.

    They are '' for a network that neither library has a class for.
    """
    backbone: Any = pretrained.encoder.backbone
    if pretrained.is_vit:
        if backbone.conv_stem:
            return ""
        return TIMM.format(
            side=pretrained.image_size,
            patch=backbone.patch,
            width=backbone.width,
            depth=backbone.depth,
            heads=backbone.heads,
            file=file,
        )
    name, stem = pretrained.options["name"], STEMS[backbone.stem]
    usual = backbone.width == 64 and backbone.stem == "imagenet" and pretrained.channels == 3
    if usual and name in OF_TORCHVISION:
        return TORCHVISION.format(name=name, file=file)
    changes = "" if stem.pool else "encoder.maxpool = torch.nn.Identity()\n"
    changes += "" if stem.relu else "encoder.relu = torch.nn.Identity()\n"
    return NARROW.format(
        width=backbone.width,
        block="Bottleneck" if backbone.bottleneck else "BasicBlock",
        sizes=list(backbone.stage_sizes),
        channels=pretrained.channels,
        kernel=stem.kernel,
        stride=stem.stride,
        padding=stem.padding,
        changes=changes,
        file=file,
    )


def page(out: str, pretrained: Pretrained, written: Mapping[str, str]) -> str:
    """Return the page on the encoder of the run in `out`, in Markdown.

    `written`: layout -> file or folder within `out`, of what was exported.
    """
    known, values = pretrained.options, pretrained.preprocessing
    width = f", width {known['width']}" if known.get("width") else ""
    mean, std = (tuple(round(float(x), 4) for x in values[name]) for name in ("mean", "std"))
    parts = [
        f"# An encoder for images: {known['name']}{width}",
        "Pretrained on images without labels by moco_jax. [report.html](report.html) shows how it"
        " learnt; [recipe.py](recipe.py) has its settings, each with its reason, and trains it"
        " again: `moco-pretrain --config=recipe.py --workdir=FOLDER`.",
        "## In JAX",
        _code(
            "python",
            f'import moco_jax\n\nencoder = moco_jax.load("{out}")\n'
            'features = encoder("FOLDER")  # [images, D], in the order of images_in("FOLDER")',
        ),
        "## Search, and judge",
        _code(
            "sh",
            f"moco-embed --workdir={out} --data_dir=FOLDER --out=features.npz\n"
            "moco-embed search features.npz IMAGE\n"
            f"moco-evaluate linear --workdir={out}",
        ),
    ]
    layout = next((kind for kind in ("torchvision", "timm") if kind in written), "")
    lines = in_torch(pretrained, written[layout]) if layout else ""
    if lines:
        parts += [
            "## In PyTorch",
            _code("python", lines),
            f"Images are [N, C, H, W] from 0 to 1, resized to {pretrained.image_size} pixels, less"
            f" mean {mean}, over deviation {std}.",
        ]
    if "huggingface" in written:
        folder = written["huggingface"]
        parts += [
            "## In transformers",
            _code(
                "python",
                "from transformers import AutoImageProcessor, AutoModel\n\n"
                f'processor = AutoImageProcessor.from_pretrained("{folder}")\n'
                f'encoder = AutoModel.from_pretrained("{folder}")',
            ),
        ]
    return "\n\n".join(parts) + "\n"


def _code(language: str, lines: str) -> str:
    return f"```{language}\n{lines}\n```"
