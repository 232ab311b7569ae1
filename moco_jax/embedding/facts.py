"""What a features file must say of its encoder and images before any of it is believed."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from moco_jax.base.errors import UserError
from moco_jax.base.text import printable

FORMAT = 1
SIDE = (
    2**14
)  # pixels of an encoder's image at most; a picture of more is not drawn on a file's word
CHANNELS = 2**12


class _Kind(NamedTuple):
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
# Not in the files of every version.
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
    """`facts` of the file `path`, as JSON gave them, if a search can go by them.

    Raises:
        UserError: they are no object, or of another format, or one is missing or of another kind.
    """
    if not isinstance(facts, dict):
        raise UserError(f"{path} is damaged: its facts are {_short(facts)}, and an object is meant")
    if facts.get("format") != FORMAT or isinstance(facts["format"], bool):
        raise UserError(
            f"{path} is of format {_short(facts.get('format'))}; {FORMAT} is known here"
        )
    for group, needed in NEEDED.items():
        found = facts.get(group)
        if not isinstance(found, dict):
            said = f"say {group}={_short(found)}" if group in facts else f"lack {group}"
            raise UserError(
                f"{path} is damaged: its facts {said}, and an object is meant; "
                "python -m moco_jax.embed writes it anew"
            )
        for name, kind in {**needed, **KNOWN[group]}.items():
            if name not in found and name in KNOWN[group]:
                continue
            if name not in found or not kind.fits(found[name]):
                said = (
                    f"say {group}.{name}={_short(found[name])}"
                    if name in found
                    else f"lack {group}.{name}"
                )
                raise UserError(
                    f"{path} is damaged: its facts {said}, and {kind.called} is meant; "
                    "python -m moco_jax.embed writes it anew"
                )
    return facts


def _short(value: Any) -> str:
    try:
        said = repr(value)
    except (ValueError, RecursionError):
        said = type(value).__name__
    return printable(said if len(said) <= 60 else f"{said[:57]}...")
