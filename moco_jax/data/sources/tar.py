"""Tar files as WebDataset writes them.

Neighbouring members whose names are the same up to the first dot (or a later one, see `examples`)
are one example, with its image and, in .cls, the number of its class.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.data.sources import index, labels, names, shards, store, tar_members
from moco_jax.data.sources.names import Names
from moco_jax.data.sources.pixels import EXTENSIONS, RGB, Decoding
from moco_jax.data.sources.records import ENCODED
from moco_jax.data.sources.tar_members import Member

# What is left out and counted, in the order in which an index keeps the counts.
_FURTHER = "further images of examples that have one"
_WITHOUT = "examples without an image"
_COUNTED = (*tar_members.LEFT_OUT, _FURTHER, _WITHOUT)
_CLASS_BYTES = 64  # read of a .cls at most; a class number has at most nineteen digits
_FORMAT = "3"  # of the index; older ones may lack names, or have numbers that are no classes


class Scanned(NamedTuple):
    """The examples of one tar.

    Attributes:
        offsets, lengths: int64 and int32 `[n]`, of their images.
        labels: int64 `[n]`, -1: none.
        names: of the members that the images are.
        counts: int64 `[k]`, how many of each of `_COUNTED` were left out.
    """

    offsets: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    names: Names
    counts: np.ndarray


def _rank(member: Member, depth: int) -> int:
    """Rank how well `member` stands for its example, whose name has `depth` parts; 0: no image.

    Of several images the one whose ending says no more is taken ('jpg' before 'mask.jpg'), else
    the first; an array only where there is no picture, as it may be anything.
    """
    kind = "." + ".".join(member.parts[depth:]).lower()
    return kind.endswith(EXTENSIONS) * (1 + (not kind.endswith("npy")) + 2 * (kind in EXTENSIONS))


def examples(members: list[Member]) -> Iterator[tuple[list[Member], int]]:
    """Group members by example: those whose names are the same up to the first dot.

    '7.jpg', '7.mask.png' and '7.cls' are one example, unless several are images and a number
    follows that dot in all of them ('22.05.00.png', '22.05.01.png'): then the dot is within
    names, and the next dot is looked at. With each example comes how many parts its name has.
    """
    waiting = [(members, 1)]
    while waiting:
        some, depth = waiting.pop()
        within = all(len(m.parts) > depth + 1 and m.parts[depth][:1].isdigit() for m in some)
        if not within or sum(_rank(member, depth) > 0 for member in some) < 2:
            yield some, depth
            continue
        parts = [member.parts[depth] for member in some]
        apart = [
            list(g) for _, g in itertools.groupby(zip(parts, some, strict=True), lambda p: p[0])
        ]
        waiting += [([member for _, member in each], depth + 1) for each in reversed(apart)]


def _grouped(members: Iterator[Member]) -> Iterator[tuple[list[Member], int]]:
    for _, group in itertools.groupby(members, lambda member: (member.folder, member.parts[0])):
        yield from examples(list(group))


def scan(path: str) -> Scanned:
    """Find the examples of one tar, in their order.

    Raises:
        UserError: it cannot be read, or a .cls holds no class number.
    """
    images: list[tuple[int, int, int]] = []
    called: list[str] = []
    counts: Counter[str] = Counter()
    with store.open_binary(path, store.AHEAD) as file:
        for some, depth in _grouped(tar_members.read(file, path, counts)):
            label = labels.MISSING
            for member in some:
                if [part.lower() for part in member.parts[depth:]] == ["cls"]:
                    file.seek(member.offset)
                    content = file.read(min(member.length, _CLASS_BYTES + 1))
                    label = _class(content, f"{printable(path)}: {printable(member.name)}")
            ranks = [_rank(member, depth) for member in some]
            image = some[ranks.index(max(ranks))]
            if not max(ranks):
                counts[_WITHOUT] += 1
                continue
            if image.length > index.LONGEST:
                raise UserError(
                    f"{printable(path)}: {printable(image.name)} has {image.length:,} bytes; images"
                    f" of at most {index.LONGEST:,} can be read: take it out"
                )
            counts[_FURTHER] += sum(map(bool, ranks)) - 1
            images.append((image.offset, image.length, label))
            called.append(image.name)
    columns = np.asarray(images, np.int64).reshape(-1, 3)
    number = np.asarray([counts[words] for words in _COUNTED], np.int64)
    return Scanned(
        columns[:, 0], columns[:, 1].astype(np.int32), columns[:, 2], Names(called), number
    )


def _class(content: bytes, where: str) -> int:
    """Read the class number in a .cls of `content`, -1 for none.

    Raises:
        UserError: it is no class number; the text begins with `where`.
    """
    match = re.fullmatch(rb"\s*(-1|[0-9]+)\s*", content)
    if len(content) <= _CLASS_BYTES and match and int(match[1]) <= labels.LARGEST:
        return int(match[1])
    shown = f"{content[:24]!r}{'...' if len(content) > 24 else ''}"
    raise UserError(
        f"{where} holds {shown}; a .cls is a class number in digits, as in '7', or '-1' for none"
    )


def _arrays(paths: Sequence[str]) -> index.Arrays:
    """Build the arrays of the index of the tars at `paths`."""
    parts = store.each(scan, paths)
    called = Names.joined([part.names for part in parts])
    return index.join([(part.offsets, part.lengths) for part in parts]) | {
        "label": np.concatenate([part.labels for part in parts]),
        "names": called.block,
        "ends": called.ends,
        "counts": np.sum([part.counts for part in parts], axis=0),
    }


class TarSource:
    """The images in tar files.

    Memory holds sixteen bytes each, its member's name and four more, and eight for its class
    where any has one.

    Attributes:
        records: where the images lie.
        paths: of the tars.
        remarks: what is left out, a line.
    """

    record_spec = ENCODED
    classes: Sequence[str] = ()

    def __init__(self, data_dir: str, index_dir: str | None = None, decoding: Decoding = RGB):
        """Open the tars that `data_dir` means (see `shards.find`); keep their index in `index_dir`.

        Raises:
            UserError: there is none, one is damaged, or they hold no image.
        """
        self.decoding = decoding
        self.paths = paths = shards.find(data_dir, "tar", r"\.tar")
        cache = index.cache_path(index_dir, f"tar {data_dir}")
        arrays = index.cached(cache, [_FORMAT, *index.states(paths)], lambda: _arrays(paths))
        label = arrays.pop("label")
        self._labels = label if (label >= 0).any() else None
        self._names = Names.of(arrays.pop("names"), arrays.pop("ends"))
        counts = dict(zip(_COUNTED, arrays.pop("counts").tolist(), strict=True))
        remark = names.remark(f"data_dir={data_dir}", counts)
        self.remarks = [remark] if remark else []
        self.records = index.FileRecords(index.Places(paths, **arrays))
        if not len(self):
            raise UserError(
                f"data_dir={printable(data_dir)}: its tar files hold no image; images end in"
                f" {', '.join(EXTENSIONS)}"
            )

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.records)

    def identity(self) -> list[Any]:
        """Return the names of all members, and where they lie in which tar."""
        return [self._names.block, self._names.ends, *self.records.identity()]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Read the encoded images, object `[n]` of bytes; empty where one cannot be read."""
        return self.records.read(indices)

    def encoded(self, record: bytes) -> bytes:
        """Return the record, which is the encoded image."""
        return record

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """Return labels int64 `[n]`, -1 for an example without one; None if no example has one."""
        return None if self._labels is None else self._labels[indices]

    def name(self, index: int) -> str:
        """Return the member's name, tar and place, in one line."""
        return f"{printable(self._names[index])} in {self.records.where(index)}"

    def names(self, indices: np.ndarray) -> list[str]:
        """Return tar and member's whole name with every byte, as `train-000.tar/cat/7.jpg`."""
        return [f"{self.records.file(i)}/{self._names[i]}" for i in indices.tolist()]

    @property
    def nbytes(self) -> int:
        """Bytes that the names take in memory."""
        return self._names.nbytes
