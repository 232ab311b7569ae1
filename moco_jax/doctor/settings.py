"""Findings on settings and the size of the dataset, each opinion with its source."""

import jax
import numpy as np
from ml_collections import ConfigDict

from moco_jax.base.errors import UserError
from moco_jax.base.findings import NOTE, OK, WARNING, Finding
from moco_jax.data.configured import strengths_of
from moco_jax.data.views import recipes
from moco_jax.evaluation.classes import Matched
from moco_jax.training.verdicts import never_stops

FEW_FOR_STATISTICS = 8
SLOW_MOMENTUM = 0.99


def count_devices() -> tuple[int, str]:
    """Return how many devices JAX finds, and their kind; UserError where it cannot start."""
    try:
        return jax.device_count(), jax.devices()[0].device_kind
    except RuntimeError as error:
        raise UserError(
            f"JAX finds no devices ({str(error).splitlines()[0]}); JAX_PLATFORMS=cpu takes the CPU"
        ) from error


def advice(config: ConfigDict, recipe_batch: int) -> list[Finding]:
    """Find what is unusual in settings that are sound.

    `recipe_batch`: the batch size that the recipe file itself has.
    """
    return [
        *_colours(config),
        *_rate(config, recipe_batch),
        *_groups(config),
        *_momentum(config),
    ]


def _colours(config: ConfigDict) -> list[Finding]:
    text = recipes.without_colours(config.augment, config.channels, strengths_of(config))
    return [Finding(NOTE, text)] if text else []


def _rate(config: ConfigDict, recipe_batch: int) -> list[Finding]:
    batch = config.batch_size
    if batch == recipe_batch or config.lr_reference_batch:
        return []
    scaled = config.lr * batch / recipe_batch
    return [
        Finding(
            WARNING,
            f"batch_size={batch} where the recipe has {recipe_batch}, and lr={config.lr:g} is not "
            f"scaled with it: --config.lr_reference_batch={recipe_batch} makes it {scaled:.4g} "
            "(linear scaling, as in MoCo v3)",
        )
    ]


def _groups(config: ConfigDict) -> list[Finding]:
    groups, each = config.bn_groups, config.batch_size // config.bn_groups
    found = []
    if each < FEW_FOR_STATISTICS:
        better = _fewer_groups(config)
        found.append(
            Finding(
                WARNING,
                f"bn_groups={groups} leaves {each} images to a BatchNorm group, and statistics of "
                f"so few are noisy (the papers' groups have 32): --config.bn_groups={better} makes "
                f"them {config.batch_size // better}, or take a larger batch_size",
            )
        )
    if min(groups, config.shuffle_groups) == 1:
        found.append(
            Finding(
                WARNING,
                f"bn_groups={groups} with shuffle_groups={config.shuffle_groups} does not shuffle "
                "BatchNorm: a query and its key share statistics, which lets the network cheat "
                "(MoCo v1, section 3.3); take 2 or more of both",
            )
        )
    return found


def _fewer_groups(config: ConfigDict) -> int:
    """Return the most BN groups that are allowed and leave enough images to each."""
    batch = config.batch_size
    for groups in range(config.bn_groups, 1, -1):
        span = min(groups, config.shuffle_groups)
        divides = batch % groups == 0 and groups % span == 0 and (batch // groups) % span == 0
        if divides and batch // groups >= FEW_FOR_STATISTICS:
            return groups
    return 1


def _momentum(config: ConfigDict) -> list[Finding]:
    if config.momentum >= SLOW_MOMENTUM:
        return []
    return [
        Finding(
            WARNING,
            f"momentum={config.momentum:g} renews the key encoder fast: in MoCo v1's table "
            "(ImageNet, linear top-1) 0 fails, 0.9 gives 55.2, 0.99 57.8 and 0.999 59.0; "
            "--config.momentum=0.999",
        )
    ]


def length(config: ConfigDict, examples: int) -> list[Finding]:
    """Find how long a run on `examples` images is; they are enough for a batch."""
    steps = examples // config.batch_size
    dropped = examples - steps * config.batch_size
    whole = f"{steps * config.epochs:,} in {config.epochs} epochs"
    if config.minutes:
        whole = f"as many as fit in minutes={config.minutes:g}"
    found = [
        Finding(
            OK,
            f"{steps:,} steps an epoch, {whole}"
            + (f"; the last {dropped} of each epoch's order are left out" if dropped else ""),
        )
    ]
    in_vain = never_stops(config, examples)
    if in_vain:
        found.append(Finding(WARNING, in_vain))
    if (
        config.dictionary == "queue"
        and config.queue_size >= examples
        and not config.mask_same_example
    ):
        found.append(
            Finding(
                NOTE,
                f"queue_size={config.queue_size:,} is not below the {examples:,} images: older "
                "keys of an image are among its own negatives; mask_same_example=True leaves them "
                "out",
            )
        )
    return found


def monitor(config: ConfigDict, matched: Matched | None, bank: int, queries: int) -> list[Finding]:
    """Find how the run will score itself.

    Args:
        config: the settings.
        matched: the classes of some of the images; None where none of these has a label.
        bank, queries: how many images are searched, and how many classified.
    """
    if not config.monitor_every:
        return [
            Finding(
                NOTE,
                (
                    "monitor_every=0: the run does not score itself, and a collapse shows in the "
                    "loss only"
                ),
            )
        ]
    every = f"every {config.monitor_every} epochs"
    known = np.unique(matched.train[matched.train >= 0]) if matched else np.zeros(0, np.int64)
    if matched is None or len(known) < 2:
        why = "no labels"
        if matched is not None:
            why = f"labels of one class alone, {matched.called[known[0]]!r}"
        return [
            Finding(
                NOTE,
                f"{why}: {every} the spread of features is measured, which shows a collapse, and "
                "their effective rank, by which the run says whether it still improves; no kNN and "
                "no online probe",
            )
        ]
    where = (
        f"of split {config.eval_split!r}"
        if config.eval_split
        else "of the training images themselves"
    )
    text = f"labels: {every} {queries:,} images {where} are classified by kNN among {bank:,}"
    return [Finding(OK, text), *_without_labels(matched)]


def _without_labels(matched: Matched) -> list[Finding]:
    numbers = np.concatenate([matched.train, matched.test])
    without = int((numbers < 0).sum())
    if not without:
        return []
    return [
        Finding(
            NOTE,
            f"{without:,} of {len(numbers):,} images whose labels were looked at have none; kNN "
            "leaves such out",
        )
    ]
