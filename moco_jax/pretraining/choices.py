"""Settings that fit the images and the machine, each with the reason for which it was chosen."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from moco_jax.base.errors import UserError
from moco_jax.data import images
from moco_jax.data.sources import Source, labels
from moco_jax.data.sources.refusals import none_is_sound

LOOKED_AT = 64  # images whose size is read
FEWEST = 32  # images from which anything can be learnt at all
FEW = 1000  # below which an encoder of someone else is likely the better one
MINUTES = 30.0  # of a run on a CPU that was given neither minutes nor epochs
STEPS = 20  # an epoch should have, before a larger batch is worth it
SIDES = (32, 64, 96, 128, 160, 192, 224)  # of views; a ResNet halves them five times


@dataclasses.dataclass(frozen=True)
class Facts:
    """What settings are chosen by.

    Attributes:
        images: how many there are.
        side: median of the shorter sides, in pixels, of those that were looked at.
        labelled: whether these have labels of two classes or more.
        on_cpu: whether the devices are this host's own cores.
        devices: how many there are, on all hosts.
    """

    images: int
    side: int
    labelled: bool
    on_cpu: bool
    devices: int

    @classmethod
    def of(cls, source: Source) -> "Facts":
        """Look at some images of `source`, evenly spread, and at the devices.

        Raises:
            UserError: none of the images can be decoded, or they are too few.
        """
        count = len(source)
        if count < FEWEST:
            raise UserError(
                f"{count} images are too few to learn from; give {FEWEST} or more, or use an"
                " encoder that others trained (docs/judging.md says which)"
            )
        some = np.unique(np.linspace(0, count - 1, LOOKED_AT).astype(np.int64))
        decoded = (images.decode(source, record) for record in source.read(some))
        sides = [min(image.shape[:2]) for image in decoded if image is not None]
        if not sides:
            raise none_is_sound(count, source.name(0))
        known = labels.known(source, some)
        return cls(
            images=count,
            side=int(np.median(sides)),
            labelled=known is not None and len(np.unique(known[known >= 0])) > 1,
            on_cpu=jax.default_backend() == "cpu",
            devices=jax.device_count(),
        )


@dataclasses.dataclass(frozen=True)
class Choice:
    """A setting, its value, and why it has it."""

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        """Return the setting as it is given, and the reason."""
        value = f"{self.value:g}" if isinstance(self.value, float) else self.value
        return f"{self.name}={value}: {self.reason}"


def _side(facts: Facts, config: ConfigDict) -> list[Choice]:
    most = config.image_size
    if facts.side >= most:
        return []
    fitting = min((side for side in SIDES if side <= most), key=lambda side: abs(side - facts.side))
    if fitting == most:
        return []
    found = [
        Choice("image_size", fitting, f"the images' shorter side is {facts.side} pixels (median)")
    ]
    if config.stem == "imagenet" and fitting <= 64 and config.arch.startswith("resnet"):
        stem = "cifar" if fitting == 32 else "cifar_stride2"
        reason = f"ImageNet's would leave {fitting // 32} x {fitting // 32} places of {fitting}"
        found.append(Choice("stem", stem, f"{reason} x {fitting} pixels"))
    return found


def _batch(facts: Facts, config: ConfigDict) -> list[Choice]:
    unit = math.lcm(config.bn_groups * min(config.shuffle_groups, config.bn_groups), facts.devices)
    wanted, reason = config.batch_size, ""
    if not facts.on_cpu:
        wanted = max(wanted, *(b for b in (1, 64, 128, 256) if facts.images >= b * STEPS))
        reason = f"{facts.images:,} images are {facts.images // wanted} such batches an epoch"
    if facts.images < 4 * wanted:
        wanted = facts.images // 4
        reason = f"four batches an epoch, as there are {facts.images} images"
    size = max(wanted // unit, 1) * unit
    if size > facts.images:
        raise UserError(
            f"{facts.images} images are fewer than the {size} of the smallest batch on"
            f" {facts.devices} devices; give more images, or fewer devices"
        )
    if size == config.batch_size:
        return []
    found = [Choice("batch_size", size, reason or f"a multiple of {unit}")]
    if not config.lr_reference_batch:
        rate = config.lr * size / config.batch_size
        found.append(Choice("lr", rate, "in proportion to batch_size"))
    return found


def _negatives(facts: Facts, config: ConfigDict, batch: int) -> list[Choice]:
    """Keep older keys of a query's own image out of a queue that holds most images."""
    most = facts.images // 2
    if config.dictionary != "queue" or config.queue_size <= most:
        return []
    size = max(most // batch, 1) * batch
    return [
        Choice(
            "queue_size",
            size,
            f"half of the {facts.images:,} images: in a longer queue a query meets older keys of"
            " its own image as negatives",
        )
    ]


def _time(facts: Facts) -> list[Choice]:
    return [Choice("minutes", MINUTES, "a CPU's run ends in reasonable time")] * facts.on_cpu


def _devices(facts: Facts) -> list[Choice]:
    if facts.on_cpu:
        return []
    return [Choice("augment_on", "device", "colours and blur are work for the accelerator")]


def _scores(facts: Facts, config: ConfigDict) -> list[Choice]:
    found = []
    if not facts.labelled:
        found.append(Choice("signals", True, "no image has a label, so no accuracy can be shown"))
    for most, every in ((100_000, 1), (10_000, 2), (2_000, 5)):
        if facts.images >= most and every < config.monitor_every:
            found.append(Choice("monitor_every", every, "epochs are long with so many images"))
            break
    return found


def fitting(facts: Facts, config: ConfigDict, given: set[str]) -> list[Choice]:
    """Choose settings for `facts` that differ from the recipe in `config`.

    Args:
        facts: on images and devices.
        config: the recipe, with what the user has given.
        given: names that the user has given, which are left as they are.
    """
    found = [*_side(facts, config), *_batch(facts, config)]
    sizes = [one.value for one in found if one.name == "batch_size" and one.name not in given]
    found += _negatives(facts, config, sizes[0] if sizes else config.batch_size)
    found += [] if given & {"epochs", "minutes"} else _time(facts)
    found += [*_devices(facts), *_scores(facts, config)]
    if "batch_size" in given:
        found = [one for one in found if one.name != "lr"]
    return [one for one in found if one.name not in given]


def remarks(facts: Facts) -> list[str]:
    """Say what a person should know of such images before they wait for a run."""
    if facts.images < FEW:
        return [
            f"{facts.images:,} images are few: compare the result with an encoder that others"
            " trained (docs/judging.md)"
        ]
    return []
