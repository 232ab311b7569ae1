"""Objects in buckets, by fsspec: many requests in flight on its one thread of input and output.

Nothing is remembered of what a store holds: other hosts write there too.
"""

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from moco_jax.base import packages
from moco_jax.base.errors import UserError
from moco_jax.base.storage import failures, gcs, quick_reads, retries
from moco_jax.base.storage.gcs import IN_FLIGHT
from moco_jax.base.text import is_utf8, printable

AT_ONCE = 8  # objects of one folder from which on the folder is listed instead
DIVIDED = 1000  # folders right below one that is listed, which are listed at the same time
T = TypeVar("T")


class Info(NamedTuple):
    """What a store says of an object.

    Attributes:
        size: bytes.
        version: changes with every writing; '' where the store tells nothing of the kind.
    """

    size: int
    version: str


class Client:
    """The stores of one scheme, as all buckets of gs://."""

    def __init__(self, scheme: str):
        """Load the package that reaches them.

        Raises:
            UserError: it is missing, or there is no such scheme.
        """
        self._room, self._patient = asyncio.Semaphore(IN_FLIGHT), scheme not in ("gs", "gcs")
        self.fs = _other(scheme) if self._patient else gcs.file_system()
        from fsspec.asyn import get_loop

        self._loop = get_loop()

    def start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Begin `work` in the thread of input and output."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Await the file system's method `name`, again and again where that helps."""
        method: Callable[..., Awaitable[Any]] = getattr(self.fs, name)
        if not self._patient:  # it is patient itself, request by request
            return await method(*args, **kwargs)

        async def one() -> Any:
            async with self._room:
                return await method(*args, **kwargs)

        return await retries.insist(one)


def _other(scheme: str) -> Any:
    """Make fsspec's file system for `scheme`; one that knows no asyncio works in threads."""
    import fsspec

    if scheme in ("http", "https"):
        raise UserError(
            f"{scheme}:// is an address from which nothing is downloaded here; download it, and"
            " give the path of the file"
        )
    options = {"s3": {"config_kwargs": {"max_pool_connections": IN_FLIGHT}}}.get(scheme, {})
    try:
        kind: Any = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = {"s3": "s3fs", "az": "adlfs", "abfs": "adlfs"}.get(scheme, "")
        have = f"; {packages.how_to_have([package])}" if package else ""
        raise UserError(
            f"{printable(scheme)}:// needs a package that is not installed here"
            f" ({failures.said(error)}){have}, or use a folder of this machine"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{printable(scheme)}:// is no kind of store that is known here; gs://BUCKET/FOLDER and"
            " s3://BUCKET/FOLDER are"
        ) from error
    made = kind(use_listings_cache=False, skip_instance_cache=True, **options)
    if made.async_impl:
        return made
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

    wrapped = AsyncFileSystemWrapper(made, asynchronous=False)
    wrapped._strip_protocol = made._strip_protocol  # which older ones of fsspec leave out
    return wrapped


@functools.lru_cache
def _client_in(scheme: str, process: int) -> Client:
    return Client(scheme)


def client(path: str) -> Client:
    """Return the client of the scheme of `path`; a forked process has clients of its own.

    Raises:
        UserError: as `Client` does.
        OSError: `path` is no UTF-8.
    """
    if not is_utf8(path):
        raise failures.not_utf8(path)
    return _client_in(path.partition("://")[0], os.getpid())


def _wait(future: "Future[T]") -> T:
    try:
        return future.result()
    except BaseException:
        future.cancel()  # as after Ctrl-C
        raise


