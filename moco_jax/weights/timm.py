"""ViT weights under timm's and MoCo v3's names, to and from pytrees.

The entries are flat dictionaries of NumPy arrays. Matrices turn from `[in, out]` to `[out, in]`,
convolutions from `[H, W, in, out]` to `[out, in, H, W]`. Nothing is rounded, and nothing is
skipped in silence: `pos_embed`, which is no parameter here, must be the fixed table.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from moco_jax.base.errors import UserError
from moco_jax.encoders.vit import sincos_positions

Variables = dict[str, Any]

ONLY = ", and a ViT has no other positions here, no learnt ones"

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# The conv stem is a torch Sequential: convolution, BatchNorm and ReLU four times, then the last
# convolution.
_STEM = {f"{kind}{i + 1}": 3 * i + (kind == "bn") for i in range(4) for kind in ("conv", "bn")}
_STEM["proj"] = 12


def _torch_name(path: tuple[str, ...]) -> str:
    """Respell a path: ('params', 'blocks_3', 'fc1', 'kernel') -> 'blocks.3.mlp.fc1.weight'."""
    _, *modules, leaf = path
    place = ".".join(modules)
    if place.startswith("patch_embed"):
        place = ".".join(["patch_embed.proj", *(str(_STEM[part]) for part in modules[1:])])
    place = re.sub(r"^blocks_(\d+)\.", r"blocks.\1.", place)
    place = re.sub(r"\.(qkv|proj)$", r".attn.\1", place) if place.startswith("blocks") else place
    place = re.sub(r"\.(fc\d)$", r".mlp.\1", place)
    return ".".join(filter(None, [place, _LEAVES.get(leaf, leaf)]))


def _to_torch(name: str, array: np.ndarray) -> np.ndarray:
    if name == f"patch_embed.proj.{_STEM['proj']}.weight":
        return array.T[:, :, None, None]
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.T if array.ndim == 2 else array


def _from_torch(array: np.ndarray, rank: int) -> np.ndarray:
    if rank == 4:
        return array.transpose(2, 3, 1, 0)
    return array.reshape(array.shape[:2]).T if rank == 2 else array


def load(state_dict: Mapping[str, np.ndarray], template: Variables) -> Variables:
    """Read a `ViT`'s variables from timm's or MoCo v3's `state_dict`, without its `head`.

    The number of heads is not in the weights: a ViT-S of MoCo v3 has 12, timm's own has 6, and
    each loads as the other.

    Args:
        state_dict: names to arrays.
        template: `{'params'}`, and `{'batch_stats'}` with a conv stem, of the backbone with the
            shapes and dtypes wanted: arrays, or what `jax.eval_shape` returns.

    Raises:
        UserError: entries missing, unexpected or of another shape, or positions that are not the
            fixed ones, all listed.
    """
    entries = {
        name: np.asarray(array)
        for name, array in state_dict.items()
        if not name.startswith("head.") and not name.endswith(".num_batches_tracked")
    }
    positions = entries.pop("pos_embed", None)
    loaded, faults = {}, []
    for path, leaf in traverse_util.flatten_dict(template).items():
        name = _torch_name(path)
        shape = _to_torch(name, np.broadcast_to(np.False_, leaf.shape)).shape
        array = entries.pop(name, None)
        if array is None:
            faults.append(f"missing {name}")
        elif array.shape != shape:
            faults.append(f"{name} has shape {array.shape}, not {shape}")
        else:
            loaded[path] = np.ascontiguousarray(_from_torch(array, len(leaf.shape)), leaf.dtype)
    faults += [f"unexpected {name}" for name in entries]
    if positions is not None and not _are_fixed(positions):
        faults.append(f"pos_embed is not the fixed sine and cosine table{ONLY}")
    if faults:
        raise UserError(f"weights do not fit the encoder: {'; '.join(faults)}")
    return traverse_util.unflatten_dict(loaded)


def rows_first(state_dict: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], bool]:
    """Return entries whose positions count rows first, and whether they had to be turned.

    The table of MAE and of what follows it counts columns first: there the two halves of the
    width have changed places. A ViT does not know the order of its width: with the halves
    exchanged in everything that adds to tokens or reads them it is the same network, whose
    features come out with their halves exchanged (see `exchanged`).
    """
    positions = state_dict.get("pos_embed")
    if positions is None or _are_fixed(positions) or not _are_fixed(exchanged(positions, -1)):
        return dict(state_dict), False
    turned = {}
    for name, array in state_dict.items():
        if re.search(r"(attn\.qkv|mlp\.fc1)\.weight$", name):
            array = exchanged(array, 1)
        elif re.search(r"(norm\d?|attn\.proj|mlp\.fc2)\.(weight|bias)$", name) or re.match(
            r"patch_embed\.proj\.(12\.)?(weight|bias)$", name
        ):
            array = exchanged(array, 0)
        elif name in ("cls_token", "pos_embed"):
            array = exchanged(array, -1)
        turned[name] = array
    return turned, True


def exchanged(array: np.ndarray, axis: int) -> np.ndarray:
    """Return `array` with the two halves of `axis` swapped."""
    return np.roll(array, array.shape[axis] // 2, axis)


def save(variables: Variables, image_size: int) -> dict[str, np.ndarray]:
    """Return the `state_dict` that timm's VisionTransformer would load, without `head`.

    `variables` are a `ViT`'s. `pos_embed` is written for square images of side `image_size`.
    `num_batches_tracked` is 0: Flax does not count batches.
    """
    state_dict = {}
    for path, leaf in traverse_util.flatten_dict(variables).items():
        name = _torch_name(path)
        state_dict[name] = np.ascontiguousarray(_to_torch(name, np.asarray(leaf)))
        if name.endswith("running_var"):
            tracked = name.replace("running_var", "num_batches_tracked")
            state_dict[tracked] = np.zeros((), np.int64)
    token = state_dict["cls_token"]
    kernel = variables["params"]["patch_embed"].get("kernel")
    side = image_size // (16 if kernel is None else kernel.shape[0])
    table = _with_token(sincos_positions(side, side, token.shape[-1]))
    return {**state_dict, "pos_embed": table.astype(token.dtype)}


def _with_token(table: np.ndarray) -> np.ndarray:
    """Put the class token's zero before positions: `[N, width]` -> `[1, 1 + N, width]`."""
    return np.pad(table, ((1, 0), (0, 0)))[None]


def _are_fixed(positions: np.ndarray) -> bool:
    """Return whether these are the fixed positions of a square grid, up to float32's rounding."""
    if positions.ndim != 3 or not positions.size:
        return False
    _, tokens, width = positions.shape
    side = round((tokens - 1) ** 0.5)
    table = _with_token(sincos_positions(side, side, width))
    return table.shape == positions.shape and np.allclose(positions, table, rtol=0, atol=1e-4)
