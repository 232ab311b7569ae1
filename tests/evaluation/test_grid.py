"""The grid of classifiers: each is as if trained alone; the choice is as good as scikit-learn's."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from moco_jax.evaluation import grid, linear
from moco_jax.parallel import mesh as mesh_lib
from tests.evaluation.test_linear import data_of, digits, silent, spectrum


def test_a_classifier_of_the_grid_is_that_trained_alone(monkeypatch):
    features, classes, *_ = digits()
    tried, how = grid.Grid([0.3, 3.0, 30.0], [0.0, 1e-3]), grid.FitSettings(10, epochs=2)
    whole = grid.fit([features], classes, tried, mesh_lib.create_mesh(), how, silent)
    one = mesh_lib.create_mesh(jax.devices()[:1])
    single = grid.Grid([3.0], [1e-3], [True])
    alone = grid.fit([features], classes, single, one, how, silent)
    # The same steps one a call, and with features that lie on the devices.
    for name, value in (("SENT", 1), ("_stay_on_the_host", lambda *_: False)):
        monkeypatch.setattr(grid, name, value)
        again = grid.fit([features], classes, single, one, how, silent)
        for ours, expected in zip(again.classifiers, alone.classifiers, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    for ours, expected in zip(whole.classifiers, alone.classifiers, strict=True):
        np.testing.assert_allclose(ours[1, 3], expected[0, 0], rtol=1e-4, atol=1e-5)
    right, loss = whole.scores(features, classes, block=300)
    assert right.shape == loss.shape == (2, 3, 2)
    expected = linear.predict(linear.Classifier(*(x[0, 4] for x in whole.classifiers)), features)
    assert right[0, 2, 0] == pytest.approx(np.mean(expected == classes))


def test_the_search_is_as_good_as_logistic_regression_and_says_where_the_grid_ends():
    features, classes, test, truth = digits()
    sets, mesh = ([features], classes, test, truth), mesh_lib.create_mesh(jax.devices()[:2])
    tried = grid.Grid([0.03, 0.3, 3.0, 30.0], [0.0, 1e-4])
    found = grid.search(*sets, tried, mesh, grid.FitSettings(10), silent)
    # From C = 1000 on its result goes by the number of threads.
    best = max(
        LogisticRegression(C=c, max_iter=1000).fit(features, classes).score(test, truth)
        for c in (1, 10, 100)
    )
    assert best > 0.88
    assert abs(found.test - best) < 3 * np.sqrt(best * (1 - best) / len(test))
    assert found.best == found.held_out.max() > 0.93
    tried = grid.Grid([1e-4, 1e-3], [0.0], [False])
    slow = grid.search(*sets, tried, mesh, grid.FitSettings(10, epochs=3), silent)
    assert slow.edges == ["the best learning rate, 0.001, is the largest that was tried"]


def test_a_rate_that_overflows_is_not_chosen():
    features, classes, test, truth = digits()
    tried = grid.Grid([1.0, 1e38], [0.0], [False])
    sets, mesh = ([features], classes, test, truth), mesh_lib.create_mesh(jax.devices()[:2])
    found = grid.search(*sets, tried, mesh, grid.FitSettings(10, epochs=3), silent)
    assert found.rate == 1.0
    assert found.held_out[0, 1, 0] == 0


def test_crops_of_each_set_differ_and_the_first_set_is_the_centre():
    data = data_of(100)
    recipe = linear.crop_recipe("linear", data)
    assert (recipe.stages, recipe.crop_scale) == (("crop", "flip"), (0.08, 1.0))
    sets, classes = grid.feature_sets(data, spectrum, recipe, 2, silent)
    np.testing.assert_array_equal(classes, data.train.classes)
    center, _ = data.extract(data.train, spectrum, silent)
    np.testing.assert_array_equal(sets[0], center)
    assert not np.any(np.all(sets[0] == sets[1], 1))
    assert not np.any(np.all(sets[1] == sets[2], 1))
