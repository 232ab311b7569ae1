"""Sources whose records are serialized tf.train.Example.

The first records show which feature is the image, which the class, and which the name.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.data.sources import labels, store
from moco_jax.data.sources.pixels import RGB, Decoding
from moco_jax.data.sources.protos import parse, value
from moco_jax.data.sources.records import ENCODED

IMAGE_KEYS = ("image", "image/encoded", "jpg", "png")
CLASS_KEYS = ("label", "image/class/label")
CLASS_NAME_KEYS = ("class_name", "image/class/synset")
NAME_KEYS = ("name", "file_name", "image/filename", "id")
BLOCK = 1024  # records read at once
LOOKED_AT = 32  # records searched for a feature that the first one lacks
PACK = "pack.json"  # file beside packed shards that says what they hold
_UNREAD = -(2**63)  # stands for a label that was not asked for yet


class Records(Protocol):
    """Bytes by number, as `index.FileRecords` reads them."""

    def __len__(self) -> int:
        """Return the number of records."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Read records, object `[n]` of bytes; empty where one cannot be read."""

    def where(self, index: int) -> str:
        """Return file and place of record `index`."""

    def identity(self) -> list[Any]:
        """Return what is known of all records, as `Source` says."""


def pick(features: Mapping[str, Any], known: Sequence[str], kind: str) -> str | None:
    """Return the first of the names `known` whose feature is of type `kind`.

    `kind` is a field of tf.train.Feature, for example 'bytes_list'. Returns None if there is no
    such feature.
    """
    present = (key for key in known if key in features)
    return next((key for key in present if features[key].WhichOneof("kind") == kind), None)


class Features(NamedTuple):
    """Names of the features of examples; None for a feature that is not there.

    Attributes:
        image: the encoded image.
        label: the number of its class, int64.
        name: its own name.
        class_name: the name of its class.
    """

    image: str
    label: str | None = None
    name: str | None = None
    class_name: str | None = None


def first_features(records: Records, data_dir: str) -> Features:
    """Find which features `records` have, from the first record.

    Some others are looked at if it lacks class or name.

    Raises:
        UserError: about `data_dir`, where the first has no image.
    """
    if not len(records):
        raise UserError(f"data_dir={printable(data_dir)} holds no record; its files are empty")
    try:
        features = parse(records.read(np.asarray([0]))[0])
    except UserError as error:
        raise UserError(f"data_dir={printable(data_dir)}: {error}") from error
    image = pick(features, IMAGE_KEYS, "bytes_list")
    if image is None:
        raise UserError(
            f"data_dir={printable(data_dir)}: its examples have the features"
            f" {', '.join(map(printable, sorted(features)))}; an encoded image is looked for in"
            f" {', '.join(IMAGE_KEYS)}"
        )
    wanted = (
        (CLASS_KEYS, "int64_list"),
        (NAME_KEYS, "bytes_list"),
        (CLASS_NAME_KEYS, "bytes_list"),
    )
    keys = [pick(features, *each) for each in wanted]
    if keys[0] is None or keys[1] is None:
        others = [_parsed_or_empty(record) for record in records.read(_spread(len(records)))]
        keys = [
            key or next(filter(None, (pick(other, *each) for other in others)), None)
            for key, each in zip(keys, wanted, strict=True)
        ]
    return Features(image, *keys)


def _spread(number: int) -> np.ndarray:
    """Return places of some of `number` records, evenly spread, int64."""
    return np.unique(np.linspace(0, number - 1, min(number, LOOKED_AT)).astype(np.int64))


def _parsed_or_empty(record: bytes) -> Mapping[str, Any]:
    """Parse `record`; return nothing if it is damaged, which whoever reads its image reports."""
    try:
        return parse(record)
    except UserError:
        return {}


def packed_classes(paths: Sequence[str]) -> list[str]:
    """Read the names of the classes of packed shards at `paths` from the `PACK` beside them.

    Empty where there is none.

    Raises:
        UserError: it cannot be read.
    """
    folders = {os.path.dirname(path) for path in paths}
    place = os.path.join(folders.pop(), PACK)
    if folders or not store.is_file(place):
        return []
    try:
        names = json.loads(store.read(place))["classes"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("its 'classes' is no list of names")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{printable(place)} is damaged ({error}), and the names of the classes stand there; "
            "pack again, or remove it: shards that hold the names themselves need it no more"
        ) from error
    return names


