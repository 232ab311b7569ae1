"""Small files by which processes of many machines agree on an owner, on disks and in buckets.

A store holds named files of one folder. `replace` puts one there only if what is there is what the
caller has seen.
"""

import contextlib
import hashlib
import os
from typing import Protocol

from etils import epath

from moco_jax.base import files, storage

MOST = 4096  # bytes that are read of a file


class Store(Protocol):
    """Holds small named files of one folder, and replaces one only if it is as expected."""

    def read(self, name: str) -> bytes | None:
        """Read the first `MOST` bytes of a file; None where there is none.

        Raises:
            OSError: it cannot be read, or the folder is gone.
        """

    def write(self, name: str, content: bytes) -> None:
        """Write a file over whatever there was; the folder is not made."""

    def replace(self, name: str, seen: bytes | None, content: bytes) -> bool:
        """Write a file if it is as `seen` (None: not there), and return whether it was."""

    def unblock(self, name: str, seen: bytes) -> None:
        """Remove what a `replace` of `seen` left that was killed half-way.

        It makes all other replacements fail.
        """

    def remove(self, name: str) -> None:
        """Remove a file that may be there."""


class Folder:
    """A store on a disk that machines may share; of many replacements at once one succeeds.

    A file is made exclusively (O_EXCL, which NFS has too). What is there is replaced by whoever has
    made, exclusively, a second file that is named after its content: only one at a time can have
    it, and has looked again since.
    """

    def __init__(self, folder: str):
        """Open the store in `folder`, which is there."""
        self._folder = folder

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def read(self, name: str) -> bytes | None:
        try:
            with files.open_regular(self._path(name)) as file:
                return file.read(MOST)
        except FileNotFoundError:
            if not os.path.isdir(self._folder):
                raise
            return None

    def write(self, name: str, content: bytes) -> None:
        with open(self._path(name), "wb") as file:
            file.write(content)

    def replace(self, name: str, seen: bytes | None, content: bytes) -> bool:
        if seen is None:
            return self._make(name, content)
        right = self._right(name, seen)
        if not self._make(right, content):
            return False
        try:
            if self.read(name) != seen:
                return False
            self._put(name, content)
            return True
        finally:
            self.remove(right)

    def _put(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        files.write(epath.Path(self._path(name)), content)

    def _right(self, name: str, seen: bytes) -> str:
        return f"{name}.{hashlib.sha256(seen).hexdigest()[:16]}"

    def _make(self, name: str, content: bytes) -> bool:
        try:
            descriptor = os.open(self._path(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
        except BaseException:
            self.remove(name)
            raise
        return True

    def unblock(self, name: str, seen: bytes) -> None:
        self.remove(self._right(name, seen))

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(name))


class Bucket(Folder):
    """A store in a bucket, on which writers agree as on a disk.

    A bucket makes an object only where none is, if it is asked so, and shows it to all at once.
    """

    def read(self, name: str) -> bytes | None:
        try:
            return storage.read(self._path(name))[:MOST]
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        storage.write(self._path(name), content)

    _put = write  # nobody sees an object before all of it has arrived

    def _make(self, name: str, content: bytes) -> bool:
        return storage.create(self._path(name), content)

    def remove(self, name: str) -> None:
        storage.remove(self._path(name))


def store_in(folder: epath.Path | str) -> Store:
    """Return the store in `folder`, here or in a bucket."""
    return Bucket(str(folder)) if files.is_remote(folder) else Folder(str(folder))
