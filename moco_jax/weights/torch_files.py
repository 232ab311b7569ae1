"""Reads files that PyTorch saves, without PyTorch.

Such a file is a zip of a pickle and of storages; before version 1.6 it was pickles and storages
in a row. Every entry of a zip is compared with its checksum, also those that nobody asks for.
"""

import functools
import io
import struct
import zipfile
from typing import Any, BinaryIO

import numpy as np

from moco_jax.weights.calls import Calls
from moco_jax.weights.pickles import Machine, Named
from moco_jax.weights.stored import DTYPES, Storage, Unreadable

MAGIC = 0x1950A86A20F9469CFC6C  # what a file of before version 1.6 begins with, as a pickle
# Times that a zip may grow: compressed weights hardly shrink, zeros do, and a zip bomb grows a
# thousandfold.
SWELLING = 16
_CHUNK = 1 << 20
_KINDS = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
# What is not read, and its bytes.
_ODD = {
    "ComplexFloat": 8,
    "ComplexDouble": 16,
    "QInt8": 1,
    "QUInt8": 1,
    "QInt32": 4,
    "QUInt4x2": 1,
    "QUInt2x4": 1,
}


class BoundedFile:
    """A file that is never asked for more than the `size` bytes it has.

    A read of more would first take the memory.
    """

    def __init__(self, file: BinaryIO, size: int):
        """Read `file` from where it stands."""
        self._file, self.size = file, size
        self.tell = file.tell
        self.seek = file.seek

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes, or fewer at the end."""
        if count > _CHUNK:
            count = max(0, min(count, self.size - self._file.tell()))
        return self._file.read(count)

    def readline(self) -> bytes:
        """Return the next line."""
        return self._file.readline()


def tree(file: BinaryIO, size: int) -> Any:
    """Read the object in `file`, which must stay open until its arrays' values have been read.

    Args:
        file: at its start: a zip, or a pickle, of whoever wrote it.
        size: of it in bytes.

    Raises:
        Refused: something was to be run.
        Exception: of any kind, where it is damaged or nothing of the kind.
    """
    start = file.read(4)
    file.seek(0)
    return _zipped(file, size) if start[:2] == b"PK" else _pickled(BoundedFile(file, size))


def _storage_type(named: Any) -> tuple[np.dtype | str | None, int]:
    """Return the dtype of the numbers in a storage of this class, and the bytes of each.

    The dtype is None for bytes, and text for a type that is not read.
    """
    name = named.name if isinstance(named, Named) else ""
    kind = name.rpartition(".")[2].removesuffix("Storage")
    if name.startswith("torch.") and name.endswith("Storage"):
        if kind in _KINDS:
            return DTYPES[_KINDS[kind]], DTYPES[_KINDS[kind]].itemsize
        if kind in _ODD:
            return kind, _ODD[kind]
        if kind in ("Untyped", "_Untyped"):
            return None, 1
    raise Unreadable(f"it has a storage of the class {name}, which is none that is known")


class _Storages(dict[str, Storage]):
    """The storages that a pickle names, by their keys."""

    def __call__(self, identity: Any) -> Any:
        """Return the storage, or the part of one, that a pickle's identity stands for.

        Raises:
            Unreadable: it stands for no storage.
        """
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
            return identity[1]  # with a whole network came the source text of its class
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise Unreadable("its pickle refers to something that is no storage")
        _, named, key, _, length, *more = identity
        if type(length) is not int or length < 0 or not isinstance(key, str):
            raise Unreadable("it has a storage without a length or a name")
        if more and more[0] is not None:
            raise Unreadable(
                f"the storage {key} is a part of another, as before version 0.4 of PyTorch"
            )
        dtype, width = _storage_type(named)
        known = self.setdefault(key, Storage(key, dtype, length, width * length))
        if (known.dtype, known.length) != (dtype, length):
            raise Unreadable(f"it has the storage {key} in two sizes or types")
        return known


def _zipped(file: BinaryIO, size: int) -> Any:
    if not zipfile.is_zipfile(file):
        raise Unreadable("it is a zip that ends too early")
    archive = zipfile.ZipFile(file)
    entries = {entry.filename: entry for entry in archive.infolist()}
    _check_entries(archive, size)
    roots = [
        name.partition("/")[0]
        for name in entries
        if name.endswith("/data.pkl") and name.count("/") == 1
    ]
    if len(roots) != 1:
        raise Unreadable("it is a zip without one data.pkl, and so no file of PyTorch")
    order = entries.get(f"{roots[0]}/byteorder")
    endian = b"little" if order is None else _entry(archive, order)
    if endian not in (b"little", b"big"):
        raise Unreadable(f"its byteorder is {endian[:24]!r}; it must be little or big")
    big_endian = endian == b"big"
    storages = _Storages()
    content = _entry(archive, entries[f"{roots[0]}/data.pkl"])
    content_of_pickle = Machine(Calls(), storages).load(io.BytesIO(content))
    for storage in storages.values():
        entry = entries.get(f"{roots[0]}/data/{storage.key}")
        if entry is not None:
            storage.content = functools.partial(_entry, archive, entry)
            storage.big_endian = big_endian
    for entry in entries.values():
        _verify(archive, entry)
    return content_of_pickle


def _check_entries(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse a zip whose entries cannot be as they claim, or claim too much.

    Raises:
        Unreadable: an entry is there twice, is larger than the file, or swells too much.
    """
    entries, seen, total = archive.infolist(), set(), 0
    for entry in entries:
        total += entry.file_size
        packed = entry.compress_type == zipfile.ZIP_DEFLATED
        if entry.filename in seen:
            raise Unreadable(f"it has the entry {entry.filename} twice")
        if not packed and entry.compress_type != zipfile.ZIP_STORED:
            raise Unreadable(
                f"its entry {entry.filename} is compressed in a way that PyTorch's are not"
            )
        if entry.compress_size > size or (not packed and entry.file_size != entry.compress_size):
            raise Unreadable(
                f"its entry {entry.filename} says that it has more bytes than the file"
            )
        seen.add(entry.filename)
    if total > SWELLING * size:
        raise Unreadable(f"its entries would become {total:,} bytes, and the file has {size:,}")


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Return the bytes of an entry; raises Unreadable where its checksum differs."""
    try:
        with archive.open(entry) as file:
            content = file.read(entry.file_size)
    except Exception as error:  # a checksum, a cut or scrambled stream, a header that is another's
        raise Unreadable(f"its entry {entry.filename} cannot be read: {error}") from error
    if len(content) != entry.file_size:
        raise Unreadable(f"its entry {entry.filename} ends too early")
    return content


def _verify(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Read an entry piece by piece for its checksum alone; errors are those of `_entry`."""
    left = entry.file_size
    try:
        with archive.open(entry) as file:
            while left and (content := file.read(min(left, _CHUNK))):
                left -= len(content)
            # The checksum is compared at the end, which an entry without bytes reaches only here.
            file.read(1)
    except Exception as error:
        raise Unreadable(f"its entry {entry.filename} cannot be read: {error}") from error
    if left:
        raise Unreadable(f"its entry {entry.filename} ends too early")


