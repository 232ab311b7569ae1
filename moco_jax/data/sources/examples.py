"""Sources whose records are serialized tf.train.Example: which feature is the image, the class, the name."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from moco_jax.data.sources.pixels import RGB, Decoding
from moco_jax.errors import UserError
from moco_jax.text import printable

IMAGE_KEYS = ("image", "image/encoded", "jpg", "png")
CLASS_KEYS = ("label", "image/class/label")
BLOCK = 1024  # records read at once
NAME_KEYS = ("name", "file_name", "image/filename", "id")


class Records(Protocol):
    """Bytes by number; `index.FileRecords` has these members."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Object `[n]` of bytes; empty where a record cannot be read."""

    def where(self, index: int) -> str:
        """File and place of record `index`."""


def parse(record: bytes) -> Mapping[str, tf.train.Feature]:
    """The features of one serialized tf.train.Example; UserError if it is none."""
    try:
        return tf.train.Example.FromString(record).features.feature
    except Exception as error:  # protobuf's own class depends on which of its backends is in use
        raise UserError("its records are no tf.train.Example") from error


def pick(found: Mapping[str, tf.train.Feature], known: Sequence[str], kind: str) -> str | None:
    """The first of `known` among the features `found` that is of this `kind`, as 'bytes_list', or None."""
    there = (key for key in known if key in found)
    return next((key for key in there if found[key].WhichOneof("kind") == kind), None)


def first_features(records: Records, data_dir: str) -> tuple[str, str | None, str | None]:
    """Image, class and name feature of the first of `records`; UserError, about `data_dir`, without an image."""
    if not len(records):
        raise UserError(f"data_dir={printable(data_dir)} holds no record; its files are empty")
    try:
        found = parse(records.read(np.asarray([0]))[0])
    except UserError as error:
        raise UserError(f"data_dir={printable(data_dir)}: {error}") from error
    image = pick(found, IMAGE_KEYS, "bytes_list")
    if image is None:
        raise UserError(
            f"data_dir={printable(data_dir)}: its examples have the features {', '.join(map(printable, sorted(found)))}; an encoded image "
            f"is looked for in {', '.join(IMAGE_KEYS)}"
        )
    return (
        image,
        pick(found, CLASS_KEYS, "int64_list"),
        pick(found, NAME_KEYS, "bytes_list"),
    )


class ExampleSource:
    """Images in serialized tf.train.Example.

    Memory holds what `records` needs, and four bytes a label once labels are asked for.
    """

    record_spec = tf.TensorSpec([], tf.string)

    def __init__(
        self,
        records: Records,
        label: str,
        image: str,
        klass: str | None,
        name: str | None = None,
        decoding: Decoding = RGB,
        classes: Sequence[str] = (),
    ):
        """`label` names the set; `image`, `klass` and `name` are the features (None: there is none); `classes` as in `Source`."""
        self.records, self.label, self.decoding = records, label, decoding
        self.classes = classes
        self._image, self._class, self._name = image, klass, name
        self._labels: np.ndarray | None = None

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.records)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Serialized tf.train.Example, object `[n]` of bytes."""
        return self.records.read(indices)

    def encoded(self, record: tf.Tensor) -> tf.Tensor:
        """The image feature of one serialized example."""
        spec = {self._image: tf.io.FixedLenFeature([], tf.string)}
        return tf.io.parse_single_example(record, spec)[self._image]

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """int32 `[n]`; each record is read once and its label kept. UserError where one has none."""
        if self._class is None:
            return None
        if self._labels is None:
            self._labels = np.full(len(self), -1, np.int32)
        missing = np.unique(indices[self._labels[indices] < 0])
        feature = tf.io.FixedLenFeature([], tf.int64)
        for some, values in self._values(self._class, feature, missing):
            self._labels[some] = values
        return self._labels[indices]

    def _values(
        self, key: str, feature: tf.io.FixedLenFeature, indices: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The `feature` named `key` of examples `indices`, a block at a time; UserError where one lacks it."""
        for start in range(0, len(indices), BLOCK):
            some = indices[start : start + BLOCK]
            try:
                parsed = tf.io.parse_example(self.read(some), {key: feature})
            except (tf.errors.InvalidArgumentError, UnicodeDecodeError) as error:
                # The second where TensorFlow's message quotes bytes of the record.
                raise UserError(
                    f"{self.label}: an example has no readable {key!r}, which others have; write it into "
                    "all of them or none, and replace damaged ones"
                ) from error
            yield some, parsed[key].numpy()

    def name(self, index: int) -> str:
        """Set, number, file and place, after the example's own name if it has one."""
        called = printable(f"{self.label} example {index} ({self.records.where(index)})")
        own = self._own_name(self.read(np.asarray([index]))[0]) if self._name else ""
        return f"{printable(own)}: {called}" if own else called

    def names(self, indices: np.ndarray) -> list[str]:
        """Examples' own names, or set and number; each record is read once more where they have names."""
        called = [f"{self.label} example {index}" for index in indices.tolist()]
        if self._name is None:
            return called
        blocks = (indices[start : start + BLOCK] for start in range(0, len(indices), BLOCK))
        own = (self._own_name(record) for some in blocks for record in self.read(some))
        return [name or other for name, other in zip(own, called, strict=True)]

    def _own_name(self, record: bytes) -> str:
        try:
            feature = parse(record)[self._name or ""]
        except (UserError, KeyError):
            return ""
        return b"".join(feature.bytes_list.value).decode("utf-8", "surrogateescape")
