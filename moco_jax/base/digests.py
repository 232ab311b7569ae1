"""SHA-256 of every file of a checkpoint, so that one that is half-written or altered is found before it is used."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from moco_jax.base import files
from moco_jax.base.text import printable

THREADS = 8


UNREADABLE = "unreadable: "  # begins what stands in a digest's place


def _hash(path: epath.Path) -> str:
    """The digest of a file, or why it cannot be read: a link to nothing, a pipe, no rights."""
    try:
        return hashlib.sha256(files.read(path)).hexdigest()
    except OSError as error:
        return f"{UNREADABLE}{error.strerror or error}"


def _listing(folder: epath.Path) -> dict[str, epath.Path]:
    found, open_folders = {}, [folder]
    while open_folders:
        for path in open_folders.pop().iterdir():
            if path.is_dir():
                open_folders.append(path)
            else:
                found[str(path.relative_to(folder))] = path
    return found


def _digests(paths: dict[str, epath.Path]) -> dict[str, str]:
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(paths, pool.map(_hash, paths.values()), strict=True))


def write(folder: epath.Path, record: epath.Path) -> None:
    """Write the digests of all files below `folder` to `record`; its first line is the digest of the rest.

    Raises:
        OSError: one of them cannot be read.
    """
    found = _digests(_listing(folder))
    for name, digest in found.items():
        if digest.startswith(UNREADABLE):
            raise OSError(f"{folder / name}: {digest}")
    body = json.dumps(found, indent=1, sort_keys=True).encode()
    files.write(record, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def damaged(folder: epath.Path, record: epath.Path) -> list[str]:
    """What differs between `folder` and its `record`: names with what is wrong; empty when all is sound."""
    try:
        head, _, body = files.read(record).partition(b"\n")
        if head.decode("ascii", "replace") != hashlib.sha256(body).hexdigest():
            return [f"{record} has changed"]
        expected, found = json.loads(body), _listing(folder)
        if not isinstance(expected, dict):
            return [f"{record} holds no digests by name"]
    except OSError as error:  # a folder in a file's place, or the other way round
        return [f"{error.filename or folder} cannot be read ({error.strerror or error})"]
    common = {name: found[name] for name in sorted(expected.keys() & found.keys())}
    return [
        *(f"{folder / n} is missing" for n in sorted(expected.keys() - found.keys())),
        *(f"{folder / printable(n)} was added" for n in sorted(found.keys() - expected.keys())),
        *(f"{folder / n} {_change(d)}" for n, d in _digests(common).items() if d != expected[n]),
    ]


def _change(digest: str) -> str:
    if digest.startswith(UNREADABLE):
        return f"cannot be read ({digest.removeprefix(UNREADABLE)})"
    return "has changed"
