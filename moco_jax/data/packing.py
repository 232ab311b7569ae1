"""Packs image files into shards.

A folder of a million small files reads slowly, a few large files do not. A shard is written
under a draft's name and renamed when it is whole, so packing can be cut off anywhere and goes on
by the same call. Bytes go in as they are; images that cannot be decoded are left out and named.
Workers on several machines each write a part of the shards and know nothing of each other; the one
that finds all shards there writes the manifest.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import tensorflow as tf
from etils import epath

from moco_jax.base import files, storage
from moco_jax.base.errors import UserError
from moco_jax.base.text import is_utf8, printable, to_line
from moco_jax.data.running import running
from moco_jax.data.sources import labels, open_source, reading, refusals, store
from moco_jax.data.sources.examples import PACK
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.pixels import RGB, Decoding
from moco_jax.data.sources.tf_decode import decode_or_flag

FORMATS = {"tfrecord": "tfrecord", "arrayrecord": "array_record"}  # format -> ending of its files
PER_SHARD = 5000  # images in a shard, where the number of shards is not given
MOST = 10**5 - 1  # shards where their number is not given, as names count them by five digits
MANIFEST = (
    "manifest.json"  # file beside the shards that says that all are there, and what they hold
)
_READ_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which images go into which shards.

    Attributes:
        source: the images.
        data_dir, out: the images' folder or list, and the folder of the shards.
        format: one of `FORMATS`.
        shards: how many; they share the images equally, in order.
    """

    source: FolderSource
    data_dir: str
    out: str
    format: str
    shards: int

    def bounds(self, number: int) -> tuple[int, int]:
        """Return the first image of shard `number`, and the one after its last."""
        size = len(self.source)
        return size * number // self.shards, size * (number + 1) // self.shards

    def stem(self, number: int) -> str:
        """Return the path of shard `number` up to its ending."""
        return os.path.join(self.out, f"images-{number:05d}-of-{self.shards:05d}")

    def path(self, number: int) -> str:
        """Return the path of shard `number`."""
        return f"{self.stem(number)}.{FORMATS[self.format]}"


