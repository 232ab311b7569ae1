"""Where images are: a `Source` has a length, reads a whole batch of indices as bytes, and decodes in the graph.

To add one, write a class with the members of `Source` and name it in `open_source`.
"""

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import tensorflow as tf
from etils import epath

from moco_jax.data import tfrecord
from moco_jax.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
READERS = 16
CANVAS = 32
DIGITS_TEST = 360
DIGIT_SIDES = (19, 28)


class Source(Protocol):
    """Images that can be read in any order.

    Attributes:
        record_spec: the tensor that stands for one image before it is decoded.
    """

    record_spec: tf.TensorSpec

    def __len__(self) -> int:
        """The number of images."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The records `[n, ...]` of images `indices` int `[n]`: encoded bytes, or pixels."""

    def decode(self, record: tf.Tensor) -> tf.Tensor:
        """In a graph: one record -> uint8 `[H, W, 3]`; an error where it is damaged."""

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """The classes int `[n]` of images `indices`, or None where there are none."""

    def name(self, index: int) -> str:
        """What to call one image in a message."""


def jpeg_is_complete(content: bytes) -> bool:
    """Whether an end marker follows the first scan; TensorFlow fills what a cut file lacks with gray, silently."""
    place = 2
    while content[place : place + 1] == b"\xff" and content[place + 1 : place + 2] != b"\xda":
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return content.find(b"\xff\xd9", place) >= 0


def _decode_jpeg(content: tf.Tensor) -> tf.Tensor:
    complete = tf.cond(
        tf.strings.substr(content, -2, 2) == b"\xff\xd9",
        lambda: True,
        # Rare: something follows the end marker, or it is missing.
        lambda: tf.ensure_shape(tf.numpy_function(jpeg_is_complete, [content], tf.bool), []),
    )
    with tf.control_dependencies([tf.debugging.Assert(complete, ["cut JPEG"])]):
        return tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE")


def decode_image(content: tf.Tensor) -> tf.Tensor:
    """Encoded bytes -> uint8 `[H, W, 3]`, JPEG with the accurate inverse transform (the pixels PIL gives)."""
    image = tf.cond(
        tf.io.is_jpeg(content),
        lambda: _decode_jpeg(content),
        lambda: tf.io.decode_image(content, channels=3, expand_animations=False),
    )
    image = tf.ensure_shape(image, [None, None, 3])
    with tf.control_dependencies([tf.debugging.assert_positive(tf.size(image))]):
        return tf.identity(image)


