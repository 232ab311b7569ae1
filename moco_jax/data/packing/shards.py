"""Writes shards: each under a draft's name, renamed when it is whole.

So packing can be cut off anywhere and goes on by the same call. Images that cannot be decoded are
left out and named. Workers on several machines each write a part of the shards and know nothing of
each other; the one that finds all shards there writes the manifest.
"""

import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import tensorflow as tf
from etils import epath

from moco_jax.base import files, storage
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable, to_line
from moco_jax.data.packing import rewriting
from moco_jax.data.packing.claims import claim, require_claim, writing
from moco_jax.data.packing.plan import FORMATS, Plan
from moco_jax.data.running import running
from moco_jax.data.sources import Source, reading, refusals, store

# The file beside the shards that says that all are there, and what they hold.
MANIFEST = "manifest.json"
_READ_AT_ONCE = 16


@contextmanager
def _writer(path: str, format: str) -> Iterator[Callable[[bytes], None]]:
    if FORMATS[format].dataset == "tfrecord":
        with tf.io.TFRecordWriter(path) as records:
            yield records.write
        return
    from moco_jax.data.sources.arrayrecord import writer

    array_records = writer(path)
    try:
        yield array_records.write
    finally:
        array_records.close()


def example(image: bytes, name: str, label: int | None, class_name: str = "") -> bytes:
    """Serialize a tf.train.Example of `image`, `name`, and `label` and `class_name` if given.

    The label is `labels.MISSING`, without a class name, for an image that has no class though
    others have.
    """

    def some(content: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))

    feature = {"image": some(image), "name": some(name.encode("utf-8", "surrogateescape"))}
    if label is not None:
        feature["label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
    if class_name:
        feature["class_name"] = some(class_name.encode("utf-8", "surrogateescape"))
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def _example(source: Source, index: int, image: bytes) -> bytes:
    """Serialize the example of image `index` of `source`, whose bytes are `image`."""
    numbers, (name,) = source.labels(np.asarray([index])), source.names(np.asarray([index]))
    if numbers is None:
        return example(image, name, None)
    number = int(numbers[0])
    named = 0 <= number < len(source.classes)  # classes of tars are numbers alone
    called = source.classes[number] if named else ""
    return example(image, name, number, called)


def _made(plan: Plan, start: int, stop: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yield number, content and whether it is sound, of images `start` to `stop`.

    Images are decoded, and written anew where `plan` says so, on all cores.

    Raises:
        UserError: reading fails otherwise than by a single image.
    """

    source = plan.source

    def reads() -> Iterator[tuple]:
        for first in range(start, stop, _READ_AT_ONCE):
            indices = np.arange(first, min(first + _READ_AT_ONCE, stop))
            yield indices, source.read(indices)

    def look(index: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return index, *rewriting.content(source, plan.rewriting, record)

    signature = tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.string)
    with reading(plan.data_dir), running(reads(), signature, look, threads=0) as batches:
        for batch in batches:
            yield from zip(*batch, strict=True)


def write_shard(plan: Plan, facts: dict, number: int, seen: Callable[[int], None]) -> None:
    """Write shard `number`, and beside it the names of damaged images that it lacks.

    `facts`: of the packing; `seen` is called with each image's number.
    """
    start, stop = plan.bounds(number)
    path, source, damaged = plan.path(number), plan.source, []
    with writing(plan.out), files.draft(epath.Path(path), shared=False) as draft:
        with _writer(str(draft), plan.format) as write:
            for index, content, good in _made(plan, start, stop):
                if good:
                    write(_example(source, int(index), content))
                else:
                    damaged.append(plan.called(int(index)))
                seen(int(index))
        # Of two workers that began at one moment with other images, one lost its claim.
        require_claim(plan, facts)
        # Before the shard has its name: a shard that is there is not looked at again. What an
        # earlier call found, which was cut off, may have been repaired since.
        named = f"{plan.stem(number)}.damaged.txt"
        if damaged:
            content = "".join(f"{to_line(path)}\n" for path in damaged).encode()
            files.write(epath.Path(named), content)
        else:
            storage.remove(named)


def damaged_of(plan: Plan, number: int) -> list[str]:
    """Return the paths of the images that shard `number` lacks, if it is there (`text.to_line`)."""
    path = f"{plan.stem(number)}.damaged.txt"
    if not store.is_file(path):
        return []
    return store.read(path).decode("utf-8", "surrogateescape").split("\n")[:-1]


def damaged_names(plan: Plan) -> list[str]:
    """Return the paths of all images that the finished shards lack (`text.to_line`)."""
    return [name for number in range(plan.shards) for name in damaged_of(plan, number)]


def missing(plan: Plan) -> list[int]:
    """Return the numbers of the shards that are not there yet, ascending."""
    there = set(store.listing(plan.out))
    return [n for n in range(plan.shards) if os.path.basename(plan.path(n)) not in there]


def write_manifest(plan: Plan) -> None:
    """Write what each shard holds, and which images none holds; all shards are there."""
    shards, damaged = [], []
    for number in range(plan.shards):
        (start, stop), lacking = plan.bounds(number), damaged_of(plan, number)
        path = plan.path(number)
        shards.append(
            {
                "file": os.path.basename(path),
                "images": stop - start - len(lacking),
                "bytes": store.size(path),
            }
        )
        damaged += lacking
    images = len(plan.source) - len(damaged)
    content = {"images": images, "damaged": damaged, "shards": shards}
    with writing(plan.out):
        files.write(
            epath.Path(os.path.join(plan.out, MANIFEST)), json.dumps(content, indent=1).encode()
        )


def pack(plan: Plan, seen: Callable[[int, int], None], part: int = 0, parts: int = 1) -> list[int]:
    """Write the shards of `plan` that are not there yet, or a part of them.

    Args:
        plan: which images go where.
        seen: called with each shard's and image's number.
        part: of `parts` that workers pack side by side, from 0; which shards it has does not depend
            on what is there.
        parts: how many there are.

    Returns:
        The numbers of the shards that other parts still have to write.

    Raises:
        UserError: there is no such part, the folder holds another packing, cannot be written, or
            no image can be decoded.
    """
    if not 0 <= part < parts or parts > plan.shards:
        raise UserError(
            f"part={part} of parts={parts}: parts count from 0, and there can be as many as"
            f" shards ({plan.shards}); shards=N changes these"
        )
    facts = claim(plan)
    own = set(range(part, plan.shards, parts))
    for number in missing(plan):
        if number in own:
            write_shard(plan, facts, number, functools.partial(seen, number))
    left = missing(plan)
    if left:
        return left
    damaged = damaged_names(plan)
    if len(damaged) == len(plan.source):
        raise refusals.none_is_sound(len(damaged), printable(damaged[0]))
    write_manifest(plan)
    return []
