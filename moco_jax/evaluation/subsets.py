"""Chooses which images keep their labels: class-balanced shares, or a text file's list.

Smaller shares lie inside the larger ones.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from moco_jax.base import files
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.data import order
from moco_jax.data.sources import store
from moco_jax.data.sources.lists import text_lines
from moco_jax.evaluation.labelled import Labelled

NO_EPOCH = -1  # so that the order drawn here is that of no training's epoch


def turns(classes: np.ndarray, seed: int) -> np.ndarray:
    """Order images of these `classes` int `[N]` by when they get their labels: places int64 `[N]`.

    It goes class by class in turns, each turn in a drawn order: so every beginning has equally
    many of each class, within one, as long as a class has any left, and beginnings lie inside
    one another. A function of `seed` and `classes` alone.
    """
    number = len(classes)
    drawn = order.permute(np.arange(number), number, seed, NO_EPOCH)
    by_class = np.lexsort((drawn, classes))
    _, starts, counts = np.unique(classes[by_class], return_index=True, return_counts=True)
    turn = np.empty(number, np.int64)
    turn[by_class] = np.arange(number) - np.repeat(starts, counts)
    return np.lexsort((drawn, turn))


def share(images: Labelled, percent: float, seed: int) -> Labelled:
    """Keep `percent` per cent of `images`, rounded, balanced over the classes as in `turns`.

    Raises:
        UserError: a class would have none.
    """
    number = len(images.indices)
    wanted = round(number * percent / 100)
    chosen = turns(images.classes, seed)
    classes = np.unique(images.classes)
    if wanted < len(classes):
        empty = sorted(set(classes.tolist()) - set(images.classes[chosen[:wanted]].tolist()))
        smallest = math.ceil(100 * len(classes) / number * 1e4) / 1e4
        raise UserError(
            f"--labels={percent:g} leaves {wanted} of {number:,} images, and none of class"
            f" {_called(images, empty[0])}; {len(classes)} classes need at least"
            f" --labels={smallest:g}"
        )
    return _only(images, np.sort(chosen[:wanted]), f"{percent:g} % of {images.about}")


def _called(images: Labelled, number: int) -> str:
    return images.called[number] if images.called else str(number)


def _only(images: Labelled, places: np.ndarray, about: str) -> Labelled:
    return dataclasses.replace(
        images, indices=images.indices[places], classes=images.classes[places], about=about
    )


def listed(images: Labelled, path: str) -> Labelled:
    """Keep those of `images` that the text file `path` names, one a line.

    A line is the end of an image's path, from a slash on, as in the published subsets of
    ImageNet: 'n01440764_10026.JPEG' or 'cat/7.png'. Empty lines count for nothing.

    Raises:
        UserError: the file cannot be read, or a line names none of them, or several.
    """
    lines = _lines(path)
    names = images.source.names(images.indices)
    wanted = Counter(lines)
    lengths = sorted({line.count("/") + 1 for line in wanted})
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        parts = name.split("/")
        for length in lengths:
            line = "/".join(parts[-length:])
            if line not in wanted or length > len(parts):
                continue
            if line in places:
                raise UserError(
                    f"--subset={path}: {printable(line)} is the name of several images of"
                    f" {images.about}, as {printable(names[places[line]])} and {printable(name)};"
                    " write more of their paths"
                )
            places[line] = place
    missing = [line for line in wanted if line not in places]
    if missing:
        raise UserError(
            f"--subset={path}: {len(missing):,} of {len(wanted):,} names are none of"
            f" {images.about}, the first is {printable(missing[0])}; its images are called like"
            f" {printable(names[0]) if names else ''}"
        )
    return _only(images, np.unique(list(places.values())), f"{path}, of {images.about}")


def _lines(path: str) -> Sequence[str]:
    try:
        text = text_lines(store.read(files.full_name(path)))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--subset={printable(path)} is no text file that can be read, with the name of an"
            " image on each line"
        ) from error
    lines = [line.strip() for line in text]
    names = [line for line in lines if line]
    if not names:
        raise UserError(f"--subset={path} is empty; it needs the name of an image on each line")
    return names
