"""Batches of views, made ahead of time: order, reading, decoding and augmentation joined in one tf.data graph.

The batch of a step is a pure function of (seed, examples seen, source): where a run resumes, or how many
threads and hosts share the work, changes nothing.
"""

import logging
import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from moco_jax.data import augment, order
from moco_jax.data.sources import Source
from moco_jax.data.sources.decode import decode_or_flag
from moco_jax.errors import UserError

Rows = dict[str, np.ndarray]


class DamagedImages:
    """Names of the images that could not be decoded, and the limit at which a run stops."""

    def __init__(self, limit: int):
        """`limit`: how many different damaged images a run puts up with."""
        self.limit = limit
        self.names: dict[str, None] = {}

    def add(self, name: str) -> None:
        """Count and name a damaged image; UserError with the list when there are more than the limit."""
        if name in self.names:
            return
        self.names[name] = None
        logging.warning("damaged image %d, replaced by the next: %s", len(self.names), name)
        if len(self.names) > self.limit:
            raise UserError(
                f"more than max_bad_images={self.limit} damaged images; mend or remove them, or raise the "
                f"limit: {', '.join(self.names)}"
            )


def _options(threads: int) -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads
    options.autotune.enabled = False
    return options


def _threads(workers: int) -> int:
    return workers or os.cpu_count() or 1


def train_batches(
    source: Source,
    recipe: augment.Recipe,
    *,
    seed: int,
    batch_size: int,
    rows: np.ndarray,
    examples_seen: int,
    workers: int,
    damaged: DamagedImages,
) -> Iterator[Rows]:
    """Batches without end, from the one after `examples_seen` examples on.

    Args:
        source: the images.
        recipe: the views to draw.
        seed: of order and views.
        batch_size: B, of all hosts together.
        rows: int `[n]`, the places in the global batch that this host makes.
        examples_seen: where to go on, in examples.
        workers: threads; 0 for as many as cores.
        damaged: told of each image that cannot be decoded; the next in the source takes its place.

    Yields:
        `query` and `key` uint8 `[n, S, S, 3]`, `index` int32 `[n]`.
    """
    size, threads = len(source), _threads(workers)

    def read(start: np.ndarray):
        epoch, positions = order.batch_positions(int(start), batch_size, size)
        indices = order.permute(positions[rows], size, seed, epoch)
        return indices, np.full(len(rows), epoch, np.int64), source.read(indices)

    def load(start: tf.Tensor):
        types = [tf.int64, tf.int64, source.record_spec.dtype]
        indices, epochs, records = tf.numpy_function(read, [start], types, stateful=False)
        indices.set_shape([len(rows)])
        epochs.set_shape([len(rows)])
        records.set_shape([len(rows), *source.record_spec.shape])
        return indices, epochs, records

    def views(index: tf.Tensor, epoch: tf.Tensor, record: tf.Tensor) -> dict[str, tf.Tensor]:
        image, ok = decode_or_flag(source, record)
        query, key = augment.two_views(image, seed, epoch, index, recipe)
        return {
            "query": query,
            "key": key,
            "index": tf.cast(index, tf.int32),
            "epoch": epoch,
            "ok": ok,
        }

    def replace(batch: Rows, row: int) -> None:
        index = int(batch["index"][row])
        for _ in range(size):
            damaged.add(source.name(index))
            index = (index + 1) % size
            record = tf.constant(source.read(np.asarray([index]))[0], source.record_spec.dtype)
            found = views(tf.constant(index, tf.int64), tf.constant(batch["epoch"][row]), record)
            if found["ok"]:
                for key in ("query", "key", "index"):
                    batch[key][row] = found[key].numpy()
                return
        raise UserError(
            f"none of the {size} images can be decoded; {source.name(index)} is one of them"
        )

    dataset = (
        tf.data.Dataset.range(examples_seen, np.iinfo(np.int64).max // 2, batch_size)
        .map(load, num_parallel_calls=2)
        .unbatch()
        .map(views, num_parallel_calls=threads)
        .batch(len(rows), drop_remainder=True)
        .prefetch(2)
        .with_options(_options(threads))
    )
    for batch in dataset.as_numpy_iterator():
        bad = np.flatnonzero(~batch["ok"])
        if len(bad):
            batch = {key: value.copy() for key, value in batch.items()}
            for row in bad.tolist():
                replace(batch, row)
        yield {key: batch[key] for key in ("query", "key", "index")}


def evaluation_batches(
    source: Source, recipe: augment.Recipe, indices: np.ndarray, workers: int
) -> Iterator[Rows]:
    """The images `indices` int64 `[steps, n]` as evaluation sees them (resized, cropped, nothing drawn).

    Yields:
        for each step `image` uint8 `[n, S, S, 3]` and `ok` bool `[n]`, false where an image is damaged.
    """
    threads = _threads(workers)

    def view(record: tf.Tensor) -> dict[str, tf.Tensor]:
        image, ok = decode_or_flag(source, record)
        return {"image": augment.evaluation_view(image, recipe), "ok": ok}

    def load(step: tf.Tensor) -> tf.Tensor:
        records = tf.numpy_function(
            lambda s: source.read(indices[s]), [step], source.record_spec.dtype, stateful=False
        )
        records.set_shape([indices.shape[1], *source.record_spec.shape])
        return records

    dataset = (
        tf.data.Dataset.range(len(indices))
        .map(load, num_parallel_calls=2)
        .unbatch()
        .map(view, num_parallel_calls=threads)
        .batch(indices.shape[1], drop_remainder=True)
        .prefetch(2)
        .with_options(_options(threads))
    )
    yield from dataset.as_numpy_iterator()
