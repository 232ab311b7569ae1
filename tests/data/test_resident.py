"""Images for the devices are loaded once, damaged ones replaced, those that do not fit refused."""

import itertools

import jax
import numpy as np
import pytest

from moco_jax.base.errors import UserError
from moco_jax.data import pipeline, resident
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.memory import digits
from moco_jax.data.views import device_views, recipes
from moco_jax.parallel import mesh
from tests.data.pictures import PHOTO, decoded, encoded, write

CUT = encoded()[: len(encoded()) * 2 // 3]
RECIPE = recipes.create("digits", 32)


def loaded(source, limit=9):
    damaged = pipeline.DamagedImages(limit)
    images, stand_in = resident.load(source, resident.shape_of(source), 2, damaged, print)
    return images, stand_in, [name.rpartition("/")[2] for name in damaged.names]


def photos(place, damaged=()):
    """Nine PNGs of one size, each its own; some are damaged."""
    files = {f"{n}.png": encoded("PNG", pixels=np.roll(PHOTO, n, axis=1)) for n in range(9)}
    return FolderSource(write(place, files | {f"{n}.png": CUT for n in damaged}))


def test_all_images_are_loaded_and_a_damaged_one_is_stood_in_for_by_the_next(tmp_path):
    source = photos(tmp_path, damaged=(0, 4, 5, 8))
    images, stand_in, damaged = loaded(source)
    assert damaged == ["0.png", "4.png", "5.png", "8.png"]
    np.testing.assert_array_equal(stand_in, [1, 1, 2, 3, 6, 6, 6, 7, 1])
    for found, (pixels, ok) in zip(images, decoded(source), strict=True):
        if ok:
            np.testing.assert_array_equal(found, pixels)
    with pytest.raises(UserError, match=r"max_bad_images=3 .*8\.png"):
        loaded(source, limit=3)


def test_views_and_their_order_are_the_hosts_with_damaged_images_and_over_an_epochs_end(tmp_path):
    source = photos(tmp_path, damaged=(2, 3))
    place = dict(seed=7, batch_size=4, rows=np.arange(1, 4), examples_seen=16)
    host = pipeline.train_batches(
        source, RECIPE, workers=2, damaged=pipeline.DamagedImages(9), **place
    )
    images, stand_in, _ = loaded(source)
    epochs = []
    make = jax.jit(device_views.make_two_views, static_argnums=(1, 4, 5))
    for ours, theirs in itertools.islice(
        zip(resident.train_batches(stand_in, **place), host, strict=True), 4
    ):
        np.testing.assert_array_equal(ours["index"], theirs["index"])
        views = make(images.reshape(9, -1), (97, 131, 3), ours["index"], ours["epoch"], 7, RECIPE)
        np.testing.assert_array_equal(views[0], theirs["query"])
        np.testing.assert_array_equal(views[1], theirs["key"])
        epochs += ours["epoch"].tolist()
    host.close()
    assert sorted(set(epochs)) == [2, 3]


def test_images_of_different_sizes_are_refused_by_name(tmp_path):
    files = {f"{n}.png": encoded("PNG") for n in range(3)} | {"0.png": CUT}
    source = FolderSource(write(tmp_path, files | {"3.png": encoded("PNG", pixels=PHOTO[:, :50])}))
    with pytest.raises(
        UserError, match=r"3\.png has 50 x 97 pixels, those before it 131 x 97; augment_on='device'"
    ):
        loaded(source)


def test_images_that_are_all_damaged_are_refused(tmp_path):
    source = FolderSource(write(tmp_path, {"a.jpg": CUT, "b.jpg": b""}))
    with pytest.raises(UserError, match="none of the 2 images can be decoded"):
        resident.shape_of(source)


def test_images_that_leave_a_step_no_room_are_refused_with_their_size():
    shape = (50_000, 32, 32, 3)
    resident.require_room(shape, 320_000_000)
    resident.require_room(shape, 0)  # where a device does not say what it has
    with pytest.raises(
        UserError,
        match=r"50,000 images of 32 x 32 .*: 154 MB, more than half of the 300 MB .*='device'",
    ):
        resident.require_room(shape, 300_000_000)


def test_every_device_holds_all_images():
    images, stand_in, damaged = loaded(digits("test"))
    assert (damaged, stand_in.tolist()) == ([], list(range(1440)))
    held = mesh.to_every_device(mesh.create_mesh(), images)
    assert len(held.addressable_shards) == jax.device_count() > 1
    for shard in held.addressable_shards:
        np.testing.assert_array_equal(shard.data, images)
