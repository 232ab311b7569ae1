"""The smallest encoders that whole runs of the tests train; they are soon compiled.

`resnet4` has one residual block; `resnet6` two, the second with a stride and a shortcut. Weights of
them have no place in other frameworks' networks: tests of those use `resnet10`.

As a recipe (`--config=tests/smallest.py`) it is for processes that a test starts: there the
encoders are made known when the recipe is read, as a user's own would be.
"""

from functools import partial

from configs import digits
from moco_jax import encoders
from moco_jax.encoders.resnet import ResNet

ARCH = "resnet4"
encoders.BACKBONES[ARCH] = partial(ResNet, (1,), bottleneck=False)
encoders.BACKBONES["resnet6"] = partial(ResNet, (1, 1), bottleneck=False)


def get_config():
    """Return the digits' recipe with the smaller of them."""
    config = digits.get_config()
    config.arch = ARCH
    return config
