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


def held(source, limit=9, devices=8):
    """What so many devices hold of `source`, stand-ins, and the names of damaged images."""
    damaged, over = pipeline.DamagedImages(limit), mesh.create_mesh(jax.devices()[:devices])
    shape = resident.shape_of(source)
    images, stand_in = resident.load(over, source, shape, 2, damaged, print)
    return over, images, stand_in, [name.rpartition("/")[2] for name in damaged.names]


def loaded(source, limit=9):
    _, images, stand_in, damaged = held(source, limit)
    shape = resident.shape_of(source)
    return np.asarray(images)[: shape[0]].reshape(shape), stand_in, damaged


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


def test_the_devices_hold_all_images_between_them():
    images, stand_in, damaged = loaded(digits("test"))
    assert (damaged, stand_in.tolist()) == ([], list(range(1440)))
    every = digits("test").read(np.arange(1440))
    np.testing.assert_array_equal(images, np.asarray(every))


def test_devices_divide_the_images_and_hand_each_other_the_rows_of_a_batch(tmp_path):
    """On one, two and eight devices, with rows of no image, and stand-ins on other devices."""
    source = photos(tmp_path, damaged=(3, 4, 8))
    whole, expected, _ = loaded(source)
    np.testing.assert_array_equal(expected, [0, 1, 2, 5, 5, 5, 6, 7, 0])
    order = np.random.default_rng(0).permutation(9)[:8].astype(np.int32)
    for devices, rows in ((1, 9), (2, 5), (8, 2)):
        over, images, stand_in, damaged = held(source, devices=devices)
        assert damaged == ["3.png", "4.png", "8.png"]
        np.testing.assert_array_equal(stand_in, expected)
        assert {shard.data.shape for shard in images.addressable_shards} == {(rows, whole[0].size)}
        index = mesh.to_devices(over, stand_in[order].astype(np.int32))
        take = jax.jit(device_views.take_rows, static_argnums=2)
        taken = take(images, index, over)
        assert taken.sharding.is_equivalent_to(mesh.sharded(over), 2)
        np.testing.assert_array_equal(taken, whole[expected[order]].reshape(8, -1))


def test_more_devices_hold_more_images():
    shape = (50_000, 32, 32, 3)
    resident.require_room(shape, 300_000_000, 2)
    resident.require_room(shape, 38_400_032, 8)
    with pytest.raises(UserError, match=r"\(8\), .*: 19\.2 MB.* about 11 devices"):
        resident.require_room(shape, 30_000_000, 8)
