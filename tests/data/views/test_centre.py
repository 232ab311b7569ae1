"""The view of evaluations is torchvision's on PIL, channel by channel.

Large or long images need little memory.
"""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from moco_jax.data.views import augment, centre, recipes


def by_pil(image, side, size):
    """Resized as a whole, then cropped."""
    height, width = image.shape[:2]
    short = min(height, width)
    lengths = side * width // short, side * height // short
    left, top = (round((length - size) / 2) for length in lengths)
    resized = Image.fromarray(image).resize(lengths, Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def test_views_are_pils_at_any_size():
    rng = np.random.default_rng(0)
    for _ in range(24):
        height, width = rng.integers(1, 300, 2)
        image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        side = int(rng.integers(16, 64))
        size = int(rng.integers(8, side + 1))
        expected = by_pil(image, side, size)
        np.testing.assert_array_equal(centre.view(image, side, size), expected)
        recipe = recipes.create("v1", size)
        expected = by_pil(image, recipe.evaluation_resize, size)
        made = augment.evaluation_view(tf.constant(image), recipe)
        np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("shape", [(2, 900), (700, 1), (3, 1500)])
def test_of_long_images_only_the_centre_is_made_and_is_the_same(shape, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    whole = by_pil(image, 64, 56)
    monkeypatch.setattr(centre, "_LARGEST", 64)
    difference = np.abs(centre.view(image, 64, 56).astype(int) - whole)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


MEASURE = """
import io, sys
import numpy as np
from PIL import Image
Image.MAX_IMAGE_PIXELS = None
from moco_jax.data.views import centre
from moco_jax.data.sources import pixels
def kept(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024
for mode, sides, kind, orientation in (
    ("RGB", (5000, 5000), "PNG", 1), ("1", (6000, 6000), "PNG", 1), ("P", (5000, 5000), "GIF", 1),
    ("RGB", (5000, 5000), "JPEG", 6), ("RGB", (2, 12000), "PNG", 1),
):
    file, exif = io.BytesIO(), Image.Exif()
    exif[274] = orientation
    Image.new(mode, sides).save(file, kind, **({"exif": exif} if orientation > 1 else {}))
    content = file.getvalue()
    del file
    open("/proc/self/clear_refs", "w").write("5")
    before = kept("VmRSS")
    centre.view(pixels.pixels(content, pixels.Decoding(True)), 256, 224)
    print(mode, *sides, kept("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_decoding_and_resizing_take_little_memory_beyond_the_pixels():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 5
    for line in done.stdout.splitlines():
        _, width, height, taken = line.split()
        assert int(taken) < 3.5 * int(width) * int(height) * 3 + 40e6, line