class ExampleSource:
    """Images in serialized tf.train.Example.

    Memory holds what `records` needs, and eight bytes a label once labels are asked for. Where
    examples hold the names of their classes, a class is its name. Its number is its place among
    the names: first those given, then others in the order in which they are met.

    Attributes:
        known_classes: the names of classes that were given, and not met in records.
    """

    record_spec = ENCODED

    def __init__(
        self,
        records: Records,
        label: str,
        features: Features,
        decoding: Decoding = RGB,
        classes: Sequence[str] = (),
    ):
        """Take the images of `records`, as the set `label`; `classes` as in `Source`."""
        self.records, self.label, self.decoding = records, label, decoding
        self._names, self.known_classes = list(classes), tuple(classes)
        self.features = features
        self._labels: np.ndarray | None = None
        self._places = {name: number for number, name in enumerate(self._names)}

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes; those in records alone are known once their labels were read."""
        return tuple(self._names)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.records)

    def identity(self) -> list[Any]:
        """Return what is known of all records without reading one."""
        return self.records.identity()

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Read serialized tf.train.Example, object `[n]` of bytes."""
        return self.records.read(indices)

    def encoded(self, record: bytes) -> bytes:
        """Return the image feature of one serialized example; empty where that is damaged."""
        try:
            return value(parse(record), self.features.image, "bytes_list", b"")
        except (UserError, ValueError):
            return b""

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """Return labels int64 `[n]`, -1 where an example has none; each is read once and kept.

        Raises:
            UserError: a record is no example, or its label is no class.
        """
        if self.features.label is None and self.features.class_name is None:
            return None
        if self._labels is None:
            self._labels = np.full(len(self), _UNREAD, np.int64)
        unread = np.unique(indices[self._labels[indices] == _UNREAD])
        for start in range(0, len(unread), BLOCK):
            some = unread[start : start + BLOCK]
            self._labels[some] = self._classes_of(some)
        return self._labels[indices]

    def _classes_of(self, some: np.ndarray) -> np.ndarray:
        """Read the classes int64 `[n]` of the records `some` int `[n]`."""
        _, label, _, class_name = self.features
        spec: dict[str, tuple[str, Any]] = {}
        if label:
            spec[label] = ("int64_list", labels.MISSING)
        if class_name:
            spec[class_name] = ("bytes_list", b"")
        parsed = self._parsed(some, spec)
        numbers = np.full(len(some), labels.MISSING, np.int64)
        if label:
            whole = np.asarray(parsed[label], np.int64)
            numbers = labels.checked(whole, lambda n: self.name(int(some[n])))
        if not class_name:
            return self._within(numbers, some)
        names = [name.decode("utf-8", "surrogateescape") for name in parsed[class_name]]
        named = np.asarray([bool(name) for name in names], np.bool_)
        for name in filter(None, names):
            self._add(name)
        # Shards of an older packing may have the names in a file beside them.
        numbers = self._within(numbers, some, ~named)
        places = [self._places.get(name, labels.MISSING) for name in names]
        return np.where(named, np.asarray(places, np.int64), numbers)

    def _add(self, name: str) -> None:
        if name not in self._places:
            self._places[name] = len(self._names)
            self._names.append(name)

    def _within(
        self, numbers: np.ndarray, some: np.ndarray, which: np.ndarray | bool = True
    ) -> np.ndarray:
        """Return class `numbers` int64 `[n]`, each of which must have a name if others have.

        Raises:
            UserError: one of those chosen by `which` has none.
        """
        if not self._names and self.features.class_name is None:
            return numbers
        nameless = np.flatnonzero(which & (numbers >= len(self._names)))
        if len(nameless):
            first = int(nameless[0])
            raise UserError(
                f"{self.name(int(some[first]))} has class {numbers[first]}, but only "
                f"{len(self._names)} class names are known (numbers begin at 0); correct the "
                "number, or write `class_name` into every record"
            )
        return numbers

    def _parsed(
        self, some: np.ndarray, spec: Mapping[str, tuple[str, Any]]
    ) -> dict[str, list[Any]]:
        """Read what `spec` names of the records `some`, by key, a value for each record.

        `spec`: key -> kind of the feature, and its value in a record that lacks it.

        Raises:
            UserError: a record is damaged, or has another kind of feature or several values.
        """
        found: dict[str, list[Any]] = {key: [] for key in spec}
        for index, record in zip(some.tolist(), self.read(some), strict=True):
            try:
                features = parse(record)
                for key, (kind, default) in spec.items():
                    found[key].append(value(features, key, kind, default))
            except (UserError, ValueError) as error:
                shown = self.features.label or self.features.class_name
                raise UserError(
                    f"{self.name(index)}: an example has no readable {shown!r}, which others "
                    "have: it is damaged, or has several there; replace it"
                ) from error
        return found

    def name(self, index: int) -> str:
        """Return set, number, file and place, after the example's own name if it has one."""
        called = printable(f"{self.label} example {index} ({self.records.where(index)})")
        own = self._own_name(self.read(np.asarray([index]))[0]) if self.features.name else ""
        return f"{printable(own)}: {called}" if own else called

    def names(self, indices: np.ndarray) -> list[str]:
        """Return examples' own names, or set and number.

        Each record is read once more where they have names.
        """
        called = [f"{self.label} example {index}" for index in indices.tolist()]
        if self.features.name is None:
            return called
        blocks = (indices[start : start + BLOCK] for start in range(0, len(indices), BLOCK))
        own = (self._own_name(record) for some in blocks for record in self.read(some))
        return [name or other for name, other in zip(own, called, strict=True)]

    def _own_name(self, record: bytes) -> str:
        try:
            feature = parse(record)[self.features.name or ""]
        except (UserError, KeyError):
            return ""
        return b"".join(feature.bytes_list.value).decode("utf-8", "surrogateescape")
