"""Settings on the page: differences between runs and from the defaults, and how to repeat a run."""

import dataclasses
import pprint
import shlex
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.parallel.hosts import code_digest
from moco_jax.report.page.run import Run


@dataclasses.dataclass(frozen=True)
class Setting:
    """A row of the table of settings.

    `values` has one for each run, as text; `recipe` says whether the setting decides the
    mathematics.
    """

    name: str
    default: str
    values: list[str]
    recipe: bool


def shown(value: Any) -> str:
    """Format `value` as a config file has it; lists and tuples look alike."""
    return repr(tuple(value) if isinstance(value, list) else value)


def every(runs: Sequence[Run]) -> list[Setting]:
    """Return all settings, in the order of `moco_jax.config.settings`."""
    default = config_lib.default_config()
    return [
        Setting(
            name,
            shown(default[name]),
            [shown(run.config[name]) for run in runs],
            name in config_lib.RECIPE,
        )
        for name in (*config_lib.RECIPE, *config_lib.OPERATIONAL)
    ]


def differing(runs: Sequence[Run]) -> list[Setting]:
    """Return the settings in which runs differ; of a single run those not at their defaults."""
    return [
        s for s in every(runs) if len({*s.values, *([s.default] if len(runs) == 1 else [])}) > 1
    ]


def recipe_file(config: ConfigDict) -> str:
    """Write a config file, for --config, of a run's settings that are not at their defaults."""
    default = config_lib.default_config()
    changed = {
        name: tuple(value) if isinstance(value, list | tuple) else value
        for name, value in config.to_dict().items()
        if shown(value) != shown(default[name])
    }
    return (
        '"""The settings of one run."""\n\nfrom moco_jax.config import default_config\n\n\ndef'
        ' get_config():\n    """All that is not at its default."""\n    config ='
        " default_config()\n   "
        f" config.update({pprint.pformat(changed, sort_dicts=False, width=100)})\n    return"
        " config\n"
    )


@dataclasses.dataclass(frozen=True)
class Repeat:
    """How to repeat a run.

    Attributes:
        run: its name.
        file: a name for the config file.
        recorded: the command that began it; empty where the run did not record it.
        config: content of a config file with its settings.
        command: a command that runs that file.
        same_code: whether this package is the one that it last ran with; None where that is not
            known.
    """

    run: str
    file: str
    recorded: str
    config: str
    command: str
    same_code: bool | None


def repeat(run: Run) -> Repeat:
    """Describe how to repeat `run`."""
    file = f"{run.place.name}.py"
    known = run.starts[-1].get("code") == code_digest() if run.starts else None
    words = ["python", "-m", "moco_jax.main", f"--config={file}", "--workdir=runs/again"]
    recorded = _as_text(run.starts[0].get("command")) if run.starts else ""
    return Repeat(run.name, file, recorded, recipe_file(run.config), shlex.join(words), known)


def environment(run: Run) -> list[tuple[str, list[str]]]:
    """Return what the run recorded of its environment at each start.

    It is name -> a value for each start, empty where the start lacks it.
    """
    starts = run.starts
    if not starts:
        return []
    given = [s.get("versions") for s in starts]
    versions = [v if isinstance(v, dict) else {} for v in given]
    names = list(dict.fromkeys(name for packages in versions for name in packages))

    def each_start(key: str) -> list[str]:
        return [_as_text(s.get(key)) for s in starts]

    kinds = zip(each_start("devices"), each_start("device_kind"), strict=True)
    return [
        ("from step", [f"{s['step']:,}" for s in starts]),
        ("time", each_start("time")),
        ("devices", [" x ".join(filter(None, words)) for words in kinds]),
        ("hosts", each_start("hosts")),
        ("system", each_start("system")),
        ("training images", [f"{s['examples']:,}" for s in starts]),
        ("code, SHA-256", [code[:16] for code in each_start("code")]),
        *((name, [_as_text(packages.get(name)) for packages in versions]) for name in names),
    ]


def _as_text(value: Any) -> str:
    """Format a text or whole number of a record; '' where it is neither."""
    return str(value) if isinstance(value, str) or type(value) is int else ""
