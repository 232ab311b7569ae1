"""Operations, whole chains and drawn parameters against torchvision's, on PIL."""

import functools
import io
import os

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_sample_images

from moco_jax.data.sources.tf_decode import decode_image
from moco_jax.data.sources.tfds import TFDSSource
from moco_jax.data.views import augment, host_pixels, recipes, resize
from moco_jax.data.views.operations import Solarize, jitter

torch = pytest.importorskip("torch", reason="compares with torchvision: pip install '.[torch]'")
transforms = pytest.importorskip("torchvision.transforms", reason="pip install '.[torch]'")
from PIL import Image
from torchvision.transforms import functional as F

from tests.data.batches import recipe_called
from tests.data.torchvision_views import (
    OPERATIONS,
    STATISTICS,
    authors_transform,
    cropped,
    draw,
    on_planes,
    statistics,
    with_torchvision,
)

TFDS = os.environ.get("MOCO_JAX_TFDS")
IMAGENET = 40
# Images are cut to the first of these that they hold: a program is compiled for each shape.
SIDES = ((333, 500), (500, 296), (160, 160))
# recipe, side, and which view
CHAINS = [("v1", 224, 0), ("v2", 224, 0), ("v3", 224, 0), ("v3", 224, 1), ("cifar", 32, 0)]
CHAINS.append(("turned", 32, 0))


def photographs():
    """Two real photographs, and noise that reaches every colour."""
    photos = [image[:, :, :3] for image in load_sample_images().images]
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    return [photos[0][:400, :300], photos[1][100:, 200:], noise]


@functools.cache
def imagenet():
    """Images of ImageNet's validation set as we decode them, checked against PIL's decoder."""
    images = TFDSSource("imagenet2012", "validation", TFDS)
    decoded = []
    for record in images.read(np.arange(IMAGENET)):
        content = tf.train.Example.FromString(record).features.feature["image"].bytes_list.value[0]
        decoded.append(decode_image(images.encoded(record)).numpy())
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        np.testing.assert_array_equal(decoded[-1], pixels)
    return decoded


PICTURES = [
    photographs,
    pytest.param(
        imagenet,
        marks=pytest.mark.skipif(
            not TFDS, reason="MOCO_JAX_TFDS names no TFDS data directory with imagenet2012"
        ),
    ),
]


