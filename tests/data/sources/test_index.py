"""The index of records: kept while it fits the files, made anew where it does not."""

import numpy as np
import pytest
from etils import epath

from moco_jax.data.sources import index


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
