"""Which files are images: by the ending of their name, or by how they begin where it has none.

DICOM files often have no ending, or a number that looks like one: their names are identifiers.
"""

import os
from collections.abc import Iterable, Sequence

import numpy as np

from moco_jax.data.sources import dicom_decode, store
from moco_jax.data.sources.pixels import EXTENSIONS

_OTHERS = tuple(ending for ending in EXTENSIONS if ending not in dicom_decode.ENDINGS)
_DIRECTORY = "dicomdir"  # the name of a DICOM file that lists others, and is no image


def divide(root: str, paths: Iterable[str]) -> tuple[list[str], list[str]]:
    """Divide `paths`, relative to the folder `root`, into those of images, sorted, and others.

    Files whose names have no ending, or a number for one, are looked into: DICOM files count.
    """
    images, unclear, others = list[str](), list[str](), list[str]()
    for path in paths:
        if path.lower().endswith(EXTENSIONS):
            images.append(path)
        elif _may_be_dicom(path):
            unclear.append(path)
        else:
            others.append(path)
    known = _are_dicom([os.path.join(root, path) for path in unclear])
    for path, known_one in zip(unclear, known, strict=True):
        (images if known_one else others).append(path)
    return sorted(images), others


def first_dicom(paths: Sequence[str]) -> int | None:
    """Return the place of the first of `paths` that may be DICOM by its name; None for none."""
    unlike = (n for n, path in enumerate(paths) if not path.lower().endswith(_OTHERS))
    return next(unlike, None)


def _may_be_dicom(path: str) -> bool:
    name = os.path.basename(path)
    ending = os.path.splitext(name)[1]
    return (not ending or ending[1:].isdigit()) and name.lower() != _DIRECTORY


def _are_dicom(paths: Sequence[str]) -> list[bool]:
    """Say of each file whether it begins as DICOM does; one that cannot be read does not."""
    if not any(map(store.is_remote, paths)):
        return store.each(_is_dicom, paths)
    number, length = len(paths), len(dicom_decode.MAGIC)
    places = np.full(number, dicom_decode.PLACE), np.full(number, length)
    found = store.Ranges(paths).read_many(np.arange(number), *places)
    return [content == dicom_decode.MAGIC for content in found]


def _is_dicom(path: str) -> bool:
    try:
        with store.open_binary(path) as file:
            return dicom_decode.is_dicom(file.read(dicom_decode.PLACE + len(dicom_decode.MAGIC)))
    except OSError:
        return False
