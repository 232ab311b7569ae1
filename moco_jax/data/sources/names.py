"""Names of images: very many in little memory, and lines on those that are left out."""

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from moco_jax.base.text import printable

# What is left out of a source, in the words of the line that says so.
HIDDEN = "hidden ones"
SYSTEM = "in folders of a system's own (as __MACOSX or @eaDir)"
TWICE = "folders that are reached in another way too"
UNLISTED = "folders that cannot be listed"
NO_FILE = "that are no regular files"
ENDINGS = 5  # endings of files' names that a line counts one by one
_SYSTEMS = frozenset(
    {
        "__macosx",
        "@eadir",
        "@tmp",
        "@recycle",
        "@recently-snapshot",
        "@sharesnap",
        "#recycle",
        "#snapshot",
        "~snapshot",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "lost+found",
        "network trash folder",
        "temporary items",
    }
)


def is_systems(folder: str) -> bool:
    """Whether a folder of this name is put into archives and disks by systems, not by people."""
    return folder.lower() in _SYSTEMS


def remark(place: str, count: Mapping[str, int], endings: Mapping[str, int] | None = None) -> str:
    """Return a line on what was left out of `place`; '' for nothing.

    Args:
        place: a folder, a list, or a pattern.
        count: words -> how many.
        endings: an ending of files' names -> how many.
    """
    parts = [f"{number:,} {what}" for what, number in count.items() if number]
    kinds = ""
    if endings:
        parts.append(f"{sum(endings.values()):,} other files there")
        ranked = sorted(endings.items(), key=lambda pair: -pair[1])[:ENDINGS]
        some = ", ".join(f"{number:,} {printable(ending)}" for ending, number in ranked)
        kinds = f", by their ending: {some}{', ...' if len(endings) > ENDINGS else ''}"
    return f"{printable(place)}: {', '.join(parts)} are left out{kinds}" if parts else ""


def short(paths: Sequence[str]) -> list[str]:
    """Return names for files: their own, or paths below their common folder if two are the same."""
    names = [os.path.basename(path) for path in paths]
    if len(set(names)) == len(set(paths)):
        return names
    parts = [path.split("/") for path in paths]
    folders = zip(*(each[:-1] for each in parts), strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda level: len(set(level)) == 1, folders))
    return ["/".join(each[common:]) for each in parts]


class Names:
    """Strings by number, in their length plus four bytes each (eight from 4 GiB on).

    A list takes some sixty bytes more for each.
    """

    def __init__(self, strings: Iterable[str]):
        """Keep `strings` in their order."""
        parts = [string.encode("utf-8", "surrogateescape") for string in strings]
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        self._take(np.frombuffer(b"".join(parts), np.uint8), lengths)

    def _take(self, block: np.ndarray, lengths: np.ndarray) -> None:
        self.block, small = block, len(block) < 1 << 32
        self.ends = np.zeros(len(lengths) + 1, np.uint32 if small else np.int64)
        np.cumsum(lengths, out=self.ends[1:], dtype=self.ends.dtype)

    @classmethod
    def of(cls, block: np.ndarray, ends: np.ndarray) -> "Names":
        """Rebuild names from another's `block` uint8 `[B]` and `ends` `[N + 1]`."""
        made = cls.__new__(cls)
        made.block, made.ends = block, ends
        return made

    @classmethod
    def joined(cls, parts: Sequence["Names"]) -> "Names":
        """Join all of `parts`, one after the other."""
        made = cls.__new__(cls)
        lengths = [np.diff(part.ends.astype(np.int64)) for part in parts]
        made._take(np.concatenate([part.block for part in parts]), np.concatenate(lengths))
        return made

    @property
    def nbytes(self) -> int:
        """Bytes that the names take in memory."""
        return self.block.nbytes + self.ends.nbytes

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self.ends) - 1

    def __getitem__(self, number: int) -> str:
        """Return string `number`; raises IndexError past the end."""
        start, end = self.ends[number], self.ends[number + 1]
        return self.block[start:end].tobytes().decode("utf-8", "surrogateescape")
