"""Sources whose images are a column of tables in files, and whose classes are another.

`parquet.py` and `hf.py` find where images lie; here is what both make of it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from moco_jax.base import packages
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.data.sources import labels
from moco_jax.data.sources.image_columns import Columns, is_text
from moco_jax.data.sources.pixels import Decoding
from moco_jax.data.sources.records import ENCODED
from moco_jax.data.sources.spans import SpanRecords


def pyarrow(what: str) -> Any:
    """Import the package pyarrow, which `what` needs, with what it reads files by.

    Raises:
        UserError: it is missing.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{what} needs the package pyarrow: {packages.how_to_have(['pyarrow'])}"
        ) from error
    return pyarrow


class Classes(NamedTuple):
    """The classes in a column: numbers int64 `[n]`, and names where the column has names."""

    numbers: np.ndarray
    names: Sequence[str]


NO_CLASSES = Classes(np.zeros(0, np.int64), ())


def classes_in(column: Any) -> Classes:
    """Read the classes in `column`, pyarrow's ChunkedArray; texts are names, sorted.

    A null and an empty text are `labels.MISSING`.

    Raises:
        UserError: a number is beyond int64.
    """
    import pyarrow
    from pyarrow import compute

    if not is_text(column.type):
        try:
            whole = compute.cast(column, pyarrow.int64())
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{printable(str(error))}; {labels.WANTED}") from error
        filled = compute.fill_null(whole, labels.MISSING)
        return Classes(np.asarray(filled.to_numpy(), np.int64), ())
    texts = [text or "" for text in column.to_pylist()]
    names = sorted(set(texts) - {""})
    places = {name: place for place, name in enumerate(names)} | {"": labels.MISSING}
    return Classes(np.fromiter((places[text] for text in texts), np.int64, len(texts)), names)


def joined(parts: Sequence[Classes]) -> Classes:
    """Join the classes of several files, with one numbering of the names."""
    names = sorted({name for part in parts for name in part.names})
    places = {name: place for place, name in enumerate(names)}
    found = [NO_CLASSES.numbers]
    for numbers, some in parts:
        # The last place is that of `MISSING`, -1.
        own = np.asarray([*(places[name] for name in some), labels.MISSING], np.int64)
        found.append(own[numbers] if some else numbers)
    return Classes(np.concatenate(found), names)


class TableSource:
    """Images in a column; 29 bytes of memory each, and eight for a class if any image has one.

    Attributes:
        paths: of the files.
        records: where the images lie.
        classes: names of the classes: those that Hugging Face keeps, or the texts in the column.
        remarks: which of several columns is taken.
    """

    record_spec = ENCODED

    def __init__(
        self,
        records: SpanRecords,
        wanted: Columns,
        classes: Classes,
        shown: str,
        decoding: Decoding,
    ):
        """Take the images of `records`, which lie in the columns `wanted`.

        Args:
            records: the images.
            wanted: the columns, and the names of the classes where they are known by number.
            classes: of the images, where there is a column of them.
            shown: what messages call the whole.
            decoding: how bytes become pixels.

        Raises:
            UserError: there is no image, or a class is none.
        """
        self.records, self.decoding, self.paths = records, decoding, records.paths
        if not records.any_bytes():
            raise UserError(
                f"{shown}: the column {printable(wanted.image)!r} holds no bytes of an image (a"
                " table of paths alone is no set of images); give files with the images themselves"
            )
        self.classes: Sequence[str] = wanted.classes or tuple(classes.names)
        self._labels = self._checked(classes.numbers) if wanted.label else None
        self.remarks = [wanted.remark] if wanted.remark else []

    def _checked(self, numbers: np.ndarray) -> np.ndarray | None:
        """Return class `numbers` int64 `[N]`; None where no image has one."""
        sound = labels.checked(numbers, self.name)
        nameless = np.flatnonzero(sound >= len(self.classes)) if self.classes else ()
        if len(nameless):
            first = int(nameless[0])
            raise UserError(
                f"{self.name(first)} has class {sound[first]}, but only {len(self.classes)} class"
                " names are known (numbers begin at 0); correct the number"
            )
        return sound if (sound >= 0).any() else None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.records)

    def identity(self) -> list[Any]:
        """Return the names of the files, and where in them each image lies."""
        return self.records.identity()

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Read the encoded images, object `[n]` of bytes; empty where one cannot be read."""
        return self.records.read(indices)

    def encoded(self, record: bytes) -> bytes:
        """Return the record, which is the encoded image."""
        return record

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """Return labels int64 `[n]`, -1 for an image without one; None if no image has one."""
        return None if self._labels is None else self._labels[indices]

    def name(self, index: int) -> str:
        """Return row and file, in one line."""
        return self.records.where(index)

    def names(self, indices: np.ndarray) -> list[str]:
        """Return file and row, as `train-00000-of-00002.parquet/17`."""
        each = indices.tolist()
        return [f"{self.records.file(i)}/{self.records.row(i)}" for i in each]
