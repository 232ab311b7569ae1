"""Recognises weights by their names: whose layout, which encoders, which architecture."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.encoders import BACKBONES
from moco_jax.encoders.resnet import STEMS, ResNet
from moco_jax.weights import detectron2, huggingface, torchvision_vit

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a library's files keep the query and the momentum encoder.

    Attributes:
        name: of the library.
        query, key: prefixes of the two encoders' names; `key` is None without a momentum
            encoder.
        mark: an expression that some name matches from its start, in this layout and none above
            it.
        heads: prefixes of the names of the query encoder's head and of the momentum encoder's;
            None where heads are no modules of their own.
    """

    name: str
    query: str
    key: str | None
    mark: str
    heads: tuple[str, str] | None = None


_SOLO = ("projector.", "momentum_projector.")
_LIGHTLY = ("projection_head.layers.", "projection_head_momentum.layers.")


# The first that fits is taken.
LAYOUTS: tuple[Layout, ...] = (
    Layout("MoCo", "encoder_q.", "encoder_k.", r"encoder_q\."),
    Layout("MoCo v3", "base_encoder.", "momentum_encoder.", r"base_encoder\."),
    Layout("Hugging Face", "resnet.", None, r"resnet\.embedder\."),
    Layout("Hugging Face", "vit.", None, r"vit\.embeddings\."),
    Layout("Hugging Face", "", None, r"(embedder\.embedder|embeddings\.cls_token)"),
    Layout("Detectron2", "", None, r"stem\.conv1\."),
    Layout("torchvision", "", None, r"conv_proj\."),
    Layout("solo-learn", "backbone.", "momentum_backbone.", r"momentum_backbone\.", _SOLO),
    # lightly's ImageNet benchmark, whose momentum encoder has the plain name.
    Layout(
        "lightly",
        "query_backbone.",
        "backbone.",
        r"query_backbone\.",
        ("query_projection_head.layers.", "projection_head.layers."),
    ),
    Layout(
        "lightly",
        "backbone.",
        "backbone_momentum.",
        r"(backbone_momentum|projection_head)\.",
        _LIGHTLY,
    ),
    Layout("lightly", "vit.", None, r"vit\.(cls_token|class_token)$"),
    Layout("solo-learn", "backbone.", None, r"backbone\.", _SOLO),
    Layout("solo-learn", "encoder.", "momentum_encoder.", r"encoder\.", _SOLO),
    Layout("torchvision or timm", "", None, r"(conv1\.weight$|cls_token$|[01]\.weight$)"),
)


# Parts of a name that wrappers put before or into the names of the wrapped network: compiling,
# sharding and recomputing parts of a network. No network has parts of its own that are called so.
_WRAPPED = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Prefixes that wrappers of whole networks, of one device or several, put before all names.
_WHOLE = ("module", "model", "net", "network", "ema", "ema_model", "teacher", "student")
# Entries of wrappers themselves: how many steps torch's AveragedModel has averaged.
_COUNTS = ("n_averaged",)


def bare(arrays: Arrays) -> dict[str, np.ndarray]:
    """Strip what wrappers put before or into the entries' names, in any number and order.

    Raises:
        UserError: two entries then have one name.
    """
    arrays = {name: array for name, array in arrays.items() if name not in _COUNTS}
    unwrapped = {_WRAPPED.sub("", name): array for name, array in arrays.items()}
    if len(unwrapped) < len(arrays):
        raise UserError(
            "entries differ only in what wrappers put into their names (_orig_mod and the like)"
        )
    while True:
        first = {name.partition(".")[0] if "." in name else "" for name in unwrapped}
        wrapper = first.pop() if len(first) == 1 else ""
        if wrapper not in _WHOLE:
            return unwrapped
        unwrapped = {name.removeprefix(f"{wrapper}."): array for name, array in unwrapped.items()}


def recognise(arrays: Arrays) -> Layout:
    """Return the layout of a file with these entries, whose names are as `bare` gives them.

    Raises:
        UserError: no layout that is known here has such names.
    """
    for layout in LAYOUTS:
        if any(re.match(layout.mark, name) for name in arrays):
            return layout
    raise _unknown(arrays)


def _unknown(arrays: Arrays) -> UserError:
    some = ", ".join(list(arrays)[:3])
    return UserError(
        f"the weights' names ({some}, ...) are of no layout that is known here; docs/weights.md"
        " lists those that are"
    )


