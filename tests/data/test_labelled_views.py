"""Views made by PIL and JAX beside those that TensorFlow makes."""

import numpy as np
import pytest

from moco_jax.data import labelled_views, pipeline
from moco_jax.data.damaged import DamagedImages
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.memory import digits
from moco_jax.data.views import recipes
from moco_jax.monitoring import view_pairs
from tests.data.pictures import PHOTO, encoded, write

NUMBER = 16


@pytest.fixture
def by_pil(monkeypatch):
    """Views are made as where TensorFlow is missing."""
    monkeypatch.setattr(labelled_views.packages, "is_there", lambda name: False)


@pytest.fixture
def photos(tmp_path):
    """Images of several sizes, JPEG and PNG, the fourth of them damaged."""
    kinds = ("JPEG", "PNG")
    files = {
        f"{n:02d}.{kinds[n % 2].lower()}": encoded(
            kinds[n % 2], pixels=np.ascontiguousarray(PHOTO[: 97 - n, n * (n > 4) : 130 - 3 * n])
        )
        for n in range(NUMBER)
    }
    return FolderSource(write(tmp_path, files | {"03.png": encoded("PNG")[:500]}))


def of_training(source, recipe):
    """The first epoch's views of all images of `source`, as tf.data makes them, in their order."""
    number = len(source)
    batches = pipeline.train_batches(
        source,
        recipe,
        seed=5,
        batch_size=number,
        rows=np.arange(number),
        examples_seen=0,
        workers=2,
        damaged=DamagedImages(9),
    )
    batch = next(batches)
    batches.close()
    return batch


@pytest.mark.parametrize(("name", "size"), [("linear", 32), ("v1", 48), ("v3", 24), ("digits", 40)])
def test_drawn_views_are_trainings_to_rounding(photos, by_pil, name, size):
    recipe = recipes.create(name, size)
    expected = of_training(photos, recipe)
    order = expected["index"]
    reads = [(0, some) for some in np.split(order, [5, 6])]
    made = [*labelled_views.view_batches(photos, recipe, reads, NUMBER, 5, 2)]
    ok = np.concatenate([batch["ok"] for batch in made])
    found = np.concatenate([batch["image"] for batch in made])
    # A damaged image is the next one in training, and no image here.
    assert ok.all()
    assert np.count_nonzero(order == 4) == 2
    apart = np.abs(found.astype(int) - expected["query"])
    # PIL's weights round a tie otherwise at times; what follows the crop may make more of it.
    crop_only = name in ("linear", "digits")
    assert apart.max() <= (1 if crop_only else 12)
    assert (apart > 0).mean() < 0.01


@pytest.mark.parametrize("tensorflow", [True, False])
def test_damaged_images_are_said_to_be(photos, monkeypatch, tensorflow):
    monkeypatch.setattr(labelled_views.packages, "is_there", lambda name: tensorflow)
    recipe = recipes.create("linear", 32)
    reads = [(2, np.arange(NUMBER))]
    (batch,) = labelled_views.view_batches(photos, recipe, reads, NUMBER, 5, 2)
    (whole,) = labelled_views.evaluation_batches(photos, recipe, np.arange(NUMBER)[None], 2)
    for found in (batch, whole):
        assert found["image"].shape == (NUMBER, 32, 32, 3)
        np.testing.assert_array_equal(np.flatnonzero(~found["ok"]), [3])


def test_evaluation_views_are_tensorflows(photos, monkeypatch):
    recipe = recipes.create("v2", 40)
    indices = np.arange(NUMBER).reshape(4, 4)
    found = []
    for tensorflow in (True, False):
        monkeypatch.setattr(labelled_views.packages, "is_there", lambda name, t=tensorflow: t)
        found.append([*labelled_views.evaluation_batches(photos, recipe, indices, 2)])
    for one, other in zip(*found, strict=True):
        for name in ("image", "ok"):
            np.testing.assert_array_equal(one[name][one["ok"]], other[name][other["ok"]])
        np.testing.assert_array_equal(one["ok"], other["ok"])


@pytest.mark.parametrize("kind", ["photos", "digits"])
def test_the_picture_of_a_resident_run_shows_its_views(photos, monkeypatch, kind):
    """Without TensorFlow, and of resident images, pairs are those that tf.data makes."""
    source = photos if kind == "photos" else digits("test")
    recipe = recipes.create("digits", 32)
    common = dict(seed=5, batch_size=NUMBER, workers=2)
    expected = view_pairs.first_pairs(source, recipe, augment_on="host", **common)
    found = [view_pairs.first_pairs(source, recipe, augment_on="resident", **common)]
    monkeypatch.setattr(view_pairs.packages, "is_there", lambda name: False)
    found.append(view_pairs.first_pairs(source, recipe, augment_on="host", **common))
    for pairs in found:
        np.testing.assert_array_equal(pairs["index"], expected["index"])
        for name in ("query", "key"):
            apart = np.abs(pairs[name].astype(int) - expected[name])
            assert apart.max() <= 1
            assert (apart > 0).mean() < 0.01


def test_kept_views_are_made_once_while_there_is_room(by_pil):
    source, recipe, reads = digits("train"), recipes.create("digits", 32), np.arange(12)
    made = []

    def make(first):
        made.append(first)
        rows = (reads + first).reshape(3, 4)
        return labelled_views.evaluation_batches(source, recipe, rows, 2)

    kept = labelled_views.KeptViews(most=20 * 32 * 32 * 3)
    for first in (0, 0, 12, 12):  # twelve images fit, and eight of the next twelve
        batches = [*kept.batches(first, lambda first=first: make(first))]
        found = np.concatenate([batch["image"] for batch in batches])
        np.testing.assert_array_equal(found, source.images[reads + first])
        assert all(batch["ok"].all() for batch in batches)
    next(kept.batches(24, lambda: make(24)))  # left before its end
    assert len([*kept.batches(24, lambda: make(24))]) == 3
    assert made == [0, 12, 12, 24, 24]
