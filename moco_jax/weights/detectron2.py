"""ResNet weights under Detectron2's names.

The names are those that Detectron2's own converter from torchvision writes, and the MoCo
authors'.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.weights import torchvision

Variables = dict[str, Any]

# What Detectron2's loader finds beside the arrays: who made them, and that it may match names by
# their ends.
AROUND = {"model": None, "__author__": "moco_jax", "matching_heuristics": True}


def load(model: Mapping[str, np.ndarray], template: Variables) -> Variables:
    """Read a `ResNet`'s variables from Detectron2's `model`.

    Arguments and errors are those of `torchvision.load`.
    """
    return torchvision.load(to_torchvision(model), template)


def save(variables: Variables) -> dict[str, np.ndarray]:
    """Return what goes under 'model' in Detectron2's pickle, from a `ResNet`'s variables.

    Detectron2 must be told STRIDE_IN_1X1 False, RESNETS.DEPTH, and the pixels' mean, deviation
    and order RGB.

    Raises:
        UserError: the stem is not the 7x7 one, the only one that Detectron2 has.
    """
    if "conv1" not in variables["params"] or variables["params"]["conv1"]["kernel"].shape[0] != 7:
        raise UserError("format=detectron2 holds only ResNets with the 7x7 stem; use format=timm")
    return {
        _name(name): array
        for name, array in torchvision.save(variables).items()
        if not name.endswith(".num_batches_tracked")
    }


def to_torchvision(model: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the same arrays under torchvision's names."""
    return {_torchvision_name(name): array for name, array in model.items()}


def _name(name: str) -> str:
    """Respell torchvision's 'layer1.0.bn1.weight' as Detectron2's 'res2.0.conv1.norm.weight'."""
    name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    name = name if name.startswith("res") else f"stem.{name}"
    name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def _torchvision_name(name: str) -> str:
    """Respell Detectron2's 'res2.0.conv1.norm.weight' as torchvision's 'layer1.0.bn1.weight'."""
    name = re.sub(r"^res(\d)", lambda match: f"layer{int(match[1]) - 1}", name)
    name = re.sub(r"\bconv(\d)\.norm", r"bn\1", name.removeprefix("stem."))
    name = name.replace("shortcut.norm", "downsample.1")
    return name.replace("shortcut", "downsample.0")
