"""Shards of a features file, which hosts make side by side and process 0 joins to the file.

They lie in a folder beside the file, on a disk that all hosts see. A shard is a features file of a
part of the images, and a note that is written last: with it the shard is whole, and the next call
does not make it again. How the images are divided does not depend on who makes the shards.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from moco_jax.base import files
from moco_jax.base.errors import UserError
from moco_jax.base.text import from_line
from moco_jax.data.sources import Source, fingerprint
from moco_jax.embedding import table
from moco_jax.embedding.columns import Rows
from moco_jax.embedding.encode import Damaged, Embedder, part_rows
from moco_jax.parallel import hosts

SHARD = 100_000  # images in one at most
CLAIM = "shards.json"

Facts = Mapping[str, Any]


def folder_of(out: str) -> epath.Path:
    """Return the folder of the shards of the features file `out`."""
    return files.absolute(f"{out}.shards")


@dataclasses.dataclass(frozen=True)
class Shards:
    """The shards of one features file.

    Attributes:
        folder: where they lie.
        count: how many they are.
        images: of the whole data set; shards share them equally, in order.
        unit: a shard begins at a multiple of so many images, see `Embedder.a_device`.
    """

    folder: epath.Path
    count: int
    images: int
    unit: int

    def part(self, number: int) -> range:
        """Return which images shard `number` is of."""
        units = -(-self.images // self.unit)
        edges = (units * n // self.count * self.unit for n in (number, number + 1))
        return range(*(min(edge, self.images) for edge in edges))

    def path(self, number: int) -> epath.Path:
        """Return the path of shard `number`, which is not there if none of its images is sound."""
        return self.folder / f"{number:06d}.npz"

    def note(self, number: int) -> epath.Path:
        """Return the path of what is noted of shard `number` once it is whole."""
        return self.folder / f"{number:06d}.json"

    def make(self, number: int, embedder: Embedder, source: Source, facts: Facts) -> None:
        """Make shard `number` of the features of `source`; `facts` as of the whole file."""
        damaged = Damaged(source, self.part(number))
        made, count, path = part_rows(embedder, source, damaged), 0, str(self.path(number))
        first = next(made, None)
        if first is not None:
            table.require_room(path, len(damaged.part), first.features.shape[1])
            with table.writing(path, facts) as write:
                while first is not None:
                    write(first)
                    count, first = count + len(first.indices), next(made, None)
        note = {
            "rows": count,
            "damaged": damaged.names,
            "first": damaged.first,
            "classes": list(source.classes),
        }
        files.write(self.note(number), json.dumps(note).encode())

    def make_missing(self, embedder: Embedder, source: Source, facts: Facts) -> Iterator[int]:
        """Make the shards that are not whole, on all hosts together; every host calls this.

        Shards go to the hosts in turn. After each turn all hosts wait for the slowest, so that an
        error of one soon ends all.

        Yields:
            How many images have been gone through.

        Raises:
            UserError: a host could not make one; on every host.
        """
        missing = hosts.gather([n for n in range(self.count) if not self.note(n).exists()])[0]
        there = self.images - sum(len(self.part(n)) for n in missing)
        processes, own = hosts.count(), hosts.number()
        for turn in range(0, len(missing), processes):
            some = missing[turn : turn + processes]
            with hosts.together():
                if own < len(some):
                    self.make(some[own], embedder, source, facts)
            there += sum(len(self.part(n)) for n in some)
            yield there

    def joined(self, classes: list[str], damaged: Damaged) -> Iterator[Rows]:
        """Yield the rows of all shards, in order.

        Args:
            classes: names of the classes that are known without reading a label; those that shards
                met are added in the order of the rows.
            damaged: gets the names of the images that the shards lack.

        Raises:
            UserError: a shard is damaged or not there; the next call makes it anew.
        """
        given = len(classes)
        for number in range(self.count):
            note = self._noted(number)
            try:
                if note["rows"]:
                    yield from _read(str(self.path(number)), note, classes, given)
            except UserError as error:
                self.note(number).unlink(missing_ok=True)
                raise UserError(f"{error}; the same command makes this shard anew") from error
            damaged.names += note["damaged"]
            damaged.first = damaged.first or note["first"]

    def _noted(self, number: int) -> dict[str, Any]:
        try:
            return json.loads(files.read(self.note(number)))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.note(number)} is not there or damaged ({error}): {self.folder} must be on a"
                " disk that all hosts see; the same command makes the shard anew"
            ) from error


def _read(path: str, note: Facts, classes: list[str], given: int) -> Iterator[Rows]:
    """Yield the rows of the shard at `path`, of which `note` is noted; the rest as in `joined`."""
    found = table.opened(path)
    if found.number != note["rows"]:
        raise UserError(f"{path} has {found.number:,} rows; {note['rows']:,} were noted")
    columns = {name: np.concatenate(list(found.blocks(name))) for name in ("names", "indices")}
    names = [from_line(str(name)) for name in columns["names"]]
    labels = None
    if "labels" in found.columns:
        labels = np.concatenate(list(found.blocks("labels")))
        labels = _renumbered(labels, note["classes"], classes, given)
    start = 0
    for features in found.blocks("features"):
        part = slice(start, start + len(features))
        start = part.stop
        some = None if labels is None else labels[part]
        yield Rows(features, names[part], columns["indices"][part], some)


def _renumbered(labels: np.ndarray, met: list[str], classes: list[str], given: int) -> np.ndarray:
    """Number classes as one process does that goes through all images: as their names are met.

    Args:
        labels: int64 `[n]`, numbers within `met`, the names that the maker of the shard knew.
        classes: the names known so far, to which new ones are added.
        given: how many of both are known without reading a label, and keep their numbers.
    """
    places = {name: number for number, name in enumerate(classes)}
    numbers = labels.copy()
    unique, first = np.unique(labels, return_index=True)
    for label in unique[np.argsort(first)].tolist():
        if given <= label < len(met):
            if met[label] not in places:
                places[met[label]] = len(classes)
                classes.append(met[label])
            numbers[labels == label] = places[met[label]]
    return numbers


def claimed(out: str, facts: Facts, source: Source, unit: int) -> Shards:
    """Begin, or go on with, the shards of the features file `out`; every host calls this.

    Args:
        out: the file.
        facts: those of the file as they are known beforehand.
        source: the images.
        unit: as of `Shards`; shards that were begun keep theirs.

    Raises:
        UserError: the folder holds other shards or cannot be written; on every host.
    """
    folder, divided, images = folder_of(out), (0, 0), len(source)
    with hosts.together():
        if hosts.is_first():
            known = fingerprint.of(source)
            divided = _claim(folder, {**facts, "fingerprint": known}, images, unit)
    count, unit = hosts.broadcast(divided)
    return Shards(folder, count, images, unit)


def _claim(folder: epath.Path, facts: Facts, images: int, unit: int) -> tuple[int, int]:
    """Make `folder` that of these `facts`, and return how many shards it is for, and their unit."""
    path, wanted = folder / CLAIM, json.loads(json.dumps(facts))
    if path.exists():
        try:
            found = json.loads(files.read(path))
            before, count, unit = found["facts"], int(found["shards"]), int(found["unit"])
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); remove {folder}") from error
        if before != wanted:
            differing = ", ".join(sorted(k for k in wanted if before.get(k) != wanted[k]))
            raise UserError(
                f"{folder} holds shards of other features ({differing} differ); remove the folder,"
                " or give another --out"
            )
        return count, unit
    # A multiple of the hosts, so that the last turn is as long as the others for all of them.
    turns, processes = -(-images // SHARD), hosts.count()
    count = min(-(-turns // processes) * processes, -(-images // unit))
    content = {"facts": wanted, "shards": count, "unit": unit}
    files.write(path, json.dumps(content).encode())
    return count, unit
