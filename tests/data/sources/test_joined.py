"""The images of several places are one set: order, classes, names, refusals."""

import os
import shutil

import numpy as np
import pytest

from moco_jax.base import storage
from moco_jax.base.errors import UserError
from moco_jax.data import packing
from moco_jax.data.packing import example
from moco_jax.data.sources import fingerprint, open_source, refusals, remarks_of
from tests.data.pictures import decoded, encoded, write
from tests.data.sources.test_tar import tar
from tests.data.sources.test_tfrecord import records_to

CONTENTS = [encoded(quality=50 + n) for n in range(5)]


def folders(root):
    first = write(root / "a", {"cat/1.jpg": CONTENTS[0], "dog/2.jpg": CONTENTS[1]})
    second = write(
        root / "b", {"bird/1.jpg": CONTENTS[2], "cat/1.jpg": CONTENTS[3], "cat/x.doc": b""}
    )
    return first, second


def test_the_images_of_places_follow_each_other_and_equal_names_are_one_class(tmp_path):
    several = folders(tmp_path)
    source = open_source("folder", "", f"({', '.join(several)})")
    every = np.arange(4)
    assert source.read(every[::-1]).tolist() == CONTENTS[3::-1]
    assert source.classes == ("cat", "dog", "bird")
    np.testing.assert_array_equal(source.labels(every), [0, 1, 2, 0])
    np.testing.assert_array_equal(source.labels(np.asarray([3, 1])), [0, 1])
    assert source.names(every) == ["a/cat/1.jpg", "a/dog/2.jpg", "b/bird/1.jpg", "b/cat/1.jpg"]
    assert source.name(3) == f"{several[1]}/cat/1.jpg"
    assert remarks_of(source) == [
        f"data_dir={several[1]}: 1 other files there are left out, by their ending: 1 .doc"
    ]
    lone = write(tmp_path / "c", {"x.jpg": CONTENTS[4], "gone.jpg": b""})
    os.remove(f"{lone}/gone.jpg")
    os.symlink("nothing", f"{lone}/gone.jpg")
    source = open_source("folder", "", repr((lone, several[0])))
    np.testing.assert_array_equal(source.labels(np.arange(4)), [-1, -1, 0, 1])
    assert refusals.why(source, 0) == "no such file or directory"


def test_records_of_each_place_are_what_they_are_there(tmp_path):
    for place, called in (("a", "cat dog"), ("b", "dog bird")):
        (tmp_path / place).mkdir()
        records = [example(CONTENTS[n], f"{n}", n, name) for n, name in enumerate(called.split())]
        records_to(tmp_path / place / "x.tfrecord", records)
    source = open_source("tfrecord", "", f"({tmp_path}/a, {tmp_path}/b)", str(tmp_path / "index"))
    assert [sound for _, sound in decoded(source)] == [True] * 4
    assert source.read(np.arange(4)).tolist() == [*CONTENTS[:2], *CONTENTS[:2]]
    np.testing.assert_array_equal(source.labels(np.arange(4)), [0, 1, 1, 2])
    assert source.classes == ("cat", "dog", "bird")
    assert source.names(np.asarray([2])) == ["b/0"]
    assert source.name(2).startswith(f"{tmp_path}/b: 0: b example 0")
    assert len(os.listdir(tmp_path / "index")) == 2


def test_classes_that_are_numbers_stay_so_and_go_with_no_names(tmp_path):
    for place, number in (("a", 3), ("b", 10**12)):
        (tmp_path / place).mkdir()
        tar(tmp_path / place / "x.tar", [("1.jpg", CONTENTS[0]), ("1.cls", b"%d" % number)])
    source = open_source("tar", "", f"({tmp_path}/a, {tmp_path}/b)")
    np.testing.assert_array_equal(source.labels(np.arange(2)), [3, 10**12])
    assert source.classes == ()
    for place, named in (("c", "cat"), ("d", "")):
        (tmp_path / place).mkdir()
        records_to(tmp_path / place / "x.tfrecord", [example(CONTENTS[0], "1", 0, named)])
    mixed = open_source("tfrecord", "", f"({tmp_path}/c, {tmp_path}/d)")
    with pytest.raises(UserError, match=r"classes of .*/c have names, those of .*/d are numbers"):
        mixed.labels(np.arange(2))


def test_a_place_that_counts_twice_is_refused_in_one_line(tmp_path):
    several = folders(tmp_path)
    a, b = several
    os.symlink(a, tmp_path / "link")
    tar(tmp_path / "x-0.tar", [("1.jpg", CONTENTS[0])])
    wrong = {
        f"({a}, {b}, {a}/)": ("folder", "a/ is given twice, also as .*a; leave one"),
        f"({a}, {tmp_path}/link)": ("folder", "link is given twice, also as"),
        f"({b}/cat, {b})": ("folder", "b/cat lies inside .*/b, so that its images would count tw"),
        f"({tmp_path}, {a})": ("folder", "/a lies inside"),
        f"({tmp_path}/x-0.tar, {tmp_path}/x-*.tar)": ("tar", r"x-0\.tar is given twice"),
        f"({a}, {tmp_path}/none)": ("folder", "data_dir=.*/none is no folder"),
        "(x, y)": ("tfds:mnist", r"names 2 places, and dataset='tfds:mnist' has one"),
    }
    for text, (kind, message) in wrong.items():
        with pytest.raises(UserError, match=message) as raised:
            open_source(kind, "train", text)
        assert "\n" not in str(raised.value)


def test_the_fingerprint_is_that_of_all_places_in_their_order(tmp_path):
    several = folders(tmp_path)
    found = fingerprint.of(open_source("folder", "", repr(several)))
    assert found["images"] == 4
    moved = [shutil.copytree(place, tmp_path / "other" / place[-1]) for place in several]
    assert fingerprint.of(open_source("folder", "", f"({moved[0]}, {moved[1]})")) == found
    turned = fingerprint.of(open_source("folder", "", repr(several[::-1])))
    assert "other names, order" in fingerprint.difference(found, turned)
    os.rename(f"{moved[1]}/cat/1.jpg", f"{moved[1]}/cat/2.jpg")
    other = fingerprint.of(open_source("folder", "", f"({moved[0]}, {moved[1]})"))
    assert "other names, order" in fingerprint.difference(found, other)


def test_a_bucket_and_a_disk_are_two_places_and_packed_into_one(tmp_path, network):
    first, _ = folders(tmp_path)
    for name, content in {"cat/7.jpg": CONTENTS[2], "cow/8.jpg": b"words"}.items():
        storage.write(f"gs://bucket/joined/{name}", content)
    text = f"({first}, gs://bucket/joined)"
    source = open_source("folder", "", text)
    assert source.read(np.arange(4)).tolist() == [*CONTENTS[:3], b"words"]
    plan = packing.make_plan(text, str(tmp_path / "out"), 1, "tfrecord")
    packing.pack(plan, lambda *_: None)
    assert packing.damaged_names(plan) == ["joined/cow/8.jpg"]
    packed = open_source("tfrecord", "", str(tmp_path / "out"))
    np.testing.assert_array_equal(packed.labels(np.arange(3)), [0, 1, 0])
    assert packed.names(np.arange(3)) == ["a/cat/1.jpg", "a/dog/2.jpg", "joined/cat/7.jpg"]
    # The same command goes on, another one is refused.
    packing.pack(packing.make_plan(text, str(tmp_path / "out"), 1, "tfrecord"), lambda *_: None)
    with pytest.raises(UserError, match="holds shards of another packing"):
        packing.pack(packing.make_plan(first, str(tmp_path / "out"), 1, "tfrecord"), print)
