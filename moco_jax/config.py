"""A run's settings as one config: defaults, checks that need no data, and what follows from them.

A recipe file in `configs/` starts from `default_config()` and sets what differs. What each setting
may be and means is said in `moco_jax/settings/`; here stands what several of them must be together.
RECIPE settings decide the mathematics of a run and may not change within a workdir; OPERATIONAL ones
say where things are and what is shown.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from moco_jax import encoders, settings
from moco_jax.data import sources
from moco_jax.dictionary import BANK_ROWS
from moco_jax.errors import UserError
from moco_jax.method import Method
from moco_jax.settings.kinds import LARGEST, SMALLEST, plain

RECIPE = {name: setting.default for name, setting in settings.RECIPE.items()}
OPERATIONAL = {name: setting.default for name, setting in settings.OPERATIONAL.items()}


class Config(ConfigDict):
    """All settings of a run; what is assigned is cast to a setting's type where nothing is lost.

    >>> config = default_config()
    >>> config.epochs, config.lr = 2.0, 1
    >>> config.epochs, config.lr
    (2, 1.0)
    """

    def __setitem__(self, name: str, value: Any) -> None:
        """Set `name`; UserError where it is no setting, or `value` is of another type."""
        if self.is_locked and name not in self:
            raise UserError(f"{name} is not a setting; did you mean {settings.nearest(name)}?")
        # A reference has its value when it is read; `check_values` looks at that.
        if name in settings.SETTINGS and not isinstance(value, FieldReference):
            value = settings.SETTINGS[name].cast(value)
        super().__setitem__(name, value)


def default_config() -> ConfigDict:
    """All settings at their defaults, locked: an unknown name is an error."""
    config = Config(RECIPE | OPERATIONAL)
    config.lock()
    return config


def pick_variant(variant: str, known: Iterable[str]) -> str:
    """`variant`, or the first of `known` when empty; UserError when it is none of them."""
    known = list(known)
    if variant and variant not in known:
        raise UserError(f"variant={variant!r} is unknown; this config has {', '.join(known)}")
    return variant or known[0]


def check_names(arguments: Iterable[str], known: Iterable[str]) -> None:
    """Refuse command-line words `--config.NAME` whose NAME is none of the `known` settings."""
    known = list(known)
    for argument in arguments:
        found = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if found and found[1] not in known:
            close = settings.nearest(found[1], known)
            raise UserError(f"--config.{found[1]} is not a setting; did you mean {close}?")


def _multiples(value: int, unit: int) -> str:
    below, above = value // unit * unit, -(-value // unit) * unit
    return f"use {below} or {above}" if below else f"use {above}"


def check(config: ConfigDict, device_count: int) -> None:
    """Refuse, by a UserError that names setting, value and remedy, what cannot run on `device_count` devices."""
    check_values(config)
    check_batch(config, device_count)


def check_values(config: ConfigDict) -> None:
    """The part of `check` that needs no devices: each setting alone, then some of them together."""
    for name in config:
        # A recipe that unlocks its settings may have added one; a run would not obey it.
        if name not in settings.SETTINGS:
            raise UserError(f"{name} is not a setting; did you mean {settings.nearest(name)}?")
    for name, setting in settings.SETTINGS.items():
        if name not in config:
            raise UserError(
                f"{name} is missing; recipes start from moco_jax.config.default_config()"
            )
        setting.check(config[name])
    check_views(config)
    method_of(config).check()
    check_schedule(config)
    check_background(config.background, config.channels)
    if config.scaled_decoding and config.channels != 3:
        raise UserError(
            f"scaled_decoding=True is of JPEGs in colour, and channels={config.channels}; "
            "scaled_decoding=False works"
        )
    if config.eval_split and config.dataset != "digits" and not config.dataset.startswith("tfds:"):
        raise UserError(
            f"eval_split={config.eval_split!r} is of 'digits' and 'tfds:NAME', and dataset={config.dataset!r} is one whole: "
            "the images would be scored among themselves; --config.eval_split= sets some of them apart"
        )
    sources.require_no_place(config.dataset, config.data_dir)
    if config.augment_on == "resident" and config.scaled_decoding:
        raise UserError(
            "scaled_decoding=True shrinks images for the views of an epoch, and augment_on='resident' decodes each once "
            "for all; scaled_decoding=False works"
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


def check_background(background: int, channels: int) -> None:
    """Refuse a `background` where transparency is a channel of its own."""
    settings.SETTINGS["background"].check(background)
    if background >= 0 and channels not in (1, 3):
        raise UserError(
            f"background={background} is for images in gray or colour, and channels={channels}; "
            "background=-1 works"
        )


def check_views(config: ConfigDict) -> None:
    """The part of `check_values` on encoder and images: their size, channels and statistics."""
    for name in ("arch", "image_size", "channels", "width", "stem", "mean", "std"):
        settings.SETTINGS[name].check(config[name])
    encoders.check(
        config.arch, config.image_size, config.width or None, stem=config.stem, remat=config.remat,
        zero_init_residual=config.zero_init_residual, attention=config.attention,
    )  # fmt: skip
    for setting in settings.SETTINGS.values():
        needed = config[setting.length] if isinstance(setting.length, str) else 0
        if needed and len(config[setting.name]) != needed:
            value = tuple(config[setting.name])
            raise UserError(
                f"{setting.name}={value} has {len(value)} values, and {setting.length}={needed} "
                f"asks for {needed}; the section 'images' of python -m moco_jax.doctor prints those "
                "of your images"
            )


def check_batch(config: ConfigDict, device_count: int) -> None:
    """The part of `check` that looks at how batch, BN groups, queue and devices divide; values must be sound."""
    batch, groups = config.batch_size, config.bn_groups
    span = min(config.shuffle_groups, groups)
    if batch % groups:
        raise UserError(
            f"batch_size={batch} does not divide into bn_groups={groups}; {_multiples(batch, groups)}"
        )
    if groups % span:
        raise UserError(
            f"bn_groups={groups} is no multiple of shuffle_groups={config.shuffle_groups}; "
            f"shuffle_groups={math.gcd(groups, config.shuffle_groups)} works"
        )
    if (batch // groups) % span:
        raise UserError(
            f"batch_size={batch} makes BN groups of {batch // groups}, no multiple of shuffle_groups={span}; "
            f"take a multiple of {groups * span}: {_multiples(batch, groups * span)}"
        )
    for key in ("batch_size", "eval_batch_size"):
        if config[key] % device_count:
            raise UserError(
                f"{key}={config[key]} does not divide over {device_count} devices; "
                f"{_multiples(config[key], math.lcm(device_count, groups * span))}"
            )
    parts = config.accumulate
    if groups % parts and encoders.has_batch_norm(config.arch):
        raise UserError(
            f"accumulate={parts} would cut BatchNorm groups of {config.arch} apart (bn_groups={groups}), and each needs "
            f"all of its images at once; accumulate={math.gcd(parts, groups)} works, or a vit without conv stem, "
            "whose only BatchNorm is in the head"
        )
    if batch % (parts * device_count):
        raise UserError(
            f"batch_size={batch} does not divide into accumulate={parts} parts on {device_count} devices; "
            f"{_multiples(batch, parts * device_count)}"
        )
    if config.dictionary == "memory_bank" and BANK_ROWS % device_count:
        raise UserError(
            f"dictionary='memory_bank' does not divide over {device_count} devices; use 1, 2, "
            f"4, ... or {BANK_ROWS}"
        )
    if config.dictionary == "memory_bank" and config.bank_negatives % device_count:
        raise UserError(
            f"bank_negatives={config.bank_negatives} does not divide over {device_count} devices; "
            f"{_multiples(config.bank_negatives, device_count)}"
        )


def method_of(config: ConfigDict) -> Method:
    """The choice of parts that `config` makes."""
    bank = config.dictionary == "memory_bank"
    return Method(
        key_encoder=config.key_encoder, dictionary=config.dictionary,
        negatives=config.bank_negatives if bank else config.queue_size,
        temperature=config.temperature, symmetric=config.symmetric, loss=config.loss,
        times_2t=config.times_2t, queue_start=config.queue_start,
        mask_same_example=config.mask_same_example, bank_momentum=config.bank_momentum,
        shuffle=config.shuffle, bn_groups=config.bn_groups, shuffle_groups=config.shuffle_groups,
    )  # fmt: skip


def queue_life(config: ConfigDict) -> int:
    """Steps that a key stays in the queue, K / B, or K / 2B where both views become keys; 0 without a queue."""
    if config.dictionary != "queue":
        return 0
    return -(-config.queue_size // (config.batch_size * (2 if config.symmetric else 1)))


def encoder_options(config: ConfigDict) -> dict[str, Any]:
    """The arguments of `encoders.create` for the query encoder of `config`, undivided and in its default dtype."""
    return dict(
        name=config.arch, head=config.head, head_width=config.head_width, predictor=config.predictor,
        dim=config.dim, width=config.width or None, stem=config.stem, bn_groups=config.bn_groups,
        zero_init_residual=config.zero_init_residual, remat=config.remat, attention=config.attention,
        reduce=config.reduce,
    )  # fmt: skip


def peak_learning_rate(config: ConfigDict) -> float:
    """The rate at the start of the schedule, scaled to the batch only where the config says so."""
    scale = config.batch_size / config.lr_reference_batch if config.lr_reference_batch else 1
    return config.lr * scale


def recipe_differences(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Recipe settings that differ: name -> (old value, new value); one that `old` does not know had its default."""

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    return {
        key: (plain(old.get(key, RECIPE[key])), plain(new[key]))
        for key in RECIPE
        if plain(old.get(key, RECIPE[key])) != plain(new[key])
    }
