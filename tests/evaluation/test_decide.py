"""The largest score alone decides for a class; NaN and ties never count as right, anywhere."""

import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.evaluation import knn, linear
from moco_jax.evaluation.decide import UNDECIDED, decide
from moco_jax.evaluation.segmentation import scoring


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_ties_and_nan_are_no_class(seed, kind):
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 9))
    scores = rng.permuted(np.tile(np.arange(classes, dtype=np.float32), (12, 1)), axis=1)
    truth = scores.argmax(1)
    assert decide(kind(scores)).tolist() == truth.tolist()
    spoilt = scores.copy()
    for row in range(0, 12, 3):
        spoilt[row, rng.integers(classes)] = rng.choice([np.nan, classes - 1.0])
    spoilt[1] = rng.choice([np.nan, 0.0, np.inf, -np.inf])
    largest = [np.flatnonzero(row == row.max()) for row in spoilt]
    expected = [x[0] if len(x) == 1 else UNDECIDED for x in largest]
    assert decide(kind(spoilt)).tolist() == expected


def test_features_of_nan_classify_nothing():
    rng = np.random.default_rng(0)
    bank, labels = rng.normal(size=(40, 8)), rng.integers(0, 3, 40)
    queries = rng.normal(size=(20, 8))
    sound = knn.classify(bank, labels, queries, 5, 0.1)
    assert set(sound) <= {0, 1, 2}
    spoilt = queries.copy()
    spoilt[::2] = np.nan
    found = knn.classify(bank, labels, spoilt, 5, 0.1)
    assert (found[::2] == UNDECIDED).all()
    np.testing.assert_array_equal(found[1::2], sound[1::2])
    # A row of NaNs in the bank is nobody's neighbour.
    worse = np.concatenate([bank, np.full((3, 8), np.nan)])
    np.testing.assert_array_equal(
        knn.classify(worse, np.append(labels, [2, 2, 2]), queries, 5, 0.1), sound
    )
    same = np.ones((6, 8))
    assert (knn.classify(same, np.arange(6), same, 6, 0.1) == UNDECIDED).all()
    classifier = linear.Classifier(np.full((8, 3), np.nan), np.zeros(3))
    assert (linear.predict(classifier, bank) == UNDECIDED).all()


def test_pixels_without_a_class_are_no_hits():
    truth = np.zeros((4, 5), np.uint8)
    taken = np.asarray(decide(np.full((4, 5, 3), np.nan))).astype(np.uint8)
    counts = scoring.confusion(truth, taken, 3)
    assert counts[0].tolist() == [0, 0, 0, 20]
    assert scoring.intersection_over_union(counts)[0] == 0
