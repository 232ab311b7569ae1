"""What packing has changed of images: their bytes, how fast views are made, and how these differ.

It is measured on a sample, which memory holds: what a disk or network takes is no part of it.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from moco_jax.base.console import size, table
from moco_jax.base.text import to_line
from moco_jax.data import pipeline
from moco_jax.data.packing.plan import FORMATS, Plan
from moco_jax.data.packing.shards import damaged_names
from moco_jax.data.running import running
from moco_jax.data.sources import Source, open_source
from moco_jax.data.sources.records import ENCODED
from moco_jax.data.sources.tf_decode import decode_or_flag
from moco_jax.data.views import augment, recipes, resize

SAMPLE = 256  # images that are compared
EPOCHS = 3  # of the sample in which pairs are counted; the fastest counts
VIEWS, SIDE = "v2", 224  # the views that are made, where images are not smaller
_SEED, _BATCH = 0, 32


class Effect(NamedTuple):
    """What packing has changed of some images.

    Attributes:
        images: how many were compared.
        side: of the views, in pixels.
        bytes: of an encoded image in the mean, before and after.
        pairs: view pairs a second that this host makes, before and after.
        apart: mean difference of views in gray levels, of 255.
    """

    images: int
    side: int
    bytes: tuple[float, float]
    pairs: tuple[float, float]
    apart: float

    def __str__(self) -> str:
        """Say it, as a table and a line."""
        (b, a), (slow, fast) = self.bytes, self.pairs
        rows = [
            ["bytes an image", size(b), size(a), f"{a / b:.2f}"],
            ["view pairs a second", f"{slow:,.0f}", f"{fast:,.0f}", f"{fast / slow:.2f}"],
        ]
        return (
            f"{table(['', 'before', 'after', 'ratio'], rows)}\n"
            f"views differ by {self.apart:.2f} of 255 gray levels in the mean ({self.images}"
            f" images, {VIEWS} at {self.side} px, the same drawn parameters)"
        )


class Held:
    """Some images of a source, whose records memory holds."""

    record_spec, classes = ENCODED, ()

    def __init__(self, source: Source, indices: np.ndarray):
        """Read the images `indices` int `[n]` of `source`."""
        self._source, self._indices, self.decoding = source, indices, source.decoding
        self._records = source.read(indices)

    def __len__(self) -> int:
        """Return how many they are."""
        return len(self._records)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return records, object `[n]` of bytes."""
        return self._records[indices]

    def encoded(self, record: bytes) -> bytes:
        """Return the encoded image in a record."""
        return self._source.encoded(record)

    def labels(self, indices: np.ndarray) -> None:
        """Return that no image has a class: views need none."""

    def name(self, index: int) -> str:
        """Return what the source calls it."""
        return self._source.name(int(self._indices[index]))

    def names(self, indices: np.ndarray) -> list[str]:
        """Return what the source calls them."""
        return self._source.names(self._indices[indices])

    def bytes_an_image(self) -> float:
        """Return the mean number of bytes of encoded images."""
        return float(np.mean([len(self.encoded(record)) for record in self._records]))


def measure(plan: Plan, sample: int = SAMPLE) -> Effect:
    """Compare `sample` images of `plan` at most, which is packed, with those of its shards."""
    packed = open_source(FORMATS[plan.format].dataset, "", plan.out, None, plan.source.decoding)
    places = np.unique(np.linspace(0, len(packed) - 1, min(sample, len(packed))).astype(np.int64))
    before, after = Held(plan.source, _sound(plan)[places]), Held(packed, places)
    side = min(SIDE, plan.rewriting.shorter_side or SIDE, _shorter_side(after))
    recipe = recipes.create(VIEWS, side, channels=packed.decoding.channels)
    apart = _apart(before, after, recipe)
    slow, fast = (_pairs(held, recipe) for held in (before, after))
    lengths = before.bytes_an_image(), after.bytes_an_image()
    return Effect(len(places), side, lengths, (slow, fast), apart)


def _sound(plan: Plan) -> np.ndarray:
    """Return the places int64 `[n]`, among the images of `plan`, of those that shards hold."""
    places, damaged = np.arange(len(plan.source)), set(damaged_names(plan))
    if not damaged:
        return places
    return places[[to_line(plan.called(place)) not in damaged for place in places.tolist()]]


def _shorter_side(held: Held) -> int:
    """Return the median length of images' shorter sides."""
    found = tf.data.Dataset.from_tensor_slices(held.read(np.arange(len(held))).tolist()).map(
        lambda record: tf.reduce_min(decode_or_flag(held, record).size)
    )
    return int(np.median(list(found.as_numpy_iterator())))


def _pairs(held: Held, recipe: recipes.Recipe) -> float:
    """Measure how many view pairs a second this host makes of the images in `held`.

    Programs have been compiled before, for most shapes of images; the first epoch does the rest.
    """
    rows = np.arange(min(_BATCH, len(held)))
    batches = pipeline.train_batches(
        held,
        recipe,
        seed=_SEED,
        batch_size=len(rows),
        rows=rows,
        examples_seen=0,
        workers=0,
        damaged=pipeline.DamagedImages(len(held)),
    )
    rates, steps = [], len(held) // len(rows)
    with contextlib.closing(batches):
        for _ in range(1 + EPOCHS):
            began = time.perf_counter()
            for _ in range(steps):
                next(batches)
            rates.append(steps * len(rows) / (time.perf_counter() - began))
    return max(rates[1:])


def _apart(before: Held, after: Held, recipe: recipes.Recipe) -> float:
    """Return the mean difference of the views of images before and after, in gray levels.

    Both have the parameters that are drawn for the image before; the box lies where it lay.
    """

    def views(index: tf.Tensor, *records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        whole, small = (
            decode_or_flag(held, record)
            for held, record in zip((before, after), records, strict=True)
        )
        shrunk = tf.tile(tf.cast(whole.size, tf.float32) / tf.cast(small.size, tf.float32), [2])
        drawn = augment.draw_two_views(whole.size, _SEED, tf.constant(0, tf.int64), index, recipe)
        images, apart = (resize.pad(whole.pixels), resize.pad(small.pixels)), []
        for view in drawn:
            other = view._replace(box=tf.cast(view.box, tf.float32) / shrunk)
            made = (
                tf.cast(augment.apply_view(image, parameters, recipe), tf.float32)
                for image, parameters in zip(images, (view, other), strict=True)
            )
            apart.append(tf.reduce_mean(tf.abs(next(made) - next(made))))
        return tf.add_n(apart) / len(apart), whole.ok & small.ok

    indices = np.arange(len(before))
    reads = iter([(indices, before.read(indices), after.read(indices))])
    kinds: Sequence[tf.DType] = (tf.int64, tf.string, tf.string)
    signature = tuple(tf.TensorSpec([None], kind) for kind in kinds)
    found: list[float] = []
    with running(reads, signature, views, threads=0) as batches:
        for apart, ok in batches:
            found += apart[ok].tolist()
    return float(np.mean(found)) if found else math.nan
