"""Gives the classes of two sets of images one numbering, by name or else by number.

Two sets give numbers on their own, and a set that lacks a class may number all others
differently, so that names decide where either set has them. Names that are not known are equal
to none; a missing label is no class.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from moco_jax.base.text import printable
from moco_jax.data.sources import Source
from moco_jax.data.sources.labels import MISSING, known

Key = str | tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Side:
    """The classes of some images of one set.

    Attributes:
        numbers: int64 `[N]`, `MISSING` where an image has none.
        names: of the set's classes in the order of their numbers; empty, or '' for one, where
            they are not known.
    """

    numbers: np.ndarray
    names: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Matched:
    """Classes of training and test images in one numbering from 0 on.

    Attributes:
        train, test: int64 `[N]` and `[M]`, `MISSING` where an image has none.
        called: what each class is called on one line; first those that the first set knows.
        strange: numbers of the classes that test images have and the first set does not know.
        unlearnt: int64 `[U]`, the classes that test images have and no training image has.
        by_name: whether names decided which classes are the same.
    """

    train: np.ndarray
    test: np.ndarray
    called: list[str]
    strange: list[int]
    unlearnt: np.ndarray
    by_name: bool


def _keys(side: Side, of: str) -> dict[int, Key]:
    """Return what tells each class in use from others: its name, or its number and whose it is."""
    keys: dict[int, Key] = {}
    for number in np.unique(side.numbers[side.numbers >= 0]).tolist():
        name = side.names[number] if number < len(side.names) else ""
        keys[number] = name or (of, number)
    return keys


def _renumbered(side: Side, keys: dict[int, Key], places: dict[Key, int]) -> np.ndarray:
    values, where = np.unique(side.numbers, return_inverse=True)
    new = [places[keys[value]] if value >= 0 else MISSING for value in values.tolist()]
    return np.asarray(new, np.int64)[where.reshape(-1)]


def match(train: Side, test: Side, one_set: bool) -> Matched:
    """Give the classes of two sets, or of two parts of `one_set`, one numbering.

    Where both have names equal names are one class; where neither has, equal numbers. A class
    without a name, where others have names, is equal to no class of another set.
    """
    by_name = bool(any(train.names) or any(test.names))
    # Numbers without names mean the same class within one set, or where no set has names.
    of_train, of_test = ("", "") if one_set or not by_name else ("train", "test")
    ours, theirs = _keys(train, of_train), _keys(test, of_test)
    order: list[Key] = [*filter(None, train.names), *ours.values()]
    places = {key: number for number, key in enumerate(dict.fromkeys(order))}
    own = len(places)
    for key in theirs.values():
        places.setdefault(key, len(places))
    made = _renumbered(train, ours, places), _renumbered(test, theirs, places)
    used = np.unique(made[1][made[1] >= 0])
    return Matched(
        *made,
        called=[printable(key) if isinstance(key, str) else str(key[1]) for key in places],
        strange=used[used >= own].tolist(),
        unlearnt=used[~np.isin(used, made[0])],
        by_name=by_name,
    )


def match_sources(
    train: Source, train_indices: np.ndarray, test: Source, test_indices: np.ndarray
) -> Matched | None:
    """Match the classes of images int `[N]` and `[M]` of two sources, as `match` does.

    None where either source has no labels.
    """
    numbers = known(train, train_indices), known(test, test_indices)
    if numbers[0] is None or numbers[1] is None:
        return None
    # Names are asked for after numbers: those in records are known once the numbers were read.
    return match(Side(numbers[0], train.classes), Side(numbers[1], test.classes), train is test)
