"""Weighted kNN against scikit-learn's with the same weights, in blocks, on devices, in a grid."""

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from moco_jax.evaluation import knn, search_on_cores
from moco_jax.parallel import mesh as mesh_lib


def made_up(number=700, classes=5, width=12):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, number)
    features = rng.normal(size=(classes, width))[labels] + 1.5 * rng.normal(size=(number, width))
    return features, labels


@pytest.fixture(params=["cores", "devices"])
def either(request, monkeypatch):
    """A test runs by the form for a CPU's cores, and by that for any devices."""
    monkeypatch.setattr(knn, "_is_this_cpu", lambda _: request.param == "cores")


@pytest.mark.parametrize(("k", "temperature"), [(30, 0.1), (1, 0.07), (200, 0.5)])
def test_predictions_equal_scikit_learns(k, temperature):
    features, labels = made_up()
    bank, queries = features[:500], features[500:]
    # On unit vectors the squared distance is 2 - 2 cos, so exp(cos / T) is a weight by distance.
    reference = KNeighborsClassifier(
        k, weights=lambda d: np.exp((1 - d**2 / 2) / temperature), algorithm="brute"
    )
    reference.fit(knn.unit(bank), labels[:500])
    ours = knn.classify(bank, labels[:500], queries, k, temperature)
    np.testing.assert_array_equal(ours, reference.predict(knn.unit(queries)))
    assert 0.3 < np.mean(ours == labels[500:]) < 1


def test_more_neighbours_than_images_means_all():
    bank = np.eye(3)
    np.testing.assert_array_equal(
        knn.classify(bank, np.asarray([2, 0, 1]), bank, 200, 0.1), [2, 0, 1]
    )


def test_no_query_has_no_neighbours():
    cosines, rows = knn.nearest(np.eye(3), np.zeros((0, 3)), 2)
    assert cosines.shape == rows.shape == (0, 2)


def unstreamed(bank, queries, k):
    cosines = knn.unit(queries) @ knn.unit(bank).T
    rows = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, rows, 1), rows


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(
    ("block", "bank_block", "devices"), [(512, 8192, 1), (7, 64, 1), (16, 33, 8), (7, 5, 8)]
)
def test_blocks_and_devices_change_nothing(block, bank_block, devices):
    features, _ = made_up()
    bank, queries = features[:500], features[500:]
    mesh = mesh_lib.create_mesh(jax.devices()[:devices])
    cosines, rows = knn.nearest(bank, queries, 20, block, bank_block, mesh)
    expected, expected_rows = unstreamed(bank, queries, 20)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(cosines, expected, atol=1e-6)


