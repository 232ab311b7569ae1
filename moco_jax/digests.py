"""SHA-256 of every file of a checkpoint, so that one that is half-written or altered is found before it is used."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from moco_jax import files

THREADS = 8


def _hash(path: epath.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
    """Write the digests of all files below `folder` to `record`; its first line is the digest of the rest."""
    body = json.dumps(_digests(_listing(folder)), indent=1, sort_keys=True).encode()
    files.write(record, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def damaged(folder: epath.Path, record: epath.Path) -> list[str]:
    """What differs between `folder` and its `record`: names with what is wrong; empty when all is sound."""
    head, _, body = record.read_bytes().partition(b"\n")
    if head.decode("ascii", "replace") != hashlib.sha256(body).hexdigest():
        return [f"{record} has changed"]
    expected, found = json.loads(body), _listing(folder)
    common = {name: found[name] for name in sorted(expected.keys() & found.keys())}
    return [
        *(f"{folder / n} is missing" for n in sorted(expected.keys() - found.keys())),
        *(f"{folder / n} was added" for n in sorted(found.keys() - expected.keys())),
        *(f"{folder / n} has changed" for n, d in _digests(common).items() if d != expected[n]),
    ]
