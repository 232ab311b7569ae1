"""The online probe learns what can be learnt from features, and nothing bad comes into it."""

import dataclasses

import jax
import numpy as np
import pytest

from moco_jax.data.sources.labels import MISSING
from moco_jax.data.sources.memory import ArraySource
from moco_jax.monitoring import online_probe
from moco_jax.monitoring.online_probe import OnlineProbe
from moco_jax.parallel import mesh as mesh_lib
from tests.monitoring.test_neighbours import BANK, QUERIES, monitor_of

WIDTH, CLASSES, B = 12, 5, 64
LEARN = jax.jit(online_probe.learn)


def clusters(seed, rows=B):
    """Features of a class each, of very different scales and far from 0; and their classes."""
    centres = np.random.default_rng(0).normal(size=(CLASSES, WIDTH))
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, CLASSES, rows).astype(np.int32)
    features = centres[classes] + 0.2 * rng.normal(size=(rows, WIDTH))
    return ((5 + features) * np.logspace(-3, 3, WIDTH)).astype(np.float32), classes


def taught(steps=0):
    state = online_probe.initial(WIDTH, CLASSES)
    for seed in range(steps):
        state, _ = LEARN(state, *clusters(seed))
    return jax.device_get(state)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def probe_of(devices=1):
    """A probe that knows nothing, taught of images 0 to 99 and asked for those from 200 on."""
    _, classes = clusters(7, 100)
    known = [online_probe.Known(np.arange(start, start + 100), classes) for start in (0, 200)]
    mesh = mesh_lib.create_mesh(jax.devices()[:devices])
    return OnlineProbe(*known, list("abcde"), WIDTH, mesh), mesh


def test_it_learns_separable_features_whatever_their_scale():
    probe, mesh = probe_of()
    features, _ = clusters(7, 100)
    assert probe.score(features, np.arange(200, 300)) == {"probe": 0.0}
    counts = []
    for seed in range(60):
        batch = mesh_lib.to_devices(mesh, clusters(seed))
        counts.append(jax.device_get(probe.learn(*batch)))
    assert {float(c["probe_asked"]) for c in counts} == {B}
    assert counts[0]["probe_right"] == 0  # no class is preferred before the first step
    assert np.mean([c["probe_right"] for c in counts[-10:]]) > 0.98 * B
    assert probe.score(features, np.arange(200, 300))["probe"] > 0.98
    # Of images that it is not asked for there is nothing to say.
    assert probe.score(features, np.arange(300, 400)) == {}
    np.testing.assert_array_equal(
        probe.classes_of(np.asarray([99, 200, 0, 150])) >= 0, [1, 0, 1, 0]
    )


def test_rows_without_a_class_give_no_loss():
    features, classes = clusters(0)
    once = LEARN(taught(3), features, classes)
    # The same rows again, so that the statistics stay as they are.
    twice = np.concatenate([features, features]), np.concatenate([classes, 0 * classes + MISSING])
    again = LEARN(taught(3), *twice)
    for ours, expected in zip(jax.tree.leaves(again), jax.tree.leaves(once), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    before = taught(3)
    after, counts = LEARN(before, features, 0 * classes + MISSING)
    same(after, before)
    assert (counts["probe_right"], counts["probe_asked"]) == (0, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_changes_nothing(bad):
    features, classes = clusters(0)
    features[3, 1], features[4, 1] = bad, -bad
    before = taught(3)
    after, counts = LEARN(before, features, classes)
    same(after, before)
    assert counts["probe_asked"] == B
    probe, _ = probe_of()
    assert probe.score(np.full((100, WIDTH), bad, np.float32), np.arange(200, 300))["probe"] == 0


def test_one_device_and_eight_learn_the_same():
    states = []
    for devices in (1, 8):
        probe, mesh = probe_of(devices)
        for seed in range(5):
            probe.learn(*mesh_lib.to_devices(mesh, clusters(seed)))
        states.append(jax.device_get(probe.state))
    for one, eight in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(one, eight, rtol=1e-4, atol=1e-4)


def with_labels(numbers):
    made = monitor_of(devices=1)
    bank = ArraySource(made.bank.images, numbers, "searched")
    return dataclasses.replace(made, bank=bank)


def test_it_is_of_the_images_that_are_searched_and_classified(monkeypatch):
    numbers = np.arange(BANK) % 3
    numbers[5] = MISSING
    probe, remarks = online_probe.beside(with_labels(numbers), 6)
    assert remarks == []
    # The monitor does not search images 0 to 2; the fourth class is the queries' alone.
    told = probe.classes_of(np.arange(BANK, dtype=np.int32))
    assert told.dtype == np.int32
    np.testing.assert_array_equal(told[:3], MISSING)
    np.testing.assert_array_equal(told[3:], numbers[3:])
    assert probe.state.classifier.kernel.shape == (6, 4)
    assert probe.score(np.ones((QUERIES, 6), np.float32), np.arange(QUERIES)) == {"probe": 0.0}
    for labels in (None, np.zeros(BANK, int), np.full(BANK, MISSING)):
        assert online_probe.beside(with_labels(labels), 6) == (None, [])
    # No query is of a class that is searched: nothing could be right, and kNN is not scored either.
    assert online_probe.beside(with_labels(numbers + 7), 6) == (None, [])
    monkeypatch.setattr(online_probe, "MOST_WEIGHTS", 23)
    assert online_probe.beside(with_labels(numbers), 6) == (
        None,
        ["no online probe: it would have 6 features times 4 classes of weights, more than 23"],
    )


def test_a_share_is_of_all_labelled_views_of_its_steps():
    means = {"loss": 1.0, "probe_right": 3.0, "probe_asked": 12.0}
    assert online_probe.share(means) == {"loss": 1.0, "probe_train": 0.25}
    assert online_probe.share(means | {"probe_right": 0.0, "probe_asked": 0.0}) == {"loss": 1.0}
    assert online_probe.share({"loss": 1.0}) == {"loss": 1.0}