def make_plan(data_dir: str, out: str, shards: int, format: str, decoding: Decoding = RGB) -> Plan:
    """Plan to pack `data_dir` (folder or list) into `shards` shards in the folder `out`.

    `shards` of 0 means one for each `PER_SHARD` images. `decoding` tells sound images, which are
    packed, from damaged ones.

    Raises:
        UserError: a value cannot work, or there is no image.
    """
    if format not in FORMATS:
        raise UserError(f"format={format!r} is unknown; use one of {', '.join(FORMATS)}")
    if not out:
        raise UserError("out='' names no folder for the shards; give one: --out=FOLDER")
    if not is_utf8(out):
        raise UserError(f"out={printable(out)} is no name in UTF-8, as shards need; give another")
    source = open_source("folder", "", data_dir, decoding=decoding)
    shards = shards or min(-(-len(source) // PER_SHARD), MOST)
    if not 0 < shards <= len(source):
        raise UserError(
            f"shards={shards} must be from 1 to {len(source)}, the number of images; 0 chooses"
        )
    assert isinstance(source, FolderSource)
    return Plan(source, data_dir, out, format, shards)


def _facts(plan: Plan) -> dict:
    digest, source = hashlib.sha256(), plan.source
    numbers = source.labels(np.arange(len(source)))
    for index in range(len(source)):
        label = "" if numbers is None else numbers[index]
        digest.update(f"{source.files[index]}\t{label}\n".encode("utf-8", "surrogateescape"))
    remote = store.is_remote(plan.data_dir)
    return {
        "data_dir": plan.data_dir if remote else os.path.realpath(plan.data_dir),
        "images": len(source),
        "shards": plan.shards,
        "format": plan.format,
        "classes": source.classes,
        "names_sha256": digest.hexdigest(),
        "channels": source.decoding.channels,
        "white": source.decoding.white,
        "max_pixels": source.decoding.max_pixels,
    }


def claim(plan: Plan) -> dict:
    """Mark `plan.out` as this packing's by pack.json, or refuse if it holds another's shards.

    Returns: the facts of this packing.
    """
    path, facts = os.path.join(plan.out, PACK), _facts(plan)
    with writing(plan.out):
        if not store.is_remote(plan.out):
            os.makedirs(plan.out, exist_ok=True)
        if not store.is_file(path):
            endings = tuple(f".{ending}" for ending in FORMATS.values())
            there = store.listing(plan.out) if store.exists(plan.out) else []
            foreign = [n for n in there if n.endswith(endings)]
            if foreign and not store.is_file(path):  # another worker may have come meanwhile
                raise UserError(
                    f"out={printable(plan.out)} holds {printable(foreign[0])} and no pack.json that"
                    " says of what; give another --out"
                )
            with files.draft(epath.Path(path)) as draft:
                draft.write_text(json.dumps(facts, indent=2) + "\n")
    _require_claim(plan, facts)
    return facts


def _require_claim(plan: Plan, facts: dict) -> None:
    """Refuse to go on if pack.json says other `facts`: `plan.out` holds another packing."""
    path = os.path.join(plan.out, PACK)
    before = {"channels": 3, "white": 0.0, "max_pixels": RGB.max_pixels} | _claimed(path)
    changed = [key for key in facts if before.get(key) != facts[key]]
    if changed:
        listed = "; ".join(f"{key}: {before.get(key)!r} -> {facts[key]!r}"[:200] for key in changed)
        raise UserError(
            f"out={printable(plan.out)} holds shards of another packing ({listed}); give another"
            " --out, or what was given then"
        )


def _claimed(path: str) -> dict:
    """Read the facts of the packing whose pack.json is at `path`.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    try:
        facts = json.loads(store.read(path))
        if not isinstance(facts, dict):
            raise ValueError("it holds no facts by name")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{printable(path)} is damaged or cannot be read ({printable(str(error))}), so that"
            " nothing says what the shards beside it hold; give another --out, or remove them all"
        ) from error
    return facts


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Turn errors of writing below `path` into a UserError."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise UserError(
            f"out={printable(path)} cannot be written ({printable(str(error))}); make room, or "
            "choose a folder that you may write to: finished shards are kept, and the same command "
            "goes on"
        ) from error


@contextmanager
def _writer(path: str, format: str) -> Iterator[Callable[[bytes], None]]:
    if format == "tfrecord":
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


def _example(source: FolderSource, index: int, image: bytes) -> bytes:
    """Serialize the example of image `index` of `source`, whose bytes are `image`."""
    numbers, name = source.labels(np.asarray([index])), source.files[index]
    if numbers is None:
        return example(image, name, None)
    number = int(numbers[0])
    called = "" if number == labels.MISSING else source.classes[number]
    return example(image, name, number, called)


def _checked(source: FolderSource, start: int, stop: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yield number, content and whether it can be decoded, of images `start` to `stop`.

    Images are decoded on all cores.

    Raises:
        UserError: reading fails otherwise than by a single image.
    """

    def reads() -> Iterator[tuple]:
        for first in range(start, stop, _READ_AT_ONCE):
            indices = np.arange(first, min(first + _READ_AT_ONCE, stop))
            yield indices, source.read(indices)

    def look(index: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return index, record, decode_or_flag(source, record).ok

    signature = tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.string)
    with reading(source.root), running(reads(), signature, look, threads=0) as batches:
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
            for index, content, good in _checked(source, start, stop):
                if good:
                    write(_example(source, int(index), content))
                else:
                    damaged.append(source.path(int(index)))
                seen(int(index))
        # Of two workers that began at one moment with other images, one lost its claim.
        _require_claim(plan, facts)
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
