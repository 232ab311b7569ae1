"""ViT weights under torchvision's names, which are timm's respelt; the arrays are the same."""

import re
from collections.abc import Mapping

import numpy as np

_STEM = r"patch_embed.proj."
# torchvision's name -> timm's, as expressions; the first that fits is taken.
_TO_TIMM = (
    (r"class_token$", "cls_token"),
    (r"encoder\.pos_embedding$", "pos_embed"),
    (r"encoder\.ln\.", "norm."),
    (r"heads\.", "head."),
    (r"conv_proj\.conv_last\.", f"{_STEM}12."),
    (r"conv_proj\.conv_bn_relu_(\d)\.([01])\.", lambda m: f"{_STEM}{3 * int(m[1]) + int(m[2])}."),
    (r"conv_proj\.", _STEM),
    (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
)
_FROM_TIMM = (
    (r"cls_token$", "class_token"),
    (r"pos_embed$", "encoder.pos_embedding"),
    (r"norm\.", "encoder.ln."),
    (r"head\.", "heads."),
    (r"patch_embed\.proj\.12\.", "conv_proj.conv_last."),
    (
        r"patch_embed\.proj\.(\d+)\.",
        lambda m: f"conv_proj.conv_bn_relu_{int(m[1]) // 3}.{int(m[1]) % 3}.",
    ),
    (r"patch_embed\.proj\.", "conv_proj."),
    (r"blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
)
_PARTS = {
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "self_attention.in_proj_": "attn.qkv.",
    "self_attention.out_proj.": "attn.proj.",
    "mlp.0.": "mlp.fc1.",
    "mlp.3.": "mlp.fc2.",
}


def to_timm(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename torchvision's entries to timm's."""
    respelt = {}
    for name, array in arrays.items():
        new = _respell(name, _TO_TIMM)
        new = re.sub(r"\.mlp\.linear_([12])\.", r".mlp.fc\1.", new)  # of older torchvision
        for theirs, ours in _PARTS.items():
            new = new.replace(f".{theirs}", f".{ours}")
        respelt[new] = array
    return respelt


def from_timm(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename timm's entries to torchvision's."""
    respelt = {}
    for name, array in arrays.items():
        new = name
        for theirs, ours in _PARTS.items():
            new = new.replace(f".{ours}", f".{theirs}")
        respelt[_respell(new, _FROM_TIMM)] = array
    return respelt


def _respell(name: str, rules: tuple) -> str:
    for pattern, replacement in rules:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", replacement, name)
    return name
