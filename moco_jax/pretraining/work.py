"""The work of one call: settings chosen and written, a run, and what it leaves."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.base import allocator, files, packages
from moco_jax.base.console import Console
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.config import recipe_files
from moco_jax.config import settings as settings_lib
from moco_jax.data.configured import open_images
from moco_jax.parallel import xla_flags
from moco_jax.parallel.devices import set_up
from moco_jax.pretraining import choices, places
from moco_jax.pretraining.call import Pretrained
from moco_jax.pretraining.leave import leave
from moco_jax.report.page import run as runs_lib
from moco_jax.training import checks, loop
from moco_jax.training.checkpoint import place_of

ACCELERATED = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "libtpu")
RECIPE = "recipe.py"
SCORES = ("raw_knn", "knn", "probe", "effective_rank", "lidar", "alignment", "uniformity", "loss")


def run(
    data: str, out: str, recipe: str, minutes: float | None, settings: Mapping[str, Any]
) -> tuple[Pretrained, int]:
    """Do what `pretrain` says; return what it returns, and the signal that stopped the run or 0."""
    began = time.perf_counter()
    xla_flags.set_up()
    allocator.keep_freed_memory()
    given = dict(settings) | ({} if minutes is None else {"minutes": minutes})
    config = _recipe(recipe, data, given)
    _ready(config)

    place, console = place_of(out), Console()
    if (place / "config.json").exists():
        config = _as_before(place, config, given)
    else:
        source = open_images(config, config.split, str(place / "index"))
        facts = choices.Facts.of(source)
        chosen = choices.fitting(facts, config, set(given))
        for one in chosen:
            config[one.name] = one.value
        for line in (*choices.remarks(facts), *map(str, chosen)):
            console.line(line)
        checks.check(config, facts.devices)
        _write_recipe(place, config, chosen)
    if config.augment_on != "resident":
        packages.load_tensorflow(f"augment_on={config.augment_on!r}")
    stopped = loop.train(config, str(place), set(), began)
    if not stopped:
        leave(place, console)
    return outcome(place, finished=not stopped), stopped


def _recipe(recipe: str, data: str, given: Mapping[str, Any]) -> ConfigDict:
    """Return the settings of `recipe` for `data`, with what was `given`."""
    name = recipe or ("folder" if _may_be_accelerated() else "folder:cpu")
    config = recipe_files.load(name)
    config.dataset, config.data_dir = places.kind_of(data)
    for key, value in given.items():
        if key not in config:
            raise UserError(
                f"{printable(key)} is not a setting; did you mean {settings_lib.nearest(key)}?"
            )
        config[key] = value
    config_lib.check_each(config)
    return config


def _may_be_accelerated() -> bool:
    """Whether JAX has a plugin for GPU or TPU: asking JAX itself would settle its devices."""
    return any(packages.is_there(name) for name in ACCELERATED)


def _ready(config: ConfigDict) -> None:
    """Make JAX ready; where it runs already, as in a notebook, its devices stay as they are."""
    try:
        set_up(config)
    except RuntimeError:  # `cpu_devices` comes too late
        config.cpu_devices = 0
        set_up(config)


def _as_before(place: epath.Path, config: ConfigDict, given: Mapping[str, Any]) -> ConfigDict:
    """Return the settings that an earlier call chose for the run in `place`, with those `given`."""
    if not (place / RECIPE).exists():
        raise UserError(
            f"out={place} holds a run that was begun by --config; go on with that by"
            f" --workdir={place}, or give another out"
        )
    before = recipe_files.load(str(place / RECIPE))
    for name in ("dataset", "data_dir", *given):
        before[name] = config[name]
    return before


def _write_recipe(place: epath.Path, config: ConfigDict, chosen: Sequence[choices.Choice]) -> None:
    """Write what differs from the defaults as a recipe file, with the reason where there is one."""
    reasons = {one.name: f"  # {one.reason}" for one in chosen}
    usual = config_lib.default_config()
    lines = [
        f"    config.{name} = {config[name]!r}{reasons.get(name, '')}"
        for name in config_lib.RECIPE | config_lib.OPERATIONAL
        if config[name] != usual[name] or name in reasons
    ]
    text = "\n".join(
        [
            '"""Settings of a run, as moco_jax.pretrain has chosen them for its images."""',
            "",
            "from moco_jax.config import default_config",
            "",
            "",
            "def get_config():",
            "    config = default_config()",
            *lines,
            "    return config",
            "",
        ]
    )
    place.mkdir(parents=True, exist_ok=True)
    files.write(place / RECIPE, text.encode())


def outcome(place: epath.Path, finished: bool) -> Pretrained:
    """Read what the run in `place` has found."""
    (found,) = runs_lib.read([str(place)])
    scores: dict[str, float] = {}
    for record in found.records:
        if "knn" in record and not record["step"]:
            scores["knn_before"] = record["knn"]
        for name in SCORES:
            if name in record and (record["step"] or name.startswith("raw")):
                scores[name] = record[name]
    verdict = found.verdict
    words = "" if verdict is None else (verdict.at_end if finished else verdict.line)
    return Pretrained(str(place), finished, scores, words)
