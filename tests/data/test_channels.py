"""Views of any number of channels: each channel as if alone, operations on colours left out.

The host's views are the device's.
"""

import jax
import numpy as np
import pytest
import tensorflow as tf

from moco_jax.data import labelled_views
from moco_jax.data.sources.memory import ArraySource
from moco_jax.data.sources.pixels import Decoding
from moco_jax.data.views import augment, device_views, recipes, resize
from tests.data.batches import train_batches

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 75, 5), np.uint8)
SIZE = 32


def views(recipe, number):
    """Drawn parameters of `number` key views, with and without blur, solarization and flip."""
    shape = tf.constant(IMAGE.shape[0]), tf.constant(IMAGE.shape[1])
    uniforms = tf.random.stateless_uniform([number, recipes.UNIFORMS], [1, 14], alg="philox")
    return [augment.draw_view(u, *shape, recipe, 1) for u in uniforms]


def apply(image, view, recipe, crop_only=False):
    return augment.apply_view(resize.pad(tf.constant(image)), view, recipe, crop_only).numpy()


def test_other_channels_than_three_leave_the_colours_out_and_say_so():
    every = {
        "v1": ("crop", "flip"),
        "v2": ("crop", "blur", "flip"),
        "v3": ("crop", "blur", "solarize", "flip"),
        "digits": ("crop",),
    }
    for name, kept in every.items():
        for channels in (1, 4, 9):
            assert recipes.create(name, SIZE, channels=channels).stages == kept
        assert recipes.create(name, SIZE).stages == recipes.RECIPES[name].stages
        assert recipes.without_colours(name, 3) == ""
    assert recipes.without_colours("digits", 5) == ""
    assert recipes.without_colours("v2", 5) == (
        "channels=5: the colour operations of augment='v2' are left out; crop, blur and flip remain"
    )
    assert recipes.without_colours("v3", 2).endswith("crop, blur, solarize and flip remain")
    assert recipes.without_colours("cifar", 1).endswith("are left out; crop and flip remain")


@pytest.mark.parametrize("name", ["v1", "v2", "v3", "cifar", "digits"])
def test_each_channel_is_that_of_a_gray_image(name):
    """And three channels are those of an RGB image whose colours are not changed."""
    recipe, plain = (recipes.create(name, SIZE, channels=c) for c in (5, 3))
    drawn = views(recipe, 8)
    for view in drawn:
        made = apply(IMAGE, view, recipe)
        assert made.shape == (SIZE, SIZE, 5)
        for channel in range(5):
            lone = apply(IMAGE[..., channel : channel + 1], view, recipe)
            np.testing.assert_array_equal(made[..., channel : channel + 1], lone)
        uncoloured = view._replace(color=tf.constant(False), grayscale=tf.constant(False))
        np.testing.assert_array_equal(made[..., :3], apply(IMAGE[..., :3], uncoloured, plain))
    if "flip" in recipe.stages:
        assert {bool(v.flip) for v in drawn} == {True, False}
    if "blur" in recipe.stages:
        assert {bool(v.blur) for v in drawn} == {True, False}
    if "solarize" in recipe.stages:
        assert {bool(v.solarize) for v in drawn} == {True, False}


def test_evaluation_views_are_made_channel_by_channel():
    recipe = recipes.create("v2", SIZE, channels=5)
    made = augment.evaluation_view(tf.constant(IMAGE), recipe).numpy()
    assert made.shape == (SIZE, SIZE, 5)
    for channel in range(5):
        lone = augment.evaluation_view(tf.constant(IMAGE[..., channel : channel + 1]), recipe)
        np.testing.assert_array_equal(made[..., channel : channel + 1], lone)


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("name", ["v2", "v3"])
def test_the_device_makes_the_hosts_views(name, channels):
    recipe = recipes.create(name, SIZE, channels=channels)
    drawn = views(recipe, 12)
    image = IMAGE[..., :channels]
    crops = np.stack([apply(image, view, recipe, crop_only=True) for view in drawn])
    expected = np.stack([apply(image, view, recipe) for view in drawn])
    if "solarize" in recipe.stages:
        assert any(v.solarize and v.blur for v in drawn)
    stacked = recipes.View(*(np.stack(field) for field in zip(*drawn, strict=True)))
    made = np.asarray(jax.jit(device_views.finish, static_argnums=2)(crops, stacked, recipe))
    assert made.shape == (12, SIZE, SIZE, channels)
    assert np.abs(made.astype(int) - expected).max() <= 1  # the blur's rounding
    assert (made == expected).mean() > 0.99
    assert (crops != expected).any()


@pytest.mark.parametrize("crop_only", [False, True])
def test_batches_have_the_sources_channels(crop_only):
    images = np.random.default_rng(0).integers(0, 256, (20, 40, 36, 2), np.uint8)
    source = ArraySource(images, None, "noise", Decoding(channels=2))
    recipe = recipes.create("v2", SIZE, channels=2)
    batches = train_batches(source, recipe, 8, crop_only=crop_only)
    assert next(batches)["query"].shape == (8, SIZE, SIZE, 2)
    batches.close()
    (batch,) = labelled_views.evaluation_batches(source, recipe, np.arange(20)[None], 2)
    assert batch["image"].shape == (20, SIZE, SIZE, 2)
