"""Views finished on devices: operations and chains against torchvision's and the host's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from moco_jax.data.sources.memory import digits
from moco_jax.data.views import augment, device_views, recipes, resize
from moco_jax.data.views.operations import (
    Flip,
    Grayscale,
    Solarize,
    VerticalFlip,
    blur,
    jitter,
)
from tests.data.batches import recipe_called, train_batches
from tests.data.views import test_augment  # skips where torch is missing

torchvision_views = pytest.importorskip("tests.data.torchvision_views")
Image = test_augment.Image


@pytest.mark.parametrize("name", torchvision_views.OPERATIONS)
def test_operation_equals_torchvision(name, tmp_path):
    theirs, values = torchvision_views.OPERATIONS[name][1:]
    names = {"brightness", "contrast", "saturation", "hue"}
    operation = {
        "grayscale": lambda x, _: Grayscale().on_device(x, None),
        "solarize": lambda x, _: Solarize().on_device(x, None),
        "flip": lambda x, _: Flip().on_device(x, None),
        "vertical flip": lambda x, _: VerticalFlip().on_device(x, None),
        "blur": blur.gaussian_on_device,
    }.get(name) or getattr(jitter, f"{name}_on_device" if name in names else name)
    for image in test_augment.photographs():
        for value in values:
            planes = jax.jit(operation)(jnp.asarray(image).transpose(2, 0, 1), jnp.float32(value))
            result = planes.transpose(1, 2, 0)
            expected = theirs(Image.fromarray(image), float(np.float32(value)))
            within = 4 if name == "hue" else 2
            test_augment.hold(result, expected, within, 0.5, 0.999, (name, value), tmp_path)


def crops_and_views(recipe, times, number):
    """Crops that the host makes, and their drawn parameters, as one and in a list.

    `number` is 0 for the query's view and 1 for the key's.
    """
    crops, drawn = [], []
    pictures = test_augment.photographs()[:2]
    for seed in range(times):
        view = torchvision_views.draw(recipe, pictures[seed % 2].shape, seed, number)
        image = resize.pad(tf.constant(pictures[seed % 2]))
        crops.append(augment.apply_view(image, view, recipe, crop_only=True))
        drawn.append(view)
    views = recipes.View(*(np.stack(field) for field in zip(*drawn, strict=True)))
    return np.stack(crops), views, drawn


@pytest.mark.parametrize(("name", "size", "number"), test_augment.CHAINS)
def test_chain_equals_torchvision(name, size, number, tmp_path):
    recipe = recipe_called(name, size)
    crops, views, drawn = crops_and_views(recipe, 8, number)
    results = jax.jit(device_views.finish, static_argnums=2)(crops, views, recipe)
    pictures = test_augment.photographs()[:2]
    for seed, view in enumerate(drawn):
        expected = torchvision_views.with_torchvision(pictures[seed % 2], view, recipe)
        test_augment.hold(results[seed], expected, 6, 1, 0.99, (name, view), tmp_path)


def test_batches_for_the_device_hold_the_hosts_parameters():
    """Crops finished on the device are the host's views of the same batch, within rounding."""
    recipe = recipes.create("cifar", 32)
    images = digits("train")
    images.images = np.random.default_rng(0).integers(0, 256, images.images.shape, np.uint8)

    def batch(crop_only):
        place = dict(seed=3, examples_seen=32, crop_only=crop_only)
        return next(train_batches(images, recipe, 16, **place))

    crops, whole = batch(True), batch(False)
    np.testing.assert_array_equal(crops["index"], whole["index"])
    for name in ("query", "key"):
        result = np.asarray(device_views.finish(crops[name], crops[f"{name}_view"], recipe))
        difference = np.abs(result.astype(int) - whole[name])
        assert difference.mean() < 0.2
        assert np.abs(crops[name].astype(int) - whole[name]).mean() > 10
    fields = jax.tree.map(lambda x: (x.dtype.name, *x.shape[1:]), crops["query_view"])
    assert tuple(fields) == recipes.FIELDS


def test_jitter_applies_each_operation_once_in_the_drawn_order():
    recipe = recipes.create("v1", 32)
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    operations = (
        jitter.brightness_on_device,
        jitter.contrast_on_device,
        jitter.saturation_on_device,
        jitter.hue_on_device,
    )
    factors = np.asarray([0.7, 1.3, 0.6, 0.2], np.float32)
    seen = set()
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        nothing = recipes.View(*(np.zeros(shape, dtype) for dtype, *shape in recipes.FIELDS))
        view = nothing._replace(color=True, factors=factors, order=np.asarray(order))
        view = jax.tree.map(lambda x: jnp.asarray(x)[None], view)
        expected = image.transpose(2, 0, 1)
        for number in order:
            expected = operations[number](expected, factors[number])
        result = device_views.finish(image[None], view, recipe)[0]
        # One program and four round a few values differently; another order would change most.
        difference = np.abs(result.astype(int) - expected.transpose(1, 2, 0))
        assert difference.mean() < 0.1
        seen.add(np.asarray(result).tobytes())
    assert len(seen) == 3
