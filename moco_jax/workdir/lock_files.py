"""Small files by which processes of many machines agree on an owner.

On disks they agree exactly, in buckets by waiting. A store holds named files of one folder.
`replace` puts one there only if what is there is what the caller has seen.
"""

import contextlib
import errno
import hashlib
import os
from typing import Protocol

from etils import epath

from moco_jax.base import files, packages

MOST = 4096  # bytes that are read of a file


class Store(Protocol):
    """Holds small named files of one folder, and replaces one only if it is as expected.

    Attributes:
        settle: seconds after which a `replace` that was successful is known to have lasted.
    """

    settle: float

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

    settle = 0.0

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
            files.write(epath.Path(self._path(name)), content)
            return True
        finally:
            self.remove(right)

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


class Bucket:
    """A store in a bucket, on which writers agree by waiting.

    TensorFlow can neither make an object exclusively nor rename one, so the last of several writers
    is the one whose object stays, and each of them finds out by reading it after `settle` seconds
    (Fischer's algorithm; Lamport 1987, "A fast mutual exclusion algorithm"). That holds where
    reading and writing a small object takes less than that.
    """

    settle = 5.0

    def __init__(self, folder: str):
        """Open the store in `folder`, which has a scheme, as gs://bucket/run."""
        self._folder = folder.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def read(self, name: str) -> bytes | None:
        try:
            with _os_errors(), _gfile().GFile(self._path(name), "rb") as file:
                return file.read(MOST)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        with _os_errors(), _gfile().GFile(self._path(name), "wb") as file:
            file.write(content)

    def replace(self, name: str, seen: bytes | None, content: bytes) -> bool:
        if self.read(name) != seen:
            return False
        self.write(name, content)
        return True

    def unblock(self, name: str, seen: bytes) -> None:
        """Do nothing: a write that did not come to its end leaves nothing."""

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), _os_errors():
            _gfile().remove(self._path(name))


def store_in(folder: epath.Path | str) -> Store:
    """Return the store in `folder`, here or in a bucket."""
    return Bucket(str(folder)) if files.is_remote(folder) else Folder(str(folder))


def _tf():
    return packages.load_tensorflow("a place in a bucket", "a folder of this machine")


def _gfile():
    return _tf().io.gfile


@contextlib.contextmanager
def _os_errors():
    tf = _tf()
    try:
        yield
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, error.message) from error
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, error.message or type(error).__name__) from error
