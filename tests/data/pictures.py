"""Encoded images for the tests of this folder."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from moco_jax.data.sources.tf_decode import decode_or_flag

PHOTO = load_sample_images().images[1][150:247, 250:381]
ORIENTATION = 0x0112


def encoded(kind="JPEG", mode="RGB", orientation=0, pixels=PHOTO, **options):
    """`pixels` as a file of this kind; `orientation` is written as Exif if above 0."""
    image = Image.fromarray(pixels)
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"][ORIENTATION] = orientation
    buffer = io.BytesIO()
    (image.convert(mode) if pixels is PHOTO else image).save(buffer, kind, **options)
    return buffer.getvalue()


def opened(content):
    """What PIL makes of an encoded image."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def decoded(source):
    """Each image of a source, decoded in one graph as in training: [(pixels, is it sound)].

    Without tf.data, as where a damaged image is replaced, they are the same.
    """
    records = source.read(np.arange(len(source))).tolist()
    data = tf.data.Dataset.from_tensor_slices(records).map(lambda r: decode_or_flag(source, r))
    found = [(image.pixels, image.ok) for image in data.as_numpy_iterator()]
    single = tf.function(
        lambda r: decode_or_flag(source, r), autograph=False, reduce_retracing=True
    )
    for record, (pixels, ok) in zip(records, found, strict=True):
        alone = single(tf.constant(record))
        assert alone.ok.numpy() == ok
        np.testing.assert_array_equal(alone.pixels, pixels)
    return found


def write(folder, files):
    """Write `files`, name -> content, below `folder`."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder)
