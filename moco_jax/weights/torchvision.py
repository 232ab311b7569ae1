"""ResNet weights under torchvision's names, to and from pytrees.

The entries are flat dictionaries of NumPy arrays. The name of an entry is its path in the pytree
respelt, and convolutions turn from `[H, W, in, out]` to `[out, in, H, W]`. Nothing is rounded,
and nothing is skipped in silence.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from moco_jax.base.errors import UserError

Variables = dict[str, Any]

_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


def _torch_name(path: tuple[str, ...]) -> str:
    """Respell ('params', 'layer1_0', 'downsample_bn', 'bias') as 'layer1.0.downsample.1.bias'."""
    collection, *modules, leaf = path
    name = re.sub(r"^(layer\d+)_(\d+)", r"\1.\2", ".".join(modules))
    name = name.replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")
    return f"{name}.{_LEAVES[collection, leaf]}"


def _to_torch(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def _from_torch(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def load(state_dict: Mapping[str, np.ndarray], template: Variables) -> Variables:
    """Read a `ResNet`'s variables from torchvision's `state_dict`, without the classifier `fc`.

    Args:
        state_dict: torchvision's names to arrays.
        template: `{'params', 'batch_stats'}` of the backbone with the shapes and dtypes wanted:
            arrays, or what `jax.eval_shape` returns.

    Raises:
        UserError: entries missing, unexpected or of another shape, all of them listed.
    """
    entries = {
        name: np.asarray(array)
        for name, array in state_dict.items()
        if not name.startswith("fc.") and not name.endswith(".num_batches_tracked")
    }
    loaded, faults = {}, []
    for path, leaf in _flatten(template).items():
        name = _torch_name(path)
        array = entries.pop(name, None)
        if array is None:
            faults.append(f"missing {name}")
        elif _from_torch(array).shape != tuple(leaf.shape):
            shape = _to_torch(np.broadcast_to(np.False_, leaf.shape)).shape
            faults.append(f"{name} has shape {array.shape}, not {shape}")
        else:
            loaded[path] = np.ascontiguousarray(_from_torch(array), leaf.dtype)
    faults += [f"unexpected {name}" for name in entries]
    if faults:
        raise UserError(f"weights do not fit the encoder: {'; '.join(faults)}")
    return traverse_util.unflatten_dict(loaded)


def save(variables: Variables) -> dict[str, np.ndarray]:
    """Return the `state_dict` that torchvision would load, without `fc`.

    `num_batches_tracked`, which has no counterpart here, is 0; it matters only to a torch
    BatchNorm whose momentum is None.
    """
    state_dict = {}
    for path, leaf in _flatten(variables).items():
        name = _torch_name(path)
        state_dict[name] = np.ascontiguousarray(_to_torch(np.asarray(leaf)))
        if path[0] == "batch_stats" and path[-1] == "var":
            tracked = name.replace("running_var", "num_batches_tracked")
            state_dict[tracked] = np.zeros((), np.int64)
    return state_dict


def _flatten(variables: Variables) -> dict[tuple[str, ...], Any]:
    return traverse_util.flatten_dict(
        {collection: variables[collection] for collection in ("params", "batch_stats")}
    )
