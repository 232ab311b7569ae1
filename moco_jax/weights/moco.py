"""The MoCo authors' checkpoints, of v1 and v2 (`encoder_q`, `encoder_k`, `queue`) and of v3 (`base_encoder`,
`momentum_encoder`, `predictor`): both encoders with their heads, predictor and queue, to and
from pytrees.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from moco_jax.base.errors import UserError
from moco_jax.encoders.heads import BatchNormHead
from moco_jax.weights import layouts, timm, torchvision
from moco_jax.weights.pretrained import Pretrained, Variables, joined, part, template

Arrays = Mapping[str, np.ndarray]

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


# A head is torch's Linear in v1, else a Sequential in which ReLU, and in v3 BatchNorm, count as
# entries.
def _head_name(path: tuple[str, ...], norms: bool) -> str:
    """('params', 'fc2', 'kernel') -> '2.weight', or with `norms` '3.weight'; 'weight' in the head of one layer."""
    _, layer, leaf = path
    leaf = _LEAVES.get(leaf, leaf)
    if layer == "fc":
        return leaf
    kind, number = layer[:-1], int(layer[-1]) - 1
    return f"{(3 if norms else 2) * number + (kind == 'bn')}.{leaf}"


def _has_norms(variables: Variables) -> bool:
    return bool(variables.get("batch_stats"))


def load_head(arrays: Arrays, shapes: Variables, prefix: str) -> Variables:
    """The variables of a head or predictor from `arrays`, named without `prefix`, which only errors show.

    Args:
        arrays: names to arrays.
        shapes: `{'params'}`, and `{'batch_stats'}` with BatchNorm, with the shapes and dtypes
            wanted.
        prefix: as 'fc.'.

    Raises:
        UserError: entries missing, unexpected or of another shape, all listed.
    """
    found = {k: v for k, v in arrays.items() if not k.endswith("num_batches_tracked")}
    loaded, faults = {}, []
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        name = _head_name(path, _has_norms(shapes))
        array = found.pop(name, None)
        if array is None:
            faults.append(f"missing {prefix}{name}")
        elif array.T.shape != tuple(leaf.shape):
            faults.append(f"{prefix}{name} has shape {array.shape}, not {leaf.shape[::-1]}")
        else:
            loaded[path] = np.ascontiguousarray(array.T, leaf.dtype)
    faults += [f"unexpected {prefix}{name}" for name in found]
    if faults:
        raise UserError(f"weights do not fit the head: {'; '.join(faults)}")
    return traverse_util.unflatten_dict(loaded)


def save_head(variables: Variables) -> dict[str, np.ndarray]:
    """The entries of a head's or predictor's `state_dict`; the opposite of `load_head`."""
    state_dict = {}
    for path, leaf in traverse_util.flatten_dict(variables).items():
        name = _head_name(path, _has_norms(variables))
        state_dict[name] = np.ascontiguousarray(np.asarray(leaf).T)
        if name.endswith("running_var"):
            tracked = name.replace("running_var", "num_batches_tracked")
            state_dict[tracked] = np.zeros((), np.int64)
    return state_dict


def head_options(arrays: Arrays) -> dict[str, Any]:
    """The arguments of `encoders.create` for a head with these entries."""
    matrices = {name: array for name, array in arrays.items() if array.ndim == 2}
    if list(matrices) == ["weight"]:
        return {"head": "linear", "dim": arrays["weight"].shape[0]}
    order = sorted(matrices, key=lambda name: int(re.match(r"\d*", name)[0] or 0))  # type: ignore[index]
    if not order:
        raise UserError("weights do not fit any head: there is no matrix among its entries")
    sizes = {"head_width": arrays[order[0]].shape[0], "dim": arrays[order[-1]].shape[0]}
    if "0.bias" in arrays:
        return {"head": "mlp", **sizes}
    return {"head": "v3_resnet" if len(order) == 2 else "v3_vit", **sizes}


def predictor_of(arrays: Arrays) -> str:
    """The key of `encoders.PREDICTORS` of the predictor with these entries."""
    return "v3_vit" if "4.running_mean" in arrays else "v3_resnet"


def _keyword(options: Mapping[str, Any]) -> str:
    """What the authors' networks call the layer after the backbone."""
    return "head." if options["name"].startswith("vit_") else "fc."


def load_backbone(arrays: Arrays, shapes: Variables) -> Variables:
    """The variables of a backbone under torchvision's names for a ResNet or timm's for a ViT; a classifier is left out."""
    loader = timm.load if "cls_token" in arrays else torchvision.load
    return loader(arrays, shapes)


def image_size_of(arrays: Arrays) -> int:
    """Side in pixels of the images for which the fixed positions of a ViT stand in `arrays`; 224 without them."""
    positions, patches = arrays.get("pos_embed"), arrays.get("patch_embed.proj.weight")
    if positions is None or positions.ndim != 3 or not positions.size:
        return 224
    return round((positions.shape[1] - 1) ** 0.5) * (16 if patches is None else patches.shape[-1])


def preprocessing_of(arrays: Arrays) -> dict[str, Any]:
    """What `arrays` say of the images: their size, where the positions of a ViT do."""
    return {"image_size": image_size_of(arrays)} if "pos_embed" in arrays else {}


