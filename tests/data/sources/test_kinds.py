"""Places, tables and DICOM files: every way of reading gives the same pixels, in the same order."""

import itertools

import numpy as np
import pytest

from moco_jax.data import images, packing, pipeline
from moco_jax.data.sources import open_source
from moco_jax.data.sources.pixels import Decoding, pixels
from tests.data.batches import train_batches
from tests.data.pictures import PHOTO, encoded, write
from tests.data.sources import test_corpus as ways
from tests.data.sources.test_pixels import npy

DEEP = np.random.default_rng(0).integers(0, 65536, (97, 131, 3)).astype(np.uint16)
FILES = {
    "cat/0.jpg": encoded(quality=80),
    "cat/1.png": encoded("PNG"),
    "dog/2.npy": npy(DEEP),
    "dog/3.jpg": encoded()[:500],
    "dog/4.gif": encoded("GIF"),
}


def joined(root):
    names = list(FILES)
    first = write(root / "a", {name: FILES[name] for name in names[:2]})
    second = write(root / "b", {name: FILES[name] for name in names[2:]})
    return "folder", "", f"({first}, {second})"


def in_parquet(root):
    tables = pytest.importorskip("tests.data.sources.tables", reason="pip install '.[parquet]'")
    made = tables.table(FILES.values(), [0, 0, 1, 1, 1], ("cat", "dog"))
    return "parquet", "", tables.parquet(root / "x.parquet", made)


def in_a_saved_set(root):
    tables = pytest.importorskip("tests.data.sources.tables", reason="pip install '.[parquet]'")
    made = tables.table(FILES.values(), [0, 0, 1, 1, 1], ("cat", "dog"))
    return "hf", "train", tables.saved(root / "set", made)


def as_dicom(root):
    dicom = pytest.importorskip("tests.data.sources.dicom_files", reason="pip install '.[dicom]'")
    gray = DEEP[..., 0] >> 4
    said = {"WindowCenter": 1500, "WindowWidth": 900}
    contents = [dicom.dicom(gray, 12, **said), dicom.dicom(PHOTO), dicom.dicom(gray[::-1], 12)]
    contents += [contents[0][:2000], dicom.dicom(DEEP[..., 1])]
    return (
        "folder",
        "",
        write(root, {f"{name[:3]}/{n}.dcm": contents[n] for n, name in enumerate(FILES)}),
    )


def expected(source):
    """What each file is by itself, None where it is damaged."""

    def alone(record):
        try:
            return pixels(source.encoded(record), Decoding())
        except Exception:
            return None

    return [alone(record) for record in source.read(np.arange(len(source)))]


@pytest.mark.parametrize("kind", [joined, in_parquet, in_a_saved_set, as_dicom])
def test_every_way_gives_the_same_pixels_and_resumes_in_the_same_order(tmp_path, kind):
    dataset, split, place = kind(tmp_path / "set")
    source = open_source(dataset, split, place)
    whole = expected(source)
    assert [image is None for image in whole] == [False, False, False, True, False]
    cropped = [None if image is None else ways.centre(image) for image in whole]
    records = source.read(np.arange(5))
    plan = packing.make_plan(
        place, str(tmp_path / "out"), 2, "tfrecord", Decoding(), 0, None, dataset, split
    )
    packing.pack(plan, lambda *_: None)
    (lacking,) = packing.damaged_names(plan)
    assert lacking in (source.name(3), source.names(np.asarray([3]))[0])
    packed = open_source("tfrecord", "", str(tmp_path / "out"))
    found = {
        "training": (ways.in_training(source), whole),
        "resident": ([images.decode(source, record) for record in records], whole),
        "evaluation": (ways.in_evaluation(source), cropped),
        "embed": (ways.in_embedding(source), cropped),
        "packing": (ways.in_training(packed), [image for image in whole if image is not None]),
    }
    for way, (made, wanted) in found.items():
        for number, pair in enumerate(zip(made, wanted, strict=True)):
            assert ways.verdict(*pair) in ("equal", "refused"), (way, number)
    every, four = np.arange(5), np.arange(4)
    numbers = source.labels(every)
    assert numbers.tolist() == [0, 0, 1, 1, 1]
    assert packed.labels(four).tolist() == numbers[[0, 1, 2, 4]].tolist()
    assert list(packed.classes) == [c[:3] for c in source.classes] == ["cat", "dog"]
    kept = [name for n, name in enumerate(source.names(every)) if n != 3]
    assert packed.names(four) == kept

    def views(seen, number):
        damaged = pipeline.DamagedImages(5)
        made = train_batches(
            source, ways.RECIPE, 2, damaged=damaged, examples_seen=seen, crop_only=True
        )
        some = list(itertools.islice(made, number))
        made.close()
        return some, list(damaged.names)

    (straight, named), (later, _) = views(0, 5), views(6, 2)
    for one, other in zip(straight[3:], later, strict=True):
        for key in ("query", "key", "index"):
            np.testing.assert_array_equal(one[key], other[key])
    assert named[0].startswith(source.name(3))
