"""Weighted kNN against scikit-learn's with the same weights."""

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from moco_jax.evaluation import knn


def test_predictions_equal_scikit_learns():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(5, 12))
    labels = rng.integers(0, 5, 700)
    features = centers[labels] + 1.5 * rng.normal(size=(700, 12))
    bank, queries = features[:500], features[500:]
    # On unit vectors the squared distance is 2 - 2 cos, so exp(cos / T) is a weight by distance.
    reference = KNeighborsClassifier(
        30, weights=lambda d: np.exp((1 - d**2 / 2) / 0.1), algorithm="brute"
    )
    reference.fit(knn.unit(bank), labels[:500])
    ours = knn.classify(bank, labels[:500], queries, 30, 0.1)
    np.testing.assert_array_equal(ours, reference.predict(knn.unit(queries)))
    assert 0.3 < np.mean(ours == labels[500:]) < 1


def test_more_neighbours_than_images_means_all():
    bank = np.eye(3)
    np.testing.assert_array_equal(
        knn.classify(bank, np.asarray([2, 0, 1]), bank, 200, 0.1), [2, 0, 1]
    )


def test_blocks_change_nothing():
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(60, 4)), rng.normal(size=(50, 4))
    np.testing.assert_array_equal(
        knn.nearest(bank, queries, 5)[1], knn.nearest(bank, queries, 5, block=7)[1]
    )