def load(state_dict: Arrays, arch: str = "", stem: str = "") -> Pretrained:
    """Everything in the authors' `state_dict`, with or without 'module.' before the names.

    Args:
        state_dict: names to arrays.
        arch: a key of `BACKBONES` that it must be; '': as the shapes say.
        stem: of a ResNet; '': 'imagenet' or 'cifar', by its kernel.

    Raises:
        UserError: not the authors' layout, another architecture, or entries missing, unexpected
            or misshapen.
    """
    arrays = layouts.bare(state_dict)
    layout = layouts.recognise(arrays)
    if not layout.name.startswith("MoCo"):
        raise UserError(f"these names are {layout.name}'s, not those of the MoCo authors")
    query, key = layouts.under(arrays, layout.query), layouts.under(arrays, layout.key or "")
    options = layouts.architecture(query, arch, stem)
    head, predictor = _keyword(options), layouts.under(arrays, "predictor.")
    options |= head_options(layouts.under(query, head))
    if predictor:
        options["predictor"] = predictor_of(predictor)
    first = query.get("conv1.weight", query.get("patch_embed.proj.weight"))
    channels = 3 if first is None else first.shape[1]
    size = image_size_of(query)
    shapes = template(options, size, channels)

    def encoder(entries: Arrays, **more: Variables) -> Variables:
        return joined(
            backbone=load_backbone(entries, part(shapes, "backbone")),
            head=load_head(layouts.under(entries, head), part(shapes, "head"), head),
            **more,
        )

    on_top = {}
    if predictor:
        on_top["predictor"] = load_head(predictor, part(shapes, "predictor"), "predictor.")
    beside = [
        n for n in arrays if not n.startswith((layout.query, layout.key or " ", "predictor."))
    ]
    unknown = set(beside) - {"queue", "queue_ptr"}
    if unknown:
        raise UserError(f"weights do not fit: unexpected {', '.join(sorted(unknown))}")
    return Pretrained(
        options=options,
        query=encoder(query, **on_top),
        key=encoder(key) if key else None,
        queue=_load_queue(arrays, options["dim"]),
        image_size=size,
        channels=channels,
        preprocessing=preprocessing_of(query),
    )


def _load_queue(arrays: Arrays, dim: int) -> np.ndarray | None:
    """`[K, dim]`, the oldest key first, from theirs, `[dim, K]` with a pointer at the oldest."""
    if "queue" not in arrays:
        return None
    queue = arrays["queue"]
    if queue.ndim != 2 or queue.shape[0] != dim:
        raise UserError(f"weights do not fit: queue has shape {queue.shape}, not ({dim}, K)")
    return oldest_first(queue, arrays.get("queue_ptr", np.zeros(1)))


def oldest_first(queue: np.ndarray, pointer: np.ndarray) -> np.ndarray:
    """`[K, dim]`, the oldest key first, from `[dim, K]` with a `pointer` at the oldest."""
    return np.ascontiguousarray(np.roll(queue.T, -int(np.ravel(pointer)[0]), axis=0))


def save_encoder(
    variables: Variables, options: Mapping[str, Any], image_size: int
) -> dict[str, np.ndarray]:
    """One encoder's entries, without predictor: torchvision's or timm's names, and the head's under 'fc.' or 'head.'."""
    backbone: Variables = {"batch_stats": {}} | part(variables, "backbone")
    is_vit = _keyword(options) == "head."
    state_dict = timm.save(backbone, image_size) if is_vit else torchvision.save(backbone)
    head = save_head(part(variables, "head"))
    return state_dict | {f"{_keyword(options)}{name}": array for name, array in head.items()}


def save(pretrained: Pretrained) -> dict[str, np.ndarray]:
    """The authors' `state_dict`, 'module.' before every name: v3's where the head has BatchNorm, else that of v1 and v2.

    The queue is written from its oldest key on, the pointer at 0.

    Raises:
        UserError: there is no head among the weights.
    """
    if "head" not in pretrained.options:
        raise UserError(
            "the MoCo authors' checkpoints have a head, and there is none among these weights; name"
            " another format"
        )
    v3 = isinstance(pretrained.encoder.head, BatchNormHead)
    names = ("base_encoder", "momentum_encoder") if v3 else ("encoder_q", "encoder_k")
    state_dict: dict[str, np.ndarray] = {}
    for name, variables in zip(names, (pretrained.query, pretrained.key), strict=True):
        if variables:
            entries = save_encoder(variables, pretrained.options, pretrained.image_size)
            state_dict |= {f"module.{name}.{entry}": array for entry, array in entries.items()}
    on_top = save_head(part(pretrained.query, "predictor"))
    state_dict |= {f"module.predictor.{entry}": array for entry, array in on_top.items()}
    if pretrained.queue is not None:
        state_dict["module.queue"] = np.ascontiguousarray(pretrained.queue.T)
        state_dict["module.queue_ptr"] = np.zeros(1, np.int64)
    return state_dict


def around(pretrained: Pretrained) -> dict[str, Any]:
    """What the authors' checkpoints hold beside the `state_dict`, which is marked by None."""
    return {"epoch": 0, "arch": pretrained.options["name"], "state_dict": None}
