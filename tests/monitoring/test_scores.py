"""The score of a run counts labelled images alone, and says what it leaves out."""

import dataclasses

import numpy as np
import pytest

from moco_jax.data.sources.memory import ArraySource
from moco_jax.evaluation import knn
from moco_jax.monitoring import signals
from moco_jax.monitoring.scores import Monitor
from tests.monitoring.test_neighbours import BANK, QUERIES, monitor_of

NAMES = ("ant", "bee", "cat", "dog")


@dataclasses.dataclass
class OfPixels(Monitor):
    """A monitor whose features are the pixels; so many searched images are `damaged`."""

    damaged: int = 0

    def features(self, encode, query_indices=None):
        asked = self.query_indices if query_indices is None else query_indices
        searched = self.bank_indices[self.damaged :]
        return pixels(self.bank, searched), searched, pixels(self.queries, asked), asked


def pixels(source, indices):
    return source.images[indices].reshape(len(indices), source.images[0].size) / 127.5 - 1


def relabelled(source, numbers, classes=()):
    return ArraySource(source.images, np.asarray(numbers), source.label, classes=classes)


@pytest.fixture(scope="module")
def monitor():
    made = monitor_of(devices=1)
    return OfPixels(**{f.name: getattr(made, f.name) for f in dataclasses.fields(made)})


def changed(monitor, bank, queries, of_bank=(), of_queries=()):
    return dataclasses.replace(
        monitor,
        bank=relabelled(monitor.bank, bank, of_bank),
        queries=relabelled(monitor.queries, queries, of_queries),
        _remarks=[],
        _announced=0,
    )


def numbers_of(monitor):
    return monitor.bank.labels(np.arange(BANK)), monitor.queries.labels(np.arange(QUERIES))


@pytest.mark.filterwarnings("error")
def test_queries_that_are_all_damaged_are_said_and_give_no_score(monitor):
    none = dataclasses.replace(
        monitor, query_indices=np.arange(0), _remarks=[], _announced=0, damaged=3
    )
    numbers, found = none.measure(None)
    assert numbers == {}
    assert none.new_remarks() == ["no score: none of the query images can be decoded"]
    assert found.nearest.shape == (0, 6)
    assert len(found.queries) == 0
    assert len(found.sample) == len(found.features) > 0
    assert none.raw_pixels() == {}
    assert none.new_remarks() == []


@pytest.mark.parametrize("seed", range(20))
def test_images_without_a_label_change_no_score_and_are_counted(monitor, seed):
    """The score is that of the labelled images alone; the neighbours are found among all."""
    rng = np.random.default_rng(seed)
    bank, queries = (numbers.copy() for numbers in numbers_of(monitor))
    # Few different numbers, as each compiles a program.
    bank[3 + rng.permutation(BANK - 3)[:40]] = -1
    queries[rng.permutation(QUERIES)[: 9 * (seed % 2)]] = -1
    holed = changed(monitor, bank, queries)
    numbers, found = holed.measure(None)
    alone = dataclasses.replace(
        holed,
        bank_indices=np.flatnonzero((bank >= 0) & (np.arange(BANK) > 2)),
        query_indices=np.flatnonzero(queries >= 0),
        _remarks=[],
        _announced=0,
    )
    assert numbers["knn"] == alone.measure(None)[0]["knn"]
    np.testing.assert_array_equal(found.nearest, monitor.find_neighbours(None).nearest)
    lacking = (
        f"87 searched images: {(bank[3:] < 0).sum()} without",
        f"24 images to be classified: {(queries < 0).sum()} without",
    )
    said = holed.new_remarks()
    for words, count in zip(lacking, ((bank[3:] < 0).sum(), (queries < 0).sum()), strict=True):
        assert any(words in line for line in said) == bool(count)
    assert not any("leaves out" in line for line in alone.new_remarks())
    holed.measure(None)
    assert holed.new_remarks() == []


def test_labels_that_are_all_missing_are_none(monitor):
    for bank, queries in (
        ([-1] * BANK, numbers_of(monitor)[1]),
        (numbers_of(monitor)[0], [-1] * QUERIES),
    ):
        numbers, found = changed(monitor, bank, queries).measure(None)
        assert "knn" not in numbers
        assert numbers["feature_spread"] > 0
        np.testing.assert_array_equal(found.nearest, monitor.find_neighbours(None).nearest)


@pytest.mark.parametrize("seed", range(20))
def test_queries_that_number_their_classes_otherwise_are_scored_by_name(monitor, seed):
    rng = np.random.default_rng(seed)
    bank, queries = numbers_of(monitor)
    order = rng.permutation(4)
    expected = changed(monitor, bank, queries, NAMES, NAMES).measure(None)[0]["knn"]
    other = changed(monitor, bank, np.argsort(order)[queries], NAMES, [NAMES[n] for n in order])
    assert other.measure(None)[0]["knn"] == expected
    assert other.new_remarks() == []


def test_what_cannot_be_scored_is_said(monitor):
    bank, queries = numbers_of(monitor)
    one = changed(monitor, np.zeros_like(bank), queries, NAMES, NAMES)
    assert "knn" not in one.measure(None)[0]
    assert one.new_remarks() == ["no kNN: all labels are of one class, 'ant'"]
    nameless = changed(monitor, bank, queries, NAMES)
    assert "knn" not in nameless.measure(None)[0]
    assert nameless.new_remarks() == [
        "no kNN: no query image belongs to a class of the searched images"
    ]
    fewer = changed(monitor, np.minimum(bank, 1), queries, NAMES, NAMES)
    fewer.measure(None)
    lost = (queries > 1).sum()
    assert fewer.new_remarks() == [
        f"kNN counts {lost} of {QUERIES} images as wrong, as none of their class is searched: "
        "cat, dog"
    ]


def test_damaged_images_are_counted_too(monitor):
    some = changed(monitor, *numbers_of(monitor))
    some.damaged = 3
    some.measure(None)
    assert some.new_remarks() == ["kNN leaves out, of 87 searched images: 3 damaged"]


def test_few_queries_do_not_look_like_a_collapse(monitor):
    """Of one image alone a spread is 0 and a rank 1, whatever the encoder: searched ones help."""
    one = dataclasses.replace(monitor, query_indices=np.arange(1))
    numbers, whole = one.measure(None)[0], pixels(monitor.bank, monitor.bank_indices)
    some = knn.unit(np.concatenate([pixels(monitor.queries, np.arange(1)), whole]))
    assert numbers["feature_spread"] == pytest.approx(np.sqrt(1 - np.sum(some.mean(0) ** 2)))
    assert numbers["effective_rank"] == pytest.approx(signals.effective_rank(some))
    assert numbers["effective_rank"] > 3
