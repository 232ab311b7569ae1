"""Sources read the same images from a bucket, over a network that fails."""

import numpy as np
import pytest

from moco_jax.base import packages, storage
from moco_jax.base.errors import UserError
from moco_jax.base.storage import remote_file
from moco_jax.data import packing
from moco_jax.data.sources import index, open_source, store
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.tar import TarSource
from moco_jax.data.sources.tfrecord import TFRecordSource
from tests.data.pictures import encoded
from tests.data.sources.test_tar import members, tar


def everything(source):
    return source.read(np.arange(len(source))).tolist()


@pytest.fixture
def no_tensorflow(monkeypatch):
    """Nothing asks for TensorFlow."""
    monkeypatch.setattr(packages, "require_tensorflow", lambda *_: pytest.fail("asked for"))


def test_a_remote_folder_list_tar_and_packing(tmp_path, network, no_tensorflow):
    root = "gs://bucket/kinds"
    network.busy = network.cut = 0.1
    files = {"cat/1.jpg": encoded(), "dog/deep/2.png": encoded("PNG"), "dog/3.jpg": b"words"}
    for name, content in (files | {"cat/.hidden.jpg": b"", ".trash/4.jpg": b""}).items():
        storage.write(f"{root}/images/{name}", content)
    source = FolderSource(f"{root}/images")
    assert [source.files[i] for i in range(len(source))] == sorted(files)
    assert everything(source) == [files[name] for name in sorted(files)]
    np.testing.assert_array_equal(source.labels(np.arange(3)), [0, 1, 1])
    assert source.name(0) == f"{root}/images/cat/1.jpg"

    storage.write(
        f"{root}/images/list.txt", f"cat/1.jpg\n{root}/images/dog/3.jpg\ngone.jpg\n".encode()
    )
    assert everything(FolderSource(f"{root}/images/list.txt")) == [encoded(), b"words", b""]

    tar(tmp_path / "x.tar", members(0, label=3))
    storage.write(f"{root}/tars/x.tar", (tmp_path / "x.tar").read_bytes())
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
    assert network.failed


def test_a_remote_file_can_be_read_anywhere(monkeypatch, network):
    monkeypatch.setattr(remote_file, "BLOCK", 64)
    content = np.random.default_rng(0).bytes(1000)
    storage.write("gs://bucket/bytes", content)
    network.remembers = True
    for ahead in (0, 3):
        network.clear()
        with store.open_binary("gs://bucket/bytes", ahead) as file:
            assert file.read() == content
        assert sum("alt=media" in target for target in network.targets) == 16  # no block twice
    with store.open_binary("gs://bucket/bytes") as file:
        for place, length in ((0, 10), (500, 100), (3, 7), (990, 50)):
            file.seek(place)
            assert file.read(length) == content[place : place + length]
        assert file.seek(-5, 2) == 995
        assert file.read() == content[-5:]
    with pytest.raises(OSError, match="gone"):
        store.size("gs://bucket/gone")


def test_a_batch_is_one_round_of_the_bytes_that_it_needs(tmp_path, network):
    """As many requests are in flight as there are records; a block of neighbours is one request."""
    images = [np.random.default_rng(n).bytes(3000) for n in range(300)]
    tar(tmp_path / "x.tar", [(f"{n:03d}.jpg", image) for n, image in enumerate(images)])
    storage.upload(tmp_path / "x.tar", "gs://bucket/batch/x.tar")
    source = TarSource("gs://bucket/batch")
    network.latency, some = 0.2, np.random.default_rng(0).permutation(300)[:100]
    network.clear()
    assert source.read(some).tolist() == [images[n] for n in some]
    assert network.sent <= 1.1 * 3000 * len(some) + 1000 * (len(some) - network.requests)
    assert network.most > 30
    network.clear()
    assert source.read(np.arange(300)).tolist() == images
    assert network.requests == 1
    assert index.states(["gs://bucket/batch/x.tar"]) == index.states(["gs://bucket/batch/x.tar"])
    before = index.states(["gs://bucket/batch/x.tar"])
    storage.upload(tmp_path / "x.tar", "gs://bucket/batch/x.tar")  # of the same size
    assert index.states(["gs://bucket/batch/x.tar"]) != before


def test_refused_access_ends_reading_in_one_line(network):
    """A missing file counts as damaged; a store that refuses does not."""
    for name in ("a.jpg", "b.jpg"):
        storage.write(f"gs://bucket/secret/{name}", encoded())
    source = FolderSource("gs://bucket/secret")
    storage.remove("gs://bucket/secret/b.jpg")
    assert source.read(np.arange(2)).tolist() == [encoded(), b""]
    for status in (401, 403):
        network.refused = {"secret/a": status}
        network.clear()
        with pytest.raises(storage.Refused, match=rf"secret/a.jpg is refused \({status}: .*gcloud"):
            source.read(np.arange(2))
        assert network.requests == 2 + (status == 401)  # tensorstore asks once
    network.refused = {"": 403}
    with pytest.raises(UserError, match=r"^access to gs://bucket/secret is refused") as told:
        open_source("folder", "", "gs://bucket/secret")
    assert len(str(told.value).splitlines()) == 1
