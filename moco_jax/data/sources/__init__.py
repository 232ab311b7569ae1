"""Sources of images: a `Source` has a length, reads a batch of images and names them.

One file holds one kind of source. `tf_decode.py` and `pixels.py` turn what sources read into
pixels, and `store.py` is how sources reach files. To add a kind, write a class with the members
of `Source` and name it in `open_source`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from moco_jax.base import packages, places
from moco_jax.base.errors import UserError
from moco_jax.base.storage import Refused, Unreachable
from moco_jax.base.text import printable
from moco_jax.config.registry import SOURCES_IN_WORDS
from moco_jax.data.sources import dicom_decode, pixels
from moco_jax.data.sources.pixels import RGB, Decoding
from moco_jax.data.sources.records import ENCODED, RecordSpec

LARGEST = 2**31 - 1  # an example's number travels to the devices as int32


class Source(Protocol):
    """A set of images that can be read in any order.

    Attributes:
        record_spec: shape and dtype of what stands for one image before it is decoded:
            `records.ENCODED` for bytes, or `records.pixels_of` its shape.
        decoding: how bytes become pixels.

    A source may have `remarks`, a list of lines that a person must read before they trust the
    source; `remarks_of` returns them. It may have `identity()`, which gives what it knows of all
    images without reading one (lists of strings, bytes or arrays; their names below the set's
    folder, their sizes); `fingerprint.of` makes a digest of it, by which hosts and checkpoints find
    out that images have changed.
    """

    record_spec: RecordSpec
    decoding: Decoding

    @property
    def classes(self) -> Sequence[str]:
        """Return the names of the classes, in the order of their numbers; empty without classes.

        Names that stand in the records themselves are known once `labels` was asked for these
        records.
        """

    def __len__(self) -> int:
        """Return the number of images."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Read the records `[n, ...]` of images `indices` int `[n]`: bytes, or pixels.

        An image that cannot be read has no bytes.
        """

    def encoded(self, record: bytes) -> bytes:
        """Return the encoded image in one record of bytes; empty where the record is damaged."""

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """Return the classes int `[n]` of images `indices`, -1 for none; None if no image has one.

        Callers ask `labels.known`: a set whose labels are all -1 has none either.
        """

    def name(self, index: int) -> str:
        """Return what a message calls one image, in one line (`moco_jax.base.text.printable`)."""

    def names(self, indices: np.ndarray) -> list[str]:
        """Return what records call images: short names, with every byte (`surrogateescape`).

        They are the same wherever the set lies.
        """


def require_no_place(dataset: str, data_dir: str) -> None:
    """Refuse a `data_dir` beside images that come with the package.

    Whoever gives one means other images than would be read.

    Raises:
        UserError: there is one.
    """
    if dataset == "digits" and data_dir:
        raise UserError(
            f"data_dir={printable(data_dir)} says where images are, and those of dataset='digits' "
            "come with the package; dataset='folder' reads yours, or leave data_dir out"
        )


def remarks_of(source: Source) -> list[str]:
    """Return the lines that a person must read of `source`, as one on what is left out of it."""
    return list(getattr(source, "remarks", ()))


@contextmanager
def reading(data_dir: str) -> Iterator[None]:
    """Turn errors of a disk or bucket while `data_dir` is opened into a UserError."""
    try:
        yield
    except (Refused, Unreachable):
        raise  # each says what helps
    except Exception as error:
        if not isinstance(error, (OSError, packages.tensorflow_errors())):
            raise
        raise UserError(
            f"data_dir={printable(data_dir)} cannot be read ({printable(str(error))}); mend that,"
            " or give another place"
        ) from error


def open_source(
    dataset: str,
    split: str,
    data_dir: str,
    index_dir: str | None = None,
    decoding: Decoding = RGB,
) -> Source:
    """Open the source that `dataset` names, one of `config.registry.SOURCES` or 'tfds:NAME'.

    Args:
        dataset: the kind of source.
        split: of 'digits', 'hf' and 'tfds:NAME'; the other kinds are one whole.
        data_dir: folder, list, pattern or TFDS data directory; on this machine or a bucket's.
            Several, as '(a, b)': their images one after the other, see `joined.py`.
        index_dir: where an index of records may be kept.
        decoding: how bytes become pixels.

    Raises:
        UserError: there is nothing to read, or it cannot be read.
    """
    several = places.split(data_dir)
    if len(several) > 1:
        from moco_jax.data.sources import joined

        joined.require_apart(dataset, several)
    parts = [_open_one(dataset, split, place, index_dir, decoding) for place in several]
    source = parts[0] if len(parts) == 1 else joined.JoinedSource(several, parts)
    if len(source) > LARGEST:
        raise UserError(
            f"dataset={dataset!r} has {len(source)} examples; at most {LARGEST} are supported"
        )
    return source


def _open_one(
    dataset: str, split: str, place: str, index_dir: str | None, decoding: Decoding
) -> Source:
    """Open the images of one place; arguments as those of `open_source`."""
    with reading(place):
        source = _open(dataset, split, place, index_dir, decoding)
        _require_tifffile(source)
        _require_pydicom(source)
    return source


def _open(
    dataset: str, split: str, data_dir: str, index_dir: str | None, decoding: Decoding
) -> Source:
    # A kind's libraries are loaded only where it is asked for.
    if dataset == "digits":
        from moco_jax.data.sources.memory import digits

        return digits(split, decoding)
    if dataset == "folder":
        from moco_jax.data.sources.folder import FolderSource

        return FolderSource(data_dir, decoding)
    if dataset == "tar":
        from moco_jax.data.sources.tar import TarSource

        return TarSource(data_dir, index_dir, decoding)
    if dataset == "tfrecord":
        from moco_jax.data.sources.tfrecord import TFRecordSource

        return TFRecordSource(data_dir, index_dir, decoding)
    if dataset == "arrayrecord":
        from moco_jax.data.sources.arrayrecord import ArrayRecordSource

        return ArrayRecordSource(data_dir, decoding)
    if dataset.partition(":")[0] == "parquet":
        from moco_jax.data.sources.parquet import ParquetSource

        return ParquetSource(data_dir, dataset, index_dir, decoding)
    if dataset.partition(":")[0] == "hf":
        from moco_jax.data.sources.hf import open_saved

        return open_saved(data_dir, dataset, split, index_dir, decoding)
    if dataset.startswith("tfds:"):
        from moco_jax.data.sources.tfds import TFDSSource

        return TFDSSource(dataset.removeprefix("tfds:"), split, data_dir, index_dir, decoding)
    raise UserError(f"dataset={dataset!r} is unknown; use one of {SOURCES_IN_WORDS}")


def _require_pydicom(source: Source) -> None:
    """Refuse a folder or list whose first DICOM file needs a package that is missing."""
    first = getattr(source, "first_dicom", None)
    if first is None:
        return
    content = source.read(np.asarray([first]))[0]
    if not dicom_decode.is_dicom(content):
        return
    try:
        dicom_decode.require_decoder(content)
    except UserError:
        raise
    # Of a damaged one there is nothing to read: whoever counts damaged images will say so.
    except Exception:  # libraries raise all kinds on damaged files
        return


def _require_tifffile(source: Source) -> None:
    """Refuse a source whose first TIFF needs the package tifffile, if that is missing.

    It is the first TIFF of a folder, or the first record of other sources.
    """
    decoding = source.decoding
    if decoding.plain or source.record_spec.dtype != ENCODED.dtype or not pixels.lacks_tifffile():
        return
    files = enumerate(getattr(source, "files", ()))
    first = next((n for n, file in files if file.lower().endswith((".tif", ".tiff"))), 0)
    content = source.encoded(source.read(np.asarray([first]))[0])
    # Of a damaged image there is nothing to read: whoever counts damaged images will say so.
    try:
        wanted = pixels.wants_tifffile(content, decoding)
    except Exception:  # libraries raise all kinds on damaged files
        return
    if wanted:
        pixels.tifffile(decoding)
