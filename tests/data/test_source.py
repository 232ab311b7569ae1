"""Sources give PIL's pixels, name what is damaged, and refuse what cannot be read with one line."""

import io
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from moco_jax.data import pipeline, recipes, source, tfrecord
from moco_jax.errors import UserError

PHOTO = load_sample_images().images[1][150:247, 250:381]
TFDS = os.environ.get("MOCO_JAX_TFDS")


def encoded(kind="JPEG", mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    files = {
        "a.jpg": encoded(quality=90, subsampling=0),
        "b.JPEG": encoded(quality=80, subsampling=2),
        "deep/er/c.jpg": encoded(quality=80, progressive=True),
        "gray.jpg": encoded(mode="L"),
        "d.png": encoded("PNG"),
        "e.bmp": encoded("BMP"),
        "z_cut.jpg": encoded()[: len(encoded()) * 2 // 3],
        "z_empty.jpg": b"",
        "z_text.jpg": b"these are words",
        ".hidden.jpg": encoded(),
        "notes.txt": b"no image",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path


def test_folder_gives_pils_pixels_and_flags_what_is_damaged(folder):
    images = source.FolderSource(str(folder))
    assert len(images) == 9
    assert images.labels(np.arange(9)) is None
    records = images.read(np.arange(9))
    decoded = tf.data.Dataset.from_tensor_slices(records.tolist()).map(
        lambda r: source.decode_or_flag(images, r)
    )
    for index, (image, ok) in enumerate(decoded.as_numpy_iterator()):
        assert ok == ("z_" not in images.name(index)), images.name(index)
        if ok:
            expected = np.asarray(Image.open(images.name(index)).convert("RGB"))
            np.testing.assert_array_equal(image, expected, err_msg=images.name(index))


def test_damaged_images_are_replaced_by_the_next_and_named(folder):
    images = source.FolderSource(str(folder))

    def first_epoch(limit):
        damaged = pipeline.DamagedImages(limit)
        batches = pipeline.train_batches(
            images, recipes.create("v2", 32), seed=0, batch_size=9, rows=np.arange(9),
            examples_seen=0, workers=2, damaged=damaged,
        )  # fmt: skip
        return next(batches), damaged

    batch, damaged = first_epoch(3)
    assert {os.path.basename(n) for n in damaged.names} == {
        "z_cut.jpg",
        "z_empty.jpg",
        "z_text.jpg",
    }
    good = {i for i in range(9) if "z_" not in images.name(i)}
    assert set(batch["index"]) == good
    assert batch["query"].std((1, 2, 3)).min() > 1
    with pytest.raises(UserError, match=r"max_bad_images=2 .*z_"):
        first_epoch(2)


def test_batches_are_the_same_from_any_start_with_any_workers_and_split_over_hosts():
    images = source.digits("train")

    def batches(start, workers, rows, count):
        iterator = pipeline.train_batches(
            images, recipes.create("digits", 32), seed=1, batch_size=16, rows=np.asarray(rows),
            examples_seen=start, workers=workers, damaged=pipeline.DamagedImages(0),
        )  # fmt: skip
        return [next(iterator) for _ in range(count)]

    whole = batches(0, 1, range(16), 4)
    later = batches(48, 3, range(16), 1)[0]
    half = batches(48, 2, range(8, 16), 1)[0]
    for key in ("query", "key", "index"):
        np.testing.assert_array_equal(whole[3][key], later[key])
        np.testing.assert_array_equal(whole[3][key][8:], half[key])


def test_class_folders_are_labels(tmp_path):
    for name in ("cat/1.png", "cat/2.png", "dog/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded("PNG"))
    np.testing.assert_array_equal(
        source.FolderSource(str(tmp_path)).labels(np.arange(3)), [0, 0, 1]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("folder", "train", ""), "data_dir='' names no folder"),
        (("folder", "train", "/no/such"), "data_dir=/no/such is no folder"),
        (("nothing", "train", ""), "dataset='nothing' is unknown; known are digits"),
        (("digits", "valid", ""), "split='valid' is unknown; dataset='digits' has train and test"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        source.open_source(*arguments)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds no image.*\.jpg"):
        source.FolderSource(str(tmp_path))


def test_a_dataset_that_is_not_prepared_says_the_command(tmp_path):
    with pytest.raises(UserError, match="tfds build cifar10 --data_dir"):
        source.TFDSSource("cifar10", "train", str(tmp_path))


def test_record_index_equals_tensorflows_reader(tmp_path):
    path, records = str(tmp_path / "x.tfrecord"), [os.urandom(n) for n in (0, 1, 500, 70_000)]
    with tf.io.TFRecordWriter(path) as writer:
        for record in records:
            writer.write(record)
    cache = tmp_path / "cache" / "index.npz"
    for _ in range(2):
        index = tfrecord.build([tfrecord.Slice(path, 1, 2), tfrecord.Slice(path, 0, -1)], cache)
        content = (tmp_path / "x.tfrecord").read_bytes()
        found = [content[o : o + n] for o, n in zip(index.offset, index.length, strict=True)]
        assert found == records[1:3] + records
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="index of records cannot be written to"):
        tfrecord.build([tfrecord.Slice(path, 0, -1)], tmp_path / "file" / "index.npz")
    with open(path, "ab") as file:
        file.write(struct.pack("<Q", 10**6))
    with pytest.raises(UserError, match="cut off or damaged at byte"):
        tfrecord.build([tfrecord.Slice(path, 0, -1)], cache)


@pytest.mark.skipif(not TFDS, reason="MOCO_JAX_TFDS names no TFDS data directory with cifar10")
def test_cifar10_equals_tfds_own_reader(tmp_path):
    """The same examples in the same order; pixels are PIL's."""
    import tensorflow_datasets as tfds

    images = source.TFDSSource("cifar10", "test[:50]", TFDS, str(tmp_path))
    builder = tfds.builder("cifar10", data_dir=TFDS)
    raw = builder.as_dataset("test[:50]", decoders={"image": tfds.decode.SkipDecoding()})
    expected = list(raw.as_numpy_iterator())
    assert len(images) == 50
    np.testing.assert_array_equal(images.labels(np.arange(50)), [e["label"] for e in expected])
    for record, e in zip(images.read(np.arange(50)), expected, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(e["image"])).convert("RGB"))
        np.testing.assert_array_equal(images.decode(tf.constant(record)), pixels)
    with pytest.raises(UserError, match="split='dev' of tfds:cifar10 is unknown; there are"):
        source.TFDSSource("cifar10", "dev", TFDS)


@pytest.mark.skipif(not TFDS, reason="MOCO_JAX_TFDS names no TFDS data directory with cifar10")
def test_memory_stays_flat_when_a_set_is_repeated_a_hundred_times(tmp_path):
    """A hundred times the records cost sixteen bytes each, and reading them all leaves nothing behind."""
    code = """
import resource, sys
import numpy as np
from moco_jax.data import source

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

parts, data = int(sys.argv[1]), sys.argv[2]
images = source.TFDSSource("cifar10", "+".join(["test[:1000]"] * parts), data, sys.argv[3])
first = peak()
for start in range(0, len(images), 500):
    records = images.read(np.arange(start, start + 500))
print(len(images), images.index.offset.nbytes + images.index.file.nbytes + images.index.length.nbytes)
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