@pytest.mark.usefixtures("either")
def test_all_devices_of_a_host_find_what_one_does_to_the_bit():
    features, _ = made_up()
    bank, queries = features[:500], features[500:]
    assert len(queries) == 200
    assert knn.own_devices(200, 25).size == 8
    assert knn.own_devices(199, 25).size == knn.own_devices(0, 25).size == 1
    alone = mesh_lib.create_mesh(jax.devices()[:1])
    for ours, expected in zip(
        knn.nearest(bank, queries, 20, 25, 64),
        knn.nearest(bank, queries, 20, 25, 64, alone),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.usefixtures("either")
def test_of_equal_rows_the_earlier_comes_first():
    """Whole numbers, so that cosines are equal to the bit; each row is in the bank six times."""
    distinct = np.eye(8)[:, ::-1]
    bank = np.tile(distinct, (6, 1))
    for bank_block in (5, 16, 48):
        rows = knn.nearest(bank, distinct, 10, bank_block=bank_block)[1]
        np.testing.assert_array_equal(rows, unstreamed(bank, distinct, 10)[1])


@pytest.mark.usefixtures("either")
def test_a_bank_that_arrives_in_odd_parts_is_the_same_bank():
    features, _ = made_up()
    bank, queries = features[:500], features[500:]
    search = knn.Search(queries, 9, bank_block=100)
    for start, stop in ((0, 3), (3, 3), (3, 250), (250, 500)):
        search.add(bank[start:stop])
    np.testing.assert_array_equal(search.result()[1], knn.nearest(bank, queries, 9)[1])


@pytest.mark.parametrize("seed", range(8))
def test_of_cosines_in_any_order_those_are_kept_that_a_sort_puts_first(seed):
    """Ties, NaN, both zeros; a bank whose rows come nearer and nearer, or are few."""
    rng = np.random.default_rng(seed)
    k, number = int(rng.choice([1, 5, 40])), int(rng.choice([3, 600, 2000]))
    cosines = rng.uniform(-1, 1, (9, number)).astype(np.float32)
    if seed % 2:
        cosines = rng.choice(np.float32([-0.5, -0.0, 0.0, 0.25, 1]), (9, number))
    if seed % 3 == 1:
        cosines.sort(axis=1)
    cosines[rng.random(cosines.shape) < 0.1] = np.nan
    cosines[4] = np.nan
    kept = np.zeros((9, k), np.uint64)
    for start in range(0, number, 700):
        search_on_cores.keep_nearest(kept, cosines[:, start : start + 700], start)
    kept.sort(axis=1)
    comparable = np.fmax(cosines, -np.inf)
    first = np.argsort(-comparable, axis=1, kind="stable")[:, :k]
    expected = np.take_along_axis(comparable, first, 1)
    found = kept[:, ::-1][:, : first.shape[1]]
    np.testing.assert_array_equal(search_on_cores.cosines_of(found), expected)
    rows = np.where(expected > -np.inf, first, 0)
    np.testing.assert_array_equal(search_on_cores.rows_of(found), rows)


def test_cores_find_what_devices_find_to_the_bit(monkeypatch):
    features, _ = made_up()
    bank, queries = np.tile(features[:500], (2, 1)), features[400:].copy()
    bank[[3, 700]], queries[7] = np.nan, np.nan
    devices, cores = [], []
    for name, found in (("devices", devices), ("cores", cores)):
        monkeypatch.setattr(knn, "_is_this_cpu", lambda _, name=name: name == "cores")
        found += [knn.nearest(bank, queries, k, 128, 300) for k in (1, 20, 1200)]
    for ours, expected in zip(cores, devices, strict=True):
        np.testing.assert_array_equal(ours[0], expected[0])
        np.testing.assert_array_equal(ours[1], expected[1])


def test_a_grid_equals_single_calls():
    features, labels = made_up()
    bank, queries = features[:500], features[500:]
    ks, temperatures = (50, 1, 10), (0.03, 0.2)
    cosines, rows = knn.nearest(bank, queries, max(ks))
    grid = knn.votes(cosines, labels[rows], ks, temperatures)
    assert len(grid) == 6
    for (k, temperature), found in grid.items():
        np.testing.assert_array_equal(
            found, knn.classify(bank, labels[:500], queries, k, temperature)
        )


@pytest.mark.parametrize("seed", range(20))
def test_rows_without_a_label_have_no_vote(seed):
    """What wins is what wins among the others, as far as numbers may be apart."""
    rng = np.random.default_rng(seed)
    cosines = -np.sort(-rng.normal(size=(30, 9)), axis=1)
    classes = rng.choice([-1, 0, 3, 2**40, 2**62], (30, 9))
    found = knn.votes(cosines, classes, [1, 4, 9], [0.1, 1.0])
    for (k, t), voted in found.items():
        for row in range(30):
            sums = {}
            for cosine, number in zip(cosines[row, :k], classes[row, :k].tolist(), strict=True):
                if number >= 0:
                    sums[number] = sums.get(number, 0) + np.exp((cosine - cosines[row, 0]) / t)
            assert voted[row] == (max(sums, key=sums.get) if sums else -1)
