"""Short runs on the digits, good and bad ones, whose checkpoints signals are compared on."""

from typing import Any

from ml_collections import ConfigDict

from configs import digits

EVERY = 2  # epochs between scores, and between checkpoints
STEPS = 22  # of an epoch of the digits
# A small encoder on small images: a run takes half a minute on two cores.
COMMON: dict[str, Any] = dict(
    width=8,
    image_size=16,
    queue_size=512,
    epochs=40,
    monitor_every=EVERY,
    checkpoint_every=EVERY * STEPS,
    keep=1000,
    augment_on="resident",
)
# Name -> variant of the digits' recipe, and what differs from it.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "moco": ("moco", {}),
    "end_to_end": ("end_to_end", {}),
    "lr_low": ("moco", dict(lr=0.006)),
    "lr_high": ("moco", dict(lr=0.3)),
    "temperature_0.5": ("moco", dict(temperature=0.5)),
    "momentum_0.9": ("moco", dict(momentum=0.9)),
    "weak_views": ("end_to_end", dict(crop_min=0.9)),
    "symmetric": ("symmetric", {}),
    "no_momentum": ("moco", dict(momentum=0.0)),
}


def config_of(name: str) -> ConfigDict:
    """Make the settings of the run called `name`."""
    variant, changes = RUNS[name]
    config = digits.get_config(variant)
    config.update(COMMON | changes)
    return config
