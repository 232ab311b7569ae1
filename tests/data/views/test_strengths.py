"""Strengths as settings: recipes stay as they were, and what is asked for is what is drawn."""

import ast
import dataclasses
import functools
import hashlib
import shlex

import jax
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageFilter

from moco_jax import config as config_lib
from moco_jax.base.errors import UserError
from moco_jax.config.settings import SETTINGS, STRENGTHS
from moco_jax.data import configured, labelled_views
from moco_jax.data.views import augment, device_views, host_pixels, recipes, resize
from moco_jax.data.views.operations import blur
from moco_jax.evaluation import published
from moco_jax.training import checks
from tests.config.test_config import load
from tests.markdown import ROOT

SEED = 3
# Of each recipe: what test_recipes_draw_what_they_drew computed before strengths were settings.
DRAWN = {
    "v1": "a60d79dc54270f93",
    "v2": "bcb5f18b1fe2ad49",
    "v3": "0b02dc0e60a64ddf",
    "cifar": "b152d07bd0c5c34c",
    "digits": "2dd4ba7fe9ce3dad",
    "linear": "a7f96ad6ce569143",
}
COUNTED = ["box", "color", "order", "grayscale", "blur", "flip", "solarize"]


def draw(index, epoch, recipe):
    """The parameters of both views of images of 61 x 83 pixels."""
    sized = functools.partial(device_views.draw_two_views, SEED, height=61, width=83, recipe=recipe)
    return jax.device_get(jax.jit(sized)(epoch, index))


def own_strengths(recipe):
    """All that a recipe has, as settings would say it."""
    return {
        field.name: value if isinstance(value, tuple) else (value,)
        for stage in (recipe.crop, *recipe.operations)
        for field in dataclasses.fields(stage)
        if (value := getattr(stage, field.name)) is not None and field.name in STRENGTHS
    }


def meaning(recipe):
    """What a recipe does, whether a probability is written once or for each view."""
    operations = [
        (type(o), o.chance(0), o.chance(1), getattr(o, "jitter", 0), getattr(o, "blur_sigma", 0))
        for o in recipe.operations
    ]
    return recipe.crop, operations, recipe.image_size, recipe.evaluation_resize


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_draw_what_they_drew(name):
    """Also with their own strengths as settings, with a multiplier of 1, and turns of none."""
    some, recipe = np.arange(64, dtype=np.int32), recipes.create(name, 40)
    views = draw(some, some // 8, recipe)
    drawn = [getattr(view, field).astype(np.int32) for view in views for field in COUNTED]
    assert hashlib.sha256(b"".join(x.tobytes() for x in drawn)).hexdigest()[:16] == DRAWN[name]
    none = {"rotate_probability": (0.0,), "vertical_flip_probability": (0.0, 0.0)}
    own = own_strengths(recipe)
    assert len(own) > 3 or name in ("digits", "linear")
    assert meaning(recipes.create(name, 40, strengths=own | none)) == meaning(recipe)
    if "jitter" in own:
        once = recipes.create(name, 40, strengths=own | {"jitter": (1.0,)})
        assert meaning(once) == meaning(recipe)


def test_settings_have_the_names_of_stages():
    names = {field.name for stage in recipes.STAGES for field in dataclasses.fields(stage)}
    assert set(STRENGTHS) == names - {"crop_scale"}  # whose lower end is crop_min


def recipe_with(**changes):
    """The recipe of a config with these settings, if they pass the checks."""
    config = config_lib.default_config()
    config.update({"augment": "v3"} | changes)
    checks.check_values(config)
    return configured.recipe_of(config)


def test_a_number_is_of_both_views_and_two_are_of_each():
    recipe = recipe_with(blur_probability=0.3, grayscale_probability=(0.0, 1), jitter=0.5)
    assert [recipe.stage(s).chance(n) for s in recipes.STAGES[2:4] for n in (0, 1)] == [
        *(0.0, 1.0),
        *(0.3, 0.3),
    ]
    assert recipe.jitter == (0.2, 0.2, 0.1, 0.05)
    assert recipe_with(jitter=(0.1, 0.2, 0.3, 0.4)).jitter == (0.1, 0.2, 0.3, 0.4)
    assert recipe_with(crop_ratio=(1, 2), crop_min=0.3).crop == recipes.Crop((0.3, 1.0), (1.0, 2.0))


def test_operations_that_are_asked_for_come_in_their_order_and_idle_ones_go():
    every = ("color", "grayscale", "blur", "flip", "solarize", "vertical_flip", "rotate")
    asked = {name: 0.5 for name in STRENGTHS if name.endswith("_probability")}
    assert recipe_with(augment="digits", **asked).stages == ("crop", *every)
    assert recipe_with(augment="digits", **asked).jitter == (0.4, 0.4, 0.4, 0.1)
    assert recipe_with(augment="v1", blur_probability=1).stages == (
        *("crop", "grayscale", "color", "blur", "flip"),
    )
    assert recipe_with(augment="cifar", rotate_probability=1, jitter=0).stages == (
        *("crop", "flip", "grayscale", "rotate"),
    )
    still = dict.fromkeys(asked, 0)
    assert recipe_with(augment="v3", **still).stages == ("crop",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(augment="cifar", blur_sigma=(0.1, 1.0)), r"blur_sigma=\(0.1, 1.0\) changes nothing"),
        (dict(augment="linear", jitter=0.5), "jitter=0.5 changes nothing.*probability=0.5"),
        (dict(blur_probability=0, blur_sigma=(0.1, 1)), r"blur_sigma=.*blur_probability is 0"),
        (dict(augment="v1", jitter=2), r"jitter=2.0 makes the hue's .* jitter=1.25 works"),
        (dict(jitter=(0, 0, 0, 0.6)), r"jitter=.* half of the circle; try \(0.0, 0.0, 0.0, 0.5\)"),
        (dict(crop_ratio=(2, 0.5)), r"crop_ratio=\(2.0, 0.5\) must ascend; try \(0.5, 2.0\)"),
        (dict(jitter=(0.4, 0.4)), r"jitter=.* must be 1 or 4 numbers, .* or \(\); try 0.5"),
        (
            dict(channels=1, mean=(0.5,), std=(0.2,), jitter_probability=0.5),
            r"jitter_probability=0.5 is of colours.*channels=1; jitter_probability=\(\) works",
        ),
    ],
)
def test_what_would_change_nothing_or_has_no_sense_is_refused(changes, message):
    with pytest.raises(UserError, match=message) as stopped:
        recipe_with(**changes)
    assert "\n" not in str(stopped.value)


