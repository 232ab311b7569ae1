"""Views made in a jitted step are the host's.

Drawn numbers and crops are to the bit; the other operations differ by rounding alone.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from moco_jax.data.sources.memory import ArraySource, digits
from moco_jax.data.views import augment, device_views, recipes
from moco_jax.data.views.operations import crop as crops
from tests.data.batches import recipe_called, train_batches

SEED = 3


@pytest.mark.parametrize(
    ("name", "height", "width"),
    [("digits", 32, 32), ("cifar", 32, 32), ("v2", 48, 75), ("v1", 200, 31), ("turned", 64, 48)],
)
def test_parameters_are_those_drawn_on_the_host(name, height, width):
    """Thousands of views, of any examples and epochs; on a CPU not one number differs."""
    recipe, number = recipe_called(name, 32), 3000
    rng = np.random.default_rng(height)
    index = np.concatenate([[0, 1, 2**31 - 2], rng.integers(0, 2**31 - 1, number)]).astype(np.int32)
    epoch = np.concatenate([[0, 1, 10_001], rng.integers(0, 1000, number)]).astype(np.int32)
    draw = functools.partial(
        device_views.draw_two_views, SEED, height=height, width=width, recipe=recipe
    )
    found = jax.device_get(jax.jit(draw)(epoch, index))
    size = tf.constant([height, width])
    hosts = tf.data.Dataset.from_tensor_slices((epoch.astype(np.int64), index.astype(np.int64)))
    hosts = hosts.map(lambda e, i: augment.draw_two_views(size, SEED, e, i, recipe))
    expected = next(hosts.batch(len(index)).as_numpy_iterator())
    assert len(np.unique(expected[0].box, axis=0)) > 20
    assert not np.array_equal(expected[0].box, expected[1].box)
    for view, other in zip(found, expected, strict=True):
        for field in recipes.View._fields:
            ours, theirs = getattr(view, field), getattr(other, field)
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs, err_msg=field)


def noise(height, width):
    images = np.random.default_rng(0).integers(0, 256, (96, height, width, 3), np.uint8)
    return ArraySource(images, None, "noise")


def hosts_batch(source, recipe, crop_only):
    """A batch of epoch 5."""
    seen = 5 * (len(source) // 64) * 64
    place = dict(seed=SEED, examples_seen=seen, crop_only=crop_only)
    with contextlib.closing(train_batches(source, recipe, 64, **place)) as batches:
        return next(batches)


CASES = [
    ("digits", 32, None),
    ("cifar", 32, (32, 32)),
    ("v2", 32, (32, 32)),
    ("v2", 40, (48, 75)),
    ("v3", 32, (48, 75)),
    ("cifar", 24, (130, 37)),
]


@pytest.mark.parametrize(("name", "size", "shape"), CASES)
def test_crops_equal_the_hosts(name, size, shape):
    source = noise(*shape) if shape else digits("train")
    batch = hosts_batch(source, recipes.create(name, size), crop_only=True)
    crop = jax.jit(jax.vmap(functools.partial(crops.on_device, size=size)))
    for view in ("query", "key"):
        found = crop(source.images[batch["index"]], batch[f"{view}_view"].box)
        np.testing.assert_array_equal(found, batch[view])


@pytest.mark.parametrize(("name", "size", "shape"), CASES)
def test_views_equal_the_hosts(name, size, shape):
    source, recipe = noise(*shape) if shape else digits("train"), recipes.create(name, size)
    batch = hosts_batch(source, recipe, crop_only=False)
    images = source.images
    make = jax.jit(device_views.make_two_views, static_argnums=(1, 4, 5))
    found = make(
        images.reshape(len(images), -1),
        images.shape[1:],
        batch["index"],
        np.full(64, 5, np.int32),
        SEED,
        recipe,
    )
    for ours, theirs in zip(found, (batch["query"], batch["key"]), strict=True):
        assert ours.dtype == np.uint8
        assert np.abs(np.asarray(ours).astype(int) - theirs).mean() < 0.2
        if recipe.stages == ("crop",):
            np.testing.assert_array_equal(ours, theirs)


def test_five_channels_are_viewed_each_as_alone():
    """Crop, blur and flip of a resident image do the same to every channel."""
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 17, 5), dtype=np.uint8)
    index, epoch = np.arange(3, dtype=np.int32), np.full(3, 2, np.int32)

    def views(images):
        recipe = recipes.create("v2", 16, channels=images.shape[-1])
        rows = jnp.asarray(images.reshape(len(images), -1))
        return device_views.make_two_views(rows, images.shape[1:], index, epoch, SEED, recipe)

    every = views(images)
    for channel in range(5):
        for found, alone in zip(every, views(images[..., channel : channel + 1]), strict=True):
            np.testing.assert_array_equal(found[..., channel], alone[..., 0])