def under(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    """Return the entries whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def is_beside(name: str) -> bool:
    """Return whether an encoder's entry belongs to a part after the backbone, as a classifier.

    `name` is without the prefix of `Layout`.
    """
    return re.match(r"(vit\.)?(fc|linear|head|heads|mask_token)\b", name) is not None


def plain(arrays: Arrays) -> dict[str, np.ndarray]:
    """Rename one encoder's entries to torchvision's names for a ResNet, or timm's for a ViT.

    A classifier and the like are left out; running statistics of lightly's SplitBatchNorm become
    their splits' mean, as it takes them in evaluation.
    """
    arrays = {name: array for name, array in arrays.items() if not is_beside(name)}
    arrays = under(arrays, "vit.") or arrays
    if "class_token" in arrays:
        return torchvision_vit.to_timm(arrays)
    if huggingface.is_theirs(arrays):
        return huggingface.to_plain(arrays)
    if "stem.conv1.weight" in arrays:
        return detectron2.to_torchvision(arrays)
    if "0.weight" in arrays:
        arrays = _named(arrays)
    arrays = {name.replace(".shortcut.", ".downsample."): array for name, array in arrays.items()}
    return {name: _merged(name, array, arrays) for name, array in arrays.items()}


def _merged(name: str, array: np.ndarray, arrays: Arrays) -> np.ndarray:
    scale = arrays.get(re.sub(r"running_(mean|var)$", "weight", name), array)
    split = name.endswith(("running_mean", "running_var")) and array.ndim == scale.ndim == 1
    if not split or not 0 < len(scale) < len(array):
        return array
    return array if len(array) % len(scale) else array.reshape(-1, len(scale)).mean(0)


def _first_stage(arrays: Arrays) -> int:
    """Return the number of a ResNet's first stage among the parts of a torch Sequential.

    It is 4, or less without ReLU or pool.

    Raises:
        UserError: no part has parts in a row, as a stage has.
    """
    stages = [int(match[1]) for name in arrays if (match := re.match(r"(\d{1,4})\.\d+\.", name))]
    if not stages:
        raise _unknown(arrays)
    return min(stages)


def _named(arrays: Arrays) -> dict[str, np.ndarray]:
    """Give the numbered parts of a ResNet in a torch Sequential their names back.

    torchvision's own children are conv1, bn1, relu, maxpool, layer1, ...; lightly's are conv1,
    bn1, layer1, ...
    """
    first = _first_stage(arrays)
    parts = {0: "conv1", 1: "bn1"} | {first + stage: f"layer{stage + 1}" for stage in range(4)}

    def renamed(match: re.Match) -> str:
        return parts.get(int(match[1]), match[1]) + "."

    return {
        re.sub(r"^(\d+)\.", renamed, name).replace(".shortcut.", ".downsample."): array
        for name, array in arrays.items()
    }


def stem_of(arrays: Arrays, layout: Layout) -> str:
    """Return the stem that only the entries' names tell apart; '' where they say nothing of it.

    lightly puts the parts of its own ResNet in a row, and the ReLU after the first BatchNorm,
    which is none of them, is lost. solo-learn's networks for CIFAR pad the image by two pixels.

    Raises:
        UserError: a 7x7 stem without ReLU or pool, which none here is.
    """
    encoder = under(arrays, layout.query)
    first = encoder.get("conv1.weight", encoder.get("0.weight"))
    if first is None or first.ndim != 4:
        return ""
    small, stage = first.shape[-1] == 3, _first_stage(encoder) if "0.weight" in encoder else 4
    if not small and stage != 4:
        raise UserError(
            f"no encoder here has a {first.shape[-1]}x{first.shape[-1]} stem without ReLU and pool:"
            f" layer1 is part number {stage} of {layout.query or 'the network'}, and torchvision's"
            " is number 4"
        )
    if small and stage == 2:
        return "cifar_no_relu"
    solos = ("classifier.", "projector.", "momentum_")
    return (
        "cifar_pad2"
        if small and layout.name == "solo-learn" and any(name.startswith(solos) for name in arrays)
        else ""
    )


def architecture(arrays: Arrays, name: str = "", stem: str = "") -> dict[str, Any]:
    """Return the arguments of `encoders.create` for the backbone in `arrays`.

    A file does not say how many attention heads a ViT has; the number is that of the architecture.

    Args:
        arrays: names to arrays, as `plain` gives them.
        name: a key of `BACKBONES` that the weights must be of; '': whichever the shapes fit.
        stem: a ResNet's stem; '': 'imagenet' or 'cifar', by the size of its first kernel.

    Raises:
        UserError: the weights fit no known architecture or not `name`, or `name` or `stem` is
            unknown, or a ViT is given a `stem`.
    """
    if name and name not in BACKBONES:
        raise UserError(f"arch={name!r} is unknown; use one of {', '.join(BACKBONES)}")
    if stem and stem not in STEMS:
        raise UserError(f"stem={stem!r} is unknown; use one of {', '.join(STEMS)}")
    try:
        traits, width = _traits(arrays)
    except (KeyError, IndexError) as error:
        raise UserError(f"weights do not fit any encoder: no usable entry {error}") from error
    same = [known for known in BACKBONES if _shape(known)[0] == traits]
    if not same:
        raise UserError(f"no encoder here is {_words(traits)}; known are {', '.join(BACKBONES)}")
    exact = [known for known in same if _shape(known)[1] == width]
    if name and name not in same:
        raise UserError(f"these are weights of {(exact or same)[0]}, not of {name}")
    chosen = name or (exact or same)[0]
    options: dict[str, Any] = {"name": chosen}
    if _shape(chosen)[1] != width:
        options["width"] = width
    if traits[0] == "ResNet":
        kernel = arrays["conv1.weight"].shape[-1]
        options["stem"] = stem or ("imagenet" if kernel == STEMS["imagenet"][0] else "cifar")
    elif stem:
        raise UserError(f"stem={stem!r} means nothing to a ViT; leave it out")
    return options


# The first convolution of a ResNet, of a ViT, and of a ViT with a convolutional stem.
_FIRST = ("conv1.weight", "patch_embed.proj.weight", "patch_embed.proj.0.weight")


def _traits(arrays: Arrays) -> tuple[tuple[Any, ...], int]:
    """Return what tells architectures apart, and the width, from the shapes in `arrays`."""
    first = arrays[next((name for name in _FIRST if name in arrays), _FIRST[0])]
    if first.ndim != 4 or not first.size:
        raise UserError(
            f"weights do not fit any encoder: the first convolution has shape {first.shape}"
        )
    if "cls_token" in arrays:
        depth = len({name.split(".")[1] for name in arrays if name.startswith("blocks.")})
        conv_stem = "patch_embed.proj.0.weight" in arrays
        token, positions = arrays["cls_token"].shape, arrays.get("pos_embed", np.zeros((1, 1, 1)))
        if len(token) != 3 or positions.ndim != 3 or positions.shape[-1] not in (1, token[-1]):
            raise UserError(
                "weights do not fit any encoder: cls_token and pos_embed have shapes "
                f"{token} and {positions.shape}"
            )
        patch = 16 if conv_stem else arrays["patch_embed.proj.weight"].shape[-1]
        return ("ViT", depth, patch, conv_stem), arrays["cls_token"].shape[-1]
    blocks = {tuple(name.split(".")[:2]) for name in arrays if re.match(r"layer\d+\.\d+\.", name)}
    stages = sorted({stage for stage, _ in blocks})
    sizes = tuple(sum(stage == other for other, _ in blocks) for stage in stages)
    bottleneck = any(name.startswith("layer1.0.conv3.") for name in arrays)
    return ("ResNet", sizes, bottleneck), arrays["conv1.weight"].shape[0]


def _shape(name: str) -> tuple[tuple[Any, ...], int]:
    """Return what tells the known architecture `name` apart, and its width, as `_traits` does."""
    made = BACKBONES[name]()
    if isinstance(made, ResNet):
        return ("ResNet", tuple(made.stage_sizes), made.bottleneck), made.width
    return ("ViT", made.depth, made.patch, made.conv_stem), made.width


def _words(traits: tuple[Any, ...]) -> str:
    if traits[0] == "ResNet":
        return f"a ResNet with {traits[1]} {'bottleneck' if traits[2] else 'basic'} blocks"
    stem = ", with a convolutional stem" if traits[3] else ""
    return f"a ViT of {traits[1]} blocks on patches of {traits[2]} pixels{stem}"
