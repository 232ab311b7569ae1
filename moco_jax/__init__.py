"""Momentum-contrast pretraining (MoCo) in JAX: images without labels in, an encoder that transfers out.

import moco_jax

encoder = moco_jax.load("runs/mine")
features = encoder(images)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moco_jax.inference.loading import images_in, load

__version__ = "0.1.0"
__all__ = ["images_in", "load"]


def __getattr__(name: str) -> Any:
    # JAX is loaded with the first encoder, so that the package itself costs nothing.
    if name in __all__:
        from moco_jax.inference import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