def decode_or_flag(source: Source, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """In a graph: uint8 `[H, W, 3]` and True, or a black `[1, 1, 3]` and False where the record is damaged."""
    if source.record_spec.dtype != tf.string:
        return source.decode(record), tf.constant(True)
    good = (
        tf.data.Dataset.from_tensors(record).map(lambda r: (source.decode(r), True)).ignore_errors()
    )
    fallback = tf.data.Dataset.from_tensors((tf.zeros([1, 1, 3], tf.uint8), False))
    return good.concatenate(fallback).take(1).get_single_element()


class ArraySource:
    """Images in memory."""

    def __init__(self, images: np.ndarray, classes: np.ndarray | None, label: str):
        """`images` uint8 `[N, H, W, 3]`, `classes` int `[N]`; `label` names the set in messages."""
        self.images, self.classes, self.label = images, classes, label
        self.record_spec = tf.TensorSpec(images.shape[1:], tf.uint8)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """uint8 `[n, H, W, 3]`."""
        return self.images[indices]

    def decode(self, record: tf.Tensor) -> tf.Tensor:
        """The record is the image."""
        return record

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """int `[n]`."""
        return None if self.classes is None else self.classes[indices]

    def name(self, index: int) -> str:
        """Set and number."""
        return f"{self.label} image {index}"


def digits(split: str) -> ArraySource:
    """The 1,797 handwritten digits of scikit-learn, each at a random place and scale on a 32 x 32 canvas.

    `train`: 1,437 digits at one placement each; `test`: the other 360 at four. Split and places are fixed.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    rng = np.random.default_rng(1797)
    shuffled = rng.permutation(len(data.target))
    chosen = {"train": shuffled[DIGITS_TEST:], "test": np.repeat(shuffled[:DIGITS_TEST], 4)}
    if split not in chosen:
        raise UserError(f"split={split!r} is unknown; dataset='digits' has train and test")
    rng = np.random.default_rng([1797, split == "test"])
    images = np.zeros((len(chosen[split]), CANVAS, CANVAS, 3), np.uint8)
    for canvas, number in zip(images, chosen[split], strict=True):
        side = rng.integers(DIGIT_SIDES[0], DIGIT_SIDES[1] + 1)
        top, left = rng.integers(0, CANVAS - side + 1, 2)
        ink = np.round(data.images[number] * (255 / 16)).astype(np.uint8)
        drawn = Image.fromarray(ink).resize((side, side), Image.Resampling.BILINEAR)
        canvas[top : top + side, left : left + side] = np.asarray(drawn)[..., None]
    return ArraySource(images, data.target[chosen[split]].astype(np.int32), f"digits {split}")


class TFDSSource:
    """A TFDS image dataset prepared as TFRecord files, read at random through an index of offsets.

    Memory holds sixteen bytes an example, and four for its label once labels are asked for.
    """

    record_spec = tf.TensorSpec([], tf.string)

    def __init__(self, name: str, split: str, data_dir: str, index_dir: str | None = None):
        """Open `split` of the dataset `name` in `data_dir` ('' is TFDS's own); keep the index in `index_dir`."""
        import tensorflow_datasets as tfds

        where = f" --data_dir={data_dir}" if data_dir else ""
        prepare = f"prepare it with: tfds build {name}{where}"
        try:
            builder = tfds.builder(name, data_dir=data_dir or None)
            splits = builder.info.splits
        except tfds.core.DatasetNotFoundError as error:
            raise UserError(
                f"dataset='tfds:{name}' is not known to TFDS nor in data_dir={data_dir!r}"
            ) from error
        if not splits:
            raise UserError(
                f"dataset='tfds:{name}' is not prepared in data_dir={builder.data_dir}; {prepare}"
            )
        try:
            instructions = splits[split].file_instructions
        except (KeyError, ValueError) as error:
            known = ", ".join(splits)
            raise UserError(
                f"split={split!r} of tfds:{name} is unknown; there are {known}"
            ) from error
        features = builder.info.features
        pictures = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
        if not pictures:
            raise UserError(
                f"dataset='tfds:{name}' has no image feature; its features are {', '.join(features)}"
            )
        classes = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
        self.label = f"{name} {split}"
        self._image, self._class = pictures[0], classes[0] if classes else None
        slices = [tfrecord.Slice(str(f.filename), f.skip, f.take) for f in instructions]
        for part in slices:
            if not os.path.exists(part.path):
                raise UserError(f"dataset='tfds:{name}' lacks {part.path}; {prepare}")
        safe = "".join(c if c.isalnum() else "_" for c in self.label)[:80]
        number = zlib.crc32(
            self.label.encode()
        )  # a long split would make too long a name for a file
        cache = epath.Path(index_dir) / f"{safe}_{number:08x}.npz" if index_dir else None
        self.index = tfrecord.build(slices, cache)
        if len(self) > 2**31 - 1:
            raise UserError(
                f"dataset='tfds:{name}' has {len(self)} examples; at most 2147483647 are supported"
            )
        self._files = [os.open(p, os.O_RDONLY) for p in self.index.paths]
        self._pool = ThreadPoolExecutor(READERS)
        self._labels: np.ndarray | None = None

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.index.offset)

    def _read_one(self, index: int) -> bytes:
        place = self.index
        return os.pread(
            self._files[place.file[index]], int(place.length[index]), int(place.offset[index])
        )

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Serialized tf.train.Example, object `[n]` of bytes."""
        out = np.empty(len(indices), object)
        out[:] = list(self._pool.map(self._read_one, indices))
        return out

    def decode(self, record: tf.Tensor) -> tf.Tensor:
        """The picture of one serialized example."""
        spec = {self._image: tf.io.FixedLenFeature([], tf.string)}
        return decode_image(tf.io.parse_single_example(record, spec)[self._image])

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """int32 `[n]`; each record is read once and its label kept."""
        if self._class is None:
            return None
        if self._labels is None:
            self._labels = np.full(len(self), -1, np.int32)
        missing = np.unique(indices[self._labels[indices] < 0])
        spec = {self._class: tf.io.FixedLenFeature([], tf.int64)}
        for start in range(0, len(missing), 1024):
            some = missing[start : start + 1024]
            self._labels[some] = tf.io.parse_example(self.read(some), spec)[self._class].numpy()
        return self._labels[indices]

    def name(self, index: int) -> str:
        """Set, number, file and place."""
        path = os.path.basename(self.index.paths[self.index.file[index]])
        return f"{self.label} example {index} ({path} at byte {self.index.offset[index]})"


class FolderSource:
    """All images below a folder; the folders right below it are classes if every image lies in one."""

    record_spec = tf.TensorSpec([], tf.string)

    def __init__(self, path: str):
        """List the images below `path`, sorted; hidden files are left out."""
        looked = f"images end in {', '.join(EXTENSIONS)}"
        if not path:
            raise UserError(
                "data_dir='' names no folder; point it at your images: --config.data_dir=FOLDER"
            )
        root = Path(path)
        if not root.is_dir():
            raise UserError(f"data_dir={path} is no folder; give one that holds images ({looked})")
        self.root = root
        self.files = sorted(
            os.path.relpath(os.path.join(folder, file), path)
            for folder, _, files in os.walk(path, followlinks=True)
            for file in files
            if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
        )
        if not self.files:
            raise UserError(f"data_dir={path} holds no image, at any depth; {looked}")
        tops = [file.split(os.sep)[0] if os.sep in file else None for file in self.files]
        names = sorted({t for t in tops if t is not None})
        numbers = {name: i for i, name in enumerate(names)}
        whole = None not in tops and len(names) > 1
        self._labels = np.asarray([numbers[t] for t in tops], np.int32) if whole else None  # type: ignore[index]
        self._pool = ThreadPoolExecutor(READERS)

    def __len__(self) -> int:
        """The number of files."""
        return len(self.files)

    def _read_one(self, index: int) -> bytes:
        try:
            return (self.root / self.files[index]).read_bytes()
        except OSError:
            return b""  # a file that cannot be read counts as damaged: it is named and replaced

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The files' content, object `[n]` of bytes; empty where a file cannot be read."""
        out = np.empty(len(indices), object)
        out[:] = list(self._pool.map(self._read_one, indices))
        return out

    def decode(self, record: tf.Tensor) -> tf.Tensor:
        """The picture in a file's content."""
        return decode_image(record)

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """int32 `[n]`, by class folder."""
        return None if self._labels is None else self._labels[indices]

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.root / self.files[index])


def open_source(dataset: str, split: str, data_dir: str, index_dir: str | None = None) -> Source:
    """The source that `dataset` names: 'digits', 'folder' (in `data_dir`), or 'tfds:NAME'.

    `index_dir`: where an index of records may be kept. UserError where there is nothing to read.
    """
    if dataset == "digits":
        return digits(split)
    if dataset == "folder":
        return FolderSource(data_dir)
    if dataset.startswith("tfds:"):
        return TFDSSource(dataset.removeprefix("tfds:"), split, data_dir, index_dir)
    raise UserError(
        f"dataset={dataset!r} is unknown; known are digits, folder and tfds:NAME, as in tfds:cifar10"
    )