def _do(path: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call the method `name` of the file system of `path`; errors are those of `failures`."""
    asked = client(path)
    try:
        return _wait(asked.start(asked.ask(name, *args, **kwargs)))
    except Exception as error:
        raise failures.translate(error, path) from error


def start(path: str, begin: int, end: int) -> "Future[bytes]":
    """Begin to read the bytes `begin` to `end` of the object `path`."""

    async def read() -> bytes:
        return await asked.ask("_cat_file", path, start=begin, end=end)

    asked = client(path)
    return asked.start(read())


def _results(paths: Sequence[str], work: Callable[[Client, int], Awaitable[T]]) -> list[Any]:
    """Await `work` for each of `paths` by number, all at once; errors stand among the results."""
    groups: dict[str, list[int]] = {}
    results: list[Any] = [None] * len(paths)
    for number, path in enumerate(paths):
        if is_utf8(path):
            groups.setdefault(path.partition("://")[0], []).append(number)
        else:
            results[number] = failures.not_utf8(path)

    async def all_of(asked: Client, numbers: list[int]) -> list[Any]:
        return await asyncio.gather(*(work(asked, n) for n in numbers), return_exceptions=True)

    waiting: list[tuple[list[int], Future[list[Any]]]] = []
    for numbers in groups.values():
        asked = client(paths[numbers[0]])
        waiting.append((numbers, asked.start(all_of(asked, numbers))))
    for numbers, future in waiting:
        answers: list[Any] = _wait(future)
        for number, result in zip(numbers, answers, strict=True):
            if isinstance(result, Exception):
                result = failures.translate(result, paths[number])
            elif isinstance(result, BaseException):
                raise result
            results[number] = result
    return results


def read_many(
    paths: Sequence[str], begins: Sequence[int | None], ends: Sequence[int | None]
) -> list[Any]:
    """Read bytes `begins` to `ends` of each of `paths`, None for all; errors among the results."""

    async def one(asked: Client, n: int) -> bytes:
        begin, end = begins[n], ends[n]
        if begin is None or end is None:
            return await asked.ask("_cat_file", paths[n])
        if end <= begin:
            return b""
        try:
            return await asked.ask("_cat_file", paths[n], start=begin, end=end)
        except Exception as error:
            if retries.status_of(error) == 416:  # the range lies behind the object's end
                return b""
            raise

    for path in {path.partition("://")[0]: path for path in paths if is_utf8(path)}.values():
        client(path)  # a package that is missing is told in one way
    results = quick_reads.read_many(paths, begins, ends)
    left = [n for n, result in enumerate(results) if result is None]
    again = _results([paths[n] for n in left], lambda asked, n: one(asked, left[n]))
    for n, result in zip(left, again, strict=True):
        results[n] = result
    return results


def _info(said: dict[str, Any]) -> Info | None:
    """Return the facts that fsspec has `said` of an object; None for a folder."""
    name, size = str(said.get("name", "")), int(said.get("size") or 0)
    if said.get("type") == "directory" or name.endswith("/"):
        return None
    keys = ("generation", "etag", "ETag", "mtime", "LastModified", "last_modified", "created")
    version = next((said[key] for key in keys if said.get(key)), "")
    # Of one object a listing may give a number, and a question a date.
    return Info(size, str(version.timestamp() if isinstance(version, datetime) else version))


def kind(path: str) -> Info | str:
    """Return what is at `path`: an `Info`, 'folder', or '' for nothing."""
    if not is_utf8(path):
        return ""
    try:
        return _info(_do(path, "_info", path.rstrip("/"))) or "folder"
    except FileNotFoundError:
        return ""


def infos(paths: Sequence[str]) -> list[Info | None]:
    """Return what is known of each object; None for what is not there, or is a folder.

    Folders of which many objects are asked for are listed, a thousand objects a request.
    """
    folders: dict[str, list[int]] = {}
    for number, path in enumerate(paths):
        folders.setdefault(path.rpartition("/")[0], []).append(number)
    found: list[Any] = [None] * len(paths)
    single = [n for numbers in folders.values() if len(numbers) < AT_ONCE for n in numbers]
    listed = [folder for folder, numbers in folders.items() if len(numbers) >= AT_ONCE]

    async def one(asked: Client, n: int) -> Info | None:
        return _info(await asked.ask("_info", paths[single[n]]))

    async def many(asked: Client, n: int) -> dict[str, Info | None]:
        entries = await asked.ask("_ls", listed[n], detail=True)
        return {entry["name"].rpartition("/")[2]: _info(entry) for entry in entries}

    for number, result in zip(single, _results([paths[n] for n in single], one), strict=True):
        found[number] = _unless_missing(result)
    for folder, result in zip(listed, _results(listed, many), strict=True):
        there = _unless_missing(result) or {}
        for number in folders[folder]:
            found[number] = there.get(paths[number].rpartition("/")[2])
    return found


def _unless_missing(result: Any) -> Any:
    if isinstance(result, FileNotFoundError):
        return None
    if isinstance(result, Exception):
        raise result
    return result


def listing(folder: str) -> dict[str, Info | None]:
    """Return what lies right in `folder`: name -> `Info`, or None for a folder.

    Raises:
        OSError: there is no such folder.
    """
    root = client(folder).fs._strip_protocol(folder).rstrip("/") + "/"
    entries = _do(folder, "_ls", folder.rstrip("/"), detail=True)
    below = [entry for entry in entries if entry["name"].startswith(root)]
    names = ((entry["name"].removeprefix(root).rstrip("/"), entry) for entry in below)
    inside = {name: _info(entry) for name, entry in names if name and "/" not in name}
    if not inside and not any(entry["type"] == "directory" for entry in entries):
        raise failures.missing(folder)  # nothing, or a file, of which it itself is listed
    return dict(sorted(inside.items()))


async def _find(asked: Client, root: str) -> dict[str, Any]:
    """List all below `root`: by folders right below it, side by side, or in one go if too many."""
    first = await asked.ask("_ls", root, detail=True)
    folders = [e["name"] for e in first if e["type"] == "directory"]
    folders = [name for name in folders if name.rstrip("/").startswith(f"{root}/")]
    if len(folders) > DIVIDED:
        return await asked.ask("_find", root, detail=True)
    below = await asyncio.gather(*(asked.ask("_find", name, detail=True) for name in folders))
    found = {entry["name"]: entry for entry in first if entry["type"] != "directory"}
    for part in below:
        found |= part
    return found


def find(root: str) -> dict[str, Info]:
    """Return all objects below the folder `root`, at any depth: name relative to it -> `Info`.

    Raises:
        OSError: there is no such folder.
    """
    asked = client(root)
    start_of = asked.fs._strip_protocol(root).rstrip("/")
    try:
        found = _wait(asked.start(_find(asked, start_of)))
    except Exception as error:
        raise failures.translate(error, root) from error
    below = sorted(name for name in found if name.startswith(f"{start_of}/"))
    if not below:
        raise failures.missing(root)
    infos_ = {name.removeprefix(f"{start_of}/"): _info(found[name]) for name in below}
    # Objects whose names hold an empty part have no path as files have.
    return {
        name: info
        for name, info in infos_.items()
        if info is not None and not name.startswith("/") and "//" not in name
    }


def write(path: str, content: bytes) -> None:
    """Put `content` at `path`: a store shows an object when all of it has arrived."""
    _do(path, "_pipe_file", path, content)


def create(path: str, content: bytes) -> bool:
    """Put `content` at `path` if nothing is there; return whether it was put.

    Of several that do so at once one succeeds. `content` has to be the caller's alone: a request
    that was made again, as its answer was lost, is known by it.
    """
    try:
        _do(path, "_pipe_file", path, content, mode="create")
    except FileExistsError:
        return _unless_missing(read_many([path], [None], [None])[0]) == content
    return True


def move(source: str, target: str) -> None:
    """Move the object or folder `source` to `target`: copies are made first, and all of them."""
    names = [""] if isinstance(kind(source), Info) else [f"/{name}" for name in find(source)]

    async def one(asked: Client, n: int) -> None:
        await asked.ask("_cp_file", f"{source}{names[n]}", f"{target}{names[n]}")

    paths = [f"{source}{name}" for name in names]
    for result in _results(paths, one):
        if isinstance(result, Exception):
            raise result
    remove(paths)


def upload(local: str | os.PathLike, path: str) -> None:
    """Put the file `local` of this machine at `path`, whole or not at all."""
    _do(path, "_put_file", os.fspath(local), path)


def remove(paths: Iterable[str]) -> None:
    """Remove the objects `paths`; it is no error where one is not there."""
    listed = list(paths)

    async def one(asked: Client, n: int) -> None:
        await asked.ask("_rm_file", listed[n])

    for result in _results(listed, one):
        _unless_missing(result)
