"""Batches of views, made ahead of time in one tf.data graph: order, reading, decoding, views.

The batch of a step is a pure function of (seed, examples seen, source): where a run resumes, or
how many threads and hosts share the work, changes nothing.
"""

import itertools
from collections.abc import Callable, Generator, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from moco_jax.data import order
from moco_jax.data.damaged import DamagedImages
from moco_jax.data.read_ahead import read_ahead
from moco_jax.data.running import running
from moco_jax.data.sources import Source, refusals
from moco_jax.data.sources.tf_decode import decode_or_flag
from moco_jax.data.views import augment, recipes, resize

Rows = dict[str, Any]


def _many(source: Source, number: int) -> tf.TensorSpec:
    return tf.TensorSpec([number, *source.record_spec.shape], source.record_spec.dtype)


def train_batches(
    source: Source,
    recipe: recipes.Recipe,
    *,
    seed: int,
    batch_size: int,
    rows: np.ndarray,
    examples_seen: int,
    workers: int,
    damaged: DamagedImages,
    crop_only: bool = False,
    scaled_decoding: bool = False,
) -> Generator[Rows, None, None]:
    """Yield batches of two views without end, from the one after `examples_seen` examples on.

    Args:
        source: the images.
        recipe: the views to draw.
        seed: of order and views.
        batch_size: B, of all hosts together.
        rows: int `[n]`, the places in the global batch that this host makes.
        examples_seen: where to go on, in examples.
        workers: threads; 0 for as many as cores.
        damaged: collects images that cannot be decoded; the next in the source takes the place
            of each.
        crop_only: leave what follows the crop to the devices, which need the drawn parameters
            for it.
        scaled_decoding: decode large JPEGs at a half, quarter or eighth where both crops are
            large enough.

    Yields:
        `query` and `key` uint8 `[n, S, S, C]`, `index` int32 `[n]`; with `crop_only` also
        `query_view` and `key_view`, a `recipes.View` of arrays `[n, ...]` each.
    """
    size = len(source)

    def wanted():
        for start in itertools.count(examples_seen, batch_size):
            epoch, positions = order.batch_positions(start, batch_size, size)
            indices = order.permute(positions[rows], size, seed, epoch)
            yield indices, np.full(len(rows), epoch, np.int64)

    views = _pair_maker(source, recipe, seed, crop_only, scaled_decoding)
    # The same for one example: traced once, and only where an image is damaged.
    alone = tf.function(views, autograph=False, reduce_retracing=True)
    numbers = tf.TensorSpec([len(rows)], tf.int64)
    signature = (numbers, numbers, _many(source, len(rows)))
    records = read_ahead(lambda some: (*some, source.read(some[0])), wanted())
    with running(records, signature, views, workers) as batches:
        for batch in batches:
            made, bad = batch["rows"], np.flatnonzero(~batch["ok"])
            if len(bad):
                made = tf.nest.map_structure(np.copy, made)
                for row in bad.tolist():
                    _replace(made, row, int(batch["epoch"][row]), source, alone, damaged)
            yield made


def _pair_maker(
    source: Source, recipe: recipes.Recipe, seed: int, crop_only: bool, scaled_decoding: bool
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], dict[str, Any]]:
    """Return the graph function from one example's index, epoch and record to its two views.

    Arguments are those of `train_batches`. The function returns `rows`, what a batch has of the
    example, `epoch`, and `ok`, false where the record is damaged.
    """

    def views(index: tf.Tensor, epoch: tf.Tensor, record: tf.Tensor) -> dict[str, Any]:
        def draw(size: tf.Tensor) -> tuple[recipes.View, recipes.View]:
            return augment.draw_two_views(size, seed, epoch, index, recipe)

        shrink = (lambda size: augment.shrink(draw(size), recipe)) if scaled_decoding else None
        image = decode_or_flag(source, record, shrink)
        drawn, padded = draw(image.size), resize.pad(image.pixels)
        query, key = (
            augment.apply_view(padded, view, recipe, crop_only, image.ratio) for view in drawn
        )
        made = {"query": query, "key": key, "index": tf.cast(index, tf.int32)}
        if crop_only:
            made |= {"query_view": drawn[0], "key_view": drawn[1]}
        return {"rows": made, "epoch": epoch, "ok": image.ok}

    return views


def _replace(
    made: Rows,
    row: int,
    epoch: int,
    source: Source,
    views: Callable[..., dict[str, Any]],
    damaged: DamagedImages,
) -> None:
    """Replace the damaged image of `row` in the batch `made` by the next sound one of `source`.

    Raises:
        UserError: no image is sound, or more are damaged than `damaged` tolerates.
    """
    index, size = int(made["index"][row]), len(source)
    for _ in range(size):
        called = refusals.described(source, index)
        damaged.add(called)
        index = (index + 1) % size
        record = tf.constant(source.read(np.asarray([index]))[0], source.record_spec.dtype)
        other = views(tf.constant(index, tf.int64), tf.constant(epoch, tf.int64), record)
        if other["ok"]:
            for old, new in zip(tf.nest.flatten(made), tf.nest.flatten(other["rows"]), strict=True):
                old[row] = new.numpy()
            return
    raise refusals.none_is_sound(size, called)


def evaluation_batches(
    source: Source, recipe: recipes.Recipe, indices: np.ndarray, workers: int
) -> Generator[Rows, None, None]:
    """Yield the images `indices` int64 `[steps, n]` resized and cropped as for evaluation.

    Nothing is drawn.

    Yields:
        For each step `image` uint8 `[n, S, S, C]` and `ok` bool `[n]`, false where an image is
        damaged.
    """

    def view(record: tf.Tensor) -> dict[str, tf.Tensor]:
        image = decode_or_flag(source, record)
        return {"image": augment.evaluation_view(image.pixels, recipe), "ok": image.ok}

    records = read_ahead(lambda some: (source.read(some),), indices)
    with running(records, (_many(source, indices.shape[1]),), view, workers) as batches:
        yield from batches


def view_batches(
    source: Source,
    recipe: recipes.Recipe,
    reads: Iterable[tuple[int, np.ndarray]],
    rows: int,
    seed: int,
    workers: int,
) -> Generator[Rows, None, None]:
    """Yield one drawn view of each image, for training on labels.

    It is the query view of pretraining with this recipe and seed. `reads`: for each step the
    epoch and the images, int64 `[rows]`.

    Yields:
        For each step `image` uint8 `[rows, S, S, C]` and `ok` bool `[rows]`, false where an
        image is damaged.
    """

    def view(index: tf.Tensor, epoch: tf.Tensor, record: tf.Tensor) -> dict[str, tf.Tensor]:
        image = decode_or_flag(source, record)
        drawn, _ = augment.draw_two_views(image.size, seed, epoch, index, recipe)
        return {
            "image": augment.apply_view(resize.pad(image.pixels), drawn, recipe),
            "ok": image.ok,
        }

    wanted = ((np.asarray(some, np.int64), np.full(rows, epoch, np.int64)) for epoch, some in reads)
    records = read_ahead(lambda some: (*some, source.read(some[0])), wanted)
    numbers = tf.TensorSpec([rows], tf.int64)
    with running(records, (numbers, numbers, _many(source, rows)), view, workers) as batches:
        yield from batches
