"""Digests tell trees of arrays apart, and a sealed file that has changed is not read."""

import hashlib
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from moco_jax.base import digests, storage
from moco_jax.base.errors import Busy, UserError
from moco_jax.base.storage import remote_file

TREE = {"a": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "n": None, "rate": 0.1}


def test_a_tree_has_one_digest_wherever_its_arrays_are():
    moved = {**TREE, "a": {"w": jnp.asarray(TREE["a"]["w"])}}
    assert digests.of_tree(moved) == digests.of_tree(TREE)
    strided = {**TREE, "a": {"w": np.repeat(TREE["a"]["w"], 2, axis=1)[:, ::2]}}
    assert digests.of_tree(strided) == digests.of_tree(TREE)


@pytest.mark.parametrize(
    "other",
    [
        {**TREE, "a": {"v": TREE["a"]["w"]}},
        {**TREE, "a": {"w": TREE["a"]["w"].reshape(3, 2)}},
        {**TREE, "a": {"w": TREE["a"]["w"].view(np.int32)}},
        {**TREE, "a": {"w": np.nextafter(TREE["a"]["w"], 9)}},
        {**TREE, "rate": 0.2},
        {**TREE, "n": np.zeros((0, 3))},
    ],
)
def test_names_shapes_types_and_values_count(other):
    assert digests.of_tree(other) != digests.of_tree(TREE)


def test_the_digest_of_weights_is_the_one_that_features_files_hold():
    """SHA-256 of `name type shape;` and the bytes of each array, as in files written before."""
    weights = {"b": np.float32([1, 2]), "a": {"k": np.ones((2, 1), np.float32)}}
    expected = hashlib.sha256()
    for name, array in (("['a']['k']", weights["a"]["k"]), ("['b']", weights["b"])):
        expected.update(f"{name} {array.dtype} {array.shape};".encode() + array.tobytes())
    assert digests.of_tree(weights) == expected.hexdigest()


def test_a_sealed_body_is_read_and_any_change_is_noticed():
    for body in (b"", b"one line", b"\n\nmore\n"):
        content = digests.seal(body)
        assert digests.unseal(content) == body
        assert digests.unseal(content + b"x") is None
        assert digests.unseal(bytes([content[0] ^ 1]) + content[1:]) is None
    assert digests.unseal(b"") is None


@pytest.mark.parametrize("remote", [False, True])
def test_digests_of_large_files_take_no_memory_for_them(tmp_path, monkeypatch, network, remote):
    monkeypatch.setattr(remote_file, "BLOCK", 1 << 18)  # the network's copies are counted too
    size = 1 << 25
    (tmp_path / "large").write_bytes(bytes(size))
    folder = "gs://bucket/digests" if remote else tmp_path
    if remote:
        storage.upload(tmp_path / "large", f"{folder}/large")
    tracemalloc.start()
    try:
        digests.write(epath.Path(folder), epath.Path(tmp_path / "record"))
        found = digests.of_files([tmp_path / "large"])
        assert tracemalloc.get_traced_memory()[1] < size / 4
    finally:
        tracemalloc.stop()
    assert found == hashlib.sha256(bytes(size)).hexdigest()
    assert found in (tmp_path / "record").read_text()


def test_a_bucket_that_is_silent_or_refuses_makes_no_file_a_damaged_one(network):
    folder, record = epath.Path("gs://bucket/away"), epath.Path("gs://bucket/away_record")
    storage.write(f"{folder}/file", b"content")
    digests.write(folder, record)
    assert digests.damaged(folder, record) == []
    network.refused = {"away/file": 403}
    with pytest.raises(UserError, match="access to gs://bucket/away/file is refused"):
        digests.damaged(folder, record)
    network.busy = 1.0
    with pytest.raises(Busy, match="cannot be reached"):
        digests.damaged(folder, record)
    network.reset()
    storage.write(f"{folder}/file", b"changed")
    assert digests.damaged(folder, record) == [f"{folder}/file has changed"]


def test_files_have_the_digest_of_their_contents(tmp_path):
    for name, content in (("a", b"1"), ("b", b"23")):
        (tmp_path / name).write_bytes(content)
    expected = hashlib.sha256(b"123").hexdigest()
    assert digests.of_files([tmp_path / "a", tmp_path / "b"]) == expected
