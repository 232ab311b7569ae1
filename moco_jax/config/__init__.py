"""The settings of a run as one config: defaults, checks of names, and differences.

A recipe file in `configs/` starts from `default_config()` and sets what differs. `config/settings/`
says what each setting may be and means, `training/checks.py` what several of them must be together.
RECIPE settings decide the mathematics of a run and may not change within a workdir; OPERATIONAL
settings say where things are and what is shown.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from moco_jax.base.errors import UserError
from moco_jax.config import settings

RECIPE = {name: setting.default for name, setting in settings.RECIPE.items()}
OPERATIONAL = {name: setting.default for name, setting in settings.OPERATIONAL.items()}


class Config(ConfigDict):
    """All settings of a run; a value is cast to its setting's type where nothing is lost.

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
    """Return all settings at their defaults, locked: an unknown name is an error."""
    config = Config(RECIPE | OPERATIONAL)
    config.lock()
    return config


def pick_variant(variant: str, known: Iterable[str]) -> str:
    """Return `variant`, or the first of `known` where it is empty; refuse any other."""
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


def check_each(config: ConfigDict) -> None:
    """Refuse a setting that is unknown, missing, or of a value that no run could have.

    What depends on several settings is left to `training.checks`, which loads the encoders.
    """
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


def check_background(background: int, channels: int) -> None:
    """Refuse a `background` where transparency is a channel of its own."""
    settings.SETTINGS["background"].check(background)
    if background >= 0 and channels not in (1, 3):
        raise UserError(
            f"background={background} is for images in gray or colour, and channels={channels}; "
            "background=-1 works"
        )


def recipe_differences(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Compare two recipes: name of each setting that differs -> (old value, new value).

    A setting that `old` lacks, as that of an older version may, had its default.
    """

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    return {
        key: (plain(old.get(key, RECIPE[key])), plain(new[key]))
        for key in RECIPE
        if plain(old.get(key, RECIPE[key])) != plain(new[key])
    }
