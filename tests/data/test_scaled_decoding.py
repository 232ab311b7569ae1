"""JPEGs shrunk while decoded give nearly the same views of the same boxes; no more changes."""

import functools
import io

import numpy as np
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from moco_jax.data import pipeline
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.pixels import Decoding
from moco_jax.data.sources.tf_decode import RATIOS, decode_image, decode_or_flag
from moco_jax.data.views import augment, host_pixels, recipes, resize
from moco_jax.doctor.examination import scaled_decoding_difference
from tests.data.batches import train_batches
from tests.data.pictures import encoded, write

PHOTO = load_sample_images().images[0]


def first(folder, size, **options):
    images, recipe = FolderSource(str(folder)), recipes.create("v2", size)
    options |= {"damaged": pipeline.DamagedImages(2)}
    return next(train_batches(images, recipe, len(images), **options))


def files(**options):
    return {f"{n}.jpg": encoded(pixels=np.roll(PHOTO, 90 * n, 1), **options) for n in range(6)}


def test_views_differ_by_little_and_their_parameters_not_at_all(tmp_path):
    folder = write(tmp_path, files(quality=95))
    exact = first(folder, 48, crop_only=True)
    scaled = first(folder, 48, crop_only=True, scaled_decoding=True)
    for key in ("query_view", "key_view"):
        for a, b in zip(exact[key], scaled[key], strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(exact["index"], scaled["index"])
    difference = np.abs(exact["query"].astype(np.int32) - scaled["query"])
    assert (difference.max((1, 2, 3)) > 0).sum() >= 3  # some were shrunk
    assert difference.mean() < 0.5
    assert (difference <= 6).mean() > 0.99
    said = scaled_decoding_difference(scaled, exact).text
    assert "0." in said
    assert "gray levels" in said


def test_images_not_twice_their_views_are_decoded_whole(tmp_path):
    folder = write(tmp_path, files(quality=95) | {"small.png": encoded("PNG")})
    exact, scaled = (first(folder, 224, scaled_decoding=s) for s in (False, True))
    np.testing.assert_array_equal(exact["query"], scaled["query"])
    np.testing.assert_array_equal(exact["key"], scaled["key"])


def test_damaged_jpegs_are_still_replaced(tmp_path):
    bad = {"x.jpg": encoded()[:300], "y.jpg": b"\xff\xd8\xff"}
    folder = write(tmp_path, files() | bad)
    made = first(folder, 48, scaled_decoding=True)
    assert set(made["index"]) == set(range(6))


def shrunk(images, asked, record, number):
    """The decoded record, shrunk by the ratio in place `number`; `asked` gets what was asked."""
    return decode_or_flag(images, record, lambda size: asked.append(size) or number)


def test_sizes_are_those_of_the_whole_image_however_it_lies(tmp_path):
    for orientation in (1, 6):
        folder = write(tmp_path / str(orientation), files(orientation=orientation))
        images, asked = FolderSource(folder, Decoding(exif_rotation=True)), []
        record = tf.constant(images.read(np.asarray([0]))[0])
        whole = decode_or_flag(images, record)
        decode = tf.function(functools.partial(shrunk, images, asked), autograph=False)
        for number, ratio in enumerate(RATIOS):
            found = decode(record, tf.constant(number))
            assert found.ratio == ratio
            assert asked
            np.testing.assert_array_equal(found.size, whole.pixels.shape[:2])
            np.testing.assert_array_equal(found.pixels.shape[:2], -(-found.size // ratio))


def test_a_box_between_pixels_is_resized_as_pil_does_it():
    for box in ((10.25, 20.5, 300.125, 400.75), (3.5, 0.0, 100.0, 63.5), (0.125, 7.75, 40.0, 30.0)):
        top, left, height, width = box
        rows = slice(int(top), int(np.ceil(top + height)))
        columns = slice(int(left), int(np.ceil(left + width)))
        part = Image.fromarray(PHOTO[rows, columns])
        left, top = left - columns.start, top - rows.start
        within = (left, top, left + width, top + height)
        expected = part.resize((64, 64), Image.Resampling.BILINEAR, within)
        square = tf.constant([64, 64])
        planes = resize.resize(
            resize.pad(tf.constant(PHOTO)), tf.constant(box), square, tf.zeros_like(square), 64
        )
        difference = np.abs(
            host_pixels.to_pixels(planes).numpy().astype(int) - np.asarray(expected)
        )
        assert difference.max() <= 1
        assert difference.mean() < 0.3


def test_the_shorter_side_of_the_smaller_crop_decides():
    recipe = recipes.create("v2", 48)

    def view(height, width):
        nothing = [None] * (len(recipes.View._fields) - 1)
        return recipes.View(tf.constant([0, 0, height, width]), *nothing)

    large = view(2000, 2000)
    for *sides, number in (191, 900, 0), (900, 192, 1), (384, 384, 2), (767, 768, 2), (768, 768, 3):
        assert augment.shrink((large, view(*sides)), recipe) == number
        assert augment.shrink((view(*sides), large), recipe) == number


def test_shrinking_is_the_decoders_own():
    content = tf.constant(encoded(pixels=PHOTO, quality=95))
    for number, ratio in enumerate(RATIOS):
        image = Image.open(io.BytesIO(content.numpy()))
        image.draft("RGB", (PHOTO.shape[1] // ratio, PHOTO.shape[0] // ratio))
        np.testing.assert_array_equal(decode_image(content, shrunk=tf.constant(number)), image)
