"""The MoCo authors' checkpoints, to and from pytrees.

Those of v1 and v2 hold `encoder_q`, `encoder_k` and `queue`, those of v3 `base_encoder`,
`momentum_encoder` and `predictor`. Both encoders are read with their heads, predictor and queue.
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
    """Return torch's name of a head's entry: ('params', 'fc2', 'kernel') -> '2.weight'.

    With `norms` it is '3.weight', and in a head of one layer 'weight'.
    """
    _, layer, leaf = path
    leaf = _LEAVES.get(leaf, leaf)
    if layer == "fc":
        return leaf
    kind, number = layer[:-1], int(layer[-1]) - 1
    return f"{(3 if norms else 2) * number + (kind == 'bn')}.{leaf}"


def _has_norms(variables: Variables) -> bool:
    return bool(variables.get("batch_stats"))


def load_head(arrays: Arrays, shapes: Variables, prefix: str) -> Variables:
    """Read a head's or predictor's variables from `arrays`, whose names are without `prefix`.

    Args:
        arrays: names to arrays.
        shapes: `{'params'}`, and `{'batch_stats'}` with BatchNorm, with the shapes and dtypes
            wanted.
        prefix: as 'fc.'; only errors show it.

    Raises:
        UserError: entries missing, unexpected or of another shape, all listed.
    """
    entries = {k: v for k, v in arrays.items() if not k.endswith("num_batches_tracked")}
    loaded, faults = {}, []
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        name = _head_name(path, _has_norms(shapes))
        array = entries.pop(name, None)
        if array is None:
            faults.append(f"missing {prefix}{name}")
        elif array.T.shape != tuple(leaf.shape):
            faults.append(f"{prefix}{name} has shape {array.shape}, not {leaf.shape[::-1]}")
        else:
            loaded[path] = np.ascontiguousarray(array.T, leaf.dtype)
    faults += [f"unexpected {prefix}{name}" for name in entries]
    if faults:
        raise UserError(f"weights do not fit the head: {'; '.join(faults)}")
    return traverse_util.unflatten_dict(loaded)


def save_head(variables: Variables) -> dict[str, np.ndarray]:
    """Return the entries of a head's or predictor's `state_dict`; the opposite of `load_head`."""
    state_dict = {}
    for path, leaf in traverse_util.flatten_dict(variables).items():
        name = _head_name(path, _has_norms(variables))
        state_dict[name] = np.ascontiguousarray(np.asarray(leaf).T)
        if name.endswith("running_var"):
            tracked = name.replace("running_var", "num_batches_tracked")
            state_dict[tracked] = np.zeros((), np.int64)
    return state_dict


def head_options(arrays: Arrays) -> dict[str, Any]:
    """Return the arguments of `encoders.create` for a head with these entries."""
    matrices = {name: array for name, array in arrays.items() if array.ndim == 2}
    if list(matrices) == ["weight"]:
        return {"head": "linear", "dim": arrays["weight"].shape[0]}
    order = sorted(matrices, key=_layer_number)
    if not order:
        raise UserError("weights do not fit any head: there is no matrix among its entries")
    sizes = {"head_width": arrays[order[0]].shape[0], "dim": arrays[order[-1]].shape[0]}
    if "0.bias" in arrays:
        return {"head": "mlp", **sizes}
    return {"head": "v3_resnet" if len(order) == 2 else "v3_vit", **sizes}


def _layer_number(name: str) -> int:
    """Return the number that a name in a torch Sequential begins with; 0 where it has none."""
    number = re.match(r"\d+", name)
    return int(number[0]) if number else 0


def predictor_of(arrays: Arrays) -> str:
    """Return the key of `encoders.PREDICTORS` for a predictor with these entries."""
    return "v3_vit" if "4.running_mean" in arrays else "v3_resnet"


def _keyword(options: Mapping[str, Any]) -> str:
    """Return the authors' name for the layer after the backbone."""
    return "head." if options["name"].startswith("vit_") else "fc."


def load_backbone(arrays: Arrays, shapes: Variables) -> Variables:
    """Read a backbone's variables, under torchvision's names for a ResNet or timm's for a ViT.

    A classifier is left out.
    """
    loader = timm.load if "cls_token" in arrays else torchvision.load
    return loader(arrays, shapes)


def image_size_of(arrays: Arrays) -> int:
    """Return the image side in pixels that a ViT's fixed positions are for; 224 without them."""
    positions, patches = arrays.get("pos_embed"), arrays.get("patch_embed.proj.weight")
    if positions is None or positions.ndim != 3 or not positions.size:
        return 224
    return round((positions.shape[1] - 1) ** 0.5) * (16 if patches is None else patches.shape[-1])


def preprocessing_of(arrays: Arrays) -> dict[str, Any]:
    """Return what `arrays` say of the images: their size, where a ViT's positions say it."""
    return {"image_size": image_size_of(arrays)} if "pos_embed" in arrays else {}


def load(state_dict: Arrays, arch: str = "", stem: str = "") -> Pretrained:
    """Read everything in the authors' `state_dict`, with or without 'module.' before the names.

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
    """Read the authors' queue `[dim, K]` with its pointer, as keys `[K, dim]`, the oldest first."""
    if "queue" not in arrays:
        return None
    queue = arrays["queue"]
    if queue.ndim != 2 or queue.shape[0] != dim:
        raise UserError(f"weights do not fit: queue has shape {queue.shape}, not ({dim}, K)")
    return oldest_first(queue, arrays.get("queue_ptr", np.zeros(1)))


def oldest_first(queue: np.ndarray, pointer: np.ndarray) -> np.ndarray:
    """Return keys `[K, dim]`, the oldest first, from `[dim, K]` with a `pointer` at the oldest."""
    return np.ascontiguousarray(np.roll(queue.T, -int(np.ravel(pointer)[0]), axis=0))


def save_encoder(
    variables: Variables, options: Mapping[str, Any], image_size: int
) -> dict[str, np.ndarray]:
    """Return the entries of one encoder and its head, without predictor.

    The backbone has torchvision's or timm's names; the head's begin with 'fc.' or 'head.'.
    """
    backbone: Variables = {"batch_stats": {}} | part(variables, "backbone")
    is_vit = _keyword(options) == "head."
    state_dict = timm.save(backbone, image_size) if is_vit else torchvision.save(backbone)
    head = save_head(part(variables, "head"))
    return state_dict | {f"{_keyword(options)}{name}": array for name, array in head.items()}


def save(pretrained: Pretrained) -> dict[str, np.ndarray]:
    """Return the authors' `state_dict`, with 'module.' before every name.

    It is v3's where the head has BatchNorm, else that of v1 and v2. The queue is written from
    its oldest key on, with the pointer at 0.

    Raises:
        UserError: there is no head among the weights.
    """
    if "head" not in pretrained.options:
        raise UserError(
            "format=moco needs a projection head, and these weights have none; use another format, "
            "as format=timm"
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
    """Return what the authors' checkpoints hold beside the `state_dict`, whose place is None."""
    return {"epoch": 0, "arch": pretrained.options["name"], "state_dict": None}
