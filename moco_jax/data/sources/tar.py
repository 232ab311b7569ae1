"""Tar files as WebDataset writes them: neighbouring members whose names are the same up to the first dot of the
file name are one example, with its image and, in .cls, the number of its class.
"""

import logging
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from moco_jax.data.sources import index, labels, shards, store
from moco_jax.data.sources.pixels import EXTENSIONS, RGB, Decoding
from moco_jax.errors import UserError
from moco_jax.text import printable

_BLOCK = 512
_CLASS_BYTES = 64  # of a .cls that are looked at; a class number has at most nineteen digits


class _Member(NamedTuple):
    name: str
    offset: int
    length: int


def _members(path: str) -> Iterator[_Member]:
    """All regular files of one tar but hidden ones; UserError where it is cut, damaged or compressed."""
    try:
        with store.open_binary(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else it keeps them all in memory
                hidden = os.path.basename(member.name).startswith(".")
                if member.isreg() and not member.issparse() and not hidden:
                    yield _Member(member.name, member.offset_data, member.size)
            # tarfile takes a damaged header for the end.
            file.seek(archive.offset)
            if file.read(_BLOCK).strip(b"\0"):
                raise UserError(f"{path} is damaged at byte {archive.offset}; replace the file")
    except tarfile.ReadError as error:
        raise UserError(
            f"{path} is cut off, or no plain tar file ({error}); replace it, and unpack a compressed one (.gz), "
            "which cannot be read in any order"
        ) from error


def scan(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The examples of one tar: offset int64 and length int32 of the image, class int64 (-1: none), in their order.

    Last, how many examples without an image were left out.

    Raises:
        UserError: it cannot be read, or a .cls holds no class number.
    """
    found: list[tuple[int, int, int]] = []
    without = 0
    key, image, rank, label = None, None, 0, labels.MISSING

    def close() -> None:
        nonlocal without
        if image is not None:
            found.append((image.offset, image.length, label))
        elif key is not None:
            without += 1

    with store.open_binary(path) as file:
        for member in _members(path):
            folder, base = os.path.split(member.name)
            stem, _, kind = base.partition(".")
            kind = kind.lower()
            if (folder, stem) != key:
                close()
                key, image, rank, label = (folder, stem), None, 0, labels.MISSING
            if kind == "cls":
                file.seek(member.offset)
                content = file.read(min(member.length, _CLASS_BYTES + 1))
                label = _class(content, f"{path}: {printable(member.name)}")
            # Of several images the one whose ending says no more ('jpg' before 'mask.jpg'), else the first; an
            # array only where there is no picture, as it may be anything.
            plain, picture = f".{kind}" in EXTENSIONS, not kind.endswith("npy")
            better = f".{kind}".endswith(EXTENSIONS) * (1 + picture + 2 * plain)
            if better > rank:
                image, rank = member, better
        close()
    columns = np.asarray(found, np.int64).reshape(-1, 3)
    return columns[:, 0], columns[:, 1].astype(np.int32), columns[:, 2], without


def _class(content: bytes, where: str) -> int:
    """The number in a .cls of `content`, -1 for none; UserError, about `where`, if it is none."""
    found = re.fullmatch(rb"\s*(-1|[0-9]+)\s*", content)
    if len(content) <= _CLASS_BYTES and found and int(found[1]) <= labels.LARGEST:
        return int(found[1])
    shown = f"{content[:24]!r}{'...' if len(content) > 24 else ''}"
    raise UserError(
        f"{where} holds {shown}; a .cls is a class number in digits, as in '7', or '-1' for none"
    )


class TarSource:
    """The images in tar files; sixteen bytes of memory each, and eight if any has a class."""

    record_spec = tf.TensorSpec([], tf.string)
    classes: Sequence[str] = ()

    def __init__(self, data_dir: str, index_dir: str | None = None, decoding: Decoding = RGB):
        """Open the tars that `data_dir` means (see `shards.find`); keep their index in `index_dir`.

        Raises:
            UserError: there is none, one is damaged, or they hold no image.
        """
        self.decoding = decoding
        paths = shards.find(data_dir, "tar", r"\.tar")

        def make() -> index.Arrays:
            parts = store.each(scan, paths)
            without = sum(part[3] for part in parts)
            if without:
                logging.warning("%s: %d examples without an image are left out", data_dir, without)
            return index.join([part[:2] for part in parts]) | {
                "label": np.concatenate([part[2] for part in parts])
            }

        cache = index.cache_path(index_dir, f"tar {data_dir}")
        # An index of an older version may hold numbers that are no classes.
        signature = ["classes from -1 on", *index.sizes(paths)]
        arrays = index.cached(cache, signature, make)
        label = arrays.pop("label")
        self._labels = label if (label >= 0).any() else None
        self.records = index.FileRecords(index.Places(paths, **arrays))
        if not len(self):
            raise UserError(
                f"data_dir={data_dir}: its tar files hold no image; images end in {', '.join(EXTENSIONS)}"
            )

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.records)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The encoded images, object `[n]` of bytes; empty where one cannot be read."""
        return self.records.read(indices)

    def encoded(self, record: tf.Tensor) -> tf.Tensor:
        """The record is the encoded image."""
        return record

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """int64 `[n]`, -1 for an example without a class; None where not one has any."""
        return None if self._labels is None else self._labels[indices]

    def name(self, index: int) -> str:
        """Tar, place, and the member's name as its header has it."""
        member, where = self._member(index), self.records.where(index)
        return f"{member} in {where}" if member else where

    def names(self, indices: np.ndarray) -> list[str]:
        """The tar and the member's name as its header has it, `train-000.tar/cat/7.jpg`."""

        def one(index: int) -> str:
            tar = os.path.basename(self.records.places.paths[self.records.places.file[index]])
            member = self._member(index)
            return f"{tar}/{member}" if member else self.records.where(index)

        return store.each(one, indices.tolist())

    def _member(self, index: int) -> str:
        try:
            header = self.records.part(index, -_BLOCK, _BLOCK)
            return tarfile.TarInfo.frombuf(header, "utf-8", "replace").name
        except (OSError, tarfile.HeaderError):
            return ""
