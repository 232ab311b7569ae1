"""Subsets of the labels: balanced, inside one another, the same each time, or as a file lists."""

import numpy as np
import pytest

from moco_jax.base.errors import UserError
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.memory import ArraySource
from moco_jax.evaluation import subsets
from moco_jax.evaluation.images import Labelled
from tests.data.pictures import write


def made_up(counts=(40, 300, 61, 99)):
    classes = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    source = ArraySource(np.zeros((len(classes), 1, 1, 3), np.uint8), classes, "some")
    # Every other image of a larger source, so that places and indices differ.
    return Labelled(source, 2 * np.arange(len(classes)), classes, "some")


def counts_of(images):
    return np.bincount(images.classes, minlength=4)


def test_shares_are_balanced_nested_and_the_same_each_time():
    images = made_up()
    before = set()
    for percent, smallest in ((1, 1), (5, 6), (10, 12), (30, 37), (60, 40), (100, 40)):
        some = subsets.share(images, percent, 7)
        counts = counts_of(some)
        assert counts.sum() == len(some.indices) == round(5 * percent)
        # A class has as many as the largest, but for one, unless it has no more.
        has_more = counts < counts_of(images)
        assert np.all(counts.max() - counts[has_more] <= 1)
        assert counts.min() == smallest
        np.testing.assert_array_equal(some.classes, images.classes_of(some.indices))
        assert before <= set(some.indices.tolist())
        before = set(some.indices.tolist())
        np.testing.assert_array_equal(subsets.share(images, percent, 7).indices, some.indices)
    assert before == set(images.indices.tolist())
    other = subsets.share(images, 10, 8)
    assert len(set(other.indices) & set(subsets.share(images, 10, 7).indices)) < 30


def test_a_share_is_pinned():
    """The subset of a seed is fixed for good: published figures hang on it."""
    found = subsets.turns(np.asarray([0, 1, 2] * 4), 0)
    assert found.tolist() == [9, 2, 10, 6, 11, 7, 1, 8, 0, 5, 3, 4]


def test_a_class_that_would_be_empty_is_named_with_the_share_that_works():
    images = made_up()
    says = (
        r"leaves 2 of 500 images, and none of class \d; "
        r"4 classes need at least --labels=0\.8$"
    )
    with pytest.raises(UserError, match=says):
        subsets.share(images, 0.4, 0)
    assert counts_of(subsets.share(images, 0.8, 0)).tolist() == [1, 1, 1, 1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    names = [f"{kind}/{kind}_{n}.png" for kind in ("cat", "dog") for n in range(3)]
    names += [f"{kind}/own.png" for kind in ("cat", "dog")]
    root = write(tmp_path_factory.mktemp("pictures"), dict.fromkeys(names, b""))
    source = FolderSource(str(root))
    indices = np.arange(len(source))
    return Labelled(source, indices, np.asarray(source.labels(indices)), "pets")


def listed(pictures, folder, text):
    (folder / "list.txt").write_text(text)
    return subsets.listed(pictures, str(folder / "list.txt"))


def test_a_list_names_files_by_the_end_of_their_paths(pictures, tmp_path):
    some = listed(pictures, tmp_path, "dog_2.png\n\ncat_0.png\r\ncat/own.png\ndog_2.png\n")
    names = [pictures.source.name(index).split("/")[-2:] for index in some.indices]
    assert names == [["cat", "cat_0.png"], ["cat", "own.png"], ["dog", "dog_2.png"]]
    assert some.classes.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat_0.png\nemu_1.png\nox.png", r"2 of 3 names are none of pets, the first is emu_1\.png"),
        ("own.png", r"own\.png is the name of several images .* cat/own\.png and dog/own\.png"),
        ("t_0.png", r"1 of 1 names are none"),
        ("\n \n", "is empty"),
    ],
)
def test_lists_that_do_not_fit_are_refused(pictures, tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        listed(pictures, tmp_path, text)


def test_images_of_other_names_and_missing_lists_are_refused(pictures, tmp_path):
    with pytest.raises(UserError, match="are called like some image 0"):
        listed(made_up(), tmp_path, "cat_0.png")
    with pytest.raises(UserError, match="is no text file"):
        subsets.listed(pictures, f"{tmp_path}/none.txt")
