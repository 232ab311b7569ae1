"""Checks what a features file says of its encoder and images before any of it is believed."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from moco_jax.base.errors import UserError
from moco_jax.base.text import printable

FORMAT = 1
# Pixels of the side of an encoder's image at most: no larger picture is made on a file's word.
SIDE = 2**14
CHANNELS = 2**12


class _Kind(NamedTuple):
    """The kind of value that a fact must have: a test, and its name in messages."""

    called: str
    fits: Callable[[Any], bool]


def _whole(least: int, most: int = 2**63 - 1) -> _Kind:
    def fits(value: Any) -> bool:
        return type(value) is int and least <= value <= most

    return _Kind(f"a whole number from {least} to {most}", fits)


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) in (int, float) for value in values)


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


_TEXT = _Kind("text", lambda value: isinstance(value, str))
_NUMBER = _Kind("a number", lambda value: type(value) in (int, float))
_TRUTH = _Kind("true or false", lambda value: isinstance(value, bool))
_NUMBERS = _Kind("a list of numbers", _numbers)
_TEXTS = _Kind("a list of texts", _texts)

NEEDED: Mapping[str, Mapping[str, _Kind]] = {
    "encoder": {
        "place": _TEXT,
        "which": _TEXT,
        "step": _whole(0),
        "arch": _TEXT,
        "features": _TEXT,
        "augment": _TEXT,
        "image_size": _whole(1, SIDE),
        "channels": _whole(1, CHANNELS),
    },
    "images": {
        "dataset": _TEXT,
        "split": _TEXT,
        "data_dir": _TEXT,
        "number": _whole(0),
        "root": _TEXT,
        "classes": _TEXTS,
    },
}
# Facts that files of older versions lack.
KNOWN: Mapping[str, Mapping[str, _Kind]] = {
    "encoder": {
        "weights_sha256": _TEXT,
        "mean": _NUMBERS,
        "std": _NUMBERS,
        "white": _NUMBER,
        "exif_rotation": _TRUTH,
        "background": _whole(-1, 255),
        "max_pixels": _whole(1, 2**40),
    },
    "images": {},
}


def checked(facts: Any, path: str) -> dict[str, Any]:
    """Return `facts` of the file `path`, as JSON gave them, if a search can rely on them.

    Raises:
        UserError: they are no object, or of another format, or one is missing or of another
            kind.
    """
    if not isinstance(facts, dict):
        raise UserError(f"{path} is damaged: its facts are {_short(facts)}; they must be an object")
    if facts.get("format") != FORMAT or isinstance(facts["format"], bool):
        raise UserError(
            f"{path} is of format {_short(facts.get('format'))}; {FORMAT} is known here"
        )
    for group, needed in NEEDED.items():
        values = facts.get(group)
        if not isinstance(values, dict):
            fault = f"say {group}={_short(values)}" if group in facts else f"lack {group}"
            raise UserError(
                f"{path} is damaged: its facts {fault}, which must be an object; "
                "python -m moco_jax.embed writes it anew"
            )
        for name, kind in {**needed, **KNOWN[group]}.items():
            if name not in values and name in KNOWN[group]:
                continue
            if name not in values or not kind.fits(values[name]):
                fault = (
                    f"say {group}.{name}={_short(values[name])}"
                    if name in values
                    else f"lack {group}.{name}"
                )
                raise UserError(
                    f"{path} is damaged: its facts {fault}, which must be {kind.called}; "
                    "python -m moco_jax.embed writes it anew"
                )
    return facts


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return printable(text if len(text) <= 60 else f"{text[:57]}...")
