"""Sources read the same images from a bucket, for which TensorFlow's own ram:// stands."""

import numpy as np
import pytest
import tensorflow as tf
from etils.epath import gpath, register

from moco_jax.data import packing
from moco_jax.data.sources import store
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.tar import TarSource
from moco_jax.data.sources.tfrecord import TFRecordSource
from tests.data.pictures import encoded
from tests.data.sources.test_tar import members, tar


def upload(path, content):
    tf.io.gfile.makedirs(path.rsplit("/", 1)[0])
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(content)


def everything(source):
    return source.read(np.arange(len(source))).tolist()


@pytest.fixture
def ram_paths(monkeypatch):
    """Paths of etils take ram:// as they take gs://, through TensorFlow."""
    monkeypatch.setattr(gpath, "_URI_PREFIXES", (*gpath._URI_PREFIXES, "ram://"))
    monkeypatch.setattr(gpath, "_URI_SCHEMES", gpath._URI_SCHEMES | {"ram"})
    monkeypatch.setitem(gpath._URI_MAP_ROOT, "ram://", "/ram/")
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "ram", gpath.backend_lib.tf_backend)
    monkeypatch.setitem(register._URI_PREFIXES_TO_CLS, "ram://", gpath.PosixGPath)


def test_a_remote_folder_list_tar_and_packing(tmp_path, ram_paths):
    root = "ram://bucket"
    files = {"cat/1.jpg": encoded(), "dog/deep/2.png": encoded("PNG"), "dog/3.jpg": b"words"}
    for name, content in (files | {"cat/.hidden.jpg": b"", ".trash/4.jpg": b""}).items():
        upload(f"{root}/images/{name}", content)
    source = FolderSource(f"{root}/images")
    assert [source.files[i] for i in range(len(source))] == sorted(files)
    assert everything(source) == [files[name] for name in sorted(files)]
    np.testing.assert_array_equal(source.labels(np.arange(3)), [0, 1, 1])
    assert source.name(0) == f"{root}/images/cat/1.jpg"

    upload(f"{root}/images/list.txt", f"cat/1.jpg\n{root}/images/dog/3.jpg\ngone.jpg\n".encode())
    assert everything(FolderSource(f"{root}/images/list.txt")) == [encoded(), b"words", b""]

    tar(tmp_path / "x.tar", members(0, label=3))
    upload(f"{root}/tars/x.tar", (tmp_path / "x.tar").read_bytes())
    for where in (f"{root}/tars", f"{root}/tars/{{x,x}}.tar", f"{root}/tars/*.tar"):
        tars = TarSource(where, str(tmp_path / "index"))
        assert everything(tars)[:3] == [content for _, content in members(0)]
    assert tars.name(2).startswith("0002.jpg in x.tar")

    plan = packing.make_plan(f"{root}/images", f"{root}/packed", 2, "tfrecord")
    packing.pack(plan, lambda *_: None)
    packed = TFRecordSource(f"{root}/packed", str(tmp_path / "index"))
    assert len(packed) == 2
    np.testing.assert_array_equal(packed.labels(np.arange(2)), [0, 1])
    assert packed.name(1).startswith("dog/deep/2.png: packed example 1")


def test_a_remote_file_can_be_read_anywhere(monkeypatch):
    monkeypatch.setattr(store, "REMOTE_BLOCK", 64)
    content = np.random.default_rng(0).bytes(1000)
    upload("ram://bucket/bytes", content)
    with store.open_binary("ram://bucket/bytes") as file:
        for place, length in ((0, 10), (500, 100), (3, 7), (990, 50)):
            file.seek(place)
            assert file.read(length) == content[place : place + length]
        assert file.seek(-5, 2) == 995
        assert file.read() == content[-5:]
    with pytest.raises(OSError, match="gone"):
        store.size("ram://bucket/gone")