def test_what_is_drawn_is_what_was_asked_for():
    """Frequencies in each view, and the spread of each number, over thousands of examples."""
    stats = pytest.importorskip("scipy.stats")
    asked = dict(
        jitter_probability=(0.3, 0.9),
        grayscale_probability=0.6,
        blur_probability=(0.2, 0.7),
        solarize_probability=0.4,
        flip_probability=(0.1, 0.5),
        vertical_flip_probability=(0.25, 0.75),
        rotate_probability=(0.8, 0.45),
        jitter=(0.1, 0.6, 0.0, 0.3),
        blur_sigma=(1.0, 5.0),
        crop_ratio=(0.5, 3.0),
    )
    times, recipe = 4000, recipe_with(crop_min=0.1, **asked)
    views = draw(np.arange(times, dtype=np.int32), np.full(times, 2, np.int32), recipe)
    for number, view in enumerate(views):
        for operation in recipe.operations:
            hits = int(np.asarray(getattr(view, operation.name)).sum())
            expected = operation.chance(number)
            assert stats.binomtest(hits, times, expected).pvalue > 1e-3, (operation.name, number)
        turns = np.bincount(view.quarters, minlength=4)
        assert stats.chisquare(turns).pvalue > 1e-3
        assert stats.kstest(view.sigma, "uniform", (1.0, 4.0)).pvalue > 1e-3
        away = np.abs(view.factors - [1, 1, 1, 0]).max(0)
        np.testing.assert_allclose(away, (0.1, 0.6, 0.0, 0.3), atol=1e-3)
        pair = view.rotate, view.vertical_flip
        assert stats.fisher_exact(np.histogram2d(*pair, bins=2)[0]).pvalue > 1e-3
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms")
    torch.manual_seed(0)
    canvas, limits = Image.new("RGB", (83, 61)), ([0.1, 1.0], [0.5, 3.0])
    theirs = np.asarray(
        [transforms.RandomResizedCrop.get_params(canvas, *limits) for _ in range(1500)]
    )
    for numbers in (np.multiply, np.divide):
        ours = numbers(views[0].box[:, 3], views[0].box[:, 2])
        assert stats.ks_2samp(ours, numbers(theirs[:, 3], theirs[:, 2])).pvalue > 1e-3


