"""The score of a run counts labelled images alone, and says what it leaves out."""

import dataclasses

import numpy as np
import pytest

from moco_jax.data.sources.memory import ArraySource
from tests.report.test_neighbours import BANK, QUERIES, monitor_of, weights

NAMES = ("ant", "bee", "cat", "dog")


def relabelled(source, numbers, classes=()):
    return ArraySource(source.images, np.asarray(numbers), source.label, classes=classes)


@pytest.fixture(scope="module")
def monitor():
    return monitor_of(devices=1)


def changed(monitor, bank, queries, of_bank=(), of_queries=()):
    return dataclasses.replace(
        monitor,
        bank=relabelled(monitor.bank, bank, of_bank),
        queries=relabelled(monitor.queries, queries, of_queries),
        _said=[],
        _told=0,
    )


def numbers_of(monitor):
    return monitor.bank.labels(np.arange(BANK)), monitor.queries.labels(np.arange(QUERIES))


@pytest.mark.parametrize("seed", range(20))
def test_images_without_a_label_change_no_score_and_are_counted(monitor, seed):
    """The score is that of the labelled images alone; the neighbours are found among all."""
    rng = np.random.default_rng(seed)
    bank, queries = (numbers.copy() for numbers in numbers_of(monitor))
    # Few different numbers, as each compiles a program.
    bank[3 + rng.permutation(BANK - 3)[:40]] = -1
    queries[rng.permutation(QUERIES)[: 9 * (seed % 2)]] = -1
    holed = changed(monitor, bank, queries)
    numbers, found = holed.measure(weights(0))
    alone = dataclasses.replace(
        holed,
        bank_indices=np.flatnonzero((bank >= 0) & (np.arange(BANK) > 2)),
        query_indices=np.flatnonzero(queries >= 0),
        _said=[],
        _told=0,
    )
    assert numbers["knn"] == alone.measure(weights(0))[0]["knn"]
    np.testing.assert_array_equal(found.nearest, monitor.look(weights(0)).nearest)
    lacking = (
        f"87 searched images: {(bank[3:] < 0).sum()} without",
        f"24 images to be classified: {(queries < 0).sum()} without",
    )
    said = holed.news()
    for words, count in zip(lacking, ((bank[3:] < 0).sum(), (queries < 0).sum()), strict=True):
        assert any(words in line for line in said) == bool(count)
    assert not any("leaves out" in line for line in alone.news())
    holed.measure(weights(1))
    assert holed.news() == []


def test_labels_that_are_all_missing_are_none(monitor):
    for bank, queries in (
        ([-1] * BANK, numbers_of(monitor)[1]),
        (numbers_of(monitor)[0], [-1] * QUERIES),
    ):
        numbers, found = changed(monitor, bank, queries).measure(weights(0))
        assert "knn" not in numbers
        assert numbers["feature_spread"] > 0
        np.testing.assert_array_equal(found.nearest, monitor.look(weights(0)).nearest)


@pytest.mark.parametrize("seed", range(20))
def test_queries_that_number_their_classes_otherwise_are_scored_by_name(monitor, seed):
    rng = np.random.default_rng(seed)
    bank, queries = numbers_of(monitor)
    order = rng.permutation(4)
    expected = changed(monitor, bank, queries, NAMES, NAMES).measure(weights(0))[0]["knn"]
    other = changed(monitor, bank, np.argsort(order)[queries], NAMES, [NAMES[n] for n in order])
    assert other.measure(weights(0))[0]["knn"] == expected
    assert other.news() == []


def test_what_cannot_be_scored_is_said(monitor):
    bank, queries = numbers_of(monitor)
    one = changed(monitor, np.zeros_like(bank), queries, NAMES, NAMES)
    assert "knn" not in one.measure(weights(0))[0]
    assert one.news() == ["no kNN: all labels are of one class, 'ant'"]
    nameless = changed(monitor, bank, queries, NAMES)
    assert "knn" not in nameless.measure(weights(0))[0]
    assert nameless.news() == [
        "no kNN: no image that would be classified is of a class of those searched"
    ]
    fewer = changed(monitor, np.minimum(bank, 1), queries, NAMES, NAMES)
    fewer.measure(weights(0))
    lost = (queries > 1).sum()
    assert fewer.news() == [
        f"kNN counts {lost} of {QUERIES} images as wrong, as none of their class is searched: "
        "cat, dog"
    ]
