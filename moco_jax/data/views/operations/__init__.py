"""What a view can be made of: one file a stage, and the table of all stages.

To add an operation, write a file with a subclass of `Operation` (its settings, what it draws, and
its forms for hosts and devices), and give it a row of its own at the end of `TABLE`.
"""

from moco_jax.data.views.operations.blur import Blur
from moco_jax.data.views.operations.crop import Crop
from moco_jax.data.views.operations.flip import Flip
from moco_jax.data.views.operations.grayscale import Grayscale
from moco_jax.data.views.operations.jitter import Jitter
from moco_jax.data.views.operations.rotate import Rotate
from moco_jax.data.views.operations.solarize import Solarize
from moco_jax.data.views.operations.stage import Operation, Stage
from moco_jax.data.views.operations.vertical_flip import VerticalFlip

__all__ = [
    "TABLE",
    "Blur",
    "Crop",
    "Flip",
    "Grayscale",
    "Jitter",
    "Operation",
    "Rotate",
    "Solarize",
    "Stage",
    "VerticalFlip",
]

# Stages in the order of their random numbers: a row's for the query view, then a row's for the
# key view, then the next row's. What an example draws must not change while a run goes on, so
# that a new operation is a row of its own, behind all others.
TABLE: tuple[tuple[type[Stage], ...], ...] = (
    (Crop, Jitter, Grayscale, Blur, Flip),
    (Solarize,),
    (VerticalFlip,),
    (Rotate,),
)
