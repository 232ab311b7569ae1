"""Recipes by name: `--config=imagenet:v2` means the file of that name in `moco_jax/configs`.

That folder is a link to the checkout's `configs/`, so that an installed package has them too.
"""

import difflib
import importlib.util
import os
import re
from pathlib import Path

from ml_collections import ConfigDict

from moco_jax.base.errors import UserError

FOLDER = Path(__file__).parents[1] / "configs"


def names() -> list[str]:
    """List the names of all recipes."""
    return sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def load(name: str) -> ConfigDict:
    """Return the settings of the recipe `name`, as --config=`name` would.

    Raises:
        UserError: neither a file nor a recipe has that name, or it has no such variant.
    """
    path, _, variant = resolve(f"--config={name}").removeprefix("--config=").partition(".py")
    spec = importlib.util.spec_from_file_location(Path(path).stem, f"{path}.py")
    if spec is None or spec.loader is None or not os.path.isfile(f"{path}.py"):
        raise UserError(f"recipe={name} is no file of Python; use one of {', '.join(names())}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words = [variant.removeprefix(":")] if variant else []
    return module.get_config(*words)


def resolve(word: str) -> str:
    """Return `--config=NAME[:VARIANT]` with the recipe's file for NAME; any other word as it is.

    Raises:
        UserError: neither a file nor a recipe has that name.
    """
    found = re.match(r"(--?config=)([^:]+)(.*)", word)
    if not found or os.path.isfile(found[2]):
        return word
    flag, name, variant = found.groups()
    if name in names():
        return f"{flag}{FOLDER / name}.py{variant}"
    # 'configs/imagenet.py', typed where there is no such folder, is meant as 'imagenet'.
    close = difflib.get_close_matches(Path(name).stem, names(), 1)
    meant = f"; did you mean --config={close[0]}{variant}?" if close else ""
    raise UserError(f"{flag}{name} is no file, nor one of the recipes {', '.join(names())}{meant}")
