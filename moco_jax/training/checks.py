"""Checks that several settings of a run fit together, before anything is built.

What each setting may be by itself is said in `config/settings/`.
"""

import math

from ml_collections import ConfigDict

from moco_jax import encoders
from moco_jax.base import packages
from moco_jax.base.errors import UserError, nearest_multiples
from moco_jax.config import check_background, check_each, registry
from moco_jax.config.settings.kinds import LARGEST, SMALLEST, plain
from moco_jax.data import sources
from moco_jax.encoders.configured import check_views
from moco_jax.method.choice import dictionary_class
from moco_jax.method.configured import method_of, peak_learning_rate


def check(config: ConfigDict, device_count: int) -> None:
    """Refuse a config that cannot run on `device_count` devices.

    Raises:
        UserError: names the setting, its value, and a value that works.
    """
    check_values(config)
    check_batch(config, device_count)


def check_values(config: ConfigDict) -> None:
    """The part of `check` that needs no devices: each setting alone, then some of them together."""
    check_each(config)
    check_views(config)
    method_of(config).check()
    check_schedule(config)
    check_background(config.background, config.channels)
    if config.scaled_decoding and config.channels != 3:
        raise UserError(
            f"scaled_decoding=True works on colour JPEGs only, and channels={config.channels}; "
            "use scaled_decoding=False"
        )
    if config.eval_split and not registry.has_splits(config.dataset):
        raise UserError(
            f"eval_split={config.eval_split!r} works with dataset='digits', 'hf' or 'tfds:NAME', "
            f"and dataset={config.dataset!r} has no splits; use --config.eval_split= to hold out "
            "some of its images"
        )
    sources.require_no_place(config.dataset, config.data_dir)
    if config.augment_on != "resident":
        packages.require_tensorflow(
            f"augment_on={config.augment_on!r}",
            "--config.augment_on=resident, which holds all images on the devices",
        )
    if config.augment_on == "resident" and config.scaled_decoding:
        raise UserError(
            "scaled_decoding=True shrinks each image to fit one epoch's views, and "
            "augment_on='resident' decodes it once for all epochs; use scaled_decoding=False"
        )
    if config.stop_when != "never" and not config.monitor_every:
        raise UserError(
            f"stop_when={config.stop_when!r} goes by scores, and monitor_every=0 makes none; use "
            "monitor_every=10, or stop_when='never'"
        )
    if config.loss == "nce" and config.temperature < 0.03:
        raise UserError(
            f"temperature={config.temperature} must be at least 0.03 with loss='nce', whose "
            "exponents overflow below; try 0.07"
        )


def check_schedule(config: ConfigDict) -> None:
    """The part of `check_values` on the learning rate and the length of its warm-up."""
    if config.warmup_epochs >= config.epochs:
        raise UserError(
            f"warmup_epochs={plain(config.warmup_epochs)} must be less than epochs="
            f"{config.epochs}; try {plain(config.epochs / 10)}"
        )
    peak = peak_learning_rate(config)
    if not SMALLEST <= peak <= LARGEST:
        raise UserError(
            f"lr={config.lr:g} times batch_size={config.batch_size} / lr_reference_batch="
            f"{config.lr_reference_batch} is {peak:g}, which float32 does not hold; try lr=0.03"
        )


def check_batch(config: ConfigDict, device_count: int) -> None:
    """The part of `check` on how batch, BN groups, queue and devices divide; needs sound values."""
    batch, groups = config.batch_size, config.bn_groups
    span, parts = min(config.shuffle_groups, groups), config.accumulate
    if groups % span:
        raise UserError(
            f"bn_groups={groups} is no multiple of shuffle_groups={config.shuffle_groups}; "
            f"shuffle_groups={math.gcd(groups, config.shuffle_groups)} works"
        )
    # What a batch must be a multiple of for all of the checks: each names values that pass all.
    unit = math.lcm(groups * span, parts * device_count)
    if batch % groups:
        raise UserError(
            f"batch_size={batch} does not divide into bn_groups={groups}; "
            f"{nearest_multiples(batch, unit)}"
        )
    if (batch // groups) % span:
        raise UserError(
            f"batch_size={batch} makes BN groups of {batch // groups}, no multiple of "
            f"shuffle_groups={span}; take a multiple of {unit}: {nearest_multiples(batch, unit)}"
        )
    for key, least in (("batch_size", unit), ("eval_batch_size", device_count)):
        if config[key] % device_count:
            raise UserError(
                f"{key}={config[key]} does not divide over {device_count} devices; "
                f"{nearest_multiples(config[key], least)}"
            )
    if groups % parts and encoders.has_batch_norm(config.arch):
        raise UserError(
            f"accumulate={parts} would cut BatchNorm groups of {config.arch} apart "
            f"(bn_groups={groups}), and each needs all of its images at once; "
            f"accumulate={math.gcd(parts, groups)} works, or a vit without conv stem, "
            "whose only BatchNorm is in the head"
        )
    if batch % (parts * device_count):
        raise UserError(
            f"batch_size={batch} does not divide into accumulate={parts} parts on {device_count} "
            f"devices; {nearest_multiples(batch, unit)}"
        )
    dictionary_class(config.dictionary).require(method_of(config).negatives, device_count)
