"""Reads the encoder's settings from a config: options, dtype, and fit with the images."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax import encoders
from moco_jax.base.errors import UserError
from moco_jax.config import settings


def encoder_options(config: ConfigDict) -> dict[str, Any]:
    """Return the arguments of `encoders.create` for the query encoder of `config`.

    They are undivided over devices, and the dtype is the default.
    """
    return dict(
        name=config.arch,
        head=config.head,
        head_width=config.head_width,
        predictor=config.predictor,
        dim=config.dim,
        width=config.width or None,
        stem=config.stem,
        bn_groups=config.bn_groups,
        zero_init_residual=config.zero_init_residual,
        remat=config.remat,
        attention=config.attention,
        reduce=config.reduce,
    )


def check_views(config: ConfigDict) -> None:
    """Check that a config's images fit its encoder: size, channels and statistics."""
    for name in ("arch", "image_size", "channels", "width", "stem", "mean", "std"):
        settings.SETTINGS[name].check(config[name])
    encoders.check(
        config.arch,
        config.image_size,
        config.width or None,
        stem=config.stem,
        remat=config.remat,
        zero_init_residual=config.zero_init_residual,
        attention=config.attention,
    )
    for setting in settings.SETTINGS.values():
        needed = config[setting.length] if isinstance(setting.length, str) else 0
        if needed and len(config[setting.name]) != needed:
            value = tuple(config[setting.name])
            raise UserError(
                f"{setting.name}={value} has {len(value)} values, and {setting.length}={needed}"
                f" asks for {needed}; the section 'images' of python -m moco_jax.doctor prints"
                " those of your images"
            )


def compute_dtype(name: str):
    """Return the dtype that `compute_dtype` names; `auto` is float32 on CPU, bfloat16 elsewhere."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name == "float64" and jnp.result_type(float) != jnp.float64:
        raise UserError("compute_dtype='float64' needs JAX_ENABLE_X64=1 in the environment")
    return jnp.dtype(name)
