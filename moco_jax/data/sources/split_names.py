"""Recognises folders that are parts of a data set, as `train` and `val2017`, and no classes."""

import re
from collections.abc import Sequence

from moco_jax.base.text import printable
from moco_jax.data.sources.labels import listed

_PARTS = re.compile(
    "train|training|trn|val|valid|validation|dev|development|test|testing|tst|eval|evaluation|"
    "holdout|heldout|trainval|trainvaltest|unlabell?ed|extra"
)
_BESIDE = re.compile(
    "images?|imgs?|pictures?|photos?|jpe?g|png|data|dataset|set|split|part|fold|subset"
)
_SET = re.compile(r"(.+?)(set|split|data)")  # trainset, testdata


def _is_part_word(word: str) -> bool:
    joined = _SET.fullmatch(word)
    return bool(_PARTS.fullmatch(joined[1] if joined else word))


def is_part(name: str) -> bool:
    """Whether a folder's name is that of a part of a data set: 'train', 'Val2017', 'test_images'.

    >>> [is_part(name) for name in ("train", "Val2017", "test_images", "trains", "images",
    "cat")]
    [True, True, True, False, False, False]
    """
    words = [
        word for word in re.split(r"[\W\d_]+", name.lower()) if word and not _BESIDE.fullmatch(word)
    ]
    return bool(words) and all(map(_is_part_word, words))


def judge(path: str, tops: Sequence[str], number: int) -> tuple[bool, str]:
    """Decide whether folders right below `path` are the classes of its images, and remark on it.

    They are none where all are parts of a data set. Where two or more of several are parts, a
    remark says so: a class may well be called 'train', among cars and buses.

    Args:
        path: what was opened.
        tops: the folders right below it.
        number: of the images in them.

    Returns:
        Whether they are classes, and a line, '' for nothing.
    """
    parts = [name for name in tops if is_part(name)]
    one_part = f"data_dir={printable('/'.join((path.rstrip('/'), *parts[:1])))} takes one part"
    if parts and len(parts) == len(tops):
        return (
            False,
            (
                f"data_dir={printable(path)} holds nothing but {listed(parts)}, parts of a set and"
                f" no classes: all {number:,} images are taken, and none has a class; {one_part}"
            ),
        )
    if len(parts) > 1:
        return (
            True,
            (
                f"data_dir={printable(path)}: among its classes are {listed(parts)}, which are"
                f" called as parts of a set; {one_part}"
            ),
        )
    return True, ""
