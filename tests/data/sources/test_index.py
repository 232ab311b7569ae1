"""The index of records: kept while it fits the files, made anew where it does not."""

import os

import numpy as np
import pytest
from etils import epath

from moco_jax.data.sources import index
from moco_jax.data.sources.tar import TarSource
from tests.data.pictures import encoded
from tests.data.sources.test_tar import tar


def made(cache, signature=("a",)):
    """What `index.cached` returns, and whether it had to be made."""
    calls = []

    def make():
        calls.append(0)
        return {"offset": np.arange(3)}

    return index.cached(cache, signature, make)["offset"].tolist(), bool(calls)


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


def words(path):
    path.write_bytes(b"words")


def unreadable(path):
    path.unlink()
    path.symlink_to("/proc/self/mem")  # reading its first byte is an error, for root too


@pytest.mark.parametrize("damage", [empty, cut, words, unreadable])
def test_a_damaged_index_is_made_anew(tmp_path, damage):
    cache = epath.Path(tmp_path / "index.npz")
    assert made(cache) == ([0, 1, 2], True)
    assert made(cache) == ([0, 1, 2], False)
    damage(tmp_path / "index.npz")
    assert made(cache) == ([0, 1, 2], True)
    assert made(cache) == ([0, 1, 2], False)


def test_an_index_of_other_files_is_not_taken(tmp_path):
    cache = epath.Path(tmp_path / "index.npz")
    assert made(cache) == ([0, 1, 2], True)
    assert made(cache, ("b",)) == ([0, 1, 2], True)


def test_files_of_one_size_and_time_are_told_apart(tmp_path):
    """As tars are: what they hold is filled up to whole blocks."""
    path = tmp_path / "x.tar"
    found = set()
    for content in (b"a" * 200_000, b"b" + b"a" * 199_999, b"a" * 199_999 + b"b"):
        path.write_bytes(content)
        os.utime(path, ns=(0, 0))
        found |= set(index.states([str(path)]))
    os.utime(path, ns=(1, 1))
    found |= set(index.states([str(path)]))
    assert len(found) == 4
    assert index.states([str(path)]) == index.states([str(path)])


@pytest.mark.parametrize("kept", [True, False])
def test_a_tar_rewritten_in_its_old_size_is_indexed_again(tmp_path, kept):
    """Whether or not its time is kept, as copies may keep it."""
    folder, place = str(tmp_path / "index"), tmp_path / "x.tar"
    tar(place, [("a.png", encoded("PNG"))])
    size, time = place.stat().st_size, place.stat().st_mtime_ns
    assert TarSource(str(place), folder).names(np.arange(1)) == ["x.tar/a.png"]
    tar(place, [("b.png", encoded("PNG"))])
    if kept:
        os.utime(place, ns=(time, time))
    assert place.stat().st_size == size
    assert TarSource(str(place), folder).names(np.arange(1)) == ["x.tar/b.png"]
