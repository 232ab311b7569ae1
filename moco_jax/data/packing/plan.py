"""Which images go into which shards, and what becomes of them on the way."""

import dataclasses
import os
from typing import NamedTuple

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.base.text import is_utf8, printable
from moco_jax.data.packing import rewriting
from moco_jax.data.packing.rewriting import Rewriting
from moco_jax.data.sources import Source, open_source, require_no_place
from moco_jax.data.sources.pixels import RGB, Decoding
from moco_jax.data.sources.records import ENCODED

PER_SHARD = 5000  # images in a shard, where the number of shards is not given
MOST = 10**5 - 1  # shards where their number is not given, as names count them by five digits


class Format(NamedTuple):
    """A format of shards.

    Attributes:
        dataset: the setting by which they are read.
        ending: of their files.
        raw: whether they hold pixels.
    """

    dataset: str
    ending: str
    raw: bool = False


FORMATS = {
    "tfrecord": Format("tfrecord", "tfrecord"),
    "arrayrecord": Format("arrayrecord", "array_record"),
    "raw": Format("tfrecord", "tfrecord", raw=True),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which images go into which shards.

    Attributes:
        source: the images.
        dataset, split: the kind of source, and which of its parts.
        data_dir, out: where the images are, and the folder of the shards.
        format: one of `FORMATS`.
        shards: how many; they share the images equally, in order.
        rewriting: what becomes of images on the way.
    """

    source: Source
    dataset: str
    split: str
    data_dir: str
    out: str
    format: str
    shards: int
    rewriting: Rewriting

    def bounds(self, number: int) -> tuple[int, int]:
        """Return the first image of shard `number`, and the one after its last."""
        size = len(self.source)
        return size * number // self.shards, size * (number + 1) // self.shards

    def called(self, index: int) -> str:
        """Return what lists of damaged images call one, with every byte: its path if it has one."""
        path = getattr(self.source, "path", None)
        return self.source.names(np.asarray([index]))[0] if path is None else path(index)

    def stem(self, number: int) -> str:
        """Return the path of shard `number` up to its ending."""
        return os.path.join(self.out, f"images-{number:05d}-of-{self.shards:05d}")

    def path(self, number: int) -> str:
        """Return the path of shard `number`."""
        return f"{self.stem(number)}.{FORMATS[self.format].ending}"


def make_plan(
    data_dir: str,
    out: str,
    shards: int,
    format: str,
    decoding: Decoding = RGB,
    shorter_side: int = 0,
    quality: int | None = None,
    dataset: str = "folder",
    split: str = "",
) -> Plan:
    """Plan to pack the images in `data_dir` into `shards` shards in the folder `out`.

    `shards` of 0 means one for each `PER_SHARD` images. `decoding` tells sound images, which are
    packed, from damaged ones; images that are written anew are turned upright as well.
    `shorter_side` and `quality` are those of `rewriting.chosen`, `dataset` and `split` those of
    `open_source`.

    Raises:
        UserError: a value cannot work, or there is no image.
    """
    if format not in FORMATS:
        raise UserError(f"format={format!r} is unknown; use one of {', '.join(FORMATS)}")
    if not out:
        raise UserError("out='' names no folder for the shards; give one: --out=FOLDER")
    if not is_utf8(out):
        raise UserError(f"out={printable(out)} is no name in UTF-8, as shards need; give another")
    become = rewriting.chosen(shorter_side, quality, FORMATS[format].raw, decoding)
    if not become.as_they_are:
        decoding = dataclasses.replace(decoding, exif_rotation=True)
    require_no_place(dataset, data_dir)
    source = open_source(dataset, split, data_dir, decoding=decoding)
    if source.record_spec.dtype != ENCODED.dtype:
        raise UserError(
            f"dataset={dataset!r} has no files that could be packed; take one with encoded images"
        )
    shards = shards or min(-(-len(source) // PER_SHARD), MOST)
    if not 0 < shards <= len(source):
        raise UserError(
            f"shards={shards} must be from 1 to {len(source)}, the number of images; 0 chooses"
        )
    return Plan(source, dataset, split, data_dir, out, format, shards, become)
