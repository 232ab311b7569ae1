"""A missing label is one in every source; a class number comes through whole or is refused."""

import numpy as np
import pytest
import tensorflow as tf

from moco_jax.base.errors import UserError
from moco_jax.data.packing import example, make_plan, pack
from moco_jax.data.sources import arrayrecord, labels, open_source, remarks_of
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.memory import ArraySource
from moco_jax.data.sources.tar import TarSource
from moco_jax.data.sources.tfrecord import TFRecordSource
from tests.data.pictures import encoded, write
from tests.data.sources.test_tar import tar
from tests.data.sources.test_tfrecord import records_to

KINDS = ("memory", "tfrecord", "arrayrecord", "tar", "list", "packed")
SMALL = encoded("PNG", pixels=np.full((4, 4, 3), 7, np.uint8))


def source_of(kind, place, numbers):
    """A source whose images have these class numbers; -1 is written, or left away."""
    if kind == "memory":
        return ArraySource(np.zeros((len(numbers), 4, 4, 3), np.uint8), np.asarray(numbers), "some")
    if kind == "tar":
        members = []
        for n, number in enumerate(numbers):
            members.append((f"{n:03}.png", SMALL))
            if number >= 0 or n % 2:
                members.append((f"{n:03}.cls", b"%d\n" % number))
        return TarSource(tar(place / "x.tar", members))
    if kind in ("list", "packed"):
        write(place, {f"{n}.png": SMALL for n in range(len(numbers))})
        lines = [f"{n}.png\t{'' if c < 0 else f'class {c:03}'}\n" for n, c in enumerate(numbers)]
        (place / "list.txt").write_text("".join(lines))
        if kind == "list":
            return FolderSource(str(place / "list.txt"))
        pack(make_plan(str(place / "list.txt"), str(place / "out"), 2, "tfrecord"), lambda *_: None)
        return TFRecordSource(str(place / "out"))
    written = [
        example(SMALL, f"{n}", None if c < 0 and n % 2 else c) for n, c in enumerate(numbers)
    ]
    if kind == "tfrecord":
        return TFRecordSource(records_to(place / "x.tfrecord", written))
    pytest.importorskip("array_record", reason="pip install '.[arrayrecord]'")
    file = arrayrecord.writer(str(place / "x.array_record"))
    for record in written:
        file.write(record)
    file.close()
    return open_source("arrayrecord", "", str(place / "x.array_record"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_a_missing_label_is_missing_in_every_kind_of_source(tmp_path, kind, seed):
    """Whether it is written as -1 or not at all, first or last; all others keep their class."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 5, 12)
    numbers[rng.permutation(12)[: rng.integers(1, 11)]] = -1
    numbers[0 if seed % 2 else -1] = -1
    source = source_of(kind, tmp_path, numbers.tolist())
    found = labels.known(source, np.arange(12))
    np.testing.assert_array_equal(found < 0, numbers < 0)
    told = [labels.called(source.classes, number) for number in found.tolist()]
    written = "class {:03}" if kind in ("list", "packed") else "{}"
    assert told == ["" if c < 0 else written.format(c) for c in numbers.tolist()]
    some = rng.permutation(12)[:5]
    np.testing.assert_array_equal(labels.known(source, some), found[some])


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_whose_labels_are_all_missing_has_none(tmp_path, kind):
    source = source_of(kind, tmp_path, [-1] * 5)
    assert labels.known(source, np.arange(5)) is None


LARGE = [2**31 - 1, 2**31, 2**32, 2**32 - 1, 2**40, 2**53 + 1, 2**63 - 1]
LARGE += np.random.default_rng(0).integers(2**31, 2**63 - 1, 20).tolist()


@pytest.mark.parametrize("kind", ["memory", "tfrecord", "tar"])
def test_class_numbers_of_any_size_come_through_whole(tmp_path, kind):
    source = source_of(kind, tmp_path, LARGE)
    assert source.labels(np.arange(len(LARGE))).tolist() == LARGE


@pytest.mark.parametrize("number", [-2, -3, -100, -(2**31), -(2**32) - 1, -(2**63) + 1, -(2**63)])
def test_numbers_below_the_missing_one_are_refused_by_their_place(tmp_path, number):
    path = records_to(
        tmp_path / "x.tfrecord", [example(SMALL, "a", 3), example(SMALL, "b", number)]
    )
    with pytest.raises(UserError, match=rf"b: x\.tfrecord example 1 .* has the class {number};"):
        TFRecordSource(path).labels(np.arange(2))
    with pytest.raises(UserError, match=f"some image 1 has the class {number}; a class is"):
        ArraySource(np.zeros((2, 4, 4, 3), np.uint8), np.asarray([0, number]), "some")
    with pytest.raises(UserError, match=rf"x\.tar: b\.cls holds b'{number}'"):
        TarSource(tar(tmp_path / "x.tar", [("b.png", SMALL), ("b.cls", b"%d" % number)]))


def test_unsigned_and_other_types_of_numbers_are_no_other_classes():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    for kind in (np.uint8, np.uint16, np.int8, np.uint64, np.bool_):
        source = ArraySource(images, np.asarray([1, 0], kind), "some")
        assert source.labels(np.arange(2)).tolist() == [1, 0]
    for numbers in (np.asarray([0, 2**63], np.uint64), np.asarray([0.0, 1.0])):
        with pytest.raises(UserError, match="a class is a number from 0 to"):
            ArraySource(images, numbers, "some")


NO_CLASS = [
    b"",
    b" ",
    b"\n",
    b"-",
    b"--1",
    b"-2",
    b"-3",
    b"-01",
    b"+7",
    b"7.0",
    b"7e0",
    b"0x7",
    b"1_000",
    b"7 8",
    b"7\n8",
    b"cat",
    b"7\0",
    b"\xff",
    "\u0663".encode(),
    b"9" * 20,
    b"9" * 23,
    b"9" * 5000,
    b" " * 10_000 + b"7",
    str(2**63).encode(),
]


@pytest.mark.parametrize("content", NO_CLASS, ids=range(len(NO_CLASS)))
def test_a_cls_that_holds_no_class_is_refused_by_its_member(tmp_path, content):
    path = tar(tmp_path / "x.tar", [("d/1.png", SMALL), ("d/1.cls", content)])
    with pytest.raises(UserError, match=r"x\.tar: d/1\.cls holds b['\"]") as refused:
        TarSource(path)
    assert len(str(refused.value)) < 300 + len(str(tmp_path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"7", b"7\n", b" 007\r\n", b"-1", b"0", b"%d" % (2**63 - 1)])
def test_a_cls_of_a_class_is_read(tmp_path, content):
    path = tar(
        tmp_path / "x.tar",
        [("0.png", SMALL), ("0.cls", b"5"), ("1.png", SMALL), ("1.cls", content)],
    )
    assert TarSource(path).labels(np.arange(2)).tolist() == [5, int(content)]


def test_an_index_of_an_older_version_is_made_anew(tmp_path):
    path = tar(tmp_path / "x.tar", [("0.png", SMALL), ("0.cls", b"5")])
    TarSource(path, str(tmp_path / "index"))
    (kept,) = (tmp_path / "index").iterdir()
    with np.load(kept) as saved:
        old = {name: saved[name] for name in saved.files}
    old |= {"signature": old["signature"][1:], "_label": np.asarray([-3])}
    np.savez(kept, **old)
    assert TarSource(path, str(tmp_path / "index")).labels(np.arange(1)).tolist() == [5]


def test_a_label_that_not_the_first_record_has_is_found(tmp_path):
    written = [example(SMALL, "a", None)] * 30 + [example(SMALL, "b", 2)] * 10
    source = TFRecordSource(records_to(tmp_path / "x.tfrecord", written))
    assert source.labels(np.arange(40)).tolist() == [-1] * 30 + [2] * 10


def test_a_label_beyond_the_names_or_of_several_numbers_is_refused(tmp_path):
    packed = {"pack.json": b'{"classes": ["a", "b"]}'}
    write(tmp_path, packed)
    path = records_to(tmp_path / "x.tfrecord", [example(SMALL, "0", 1), example(SMALL, "1", 2)])
    source = TFRecordSource(path)
    assert source.labels(np.zeros(1, np.int64)).tolist() == [1]
    with pytest.raises(
        UserError, match=r"example 1 .* has class 2, but only 2 class names are known"
    ):
        source.labels(np.arange(2))
    several = tf.train.Example.FromString(example(SMALL, "1", 1))
    several.features.feature["label"].int64_list.value.append(0)
    path = records_to(
        tmp_path / "x.tfrecord", [example(SMALL, "0", 1), several.SerializeToString()]
    )
    with pytest.raises(UserError, match=r"1: x\.tfrecord example 1 .* no readable 'label'"):
        TFRecordSource(path).labels(np.arange(2))


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"{}", b'{"classes": 3}', b'{"classes": [1]}', b"\xff"]
)
def test_a_damaged_pack_json_is_named(tmp_path, content):
    write(tmp_path, {"pack.json": content})
    records_to(tmp_path / "x.tfrecord", [example(SMALL, "0", 1)])
    with pytest.raises(UserError, match=r"pack\.json is damaged"):
        TFRecordSource(str(tmp_path))


PARTS = [
    "train",
    "val",
    "test",
    "training",
    "Train",
    "TRAIN",
    "train2017",
    "val2017",
    "test_2015",
    "test-dev",
    "valid",
    "validation",
    "trainset",
    "testdata",
    "train_images",
    "images_train",
    "Images-Val",
    "unlabeled2017",
    "unlabelled",
    "eval",
    "holdout",
    "trainval",
    "dev",
    "extra",
    "train-01",
    "test set",
    "dataset_train",
    "split_test",
]
CLASSES = [
    "cat",
    "trains",
    "rain",
    "contrast",
    "images",
    "0",
    "n01440764",
    "latest",
    "evaluate",
    "devil",
    "train station",
    "test tube",
    "valley",
    "set",
    "data",
    "train_cat",
    "testudo",
    "extract",
    "protest",
    "detrain",
    "",
    "_",
]


@pytest.mark.parametrize("part", PARTS)
def test_folders_of_parts_are_no_classes_and_that_is_said(tmp_path, part):
    other = "test" if part != "test" else "train"
    for names in ([part], [part, other]):
        root = tmp_path / str(len(names))
        source = FolderSource(
            write(root, {f"{name}/cat/{n}.png": SMALL for name in names for n in range(2)})
        )
        assert source.labels(np.arange(len(source))) is None
        assert list(source.classes) == []
        (said,) = remarks_of(source)
        assert (
            f"{', '.join(sorted(names))}, parts of a set and no classes: all {2 * len(names)} "
            "images are taken" in said
        )
    kept = FolderSource(
        write(tmp_path / "kept", {f"{name}/1.png": SMALL for name in (part, "bus", "car")})
    )
    assert sorted([part, "bus", "car"]) == kept.classes
    assert remarks_of(kept) == []
    odd = FolderSource(
        write(tmp_path / "odd", {f"{name}/1.png": SMALL for name in (part, other, "car")})
    )
    assert sorted([part, other, "car"]) == odd.classes
    assert (
        f"among its classes are {', '.join(sorted([part, other]))}, which are called as parts"
        in remarks_of(odd)[0]
    )


@pytest.mark.parametrize("name", [name for name in CLASSES if name])
def test_other_folders_are_classes(tmp_path, name):
    source = FolderSource(write(tmp_path, {f"{name}/1.png": SMALL, "zebra/1.png": SMALL}))
    assert source.classes == sorted([name, "zebra"])
    assert remarks_of(source) == []


def test_images_that_all_lie_in_one_folder_are_of_one_class(tmp_path):
    source = FolderSource(write(tmp_path, {"cat/1.png": SMALL, "cat/deep/2.png": SMALL}))
    assert (source.classes, source.labels(np.arange(2)).tolist()) == (["cat"], [0, 0])


def test_a_number_without_a_name_is_called_by_its_number():
    assert [labels.called(["a", ""], n) for n in (-1, 0, 1, 2)] == ["", "a", "1", "2"]
    assert labels.called([], 7) == "7"
    assert labels.called(["a\nb"], 0) == r"a\nb"