def hold(ours, theirs, within, mean, share, what, folder):
    """Mean difference at most `mean`, `share` of values within `within`; else both are saved."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    difference = np.abs(ours.astype(np.int32) - theirs.astype(np.int32))
    found = difference.mean(), (difference <= within).mean()
    if found[0] > mean or found[1] < share:
        path = folder / "ours_and_torchvision.png"
        Image.fromarray(np.concatenate([ours, theirs], 1)).save(path)
        pytest.fail(f"mean difference {found[0]}, share {found[1]}: {what}; side by side: {path}")


@pytest.mark.parametrize("pictures", PICTURES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_equals_torchvision(name, pictures, tmp_path):
    ours, theirs, values = OPERATIONS[name]
    within = 4 if name == "hue" else 2
    for number, image in enumerate(pictures()):
        if pictures is imagenet:
            sides = next(s for s in SIDES if (np.asarray(s) <= image.shape[:2]).all())
            image = image[: sides[0], : sides[1]]
        # Every value on a few pictures, one on each of many.
        for value in values if number < 3 else values[number % len(values) :][:1]:
            result = on_planes(ours, image, value)
            expected = theirs(Image.fromarray(image), float(np.float32(value)))
            hold(result, expected, within, 0.5, 0.999, (name, value, number), tmp_path)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_solarize_is_exactly_torchvisions(channels):
    """Of every value in every channel, in planes and packed."""
    values = np.stack([np.roll(np.arange(256), 50 * c) for c in range(channels)], -1)
    image = values.astype(np.uint8).reshape(16, 16, channels)
    layers = [F.solarize(Image.fromarray(image[..., c]), 128) for c in range(channels)]
    expected = np.stack([np.asarray(layer) for layer in layers], -1)
    assert expected.max() == 127
    assert (expected[image == 127].max(), expected[image == 128].max()) == (127, 127)
    planes = Solarize().on_host(host_pixels.to_planes(tf.constant(image)), None)
    np.testing.assert_array_equal(host_pixels.to_pixels(planes), expected)
    on_device = Solarize().on_device(jnp.asarray(image).transpose(2, 0, 1), None).transpose(1, 2, 0)
    np.testing.assert_array_equal(on_device, expected)
    if channels == 3:
        packed = on_planes(lambda x, _: Solarize().on_host(x, None), image, 0)
        np.testing.assert_array_equal(packed, expected)
        np.testing.assert_array_equal(packed, F.solarize(Image.fromarray(image), 128))


def test_hue_of_a_million_colours(tmp_path):
    """Hues of a million colours and all grays are PIL's, but for a few one step of 255 off.

    PIL cuts numbers of float64 down to whole ones.
    """
    colours = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    colours[0, :256] = np.arange(256)[:, None]
    for value in (-0.1, 0.013, 0.4):
        result = on_planes(jitter.hue_on_host, colours, value)
        expected = F.adjust_hue(Image.fromarray(colours), value)
        hold(result, expected, 0, 0.005, 0.998, value, tmp_path)
        hold(result, expected, 6, 0.005, 1, value, tmp_path)


@pytest.mark.parametrize("height", [333, 3000])
@pytest.mark.parametrize("width", [499, 900, 5000])
def test_a_large_image_shrunk_equals_torchvision(height, width, tmp_path):
    image = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    result = cropped(image, (0, 0, height, width), 32)
    expected = F.resized_crop(Image.fromarray(image), 0, 0, height, width, [32, 32])
    hold(result, expected, 1, 0.25, 1, (height, width), tmp_path)


@pytest.mark.parametrize(
    "box", [(0, 0, 90, 100), (10, 20, 70, 31), (5, 6, 40, 44), (3, 3, 1, 1), (0, 0, 96, 128)]
)
@pytest.mark.parametrize("size", [32, 224])
def test_crop_and_resize_equals_torchvision(box, size, tmp_path):
    for image in photographs():
        result = cropped(image, box, size)
        expected = F.resized_crop(Image.fromarray(image), *box, [size, size])
        hold(result, expected, 1, 0.3, 1, (box, size), tmp_path)


@pytest.mark.parametrize("shape", [(300, 400), (401, 300), (224, 224), (255, 257), (100, 120)])
@pytest.mark.parametrize("name", ["v1", "v2", "v3"])
def test_evaluation_view_equals_torchvision(name, shape, tmp_path):
    image = photographs()[1][: shape[0], : shape[1]]
    recipe = recipes.create(name, 96)
    assert recipe.evaluation_resize == 110
    chain = transforms.Compose(
        [transforms.Resize(recipe.evaluation_resize), transforms.CenterCrop(96)]
    )
    result = augment.evaluation_view(tf.constant(image), recipe)
    hold(result, chain(Image.fromarray(image)), 1, 0.25, 1, shape, tmp_path)


@pytest.mark.parametrize("pictures", PICTURES)
@pytest.mark.parametrize(("name", "size", "number"), CHAINS)
def test_chain_equals_torchvision(name, size, number, pictures, tmp_path):
    recipe = recipe_called(name, size)
    apply = tf.function(
        lambda image, view: augment.apply_view(resize.pad(image), view, recipe),
        reduce_retracing=True,
    )
    for seed in range(24):
        image = pictures()[seed % (len(pictures()) - 1)]
        view = draw(recipe, image.shape, seed, number)
        expected = with_torchvision(image, view, recipe)
        hold(apply(tf.constant(image), view), expected, 6, 1, 0.99, (name, view), tmp_path)


@pytest.mark.parametrize(("name", "number"), [("v1", 0), ("v2", 0), ("v3", 0), ("v3", 1)])
def test_statistics_of_whole_pipelines_equal_torchvisions(name, number):
    """Each draws for itself; the means over all views differ by no more than chance makes them."""
    recipe, times, size = recipes.create(name, 64), 1200, 64
    photos = [photo[-200:, -180:] for photo in photographs()[:2]]  # of one shape, one program
    apply = tf.function(
        lambda image, view: augment.apply_view(image, view, recipe), reduce_retracing=True
    )
    padded = [resize.pad(tf.constant(photo)) for photo in photos]
    drawn = [draw(recipe, photos[seed % 2].shape, seed, number) for seed in range(times)]
    ours = [statistics(apply(padded[i % 2], view).numpy()) for i, view in enumerate(drawn)]
    torch.manual_seed(0)
    transform = authors_transform(name, size, number)
    pictures = [Image.fromarray(photo) for photo in photos]
    theirs = [
        statistics(transform(pictures[i % 2]).numpy().transpose(1, 2, 0)) for i in range(times)
    ]
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    error = np.sqrt((ours.var(0) + theirs.var(0)) / times)
    away = np.abs(ours.mean(0) - theirs.mean(0)) / error
    assert away.max() < 4, dict(zip(STATISTICS, away, strict=True))


@tf.function
def draw_many(recipe, number, shape, view):
    """Parameters of `number` views of images of one shape: a View of arrays `[number, ...]`."""
    uniforms = tf.random.stateless_uniform([number, recipes.UNIFORMS], [5, 7], alg="philox")
    return tf.map_fn(
        lambda u: augment.draw_view(u, tf.constant(shape[0]), tf.constant(shape[1]), recipe, view),
        uniforms,
        fn_output_signature=recipes.View(*(tf.as_dtype(dtype) for dtype, *_ in recipes.FIELDS)),
    )


def test_drawn_parameters_follow_torchvision():
    """Kolmogorov-Smirnov tests of every continuous parameter; frequencies of the others."""
    stats = pytest.importorskip("scipy.stats")
    recipe, number, shape = recipes.create("v2", 224), 3000, (300, 200)
    views = draw_many(recipe, number, shape, 0)
    torch.manual_seed(0)
    canvas = Image.new("RGB", shape[::-1])
    boxes = np.asarray(
        [
            transforms.RandomResizedCrop.get_params(canvas, [0.2, 1.0], [3 / 4, 4 / 3])
            for _ in range(number)
        ]
    )
    ours = views.box.numpy()
    pairs = {
        "area": (ours[:, 2] * ours[:, 3], boxes[:, 2] * boxes[:, 3]),
        "aspect": (ours[:, 3] / ours[:, 2], boxes[:, 3] / boxes[:, 2]),
        "top": (ours[:, 0], boxes[:, 0]),
        "left": (ours[:, 1], boxes[:, 1]),
        "sigma": (views.sigma.numpy(), np.random.default_rng(0).uniform(0.1, 2.0, number)),
    }
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
    drawn = [
        jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        for _ in range(number)
    ]
    for place in range(4):
        pairs[f"factor {place}"] = (
            views.factors.numpy()[:, place],
            np.asarray([float(d[1 + place]) for d in drawn]),
        )
    for name, (a, b) in pairs.items():
        assert stats.ks_2samp(a, b).pvalue > 1e-3, name
    orders = np.unique(views.order.numpy(), axis=0, return_counts=True)[1]
    assert len(orders) == 24
    assert stats.chisquare(orders).pvalue > 1e-3
    for name, probability in (("color", 0.8), ("grayscale", 0.2), ("blur", 0.5), ("flip", 0.5)):
        hits = int(getattr(views, name).numpy().sum())
        assert stats.binomtest(hits, number, probability).pvalue > 1e-3, name


@pytest.mark.parametrize(
    ("number", "probabilities"),
    [(0, dict(blur=1.0, solarize=0.0)), (1, dict(blur=0.1, solarize=0.2))],
)
def test_the_views_of_v3_differ(number, probabilities):
    """Blur and solarization are as often in each view as BYOL has them, and independent."""
    stats = pytest.importorskip("scipy.stats")
    times = 3000
    views = draw_many(recipes.create("v3", 224), times, (300, 200), number)
    for name, probability in (probabilities | dict(color=0.8, grayscale=0.2, flip=0.5)).items():
        drawn = getattr(views, name).numpy()
        if probability in (0, 1):
            assert (drawn == bool(probability)).all(), name
        else:
            assert stats.binomtest(int(drawn.sum()), times, probability).pvalue > 1e-3, name
    strengths = np.asarray([0.4, 0.4, 0.2, 0.1])
    away = np.abs(views.factors.numpy() - [1, 1, 1, 0]).max(0)
    assert (away <= strengths + 1e-6).all()
    assert (away > 0.99 * strengths).all()
    if number:
        for other in ("color", "grayscale", "blur", "flip"):
            pair = views.solarize.numpy(), getattr(views, other).numpy()
            assert stats.fisher_exact(np.histogram2d(*pair, bins=2)[0]).pvalue > 1e-3, other


def test_what_an_example_draws_is_fixed():
    """A run that goes on after an update of this code sees the views that it would have seen."""
    numbers = tf.constant(5, tf.int64), tf.constant(7, tf.int64)
    for name in ("v2", "v3"):
        query, key = augment.draw_two_views(
            tf.constant([300, 200]), 3, *numbers, recipes.create(name, 224, 0.2)
        )
        np.testing.assert_array_equal(query.box, [103, 6, 178, 172])
        np.testing.assert_array_equal(key.box, [57, 3, 203, 197])
        np.testing.assert_allclose([query.sigma, key.sigma], [0.834202, 1.293635], rtol=1e-6)


def test_a_crop_that_never_fits_falls_back_to_torchvisions():
    recipe = recipes.create("v2", 32)
    for shape in ((2, 90), (90, 2)):
        view = draw(recipe, shape, 0)
        canvas = Image.new("RGB", shape[::-1])
        torch.manual_seed(0)
        expected = transforms.RandomResizedCrop.get_params(canvas, [0.9, 1.0], [3 / 4, 4 / 3])
        assert tuple(view.box.numpy()) == expected


def test_views_depend_on_seed_example_epoch_and_view_alone():
    image, recipe = tf.constant(photographs()[2]), recipes.create("cifar", 32)

    def views(workers, epoch, seed=3):
        def make(i):
            drawn = augment.draw_two_views(
                tf.shape(image)[:2], seed, tf.constant(epoch, tf.int64), i, recipe
            )
            return tuple(augment.apply_view(resize.pad(image), view, recipe) for view in drawn)

        data = tf.data.Dataset.range(20).map(make, num_parallel_calls=workers)
        return [np.stack(x) for x in zip(*data.as_numpy_iterator(), strict=True)]

    query, key = views(1, 0)
    for again, first in zip(views(4, 0), (query, key), strict=True):
        np.testing.assert_array_equal(again, first)
    for other in (key, views(1, 1)[0], views(1, 0, seed=4)[0], np.roll(query, 1, 0)):
        assert (query != other).any((1, 2, 3)).all()


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ValueError, match=r"augment='v9'.*v1, v2"):
        recipes.create("v9", 32)