def test_the_strongest_blur_that_is_permitted_is_pils():
    """Also where it reaches further than the view is wide; a step of rounding apart at most."""
    image = np.random.default_rng(0).integers(0, 256, (30, 13, 3), np.uint8)
    reach = blur.reach_of(SETTINGS["blur_sigma"].range.most)
    on_device = jax.jit(functools.partial(blur.gaussian_on_device, reach=reach))
    for sigma in (0.0, 0.7, 5.0, 16.0):
        expected = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))
        planes = host_pixels.to_planes(tf.constant(image))
        hosts = blur.gaussian_on_host(planes, tf.constant(sigma), reach)
        devices = on_device(image.transpose(2, 0, 1), np.float32(sigma)).transpose(1, 2, 0)
        for found in (host_pixels.to_pixels(hosts).numpy(), np.asarray(devices)):
            assert np.abs(found.astype(int) - expected).max() <= 1, sigma


@pytest.mark.parametrize("shape", [(1, 17), (13, 1), (1, 1)])
def test_images_of_any_shape_are_turned(shape):
    """Host and device turn the whole view as NumPy does, also where no crop has a fitting shape."""
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    asked = dict(
        rotate_probability=(1.0,),
        vertical_flip_probability=(0.5,),
        flip_probability=(0.5,),
        crop_ratio=(4.0, 5.0),
    )
    recipe = recipes.create("digits", 24, strengths=asked)
    seen = set()
    for index in range(6):
        drawn = augment.draw_two_views(
            tf.constant(shape), SEED, tf.constant(0, tf.int64), tf.constant(index, tf.int64), recipe
        )[1]
        crop = host_view(image, recipe, crop_only=True)(drawn)
        expected = crop[:, ::-1] if drawn.flip else crop
        expected = expected[::-1] if drawn.vertical_flip else expected
        expected = np.rot90(expected, int(drawn.quarters))
        np.testing.assert_array_equal(host_view(image, recipe)(drawn), expected)
        ours = labelled_views.draw_and_crop(image, index, 0, SEED, recipe, 1)
        np.testing.assert_array_equal(ours.view.box, drawn.box)
        assert min(ours.view.box[2:]) > 0
        difference = labelled_views.finish([ours], recipe)[0].astype(int) - expected
        assert np.abs(difference).max() <= 1  # of the two resizes
        seen.add((int(drawn.quarters), bool(drawn.vertical_flip)))
    assert len(seen) > 3


def host_view(image, recipe, crop_only=False):
    padded = resize.pad(tf.constant(image))
    return lambda view: augment.apply_view(padded, view, recipe, crop_only).numpy()


def test_what_a_run_says_of_its_views_follows_the_settings():
    config = load("imagenet:v2")
    assert configured.views_in_words(config) == "augment='v2'"
    assert published.of("linear", config) is not None
    config.update(rotate_probability=1, blur_probability=(0.5, 0.0), crop_ratio=(1, 1))
    assert configured.views_in_words(config) == (
        "augment='v2', crop_ratio=(1.0, 1.0), blur_probability=(0.5, 0.0), rotate_probability=1.0"
    )
    assert recipes.described(configured.recipe_of(config)) == (
        "crop 20 to 100 % crop_ratio=(1, 1); color 80 % jitter=(0.4, 0.4, 0.4, 0.1); "
        "grayscale 20 %; blur 50 / 0 % blur_sigma=(0.1, 2); flip 50 %; rotate 100 %"
    )
    assert published.of("linear", config) is None
    assert recipes.without_colours("v2", 2, configured.strengths_of(config)).endswith(
        "are left out; crop, blur, flip and rotate remain"
    )


def test_the_pages_examples_are_recipes_without_an_up():
    page = (ROOT / "docs/data.md").read_text().replace("\\\n", " ")
    lines = [line for line in page.splitlines() if "--config.rotate_probability" in line]
    assert len(lines) == 2
    for line in lines:
        pairs = [word[9:].partition("=") for word in shlex.split(line) if "--config." in word]
        given = {key: ast.literal_eval(value) for key, _, value in pairs if key != "data_dir"}
        config = load("folder")
        config.update(given | {"data_dir": "FOLDER"})
        checks.check_values(config)
        recipe = configured.recipe_of(config)
        assert recipe.stages[-3:] == ("flip", "vertical_flip", "rotate")
        assert set(configured.strengths_of(config)) == set(given) - {"data_dir"}