def _pickled(file: BoundedFile) -> Any:
    storages = _Storages()
    machine = Machine(Calls(), storages)
    content = machine.load(file)  # type: ignore[arg-type]
    if content != MAGIC:
        return content
    machine.load(file)  # type: ignore[arg-type]  # the protocol
    system = machine.load(file)  # type: ignore[arg-type]
    big_endian = isinstance(system, dict) and system.get("little_endian") is False
    content = machine.load(file)  # type: ignore[arg-type]
    keys = machine.load(file)  # type: ignore[arg-type]
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise Unreadable("it has other storages than its tensors name")
    for key in keys:
        _place(file, storages[key])
        storages[key].big_endian = big_endian
    if file.tell() != file.size:
        raise Unreadable("it has bytes after its last storage")
    return content


def _place(file: BoundedFile, storage: Storage) -> None:
    """Note where in `file` the bytes of `storage` lie, and go to their end.

    `file` stands at the storage's start.
    """
    header = file.read(8)
    if len(header) < 8 or struct.unpack("<q", header)[0] != storage.length:
        raise Unreadable(f"its storage {storage.key} has another length than its tensors say")
    start = file.tell()
    if start + storage.nbytes > file.size:
        raise Unreadable("it ends too early")

    def content() -> bytes:
        file.seek(start)
        return file.read(storage.nbytes)

    storage.content = content
    file.seek(start + storage.nbytes)
