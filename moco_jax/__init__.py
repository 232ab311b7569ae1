"""Momentum-contrast pretraining (MoCo) in JAX: from images without labels to an encoder.

import moco_jax

moco_jax.pretrain(data="photos", out="runs/mine", minutes=30)
encoder = moco_jax.load("runs/mine")
features = encoder(images)

`PUBLIC` lists all names to use in your own code; docs/library.md shows a training loop of your own.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moco_jax import encoders
    from moco_jax.inference.loading import images_in, load
    from moco_jax.method.batch import Batch
    from moco_jax.method.choice import Method
    from moco_jax.method.dictionary import MemoryBank, Queue
    from moco_jax.method.info_nce import info_nce, normalize
    from moco_jax.method.nce import nce
    from moco_jax.method.optimizers import moving_average
    from moco_jax.method.state import TrainState, initial_state
    from moco_jax.method.step import make_train_step
    from moco_jax.pretraining.call import pretrain

__version__ = "0.1.0"

# Name -> the module that has it, or that it is.
PUBLIC = {
    # From images to an encoder.
    "pretrain": "moco_jax.pretraining.call",
    # Use an encoder.
    "load": "moco_jax.inference.loading",
    "images_in": "moco_jax.inference.loading",
    # Write a training loop.
    "info_nce": "moco_jax.method.info_nce",
    "nce": "moco_jax.method.nce",
    "normalize": "moco_jax.method.info_nce",
    "Queue": "moco_jax.method.dictionary",
    "MemoryBank": "moco_jax.method.dictionary",
    "moving_average": "moco_jax.method.optimizers",
    # Take the whole step of a method.
    "encoders": "moco_jax.encoders",
    "Method": "moco_jax.method.choice",
    "make_train_step": "moco_jax.method.step",
    "TrainState": "moco_jax.method.state",
    "initial_state": "moco_jax.method.state",
    "Batch": "moco_jax.method.batch",
}
__all__ = [
    "Batch",
    "MemoryBank",
    "Method",
    "Queue",
    "TrainState",
    "encoders",
    "images_in",
    "info_nce",
    "initial_state",
    "load",
    "make_train_step",
    "moving_average",
    "nce",
    "normalize",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    # A module is loaded with the first of its names, so that the package itself costs nothing.
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(PUBLIC[name])
    return module if PUBLIC[name] == f"{__name__}.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
