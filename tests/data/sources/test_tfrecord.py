"""The index of records equals TensorFlow's reader; sets are read as written.

Sets with and without TFDS metadata are read.
"""

import io
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from moco_jax.base.errors import UserError
from moco_jax.base.storage import local
from moco_jax.data.packing import example
from moco_jax.data.sources import index, tfrecord
from moco_jax.data.sources.tf_decode import decode_image
from moco_jax.data.sources.tfds import TFDSSource
from moco_jax.data.sources.tfrecord import TFRecordSource
from tests.data.pictures import decoded, encoded, opened

TFDS = os.environ.get("MOCO_JAX_TFDS")


def records_to(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return str(path)


def test_record_index_equals_tensorflows_reader(tmp_path):
    records = [os.urandom(n) for n in (0, 1, 500, 70_000)]
    path = records_to(tmp_path / "x.tfrecord", records)
    cache = tmp_path / "cache" / "index.npz"
    slices = [tfrecord.Slice(path, 1, 2), tfrecord.Slice(path, 0, -1)]
    for _ in range(2):
        found = index.FileRecords(tfrecord.build(slices, cache))
        assert found.read(np.arange(len(found))).tolist() == records[1:3] + records
    cache.write_bytes(cache.read_bytes()[:-40])
    assert len(tfrecord.build(slices, cache).offset) == 6
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="index of records cannot be written to"):
        tfrecord.build(slices, tmp_path / "file" / "index.npz")
    with open(path, "ab") as file:
        file.write(struct.pack("<Q", 10**6))
    with pytest.raises(UserError, match="cut off or damaged at byte"):
        tfrecord.build(slices, cache)


def test_more_files_than_stay_open_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "KEPT_OPEN", 2)
    paths = [records_to(tmp_path / f"{n}", [b"%d" % n]) for n in range(5)]
    found = index.FileRecords(tfrecord.build([tfrecord.Slice(p, 0, -1) for p in paths], None))
    os.remove(paths[4])
    assert found.read(np.arange(5)).tolist() == [b"0", b"1", b"2", b"3", b""]


def test_a_set_without_metadata_is_read_and_damage_flagged(tmp_path):
    contents = [encoded(), encoded("PNG"), encoded("TIFF")]
    written = [example(c, f"é{n}", n + 4) for n, c in enumerate(contents)]
    records_to(tmp_path / "x.tfrecord-00000-of-00002", written[:2])
    records_to(tmp_path / "x.tfrecord-00001-of-00002", [written[2], b"\xff\xff no example"])
    source = TFRecordSource(str(tmp_path), str(tmp_path / "index"))
    np.testing.assert_array_equal(source.labels(np.asarray([2, 0])), [6, 4])
    assert source.name(1).startswith("é1: ")
    assert source.names(np.asarray([2, 0])) == ["é2", "é0"]
    assert "example 3 (x.tfrecord-00001-of-00002 at byte" in source.name(3)
    images = decoded(source)
    assert [sound for _, sound in images] == [True, True, True, False]
    for (image, _), content in zip(images, contents, strict=False):
        np.testing.assert_array_equal(image, opened(content))
    with pytest.raises(UserError, match="no readable 'label'"):
        source.labels(np.arange(4))
    os.remove(tmp_path / "x.tfrecord-00001-of-00002")
    with pytest.raises(UserError, match=r"holds 1 of the 2 shards x\.tfrecord"):
        TFRecordSource(str(tmp_path))


def test_records_that_hold_no_image_are_refused(tmp_path):
    path = tmp_path / "x.tfrecord"
    other = tf.train.Feature(int64_list=tf.train.Int64List(value=[3]))
    features = tf.train.Features(feature={"image": other, "n": other})
    numbers = tf.train.Example(features=features).SerializeToString()
    wrong = [
        ([], "holds no record"),
        ([b"\xff\xff"], r"data_dir=.*x.tfrecord: its records are no tf.train.Example"),
        ([numbers], "have the features image, n; an encoded image is looked for in image, "),
    ]
    for records, message in wrong:
        records_to(path, records)
        with pytest.raises(UserError, match=message):
            TFRecordSource(str(path))


def test_a_dataset_that_is_not_prepared_says_the_command(tmp_path):
    with pytest.raises(UserError, match="tfds build cifar10 --data_dir"):
        TFDSSource("cifar10", "train", str(tmp_path))


@pytest.mark.skipif(not TFDS, reason="MOCO_JAX_TFDS names no TFDS data directory with cifar10")
def test_cifar10_equals_tfds_own_reader(tmp_path):
    """The same examples in the same order; pixels are PIL's."""
    import tensorflow_datasets as tfds

    images = TFDSSource("cifar10", "test[:50]", TFDS, str(tmp_path))
    builder = tfds.builder("cifar10", data_dir=TFDS)
    raw = builder.as_dataset("test[:50]", decoders={"image": tfds.decode.SkipDecoding()})
    expected = list(raw.as_numpy_iterator())
    assert len(images) == 50
    np.testing.assert_array_equal(images.labels(np.arange(50)), [e["label"] for e in expected])
    for record, e in zip(images.read(np.arange(50)), expected, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(e["image"])).convert("RGB"))
        np.testing.assert_array_equal(decode_image(images.encoded(record)), pixels)
    with pytest.raises(UserError, match="split='dev' of tfds:cifar10 is unknown; there are"):
        TFDSSource("cifar10", "dev", TFDS)


@pytest.mark.skipif(not TFDS, reason="MOCO_JAX_TFDS names no TFDS data directory with cifar10")
def test_memory_stays_flat_when_a_set_is_repeated_a_hundred_times(tmp_path):
    """A hundred times the records cost sixteen bytes each; reading all leaves nothing behind."""
    code = """
import resource, sys
import numpy as np
from moco_jax.data.sources.tfds import TFDSSource

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

parts, data = int(sys.argv[1]), sys.argv[2]
images = TFDSSource("cifar10", "+".join(["test[:1000]"] * parts), data, sys.argv[3])
first = peak()
for start in range(0, len(images), 500):
    records = images.read(np.arange(start, start + 500))
places = images.records.places
print(len(images), places.offset.nbytes + places.file.nbytes + places.length.nbytes)
print(first, peak())
"""
    sizes = {}
    for parts in (1, 100):
        command = [sys.executable, "-c", code, str(parts), TFDS, str(tmp_path)]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        sizes[parts] = [int(x) for x in ended.stdout.split()[-4:]]
    assert sizes[1][:2] == [1000, 16_000]
    assert sizes[100][:2] == [100_000, 1_600_000]
    one, hundred = sizes[1][3], sizes[100][3]
    assert hundred - one < 16e6, sizes
