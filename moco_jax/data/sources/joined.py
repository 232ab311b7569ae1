"""The images of several places, one place after the other, as one source.

All places hold images of one kind, as folders or tars. Classes of equal name are one class.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.base.storage import is_remote
from moco_jax.base.text import printable
from moco_jax.data.sources import Source, labels, names, remarks_of
from moco_jax.data.sources.records import ENCODED

_ONE_PLACE = ("digits", "tfds:")  # kinds whose images have one place, or none
_READERS = 16  # places that are read at once at most


def _real(place: str) -> str:
    """Return what tells `place` from others: links followed, without a slash at its end."""
    return place.rstrip("/") if is_remote(place) else os.path.realpath(place)


def require_apart(dataset: str, places: Sequence[str]) -> None:
    """Refuse several `places` that `dataset` cannot have, or that have images in common.

    Raises:
        UserError: `dataset` has one place, or a place is given twice or lies inside another.
    """
    if dataset.startswith(_ONE_PLACE):
        raise UserError(
            f"data_dir={printable(str(tuple(places)))} names {len(places)} places, and"
            f" dataset={dataset!r} has one; give one"
        )
    known: dict[str, str] = {}
    for place in places:
        real = _real(place)
        if real in known:
            raise _twice(place, known[real])
        known[real] = place
    for real, place in known.items():
        above = os.path.dirname(real)
        while above and above != os.path.dirname(above) and above not in known:
            above = os.path.dirname(above)
        if above in known:
            raise UserError(
                f"data_dir: {printable(place)} lies inside {printable(known[above])}, so that its"
                " images would count twice; leave one of the two out"
            )


def _twice(place: str, other: str) -> UserError:
    also = "" if place == other else f", also as {printable(other)}"
    return UserError(f"data_dir: {printable(place)} is given twice{also}; leave one of them out")


class JoinedSource:
    """The images of several sources, one source after the other.

    A record is an encoded image: what a part's own records are is settled when they are read.

    Attributes:
        places: where each part's images are, as they were given.
        parts: the sources.
        remarks: what each part has to say, a line each.
    """

    record_spec = ENCODED

    def __init__(self, places: Sequence[str], parts: Sequence[Source]):
        """Join `parts`, the sources at `places`.

        Raises:
            UserError: a file is in two of them, as two patterns may name it.
        """
        self.places, self.parts, self.decoding = list(places), list(parts), parts[0].decoding
        self.remarks = [line for part in parts for line in remarks_of(part)]
        self._ends = np.cumsum([len(part) for part in parts])
        self._called = names.short([place.rstrip("/") for place in places])
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._kinds: dict[bool, str] = {}
        self._pool = ThreadPoolExecutor(min(len(parts), _READERS))
        known: dict[str, str] = {}
        for part in parts:
            for path in getattr(part, "paths", ()):
                if (real := _real(path)) in known:
                    raise _twice(path, known[real])
                known[real] = path

    def __len__(self) -> int:
        """Return the number of images of all parts."""
        return int(self._ends[-1])

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes: those of the first part, then what others add."""
        for part in self.parts:
            self._learn(part.classes)
        return tuple(self._names)

    @property
    def known_classes(self) -> Sequence[str]:
        """Names of the classes that are known without reading a record."""
        given = (getattr(part, "known_classes", part.classes) for part in self.parts)
        return tuple(dict.fromkeys(name for names_ in given for name in names_))

    def _learn(self, some: Sequence[str]) -> None:
        for name in some:
            if name not in self._numbers:
                self._numbers[name] = len(self._names)
                self._names.append(name)

    def _by_part(self, indices: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield for each part that has some of the images its number, their rows, and its own.

        Rows int64 `[m]` are places in `indices`; the part's own numbers of them are int64 `[m]`.
        """
        which = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(which).tolist():
            rows = np.flatnonzero(which == number)
            first = self._ends[number] - len(self.parts[number])
            yield number, rows, np.asarray(indices)[rows] - first

    def _at(self, index: int) -> tuple[int, int]:
        """Return the part of image `index`, and its number there."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, int(index - self._ends[number] + len(self.parts[number]))

    def identity(self) -> list[Any]:
        """Return what all parts know of their images, and how many each has."""
        known: list[Any] = [np.asarray(self._ends)]
        for part in self.parts:
            identity = getattr(part, "identity", None)
            known += [] if identity is None else identity()
        return known

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Read encoded images, object `[n]` of bytes; empty where one cannot be read."""

        def of_part(wanted: tuple[int, np.ndarray, np.ndarray]) -> list[bytes]:
            part = self.parts[wanted[0]]
            return [part.encoded(record) for record in part.read(wanted[2])]

        out, wanted = np.empty(len(indices), object), list(self._by_part(indices))
        for (_, rows, _), some in zip(wanted, self._pool.map(of_part, wanted), strict=True):
            out[rows] = some
        return out

    def encoded(self, record: bytes) -> bytes:
        """Return the record, which is the encoded image."""
        return record

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """Return labels int64 `[n]`, -1 for an image without one; None if no part has any.

        Raises:
            UserError: one part has names of its classes, and another numbers alone.
        """
        out, any_ = np.full(len(indices), labels.MISSING, np.int64), False
        for number, rows, own in self._by_part(indices):
            stored = self.parts[number].labels(own)
            if stored is not None:
                out[rows], any_ = self._joined(number, np.asarray(stored, np.int64)), True
        nobody = np.arange(0)
        if any_ or any(part.labels(nobody) is not None for part in self.parts):
            return out
        return None

    def _joined(self, number: int, stored: np.ndarray) -> np.ndarray:
        """Return the classes int64 `[n]` that part `number` has `stored` as numbers of its own."""
        known = self.parts[number].classes
        if not (stored >= 0).any():
            return stored
        self._kinds.setdefault(bool(known), self.places[number])
        if len(self._kinds) > 1:
            raise UserError(
                f"data_dir: the classes of {printable(self._kinds[True])} have names, those of"
                f" {printable(self._kinds[False])} are numbers alone, so that nothing says which"
                " are the same; give names to both, or leave one place out"
            )
        if not known:
            return stored
        self._learn(self.classes)
        numbers = np.asarray([self._numbers[name] for name in known], np.int64)
        return np.where(stored < 0, labels.MISSING, numbers[stored])

    def name(self, index: int) -> str:
        """Return what the part calls the image, with the place where that does not say it."""
        number, own = self._at(index)
        called, place = self.parts[number].name(own), printable(self.places[number])
        return called if place in called else f"{place}: {called}"

    def trouble(self, index: int) -> str:
        """Say in a few words why the image cannot be read, where its part knows; else ''."""
        number, own = self._at(index)
        trouble = getattr(self.parts[number], "trouble", None)
        return "" if trouble is None else trouble(own)

    def names(self, indices: np.ndarray) -> list[str]:
        """Return what parts call the images, each behind its place, as 'photos/cat/7.jpg'."""
        out = np.empty(len(indices), object)
        for number, rows, own in self._by_part(indices):
            called = self._called[number]
            out[rows] = [f"{called}/{name}" for name in self.parts[number].names(own)]
        return out.tolist()
