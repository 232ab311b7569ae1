"""Where images are: a `Source` has a length, reads a whole batch of indices as bytes, and names what it reads.

One file a kind of source; `decode.py` and `pixels.py` make pixels of what they read, `store.py`
is how they reach files. To add a kind, write a class with the members of `Source` and name it in
`open_source`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.config.registry import SOURCES_IN_WORDS
from moco_jax.data.sources import pixels
from moco_jax.data.sources.pixels import RGB, Decoding

if TYPE_CHECKING:  # what only decodes pixels does without it
    import tensorflow as tf

LARGEST = 2**31 - 1  # an example's number travels to the devices as int32


class Source(Protocol):
    """Images that can be read in any order.

    Attributes:
        record_spec: the tensor that stands for one image before it is decoded: a string scalar,
            or its pixels.
        decoding: how bytes become pixels.

    A source may have `remarks`, a list of lines that a person must read before they trust it;
    `remarks_of` gives them.
    """

    record_spec: "tf.TensorSpec"
    decoding: Decoding

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, in the order of their numbers; empty where there are none.

        Names that stand in the records themselves are there once `labels` was asked for these.
        """

    def __len__(self) -> int:
        """The number of images."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The records `[n, ...]` of images `indices` int `[n]`: bytes (none where unreadable), or pixels."""

    def encoded(self, record: "tf.Tensor") -> "tf.Tensor":
        """In a graph: the encoded image in one record of bytes; an error where the record is damaged."""

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """The classes int `[n]` of images `indices`, -1 for none; None where no image has any.

        `labels.known` is how to ask: a set whose labels are all -1 has none either.
        """

    def name(self, index: int) -> str:
        """What to call one image in a message, in one line (`moco_jax.base.text.printable`)."""

    def names(self, indices: np.ndarray) -> list[str]:
        """What to call images in a record: short, the same wherever the set lies, with every byte (`surrogateescape`)."""


def remarks_of(source: Source) -> list[str]:
    """Lines that a person must read of `source`, as one on what is left out of it."""
    return list(getattr(source, "remarks", ()))


@contextmanager
def reading(data_dir: str) -> Iterator[None]:
    """Turn what a disk or bucket refuses while `data_dir` is opened into a UserError."""
    import tensorflow as tf

    try:
        yield
    except (OSError, tf.errors.OpError) as error:
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
    """The source that `dataset` names, in `data_dir`: one of `config.registry.SOURCES`, or 'tfds:NAME'.

    Args:
        dataset: the kind.
        split: of 'digits' and 'tfds:NAME'; the others are one whole.
        data_dir: folder, list, pattern or TFDS data directory; on this machine or a bucket's.
        index_dir: where an index of records may be kept.
        decoding: how bytes become pixels.

    Raises:
        UserError: there is nothing to read, or it cannot be read.
    """
    with reading(data_dir):
        source = _open(dataset, split, data_dir, index_dir, decoding)
        _require_tifffile(source)
    if len(source) > LARGEST:
        raise UserError(
            f"dataset={dataset!r} has {len(source)} examples; at most {LARGEST} are supported"
        )
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
    if dataset.startswith("tfds:"):
        from moco_jax.data.sources.tfds import TFDSSource

        return TFDSSource(dataset.removeprefix("tfds:"), split, data_dir, index_dir, decoding)
    raise UserError(f"dataset={dataset!r} is unknown; known are {SOURCES_IN_WORDS}")


def _require_tifffile(source: Source) -> None:
    """UserError where the first TIFF of a folder, or the first record, cannot be read without the package."""
    import tensorflow as tf

    decoding = source.decoding
    if decoding.plain or source.record_spec.dtype != tf.string or not pixels.lacks_tifffile():
        return
    files = enumerate(getattr(source, "files", ()))
    first = next((n for n, file in files if file.lower().endswith((".tif", ".tiff"))), 0)
    record = source.read(np.asarray([first]))[0]
    try:
        content = source.encoded(tf.constant(record)).numpy()
    except tf.errors.OpError:
        return  # damaged: left to who counts these
    if pixels.wants_tifffile(content, decoding):
        pixels.tifffile(decoding)
