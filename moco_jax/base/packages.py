"""Packages that only some runs need: whether they are there, and how TensorFlow is loaded.

TensorFlow makes tf.data's batches and writes TensorBoard's files. All else does without it, so that
nothing imports it before it is needed.
"""

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from moco_jax.base.errors import UserError

# Packages by the names under which pip has them, where these differ.
_IN_PIP = {"tensorflow_datasets": "tensorflow-datasets"}


def is_there(name: str) -> bool:
    """Whether the package `name` can be imported; it is not imported.

    A folder without `__init__.py` is none: a run of Weights & Biases leaves one named `wandb`.
    """
    try:
        found = importlib.util.find_spec(name)
        return found is not None and found.origin is not None
    except (ImportError, ValueError):  # found, and refused
        return False


def missing(names: Sequence[str]) -> list[str]:
    """Return those of the packages `names` that are not there."""
    return [name for name in names if not is_there(name)]


def how_to_have(names: Sequence[str]) -> str:
    """Return the command that installs the packages `names`."""
    return f"pip install {' '.join(_IN_PIP.get(name, name) for name in names)}"


def require_tensorflow(what: str, instead: str = "") -> None:
    """Refuse `what` where TensorFlow is missing.

    Args:
        what: the setting with its value, or the command, that needs TensorFlow.
        instead: what works without it; '' for nothing.
    """
    if not is_there("tensorflow"):
        other = f", or {instead}" if instead else ""
        raise UserError(
            f"{what} needs the package tensorflow, which is not installed here;"
            f" {how_to_have(['tensorflow'])}{other}"
        )


def load_tensorflow(what: str, instead: str = "") -> Any:
    """Import TensorFlow without the lines that it writes meanwhile, and keep it off the GPUs.

    Args:
        what, instead: as in `require_tensorflow`.

    Returns:
        The module.

    Raises:
        UserError: TensorFlow is not installed.
    """
    require_tensorflow(what, instead)
    return _tensorflow()


@functools.cache
def _tensorflow() -> Any:
    """Import TensorFlow with standard error, of C++ too, put aside.

    Where the import fails, what it wrote is shown.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryFile() as aside:
        kept = os.dup(2)
        os.dup2(aside.fileno(), 2)
        try:
            tf = importlib.import_module("tensorflow")
        except BaseException:
            os.dup2(kept, 2)
            aside.seek(0)
            sys.stderr.write(aside.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    with contextlib.suppress(RuntimeError):  # a program that is not ours uses it already
        tf.config.set_visible_devices([], "GPU")
    return tf


def tensorflow_errors() -> tuple[type[Exception], ...]:
    """Return the class of TensorFlow's errors, as of decoding; none where it is not loaded."""
    tf = sys.modules.get("tensorflow")
    return (tf.errors.OpError,) if tf is not None and hasattr(tf, "errors") else ()
