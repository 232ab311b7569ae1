"""Buckets are asked for no more than is needed, again where that helps, and any name is found."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from moco_jax.base import storage
from moco_jax.base.errors import TRY_AGAIN, UserError
from moco_jax.base.storage import bucket, quick_reads, ranges, retries
from moco_jax.cli import command_line

ODD = (
    "a b.jpg",
    "100%.jpg",
    "%41.jpg",
    "#1.jpg",
    "x+y&z=1.jpg",
    "why?.jpg",
    "[0]{a,b}.jpg",
    "é☃.jpg",
)


@pytest.mark.parametrize("root", ["gs://bucket/odd", "memory://odd"])
def test_odd_names_are_written_found_and_read(root, network):
    for name in ODD:
        storage.write(f"{root}/{name}", name.encode())
        storage.write(f"{root}/deep/{name}", b"0123456789")
    assert storage.listing(root) == sorted([*ODD, "deep"])
    assert list(storage.find(root)) == sorted([*ODD, *(f"deep/{name}" for name in ODD)])
    paths = [f"{root}/{name}" for name in ODD]
    assert storage.read_files(paths).tolist() == [name.encode() for name in ODD]
    assert [info.size for info in storage.infos(paths)] == [len(name.encode()) for name in ODD]
    read = storage.Ranges([f"{root}/deep/{name}" for name in ODD])
    assert read.read(3, 2, 5) == b"23456"
    assert read.read(0, 8, 5) == b"89"
    assert read.read(0, 20, 5) == b""
    for pattern, found in (
        ("*.jpg", sorted(ODD)),
        ("?00%.*", ["100%.jpg"]),
        ("[0]*", ["[0]{a,b}.jpg"]),
        ("d*/#?.jpg", ["deep/#1.jpg"]),
        ("no*", []),
    ):
        assert storage.matching(f"{root}/{pattern}") == [f"{root}/{name}" for name in found]
    assert storage.is_file(paths[5])
    assert storage.is_folder(root)
    storage.remove(paths[5])
    storage.remove(paths[5])
    assert not storage.exists(paths[5])
    with pytest.raises(FileNotFoundError, match="why"):
        storage.read(paths[5])
    with pytest.raises(FileNotFoundError):
        storage.find(f"{root}/none")


@pytest.mark.parametrize("root", ["gs://bucket/once", "memory://once"])
def test_of_many_who_make_an_object_at_once_one_succeeds(root, network):
    network.busy = network.cut = 0.1
    for number in range(4):
        contents = [f"{number} {n}".encode() for n in range(16)]
        with ThreadPoolExecutor(16) as pool:
            made = [*pool.map(lambda c, at=f"{root}/{number}": storage.create(at, c), contents)]
        assert made.count(True) == 1
        assert storage.read(f"{root}/{number}") == contents[made.index(True)]


@pytest.mark.parametrize("root", ["gs://bucket/moved", "memory://moved"])
def test_files_and_folders_are_moved_whole(root, network):
    network.busy = 0.1
    for name in ("a/1", "a/b/2", "c"):
        storage.write(f"{root}/from/{name}", name.encode())
    storage.move(f"{root}/from/a", f"{root}/to/x")
    storage.move(f"{root}/from/c", f"{root}/to/c")
    assert [*storage.find(root)] == ["to/c", "to/x/1", "to/x/b/2"]
    assert storage.read(f"{root}/to/x/b/2") == b"a/b/2"
    with pytest.raises(FileNotFoundError):
        storage.move(f"{root}/from/a", f"{root}/to/y")


def test_a_folder_is_listed_by_pages_and_not_by_objects(network):
    names = [f"{n % 3}/{n:04d}" for n in range(1200)] + ["last"]
    paths = [f"gs://bucket/pages/{name}" for name in names]
    bucket._results(paths, lambda asked, n: asked.ask("_pipe_file", paths[n], b"x" * (n % 7)))
    network.clear()
    found = storage.find("gs://bucket/pages")
    assert network.requests == 4  # the folder, and each of the three in it
    assert {name: info.size for name, info in found.items()} == {
        name: n % 7 for n, name in enumerate(names)
    }
    network.clear()
    infos = storage.infos([*paths, "gs://bucket/pages/0/none"])
    assert [info and info.size for info in infos] == [*(n % 7 for n in range(1201)), None]
    assert network.requests <= 6
    network.latency, network.most = 0.3, 0
    assert len(storage.read_files(paths[:400])) == 400
    assert 100 < network.most <= bucket.IN_FLIGHT  # aiohttp alone stops at 100


def test_what_does_not_pass_is_asked_once_and_an_outage_until_it_is_told(network, capsys):
    storage.write("gs://bucket/outage", b"content")
    network.clear()
    assert storage.read_files(["gs://bucket/gone"]).tolist() == [b""]
    assert network.requests == 1
    network.busy, network.latency = 1.0, 0.0
    network.clear()
    with pytest.raises(storage.Unreachable, match=r"outage cannot be reached .*503; asked 11"):
        storage.read("gs://bucket/outage")
    assert network.requests == 2 + retries.TRIES  # tensorstore asked first, and once more
    with pytest.raises(SystemExit) as ended:
        command_line.guarded(lambda _: storage.read("gs://bucket/outage"), [])
    assert ended.value.code == TRY_AGAIN
    assert len(capsys.readouterr().err.splitlines()) == 1
    network.busy, network.cut = 0.0, 1.0
    with pytest.raises(OSError, match="cannot be reached"):
        storage.read("gs://bucket/outage")


def test_what_tensorstore_does_not_read_is_read_as_before(network, monkeypatch):
    content = bytes(range(256)) * 8
    storage.write("gs://bucket/quick", content)
    cuts = [(n * 173 % 2048, n * 173 % 2048 + n * 99) for n in range(1, 16)]
    wanted = [content[begin:end] for begin, end in cuts]
    read = storage.Ranges(["gs://bucket/quick"])

    def parts() -> list[bytes]:
        return [read.read(0, begin, end - begin) for begin, end in cuts]

    assert parts() == wanted
    asked = network.requests
    network.cut = 0.3
    assert parts() == wanted
    network.cut = 0.0
    monkeypatch.setattr(quick_reads, "_MADE_IN", -1)  # as in a process that was forked
    network.clear()
    assert parts() == wanted
    assert network.requests < asked  # nothing is asked twice


def test_an_account_that_tensorstore_alone_does_not_find_is_missed_once(network, monkeypatch):
    storage.write("gs://bucket/account", b"content")
    tries = 0

    class Stranger:
        def read(self, name: str) -> "Stranger":
            return self

        def result(self, timeout: float) -> None:
            nonlocal tries
            tries += 1
            raise ValueError("PERMISSION_DENIED: no account [http_response_code='403']")

    monkeypatch.setattr(quick_reads, "_bucket", lambda *_: Stranger())
    for _ in range(3):
        assert storage.read("gs://bucket/account") == b"content"
    assert tries == 1


def test_what_is_worth_another_try():
    class Answer(Exception):
        def __init__(self, code):
            self.code = code

    again = [code for code in range(400, 600) if retries.passes(Answer(code))]
    assert again == [408, 429, *range(500, 600)]
    assert retries.passes(ConnectionResetError())
    assert retries.passes(TimeoutError())
    assert not retries.passes(FileNotFoundError())
    assert not retries.passes(ValueError())
    waits = [retries.wait(tried) for tried in range(1, retries.TRIES)]
    assert all(0.5 <= w / min(32, 0.05 * 2**n) <= 1.5 for n, w in enumerate(waits))


def test_what_tensorstore_says_is_told_as_all_else_and_what_jax_says_is_not_taken_for_it():
    denied = ValueError("PERMISSION_DENIED: Error writing gs://b/x: no [http_response_code='403']")
    for error, kind, words in (
        (denied, storage.Refused, r"refused \(403: Error writing gs://b/x: no\); log in"),
        (ValueError("UNAVAILABLE: cut"), storage.Unreachable, r"cannot be reached \(cut;"),
        (RuntimeError("UNAVAILABLE: a process"), RuntimeError, "^UNAVAILABLE: a process$"),
    ):
        with pytest.raises(kind, match=words), storage.told("gs://b"):
            raise error


def test_neighbours_are_one_request():
    files, offsets = np.asarray([0, 1, 0, 0, 0]), np.asarray([5000, 0, 0, 100, 90])
    lengths = np.asarray([10, 7, 100, 50, 20])
    requests = ranges.neighbours(files, offsets, lengths)
    assert requests == [(0, 0, 150, [2, 4, 3]), (0, 5000, 5010, [0]), (1, 0, 7, [1])]


def test_stores_that_are_not_known_are_refused_in_one_line(monkeypatch):
    with pytest.raises(UserError, match="nothing is downloaded here"):
        storage.read("https://example.org/a.jpg")
    with pytest.raises(UserError, match=r"^nostore:// is no kind of store"):
        storage.read("nostore://bucket/a.jpg")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    bucket._client_in.cache_clear()
    with pytest.raises(UserError, match=r"needs the package gcsfs.*pip install gcsfs"):
        storage.read("gs://bucket/a.jpg")
    bucket._client_in.cache_clear()
