"""Classes of two sets are matched by what is known of them; what is left out is counted."""

import shutil

import numpy as np
import pytest

from moco_jax.base.errors import UserError
from moco_jax.data.packing import example, make_plan, pack
from moco_jax.data.sources import open_source
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.labels import MISSING
from moco_jax.data.sources.memory import ArraySource
from moco_jax.data.sources.tfrecord import TFRecordSource
from moco_jax.evaluation import knn
from moco_jax.evaluation.classes import Side, match, match_sources
from moco_jax.evaluation.labelled import Part, labelled
from tests.data.pictures import encoded, opened, write
from tests.data.sources.test_tfrecord import records_to

COLOURS = {name: 20 + 23 * np.asarray([n % 3, n // 3, 9 - n]) for n, name in enumerate("abcdefgh")}
MANY = range(24)


def picture(name, rng):
    """A PNG of class `name`, whose mean colour tells it from all others."""
    pixels = COLOURS[name] + rng.integers(-4, 5, (6, 6, 3))
    return encoded("PNG", pixels=np.clip(pixels, 0, 255).astype(np.uint8))


def folder(place, counts, rng):
    return write(
        place,
        {
            f"{name}/{n}.png": picture(name, rng)
            for name, count in counts.items()
            for n in range(count)
        },
    )


def packed(place, images, kind):
    """A folder as shards: 'new', 'old' (names beside them alone), 'bare' (in records alone)."""
    pack(make_plan(images, str(place), 1, "tfrecord"), lambda *_: None)
    if kind == "bare":
        (place / "pack.json").unlink()
    if kind == "old":
        source = TFRecordSource(str(place))
        numbers, count = source.labels(np.arange(len(source))), np.arange(len(source))
        old = [
            example(source.encoded(record), name, number)
            for record, name, number in zip(
                source.read(count), source.names(count), numbers, strict=True
            )
        ]
        records_to(place / "images-00000-of-00001.tfrecord", old)
    return str(place)


def features(source, indices):
    """Mean colours float64 `[n, 3]` and one more, so that they differ in direction."""
    records = source.read(indices)
    colours = [opened(source.encoded(record)).mean((0, 1)) for record in records]
    return np.asarray(colours) - 100


def random_side(rng, names):
    known = sorted(rng.choice(list(names), rng.integers(2, len(names) + 1), replace=False).tolist())
    numbers = rng.integers(-1, len(known), rng.integers(3, 30))
    return Side(numbers, known)


def names_of(side):
    return np.asarray([side.names[n] if n >= 0 else "" for n in side.numbers.tolist()])


@pytest.mark.parametrize("seed", MANY)
def test_equal_names_are_one_class_and_missing_labels_none(seed):
    rng = np.random.default_rng(seed)
    ours, theirs = random_side(rng, "abcdefgh"), random_side(rng, "abcdefgh")
    found = match(ours, theirs, one_set=False)
    one, two = names_of(ours), names_of(theirs)
    same = (found.train[:, None] == found.test) & (found.train[:, None] >= 0)
    np.testing.assert_array_equal(same, (one[:, None] == two) & (one != "")[:, None])
    for numbers, names in ((found.train, one), (found.test, two)):
        np.testing.assert_array_equal(numbers == MISSING, names == "")
        assert [found.called[n] for n in numbers[numbers >= 0]] == names[names != ""].tolist()
    assert found.by_name
    assert found.called[: len(ours.names)] == ours.names  # a classifier's outputs keep their order
    assert {found.called[n] for n in found.strange} == set(two) - set(ours.names) - {""}
    assert {found.called[n] for n in found.unlearnt} == set(two) - set(one) - {""}


@pytest.mark.parametrize("seed", MANY)
def test_classes_without_names_are_never_those_with_names(seed):
    rng = np.random.default_rng(seed)
    named, other = random_side(rng, "abcdefgh"), random_side(rng, "abcdefgh")
    named = Side(named.numbers, [str(n) for n in range(len(named.names))])  # called as numbers are
    bare = Side(other.numbers, ["", ""] if seed % 2 else [])
    for pair in ((named, bare), (bare, named)):
        found = match(*pair, one_set=False)
        assert not set(found.train[found.train >= 0]) & set(found.test[found.test >= 0])


@pytest.mark.parametrize("seed", MANY)
def test_numbers_alone_are_matched_by_number_however_large(seed):
    rng = np.random.default_rng(seed)
    pool = np.concatenate([[MISSING], rng.integers(0, 2**62, 5)])
    one, two = rng.choice(pool, 20), rng.choice(pool, 30)
    found = match(Side(one, ()), Side(two, []), one_set=False)
    same = (found.train[:, None] == found.test) & (found.train[:, None] >= 0)
    np.testing.assert_array_equal(same, (one[:, None] == two) & (one >= 0)[:, None])
    assert len(found.called) == len(set(one.tolist()) | set(two.tolist()) - {-1} | set()) - int(
        (one < 0).any()
    )
    assert not found.by_name


@pytest.mark.parametrize("seed", MANY)
def test_packed_sets_that_lack_classes_are_scored_by_name_or_refused(tmp_path, seed):
    """Whichever classes each has, and however its shards know their names."""
    rng = np.random.default_rng(seed)
    ours, theirs = (
        sorted(rng.choice(list("abcdefgh"), size, replace=False))
        for size in (rng.integers(2, 9), rng.integers(1, 5))
    )
    counts = [{str(name): int(rng.integers(1, 4)) for name in names} for names in (ours, theirs)]
    kinds = ("new", "old", "bare")
    train, test = (
        Part(source, np.arange(len(source)), about)
        for source, about in (
            (
                TFRecordSource(
                    packed(
                        tmp_path / f"{n}",
                        folder(tmp_path / f"images{n}", count, rng),
                        kinds[(seed + n * (seed // 3)) % 3],
                    )
                ),
                "TRAIN" if n == 0 else "TEST",
            )
            for n, count in enumerate(counts)
        )
    )
    strange = sorted(set(theirs) - set(ours))
    if strange:
        with pytest.raises(
            UserError,
            match=f"TRAIN and TEST have different classes: .*learnt of {', '.join(strange[:5])}",
        ):
            labelled(train, test)
        return
    learnt, tested, said = labelled(train, test)
    assert (learnt.number, tested.number) == (len(ours), len(ours))
    found = knn.classify(
        features(train.source, learnt.indices),
        learnt.classes,
        features(test.source, tested.indices),
        1,
        0.1,
    )
    np.testing.assert_array_equal(found, tested.classes)
    told = [tested.called[n] for n in tested.classes.tolist()]
    assert told == [name for name, count in counts[1].items() for _ in range(count)]
    lacking = [name for name in ours if name not in theirs]
    assert (
        any(line.startswith(f"TEST has no image of {lacking[0]}") for line in said) or not lacking
    )


def test_shards_that_lost_their_names_are_not_compared_with_those_that_have_them(tmp_path):
    rng = np.random.default_rng(0)
    images = folder(tmp_path / "images", {"a": 2, "b": 2}, rng)
    new = TFRecordSource(packed(tmp_path / "new", images, "new"))
    packed(tmp_path / "old", images, "old")
    (tmp_path / "old" / "pack.json").unlink()
    old = TFRecordSource(str(tmp_path / "old"))
    every = np.arange(4)
    for pair in ((new, old), (old, new)):
        with pytest.raises(
            UserError, match="the classes of OLD are numbers without names, and those of the other"
        ):
            labelled(*(Part(source, every, "OLD" if source is old else "NEW") for source in pair))
    _, _, said = labelled(
        Part(old, every, "OLD"), Part(TFRecordSource(str(tmp_path / "old")), every, "SAME")
    )
    assert said == [
        "the classes of OLD and SAME are numbers without names: the same number is taken for the "
        "same class"
    ]


def test_shards_of_two_packings_in_one_folder_keep_their_classes(tmp_path):
    """The number 1 is 'b' in one and 'c' in the other."""
    rng = np.random.default_rng(0)
    for n, counts in enumerate(({"a": 1, "b": 1}, {"a": 1, "c": 1})):
        out = packed(tmp_path / f"{n}", folder(tmp_path / f"images{n}", counts, rng), "bare")
        shutil.copy(f"{out}/images-00000-of-00001.tfrecord", tmp_path / f"both-{n}.tfrecord")
    source = TFRecordSource(f"{tmp_path}/both-*.tfrecord")
    numbers = source.labels(np.arange(4))
    assert [source.classes[n] for n in numbers.tolist()] == ["a", "b", "a", "c"]


def numbered(numbers, label, classes=()):
    return ArraySource(
        np.zeros((len(numbers), 4, 4, 3), np.uint8), np.asarray(numbers), label, classes=classes
    )


def parts_of(train, test, classes=()):
    one, two = numbered(train, "one", classes), numbered(test, "two", classes)
    return Part(one, np.arange(len(train)), "TRAIN"), Part(two, np.arange(len(test)), "TEST")


@pytest.mark.parametrize("seed", MANY)
def test_images_without_a_label_are_left_out_and_counted(seed):
    rng = np.random.default_rng(seed)
    train, test = (np.concatenate([[0, 1], rng.integers(-1, 3, 20)]) for _ in range(2))
    learnt, tested, said = labelled(*parts_of(train, test, "abc"))
    for found, numbers in ((learnt, train), (tested, test)):
        np.testing.assert_array_equal(found.indices, np.flatnonzero(numbers >= 0))
        np.testing.assert_array_equal(found.classes, numbers[numbers >= 0])
        assert found.unlabelled == (numbers < 0).sum()
        line = f"{found.about}: {found.unlabelled} of 22 images have no label and are left out"
        assert (line in said) == bool(found.unlabelled)


def test_classes_that_no_training_image_has_count_as_wrong_and_are_named():
    train, test = parts_of([0, 1, 0], [1, 2, 2, -1], "abc")
    _, tested, said = labelled(train, test)
    assert tested.classes.tolist() == [1, 2, 2]
    assert (
        "TEST: 2 of 3 images are of a class of which there is no training image, and count as "
        "wrong: c" in said
    )
    whole = numbered([0, 1, 0, 2], "one")  # and where a part is set apart of one set
    _, tested, said = labelled(Part(whole, np.arange(3), "X"), Part(whole, np.asarray([3]), "Y"))
    assert said == [
        "Y: 1 of 1 images are of a class of which there is no training image, and count as wrong: 2"
    ]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            [-1] * 4,
            [0, 1],
            r"TRAIN has no labels \(-1, or none, at each of its 4 images\), which",
        ),
        ([0, 1], [-1], r"TEST has no labels \(-1, or none, at each of its 1 images\)"),
        (
            [1, 1, -1],
            [0, 1],
            "TRAIN has no labels that an evaluation could tell apart: all are of one class, 'b'",
        ),
    ],
)
def test_sets_without_labels_are_refused_in_one_line(train, test, message):
    with pytest.raises(UserError, match=message):
        labelled(*parts_of(train, test, "ab"))


def test_a_test_folder_of_one_class_is_scored(tmp_path):
    rng = np.random.default_rng(0)
    train = FolderSource(folder(tmp_path / "train", {"a": 2, "b": 2, "c": 2}, rng))
    test = FolderSource(folder(tmp_path / "test", {"b": 3}, rng))
    _, tested, said = labelled(Part(train, np.arange(6), "TRAIN"), Part(test, np.arange(3), "TEST"))
    assert [tested.called[n] for n in tested.classes] == ["b"] * 3
    assert said == ["TEST has no image of a, c, of which there are training images"]
    other = FolderSource(folder(tmp_path / "other", {"d": 3}, rng))
    with pytest.raises(
        UserError,
        match=r"different classes: a, b, c, d are in one alone\. Nothing is learnt of d: take",
    ):
        labelled(Part(train, np.arange(6), "TRAIN"), Part(other, np.arange(3), "TEST"))
    parts = FolderSource(write(tmp_path / "parts", {"train/a/1.png": b"", "val/a/1.png": b""}))
    with pytest.raises(
        UserError, match=r"TEST has no labels, .*nothing but train, val, parts of a set"
    ):
        labelled(Part(train, np.arange(6), "TRAIN"), Part(parts, np.arange(2), "TEST"))


def test_a_source_of_another_kind_is_matched_too(tmp_path):
    """Names tell classes apart, wherever they come from: folders beside shards."""
    rng = np.random.default_rng(0)
    train = open_source("folder", "", folder(tmp_path / "train", {"a": 1, "b": 1, "c": 1}, rng))
    test = TFRecordSource(
        packed(tmp_path / "out", folder(tmp_path / "test", {"a": 1, "c": 1}, rng), "new")
    )
    found = match_sources(train, np.arange(3), test, np.arange(2))
    assert (found.train.tolist(), found.test.tolist()) == ([0, 1, 2], [0, 2])
