"""Signals without labels, beside closed forms and plainly written second implementations."""

import itertools

import numpy as np
import pytest

from moco_jax.monitoring import signals


def entropy_rank(values):
    shares = np.asarray(values) / np.sum(values)
    return np.exp(-sum(p * np.log(p) for p in shares if p > 0))


def mixture(strengths, images=4000, views=20, seed=0):
    """Views `[N, Q, D]` whose discriminant analysis is known.

    Within an image the covariance is a random `R R^T`, between images `R diag(strengths) R^T`: in
    the coordinates of R views differ by unit noise in every direction, images by `strengths`.
    """
    rng = np.random.default_rng(seed)
    width = len(strengths)
    means = rng.normal(size=(images, 1, width)) * np.sqrt(strengths)
    found = means + rng.normal(size=(images, views, width))
    mixing = rng.normal(size=(width, width)) + 3 * np.eye(width)
    return found @ mixing.T + rng.normal(size=width)


def test_lidar_of_a_gaussian_mixture_is_that_of_its_known_discriminant_analysis():
    strengths = np.asarray([8.0, 4.0, 2.0, 1.0, 0.5, 0.0])
    for views in (2, 20):
        expected = entropy_rank(strengths + 1 / views)  # the means of Q views are noisy
        found = signals.lidar(mixture(strengths, views=views), delta=0)
        assert found == pytest.approx(expected, rel=0.02)
    # More views show what is there, and rank by rank of the spectrum alone would see all six.
    assert signals.lidar(mixture(strengths)) == pytest.approx(entropy_rank(strengths), rel=0.05)


def test_lidar_is_that_of_its_formula():
    rng = np.random.default_rng(1)
    views = rng.normal(size=(7, 3, 5)) @ rng.normal(size=(5, 5)) + rng.normal(size=(7, 1, 5))
    mean, delta = views.mean((0, 1)), 0.3
    within, between = delta * np.eye(5), np.zeros((5, 5))
    for image in views:
        off = image.mean(0) - mean
        between += np.outer(off, off) / 7
        for view in image:
            within += np.outer(view - image.mean(0), view - image.mean(0)) / (7 * 2)
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    expected = entropy_rank(np.linalg.eigvalsh(root @ between @ root))
    assert signals.lidar(views, delta) == pytest.approx(expected)


def test_lidar_of_what_does_not_vary_is_finite():
    one = np.ones((6, 3, 4))
    assert signals.lidar(one) == pytest.approx(1)
    assert 1 <= signals.lidar(np.random.default_rng(0).normal(size=(6, 1, 4)).repeat(3, 1)) <= 4


def unit_views(images=9, views=4, width=6):
    found = np.random.default_rng(2).normal(size=(images, views, width))
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def test_alignment_and_uniformity_are_those_of_loops_over_all_pairs():
    views = unit_views()
    pairs = [np.sum((x - y) ** 2) for image in views for x, y in itertools.combinations(image, 2)]
    assert signals.alignment(views) == pytest.approx(np.mean(pairs))
    some = views[:, 0]
    kernel = [np.exp(-2 * np.sum((x - y) ** 2)) for x, y in itertools.combinations(some, 2)]
    assert signals.uniformity(some) == pytest.approx(np.log(np.mean(kernel)))
    assert signals.alignment(views[:, :1].repeat(4, 1)) == pytest.approx(0)
    assert signals.uniformity(some[:1].repeat(9, 0)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_decay_of_a_power_law_is_its_exponent(exponent):
    """The eigenvalues of the covariance are those of the law, to the last digit."""
    rng, width = np.random.default_rng(3), 60
    left = rng.normal(size=(300, width))
    left = np.linalg.qr(left - left.mean(0))[0]
    right = np.linalg.qr(rng.normal(size=(width, width)))[0]
    features = left * np.arange(1, width + 1) ** (-exponent / 2) @ right + rng.normal(size=width)
    assert signals.spectrum_decay(features) == pytest.approx(exponent)
    # The first ten eigenvalues and the last half count for nothing.
    broken = left * np.r_[np.ones(10), np.arange(11, 31) ** (-exponent / 2), np.full(30, 1e-3)]
    assert signals.spectrum_decay(broken @ right) == pytest.approx(exponent)


def test_a_spectrum_that_is_too_short_or_flat_has_no_decay():
    assert signals.spectrum_decay(np.random.default_rng(0).normal(size=(100, 20))) is None
    assert signals.spectrum_decay(np.ones((100, 60))) is None


def test_effective_rank_is_that_of_its_singular_values():
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.normal(size=(50, 5)))[0]
    right = np.linalg.qr(rng.normal(size=(16, 5)))[0]
    assert signals.effective_rank(left @ right.T) == pytest.approx(5)
    assert signals.effective_rank(np.ones((20, 8))) == pytest.approx(1)
    unequal = (left * np.asarray([2.0, 1, 1, 0, 0])) @ right.T
    assert signals.effective_rank(unequal) == pytest.approx(entropy_rank([2, 1, 1]))
