"""A file in a bucket that is read and sought in as files are, a block at a request."""

import io
from concurrent.futures import Future

from moco_jax.base.storage import bucket, failures

BLOCK = 1 << 22  # bytes of one request


class RemoteFile(io.RawIOBase):
    """Reads a file in blocks, and some `ahead` of whoever reads it front to back."""

    def __init__(self, path: str, ahead: int):
        """Ask for the file's size.

        Raises:
            OSError: it is not there, or cannot be reached.
        """
        found = bucket.kind(path)
        if not isinstance(found, bucket.Info):
            raise failures.missing(path)
        self._path, self._ahead, self._size, self._place = path, ahead, found.size, 0
        self._blocks: dict[int, Future[bytes]] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer) -> int:
        if self._place >= self._size:
            return 0
        number, within = divmod(self._place, BLOCK)
        content = memoryview(self._block(number))[within : within + len(buffer)]
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def _block(self, number: int) -> bytes:
        last = (self._size - 1) // BLOCK
        wanted = range(number, min(number + self._ahead, last) + 1)
        # The block before is kept: whoever reads labels of a tar looks back a little.
        for old in [n for n in self._blocks if n not in wanted and n != number - 1]:
            self._blocks.pop(old).cancel()
        for new in wanted:
            if new not in self._blocks:
                end = min((new + 1) * BLOCK, self._size)
                self._blocks[new] = bucket.start(self._path, new * BLOCK, end)
        try:
            content = self._blocks[number].result()
        except Exception as error:
            self._blocks.clear()
            raise failures.translate(error, self._path) from error
        if len(content) < min(BLOCK, self._size - number * BLOCK):
            raise OSError(f"{self._path} has become shorter while it was read")
        return content

    def close(self) -> None:
        for block in self.__dict__.get("_blocks", {}).values():
            block.cancel()
        super().close()
