"""Files of sources, here and in buckets, by `base.storage`; and what of a folder is read.

Whatever goes wrong is an OSError here, for both.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator

from moco_jax.base import storage
from moco_jax.base.storage import (
    AHEAD,
    Ranges,
    each,
    exists,
    infos,
    is_file,
    is_folder,
    is_remote,
    listing,
    matching,
    open_binary,
    read,
    read_files,
    size,
)
from moco_jax.base.text import printable
from moco_jax.data.sources.names import HIDDEN, NO_FILE, SYSTEM, TWICE, UNLISTED, is_systems

__all__ = [
    "AHEAD",
    "Ranges",
    "each",
    "exists",
    "infos",
    "is_file",
    "is_folder",
    "is_remote",
    "listing",
    "matching",
    "open_binary",
    "read",
    "read_files",
    "size",
    "walk",
]


def _is_folder(entry: os.DirEntry) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry) -> bool:
    if not entry.is_symlink():
        return entry.is_file()
    # A link to nothing counts as a file, which will be reported as damaged.
    return os.path.isfile(entry.path) or not os.path.exists(entry.path)


def walk(root: str, left_out: Counter[str] | None = None) -> Iterator[str]:
    """Find all files below `root`; yield their paths relative to it.

    Hidden files, and those in hidden or systems' own folders, are left out. Symbolic links are
    followed; a folder that is reached in several ways is visited once, by the first in order of
    names. A folder that cannot be listed is named in a warning and left out.

    `left_out`: counts what is passed over, under the words of `names.py`.

    Raises:
        OSError: `root` itself cannot be listed.
    """
    count: Counter[str] = Counter() if left_out is None else left_out
    if is_remote(root):
        yield from _walk_remote(root, count)
        return
    visited, waiting = set(), [""]
    while waiting:
        within = waiting.pop()
        folder = os.path.join(root, within)
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                count[TWICE] += 1
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listed:
                every = list(listed)
            entries = [entry for entry in every if not entry.name.startswith(".")]
            folders = [entry.name for entry in entries if _is_folder(entry)]
        except OSError as error:
            if not within:
                raise
            count[UNLISTED] += 1
            logging.warning(
                "left out, as it cannot be listed: %s (%s)", printable(folder), error.strerror
            )
            continue
        files = [entry.name for entry in entries if _is_file(entry)]
        wanted = [name for name in folders if not is_systems(name)]
        count[HIDDEN] += len(every) - len(entries)
        count[SYSTEM] += len(folders) - len(wanted)
        count[NO_FILE] += len(entries) - len(folders) - len(files)
        waiting += [os.path.join(within, name) for name in sorted(wanted, reverse=True)]
        yield from (os.path.join(within, name) for name in files)


def _walk_remote(root: str, count: Counter[str]) -> Iterator[str]:
    for path in storage.find(root):
        *folders, name = path.split("/")
        if any(folder.startswith(".") for folder in folders):
            count[HIDDEN] += 1
        elif any(map(is_systems, folders)):
            count[SYSTEM] += 1
        elif name.startswith("."):
            count[HIDDEN] += 1
        else:
            yield path
