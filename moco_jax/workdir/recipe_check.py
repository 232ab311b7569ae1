"""Settings of the run in a workdir, and the check that another run has the same recipe.

Every checkpoint holds the settings that it was made by, and config.json those of the last start; a
run that goes on has to agree with both.
"""

import json
import socket
import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.base import files, storage
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.data.sources import fingerprint
from moco_jax.workdir import integrity

SEEN = 20  # seconds in which a file of another host is seen
IMAGES = "images"  # what --allow_change calls the images, and a checkpoint their fingerprint


def claim_workdir(
    workdir: epath.Path,
    config: Mapping[str, Any],
    allow_change: set[str],
    step: int | None = None,
    images: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make `workdir` this run's: write config.json there, or refuse when its recipe differs.

    Args:
        workdir: made if missing.
        config: the settings of this run.
        allow_change: recipe settings that may differ from the run that is there.
        step: of the sound checkpoint that the run goes on from, which knows its recipe and images
            too; None without one.
        images: the fingerprint of this run's images (`data/sources/fingerprint.py`).

    Returns:
        The changes that were allowed: name -> (old, new).

    Raises:
        UserError: the folder cannot be written, or a recipe setting or the images differ.
    """
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        changed = recipe_changes(workdir, config, allow_change, step, images)
        if jax.process_index() == 0:
            files.write(path, (json.dumps(dict(config), indent=2) + "\n").encode())
    except storage.OF_STORES:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"workdir={workdir} cannot be written ({reason}); choose a folder that you may write to"
        ) from error
    return changed


def require_shared(workdir: epath.Path) -> None:
    """Refuse a `workdir` in which this process does not see what process 0 has written there.

    Raises:
        UserError: it is a folder of one host alone.
    """
    # A shared disk may show a new file somewhat later to other hosts.
    for _ in range(SEEN):
        if (workdir / "config.json").exists():
            return
        time.sleep(1.0)
    raise UserError(
        f"workdir={workdir} on {socket.gethostname()} is not the folder that process 0 writes to; "
        "all hosts must see one folder: give a place on a shared disk, or in a bucket"
    )


def recipe_changes(
    workdir: epath.Path,
    config: Mapping[str, Any],
    allow_change: set[str],
    step: int | None = None,
    images: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Find what `config` changes in the recipe of the run in `workdir`: name -> (old, new).

    Nothing is written.

    A recipe is what the checkpoint of `step` (None: there is none) was made by, and what
    config.json says. A damaged config.json is passed over where there is that checkpoint.
    `images`, where given, are those that the checkpoint was trained on, unless `allow_change` has
    `IMAGES` or another dataset or split.

    Raises:
        UserError: a recipe setting or the images differ and `allow_change` does not say so, or
            config.json is all there is and damaged.
    """
    unknown = sorted(allow_change - config_lib.RECIPE.keys() - {IMAGES})
    if unknown:
        raise UserError(
            f"--allow_change={','.join(unknown)} names no recipe setting, nor '{IMAGES}'; they are "
            "listed in moco_jax/config/settings/recipe.py, and others may always change"
        )
    path = workdir / "config.json"
    sources: dict[str, dict[str, Any]] = {}
    if path.exists() and (step is None or not damage_of(path)):
        sources["config.json"] = config_lib.recipe_differences(read_config(path), config)
    if step is not None:
        saved = integrity.about(workdir, step)["config"]
        sources[f"checkpoint {step}"] = config_lib.recipe_differences(saved, config)
    changed = {name: pair for found in sources.values() for name, pair in found.items()}
    refused = [name for name in changed if name not in allow_change]
    if refused:
        listed = "; ".join(_difference(name, changed[name][1], sources) for name in refused)
        raise UserError(
            f"workdir={workdir} holds a run of another recipe ({listed}); take another workdir, or "
            f"--allow_change={','.join(refused)}"
        )
    if step is not None and images is not None:
        changed |= _other_images(workdir, step, images, allow_change | changed.keys())
    return changed


def _other_images(
    workdir: epath.Path, step: int, images: Mapping[str, Any], allowed: set[str]
) -> dict[str, Any]:
    """Compare `images` with those of the checkpoint of `step`; (old, new) by name if they differ.

    Raises:
        UserError: they differ and may not, as `allowed` names neither them nor where they are.
    """
    saved = integrity.about(workdir, step).get(IMAGES)
    if not isinstance(saved, dict) or not fingerprint.difference(saved, images):
        return {}
    what = fingerprint.difference(saved, images)
    if not allowed & {IMAGES, "dataset", "split"}:
        raise UserError(
            f"workdir={workdir} holds a run on other images (checkpoint {step}: {what}), which "
            "would go on in another order; give the images of before, take another workdir, or "
            f"--allow_change={IMAGES}"
        )
    old, _, new = what.partition(" -> ")
    return {IMAGES: (old, new) if new else ("as of before", what)}


def _difference(name: str, new: Any, sources: Mapping[str, Mapping[str, Any]]) -> str:
    """Describe what `sources` (where -> differences) have of `name`, beside its `new` value."""
    old = {
        where: repr(found[name][0]) if name in found else repr(new)
        for where, found in sources.items()
    }
    if len(set(old.values())) == 1:
        return f"{name}: {next(iter(old.values()))} -> {new!r}"
    return f"{name}: {', '.join(f'{value} in {where}' for where, value in old.items())} -> {new!r}"


def read_config(path: epath.Path) -> dict[str, Any]:
    """Read the settings in a workdir's config.json; UserError where it is damaged."""
    reason = ""
    try:
        found = json.loads(files.read(path).decode())
    except storage.OF_STORES:
        raise
    except (OSError, ValueError, RecursionError) as error:
        found, reason = None, printable(str(getattr(error, "strerror", None) or error))
    if isinstance(found, dict):
        return found
    raise UserError(
        f"{path} is damaged ({reason or 'it holds no settings by name'}); its content is also in "
        "checkpoints/STEP/about, or take another workdir"
    )


def damage_of(path: epath.Path) -> str:
    """Say what is wrong with the config.json at `path`; empty where it holds settings."""
    try:
        read_config(path)
    except UserError as error:
        return str(error)
    return ""


def unknown_images(workdir: epath.Path, step: int | None) -> list[str]:
    """Say that the checkpoint of `step` does not tell its images: a line, or none if it does."""
    if step is None or isinstance(integrity.about(workdir, step).get(IMAGES), dict):
        return []
    return [
        f"checkpoint {step} is of an older version and does not say which images it was trained "
        "on; whether they are the same is not known"
    ]


def mended(workdir: epath.Path, step: int | None) -> list[str]:
    """Say that config.json is gone or damaged, and will be written from the checkpoint of `step`.

    Returns:
        one line; none where it is sound or there is no checkpoint. Nothing is written here.
    """
    path = workdir / "config.json"
    if step is None or (path.exists() and not damage_of(path)):
        return []
    why = damage_of(path) if path.exists() else f"{path} is missing"
    return [
        f"{why.partition(';')[0]}: checkpoint {step} has the settings of this run, and it is "
        "written again"
    ]


def settings(workdir: epath.Path) -> ConfigDict:
    """Read the settings of the run in `workdir`: of config.json, or else of the last checkpoint.

    Raises:
        UserError: no run is there, or neither of the two can be read, or a value is of another
            type.
    """
    path = workdir / "config.json"
    step = None
    if not path.exists() or damage_of(path):
        step = integrity.sound(integrity.examine(workdir))
        if step is None and not path.exists():
            raise UserError(
                f"{workdir} is no workdir: it has no config.json, and no sound checkpoint"
            )
    saved = read_config(path) if step is None else integrity.about(workdir, step)["config"]
    config = config_lib.default_config()
    for name in saved.keys() & set(config.keys()):
        try:
            config[name] = saved[name]
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{path} is damaged: {error}; its content is also in checkpoints/STEP/about"
            ) from error
    return config
